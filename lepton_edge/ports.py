"""How the inputs and outputs of a converted model come from those of the source model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lepton_edge.errors import LeptonError


@dataclass(frozen=True)
class Port:
    """Tensor ``name`` of the model at hand is tensor ``source`` of the source model, transposed by ``perm``.

    ``perm`` counts the batch axis as 0, as numpy.transpose does; None stands for no transposition.
    """

    name: str
    source: str
    perm: tuple[int, ...] | None = None

    def to_json(self) -> dict:
        """Plain data."""
        return {"name": self.name, "source": self.source, "perm": list(self.perm) if self.perm else None}


Ports = tuple[Port, ...]


def identity(specs: Iterable[dict]) -> Ports:
    """The ports of the source model itself."""
    return tuple(Port(s["name"], s["name"]) for s in specs)


def from_json(entries: Iterable[dict]) -> Ports:
    """What ``Port.to_json`` told."""
    return tuple(Port(e["name"], e["source"], tuple(e["perm"]) if e["perm"] else None) for e in entries)


def after(ports: Ports, entries: Sequence[dict] | None) -> Ports:
    """The ports behind a step that reported ``entries`` ({"name", "source", "perm"}); None: it kept them."""
    if entries is None:
        return ports
    known = {p.name: p for p in ports}
    result = []
    for i, entry in enumerate(entries):
        before = known.get(entry["source"]) or (ports[i] if i < len(ports) else None)
        if before is None:
            raise LeptonError(
                f"a step made the tensor '{entry['name']}', which no tensor of the source model stands behind"
            )
        result.append(Port(entry["name"], before.source, _compose(before.perm, entry.get("perm"))))
    return tuple(result)


def forward(ports: Ports, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the source model's tensors under the names and in the layouts of the model at hand."""
    known = ((p.name, p.perm, shapes[p.source]) for p in ports if p.source in shapes)
    return {name: tuple(shape[i] for i in perm) if perm else shape for name, perm, shape in known}


def _compose(first: tuple[int, ...] | None, then: Sequence[int] | None) -> tuple[int, ...] | None:
    if then is None:
        return first
    both = tuple(first[i] for i in then) if first else tuple(then)
    return None if both == tuple(range(len(both))) else both


def resolve(ports: Ports, specs: Sequence[dict], what: str) -> Ports:
    """Match ``ports`` with the names that the runtime reports: by name, else all of them by order.

    Raises LeptonError when the counts differ, for then an output would be compared with the wrong one.
    """
    names = [s["name"] for s in specs]
    if {p.name for p in ports} == set(names):
        by_name = {p.name: p for p in ports}
        return tuple(by_name[n] for n in names)
    if len(ports) != len(names):
        raise LeptonError(
            f"{what}: the model has {len(names)} ({', '.join(names)}) where the source has {len(ports)} "
            f"({', '.join(p.source for p in ports)})",
            "the conversion changed the model's signature; see the steps in the report",
        )
    return tuple(Port(n, p.source, p.perm) for n, p in zip(names, ports, strict=True))


def without_batch(perm: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The permutation of one sample's axes; None also where the batch axis itself moves (then shapes decide)."""
    if perm is None or perm[0] != 0:
        return None
    return tuple(p - 1 for p in perm[1:])
