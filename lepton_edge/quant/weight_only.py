"""Weights as integers while activations stay float: per output channel, or in blocks along the input features.

With samples the rounding is GPTQ's (Frantar et al., arXiv:2210.17323; `rounding.gptq`), for the second moments of the
inputs in the float model; without, each weight goes to the nearest value. Scales are those of least squared error.
Blocks: Dettmers & Zettlemoyer, "The case for 4-bit precision", arXiv:2212.09720.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_edge.quant import held, rounding
from lepton_edge.quant.grid import nearest
from lepton_edge.quant.net import Net
from lepton_edge.quant.patches import Rows, correctable, matrix, unmatrix
from lepton_edge.quant.place import Layer
from lepton_edge.quant.prepare import set_bias
from lepton_edge.quant.tap import BUDGET, Sample, each

SMALL_TABLE = 1 << 12  # a table of fewer numbers stays float


@dataclass(frozen=True)
class Kind:
    """How a layer's weights are stored: `bits`, and the features of a block (0: one scale an output channel)."""

    bits: int = 8
    block: int = 0


@dataclass(frozen=True)
class Stored:
    """Weights as integers: `values` int8 in the weight's shape; `scale` float32 [channels], [1] where the layer has a
    single one, or [blocks, channels] for blocks."""

    values: np.ndarray
    scale: np.ndarray
    kind: Kind


def kind_of(layer: Layer, weight: np.ndarray, wanted: Kind) -> Kind:
    """What a layer takes of the kind that is wanted: fewer than 8 bits are for products of whole blocks only."""
    if wanted.bits > 4 or layer.op not in ("MatMul", "Gemm"):
        return Kind(wanted.bits if wanted.bits > 4 else 8)
    features = weight.shape[1 if layer.axis == 0 else 0]
    return Kind() if features % (wanted.block or 2) else wanted


def solve(
    net: Net,
    layers: Sequence[Layer],
    samples: Sequence[Sample] | None,
    wanted: Kind,
    positions: int = 64,
    told: Callable[[int, int], None] | None = None,
    *,
    memory: int = BUDGET,
) -> tuple[Net, dict[str, Stored]]:
    """The integer weights of layers by their output, and a copy of `net` whose biases repay the mean error.

    `memory` bounds what is held at once, half for second moments and half for the tensors they are of.
    """
    made = net.copy()
    found: dict[str, Stored] = {}
    for part in _parts(net, layers, memory // 2):
        sums = _moments(net, part, samples, positions, memory // 2) if samples else {}
        for layer in part:
            found[layer.y] = _layer(net, made, layer, sums.get(layer.y), wanted)
            if told:
                told(len(found), len(layers))
    return made, found


def _parts(net: Net, layers: Sequence[Layer], memory: int) -> Iterator[list[Layer]]:
    """Layers in runs whose second moments fit in `memory` bytes (one at least)."""
    part: list[Layer] = []
    held = 0
    for layer in layers:
        size = _moment_bytes(net, layer)
        if part and held + size > memory:
            yield part
            part, held = [], 0
        part.append(layer)
        held += size
    if part:
        yield part


def _moment_bytes(net: Net, layer: Layer) -> int:
    if not correctable(layer):
        return 0
    groups, _, features = matrix(layer, net.consts[layer.weight]).shape
    return 8 * groups * (features + 1) ** 2


def _moments(
    net: Net, layers: Sequence[Layer], samples: Sequence[Sample], positions: int, memory: int
) -> dict[str, np.ndarray]:
    """E[x x^T] [groups, features + 1, features + 1] of each layer's inputs in the float model, a last feature of 1."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        sizes = net.shapes.get(layer.y, (None,))
        if correctable(layer) and (layer.op != "Conv" or None not in sizes[1:]):
            readers.setdefault(layer.x, []).append(layer)
    rows = {layer.y: Rows(net, layer, positions) for part in readers.values() for layer in part}
    sums: dict[str, np.ndarray] = {}
    counts = dict.fromkeys(rows, 0)
    seen = dict.fromkeys(rows, 0)

    def take(tensor: str, value: np.ndarray) -> None:
        for layer in readers[tensor]:
            size = (len(value), *net.shapes.get(layer.y, (None,))[1:])
            x = rows[layer.y].x(value, size, seen[layer.y]).astype(np.float64)  # type: ignore[arg-type]
            x = np.concatenate([x, np.ones((*x.shape[:2], 1))], axis=2)
            product = np.matmul(x.transpose(0, 2, 1), x)
            sums[layer.y] = sums[layer.y] + product if layer.y in sums else product
            counts[layer.y] += x.shape[1]
            seen[layer.y] += 1

    each(net, list(readers), samples, take, budget=memory)
    return {y: total / max(counts[y], 1) for y, total in sums.items()}


def _layer(net: Net, made: Net, layer: Layer, moments: np.ndarray | None, wanted: Kind) -> Stored:
    """One layer's integers and scales; its bias is corrected in `made` where inputs are known."""
    weight = net.consts[layer.weight]
    kind = kind_of(layer, weight, wanted)
    if not correctable(layer):
        return _plain(weight, layer.axis)
    w = matrix(layer, weight).astype(np.float64)
    groups, _, features = w.shape
    has_bias = bool(layer.bias) and layer.op != "MatMul"
    mean = np.zeros((groups, features))
    xx = np.broadcast_to(np.eye(features), (groups, features, features))
    if moments is not None:
        xx, mean = moments[:, :-1, :-1], moments[:, -1, :-1]
        if has_bias:
            xx = rounding.covariance(xx, mean)
    own = kind == Kind() and layer.axis is not None and features >= held.LEAST
    whole = held.lattice(w.reshape(-1, features), 127) if own else None
    if whole is not None:
        rounded, peak = whole[0].reshape(w.shape), whole[1].reshape(w.shape[:2]) * 127
    else:
        live = held.zeros(weight)
        peak = _peaks(w, np.maximum(np.einsum("gff->gf", xx), 1e-12), layer, kind)
        rounded = (
            rounding.nearest(w, peak, kind.bits)
            if moments is None
            else rounding.learned(w, peak, xx, kind.bits, None if live is None else matrix(layer, live))
        )
    step = rounding.steps(peak, kind.bits)
    if moments is not None and has_bias:
        moved = np.einsum("gof,gf->go", w - rounded * step, mean).reshape(-1)
        bias = np.broadcast_to(made.consts[layer.bias].reshape(-1), moved.shape) + moved
        set_bias(made, made.makers[layer.y], bias.astype(np.float32))
    scale = step[0, :, :: kind.block].T if kind.block else step.reshape(-1)
    if layer.axis is None:
        scale = scale[:1]
    return Stored(unmatrix(layer, rounded, weight.shape).astype(np.int8), scale.astype(np.float32), kind)


def _peaks(w: np.ndarray, power: np.ndarray, layer: Layer, kind: Kind) -> np.ndarray:
    """Largest value of each channel [G, O], or of each weight's block [G, O, F]."""
    if not kind.block:
        return rounding.scales(w, power, layer.axis is not None, kind.bits)
    peak = np.empty_like(w)
    for at in range(0, w.shape[2], kind.block):
        part = slice(at, at + kind.block)
        peak[:, :, part] = rounding.scales(w[:, :, part], power[:, part], True, kind.bits)[:, :, None]
    last = 2 ** (kind.bits - 1) - 1
    return _short(np.maximum(peak, 1e-6) / last) * last


def _short(scale: np.ndarray) -> np.ndarray:
    """Scales in eight significant bits: LiteRT keeps those of blocks in 16-bit floats, and all have to be the same."""
    mantissa, exponent = np.frexp(scale)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


def _plain(weight: np.ndarray, axis: int | None) -> Stored:
    """Rounded to the nearest: transposed convolutions, and tables by row."""
    values, grid = nearest(weight, axis)
    return Stored(values.astype(np.int8), grid.scale, Kind())


def tables(net: Net) -> dict[str, Stored]:
    """Embedding tables as int8 with a scale for each row [rows], by the constant's name."""
    found = {}
    for name, users in net.users.items():
        value = net.consts.get(name)
        if value is None or value.dtype != np.float32 or value.ndim != 2 or value.size < SMALL_TABLE:
            continue
        if name in net.outputs or not all(_looks_up(net, node, name) for node in users):
            continue
        if np.isfinite(value).all():
            found[name] = _plain(value, 0)
    return found


def _looks_up(net: Net, node: object, name: str) -> bool:
    from lepton_edge.quant.net import attribute

    kind, read = node.op_type, node.input  # type: ignore[attr-defined]
    return kind == "Gather" and read[0] == name and read[1] not in net.consts and not attribute(node, "axis", 0)
