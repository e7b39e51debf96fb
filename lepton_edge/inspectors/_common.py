"""What all inspectors share: counting weights, adding up layers, naming damage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError

Shape = Sequence[int | None]
CHUNK = 1 << 22  # elements looked at in one go while counting, to bound memory


def damaged(path: object, format: str, problem: object) -> LeptonError:
    """The error for a file that is not what its format says: one line, with the first line of the cause."""
    lines = str(problem).strip().splitlines()
    reason = lines[0][:200] if lines else type(problem).__name__
    return LeptonError(
        f"{path}: damaged or not {format}: {reason}",
        hint="the file may be cut short: copy or export it again",
    )


@dataclass
class Weights:
    """Running totals over the stored weights; `nonzeros` turns None once one tensor could not be read."""

    parameters: int = 0
    statistics: int = 0
    bytes: int = 0
    nonzeros: int | None = 0

    def add(self, count: int, size: int, nonzeros: int | None, statistic: bool = False) -> None:
        """Adds one tensor: `count` elements, `size` bytes; statistics count apart."""
        self.bytes += size
        if statistic:
            self.statistics += count
            return
        self.parameters += count
        self.nonzeros = None if self.nonzeros is None or nonzeros is None else self.nonzeros + nonzeros


def size_of(shape: Shape | None) -> int | None:
    """Number of elements, None when the rank or a dimension is free."""
    if shape is None or any(dim is None for dim in shape):
        return None
    return prod(int(dim) for dim in shape if dim is not None)


def times(*factors: int | None) -> int | None:
    """The product, None as soon as one factor is unknown."""
    return None if any(factor is None for factor in factors) else prod(f for f in factors if f is not None)


def count_nonzeros(array: np.ndarray, zero: int = 0) -> int:
    """Elements that differ from `zero`, in bounded memory; -0.0 is zero."""
    flat = array.reshape(-1)
    return sum(int(np.count_nonzero(flat[i : i + CHUNK] != zero)) for i in range(0, flat.size, CHUNK))


def count_nonzero_bits(raw: np.ndarray, width: int) -> int:
    """Nonzeros of bfloat16 and float8, given as unsigned integers of `width` bits; the sign is ignored."""
    return count_nonzeros(raw & np.array((1 << (width - 1)) - 1, raw.dtype))


def einsum_macs(equation: str, shapes: Sequence[Shape | None]) -> int | None:
    """One multiply-accumulate for each point of the index space, for two operands or more; None if unsure."""
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "." in equation or len(terms) != len(shapes):
        return None
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        if shape is None or len(shape) != len(term) or any(dim is None for dim in shape):
            return None
        sizes.update({letter: int(dim) for letter, dim in zip(term, shape, strict=True) if dim is not None})
    return prod(sizes.values()) if len(terms) > 1 else 0


def layer(
    name: str,
    op: str,
    output_shape: Shape | None = None,
    macs: int | None = 0,
    parameters: int | None = 0,
    size: int | None = 0,
) -> dict[str, Any]:
    """One row of the layer table; macs None means that this layer computes something we could not count."""
    shape = None if output_shape is None else list(output_shape)
    return {
        "name": name,
        "op": op,
        "output_shape": shape,
        "parameters": parameters,
        "bytes": size,
        "macs": macs,
    }


def uncounted(layers: Iterable[dict]) -> str | None:
    """The note on layers whose work is unknown, with what the others add up to."""
    rows = list(layers)
    missing = Counter(row["op"] for row in rows if row["macs"] is None)
    if not missing:
        return None
    names = ", ".join(f"{op} x{count}" if count > 1 else op for op, count in missing.most_common(6))
    known = sum(row["macs"] for row in rows if row["macs"] is not None)
    return f"MACs unknown: {names} could not be counted (the other layers add up to {known:,})"


def assemble(
    *,
    format: str,
    producer: str,
    inputs: list[dict],
    outputs: list[dict],
    layers: list[dict],
    weights: Weights,
    versions: dict,
    quantized: dict | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The report of inspect_model.inspect, its totals made from the layers."""
    note = uncounted(layers)
    return {
        "format": format,
        "producer": producer,
        "inputs": inputs,
        "outputs": outputs,
        "parameters": weights.parameters,
        "statistics": weights.statistics,
        "nonzeros": weights.nonzeros,
        "macs": None if note else sum(row["macs"] for row in layers),
        "operators": dict(Counter(row["op"] for row in layers).most_common()),
        "layers": layers,
        "weight_bytes": weights.bytes,
        "versions": versions,
        "quantized": {key: count for key, count in (quantized or {}).items() if count},
        "notes": [*notes, *([note] if note else []), *batch_notes(inputs)],
    }


def spec(name: str, shape: Shape | None, dtype: str) -> dict[str, Any]:
    """An input or output: free dimensions are None; an unknown rank is an empty list and said in a note."""
    return {"name": name, "shape": [] if shape is None else list(shape), "dtype": dtype}


def batch_notes(inputs: list[dict]) -> list[str]:
    """Says when the file itself fixes a batch above one, since MACs are then for the whole batch."""
    firsts = {entry["shape"][0] for entry in inputs if len(entry["shape"]) >= 2}
    batch = firsts.pop() if len(firsts) == 1 else None
    if batch is None or batch <= 1:
        return []
    return [f"every input has a first dimension of {batch}: MACs are for one run, not for one sample"]
