"""Models run elsewhere: which runtime a device has for them, and whether it answers as this machine does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from lepton_edge import feeds, locate, registry, routes, run_feeds, stages, verify
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.feeds import Feed
from lepton_edge.place import Place
from lepton_edge.ports import identity
from lepton_edge.recipe import Recipe
from lepton_edge.registry import Runtime
from lepton_edge.stages import Answers, Model, Road

#: What platform tags and kernels call the same processor.
MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "AMD64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
MACHINES |= {name: "armv7l" for name in ("armv7l", "armv8l", "armhf")} | {"armv6l": "armv6l", "i686": "i686"}
#: SQNR in dB below which a device answers differently: other kernels round elsewhere, a saturated sum is at 9 dB.
FLOAT_DB, INTEGER_DB = 60.0, 25.0


@dataclass(frozen=True)
class Subject:
    """One model to be run in places: in which runtime here, on which samples, and what it answered here.

    ``asked``: the runtime was asked for, so it is the one everywhere. Without ``here`` nothing is compared.
    """

    name: str
    model: Model
    runtime: Runtime
    feed: Feed
    here: Answers | None = None
    quantized: bool = False
    asked: bool = False
    free_batch: bool = True

    @property
    def limit(self) -> float:
        """The SQNR (dB) that answers elsewhere have to reach against this machine's."""
        return INTEGER_DB if self.quantized else FLOAT_DB


def subjects(
    road: Road, paths: Sequence[Path], recipe: Recipe, runtime: str | None, *, compared: bool
) -> list[Subject]:
    """Open models here, under names that differ. ``compared``: also run their samples, to hold devices against them."""
    found: list[Subject] = []
    for path in paths:
        # Whether a board has the device that a runtime is asked to use, only it can tell.
        source = stages.load_source(road, path, runtime=runtime.partition(":")[0] if runtime and compared else runtime)
        chosen = registry.runtime_for(source.art.format, runtime)
        feed = run_feeds.open_feeds(road, source, recipe, seeded=True).evaluation
        fixed = [s for s in source.inputs if not s["shape"] or s["shape"][0] is not None]
        again = sum(it.name.partition(" (")[0] == path.name for it in found)
        name = f"{path.name} ({again + 1})" if again else path.name
        it = Subject(name, source.model(), chosen, feed, asked=runtime is not None, free_batch=not fixed)
        if compared:
            quantized = routes.is_quantized(road, source)
            it = replace(it, here=stages.reference(road, source, feed), quantized=quantized)
        found.append(it)
    return found


def fewer(road: Road, feed: Feed, here: Answers, most: int) -> tuple[Feed, Answers]:
    """At most ``most`` of the samples that were answered here, for a device that is slow."""
    few, chosen = feeds.thinned(feed, most, road.folder("fewer") / "feed")
    return few, replace(here, outputs={name: array[chosen] for name, array in here.outputs.items()})


def runtime_there(
    it: Subject, device: Device, packages: dict[str, str], wheels: Sequence[Path] = (), *, provided: bool = False
) -> Runtime:
    """The runtime to use on a device: the first of its list, else the lightest, that is installed or carried there.

    Where all packages are ``provided`` it is the first of the list in any case.
    Raises LeptonError when it has none for the model's format.
    """
    format_ = it.model.art.format
    carried = {_named(wheel)[0] for wheel in wheels}
    there = {name.lower().replace("_", "-") for name in (*carried, *packages)}
    known = [it.runtime] if it.asked else [r for r in registry.runtimes() if format_ in r.formats and not r.broken]
    known.sort(key=lambda r: (device.runtimes.index(r.name) if r.name in device.runtimes else 99, r.cost))
    needs = {r.name: [Requirement(q).name.lower() for q in r.requires] for r in known}
    for runtime in known:
        if provided or all(there & {name, *registry.BUILDS.get(name, ())} for name in needs[runtime.name]):
            return runtime
    wanted = " or ".join(" and ".join(names) for names in needs.values())
    raise LeptonError(
        f"{it.name}: no runtime for {format_} files is installed on {device.name} ({wanted})",
        f"install one there, or carry its wheels with --wheels: lepton-edge devices wheels {device.name}",
    )


def check_wheels(wheels: Sequence[Path], name: str, host: dict[str, Any]) -> None:
    """Raise LeptonError for a wheel that was built for another processor or Python than the device ``name`` has."""
    python = "".join(host["python"].split(".")[:2])
    machine = MACHINES.get(host["machine"], host["machine"])
    for wheel in wheels:
        tags = _named(wheel)[1]
        if not any(_fits(tag, python, machine) for tag in tags):
            raise LeptonError(
                f"{wheel.name} is not for {name}, which has Python {host['python']} on {host['machine']}",
                f"fetch its own: lepton-edge devices wheels {name} -o DIR",
            )


def _fits(tag: Tag, python: str, machine: str) -> bool:
    """Whether a tag (PEP 425) is for CPython ``python`` ("311") on a processor, as MACHINES names it."""
    processor = next((m for m in MACHINES if tag.platform.endswith(m)), "")
    stable = tag.interpreter.startswith("py") or tag.abi == "abi3"
    return (stable or tag.interpreter == f"cp{python}") and (not processor or MACHINES[processor] == machine)


def _named(wheel: Path) -> tuple[str, frozenset[Tag]]:
    """The package and the tags that a wheel's name tells. Raises UsageError for a name that is none."""
    try:
        name, _, _, tags = parse_wheel_filename(wheel.name)
    except InvalidWheelFilename as e:
        raise UsageError(f"{wheel}: this is not the name of a wheel ({e})", "take it out of the folder") from e
    return name, tags


def answered(road: Road, at: Place, it: Subject, runtime: Runtime) -> tuple[dict[str, Any], Answers]:
    """Run the samples there: {"parity", "accuracy", "error"} against this machine's answers, and the answers.

    A device that answers differently is an error that names the first tensor it computes otherwise, where that can be
    found. Raises LeptonError when the model does not run there.
    """
    assert it.here is not None, "there is nothing to compare with"
    what = f"running {it.name}"
    road.progress.stage(f"{what} on {at.name}")
    got = stages.answers(road, it.model, it.feed, runtime=runtime, options=runtime.load, what=what, place=at)
    # Both ran the same file: its own names, whatever the source model calls them.
    parity = verify.parity(it.here.outputs, got.outputs, identity([{"name": p.name} for p in got.wiring]))
    labels = it.feed.label_array()
    scored = verify.score({p.source: got.outputs[p.name] for p in got.wiring}, labels) if labels is not None else None
    sqnr, error = parity["sqnr_db"], None
    if not verify.exact(parity) and (sqnr is None or sqnr < it.limit):
        where = locate.first_difference_there(road, at, it.model, runtime, it.feed, it.limit)
        figure = f"{sqnr:.1f} dB" if sqnr is not None else f"off by {parity['max_abs']:.3g}"
        error = LeptonError(
            f"{it.name}: {at.name} does not answer as this machine does ({figure}, at least {it.limit:g} dB expected)"
            + (f"; {where}" if where else ""),
            "compare the runtime's versions; for int8 on a CPU without VNNI or dot products quantize with --device",
        )
    return {"parity": parity, "accuracy": scored.to_json() if scored else None, "error": error}, got
