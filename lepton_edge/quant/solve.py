"""Weights of all layers, one after the other, each for the inputs that the quantized layers before it leave."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lepton_edge.quant import held, rounding
from lepton_edge.quant.emit import emit
from lepton_edge.quant.grid import Grid, nearest
from lepton_edge.quant.net import Net
from lepton_edge.quant.patches import Rows, correctable, matrix, unmatrix
from lepton_edge.quant.place import Layer, Placement
from lepton_edge.quant.prepare import set_bias
from lepton_edge.quant.rounding import Moments
from lepton_edge.quant.segments import Kept, Segment, cut, run_all, sub_net, waves
from lepton_edge.quant.spec import QuantSpec
from lepton_edge.quant.tap import Runner, Sample

BATCH = 8  # samples whose rows are summed at once; sums alternate between two halves

Weights = dict[str, tuple[np.ndarray, Grid]]


@dataclass(frozen=True)
class Effort:
    """How much is spent: `positions` rows taken from each sample, `layers` of a segment.

    `whole`: layers, by output, whose weights are whole steps already: integers [G, O, F] and steps [G, O]; see held.
    """

    positions: int = 64
    layers: int = 3
    refit: bool = True
    learned: bool = True
    corrected: bool = True
    bits: int = 8
    whole: Mapping[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


def solve(
    net: Net,
    placement: Placement,
    activations: Mapping[str, Grid],
    samples: Sequence[Sample],
    effort: Effort = Effort(),
    told: Callable[[int, int], None] | None = None,
) -> tuple[Net, Weights]:
    """A copy of `net` with corrected biases, and integer weights with their grids, by layer output."""
    made = net.copy()
    if not (effort.refit or effort.learned or effort.corrected):
        return made, {y.y: _nearest(net, y, effort) for y in placement.layers}
    weights: Weights = {}
    floats: Sequence[Sample] | Kept = samples
    quants: Sequence[Sample] | Kept = samples
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        for k, segment in enumerate(cut(net, placement, effort.layers)):
            next_floats = Kept(Path(folder) / f"f{k}", segment.gives)
            ys, sizes, rows = float_outputs(net, segment, floats, next_floats, effort)
            for wave in waves(sub_net(net, segment), segment.layers):
                spec = QuantSpec(placement, activations, weights)
                taken = [layer for layer in wave if correctable(layer)]
                sums = _moments(made, segment, spec, taken, quants, (ys, sizes, rows))
                for layer in wave:
                    weights[layer.y] = _layer(net, made, layer, sums.get(layer.y), effort)
                if told:
                    told(len(weights), len(placement.layers))
            next_quants = Kept(Path(folder) / f"q{k}", segment.gives)
            part = emit(sub_net(made, segment), QuantSpec(placement, activations, weights))
            run_all(part, quants, next_quants)
            for old in (floats, quants):
                if isinstance(old, Kept):
                    old.drop()
            floats, quants = next_floats, next_quants
    return made, weights


def float_outputs(
    net: Net,
    segment: Segment,
    samples: Sequence[Sample] | Kept,
    into: Kept,
    effort: Effort,
    live: Sequence[np.ndarray | None] = (),
) -> tuple:
    """The float outputs of a segment's layers at the rows that are taken, and the shapes of those outputs."""
    layers = [layer for layer in segment.layers if correctable(layer)]
    rows = {layer.y: Rows(net, layer, effort.positions, live=live) for layer in layers}
    ys: dict[str, list[np.ndarray]] = {layer.y: [] for layer in layers}
    sizes: dict[str, list[tuple[int, ...]]] = {layer.y: [] for layer in layers}
    names = list(dict.fromkeys([*ys, *into.names]))
    runner = Runner(sub_net(net, segment), names)
    for k, sample in enumerate(samples):
        values = dict(zip(names, runner.run({n: sample[n] for n in segment.takes}), strict=True))
        for layer in layers:
            ys[layer.y].append(rows[layer.y].y(values[layer.y], k))
            sizes[layer.y].append(values[layer.y].shape)
        into.add([values[name] for name in into.names])
    return ys, sizes, rows


def _moments(
    made: Net,
    segment: Segment,
    spec: QuantSpec,
    layers: Sequence[Layer],
    samples: Sequence[Sample] | Kept,
    outputs: tuple,
) -> dict[str, tuple[Moments, Moments]]:
    """Sums over even and odd samples for each layer, of quantized inputs and float outputs."""
    if not layers:
        return {}
    ys, sizes, rows = outputs
    part = emit(sub_net(made, segment), spec)
    tensors = {o for n in part.nodes for o in n.output}
    names = {y.y: f"{y.x}_dequantized" if f"{y.x}_dequantized" in tensors else y.x for y in layers}
    runner = Runner(part, list(dict.fromkeys(names.values())), weights_as_they_are=True)
    sums, full = {}, {}
    for layer in layers:
        full[layer.y] = with_bias(made, layer)
        groups, outs, wide = full[layer.y].shape
        sums[layer.y] = (Moments.of(groups, outs, wide - 1), Moments.of(groups, outs, wide - 1))
    held: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {layer.y: ([], []) for layer in layers}
    for k, sample in enumerate(samples):
        values = dict(zip(runner.fetch, runner.run({n: sample[n] for n in part.inputs}), strict=True))
        for layer in layers:
            x = rows[layer.y].x(values[names[layer.y]], sizes[layer.y][k], k)
            held[layer.y][0].append(x)
            held[layer.y][1].append(ys[layer.y][k])
        if (k + 1) % BATCH == 0 or k + 1 == len(samples):  # few large products cost less than many small ones
            for layer in layers:
                xs, wanted = held.pop(layer.y)
                sums[layer.y][k // BATCH % 2].add(np.concatenate(xs, 1), np.concatenate(wanted, 1), full[layer.y])
                held[layer.y] = ([], [])
    return sums


def with_bias(net: Net, layer: Layer) -> np.ndarray:
    """A layer's weights [groups, outputs, features + 1], its bias last, float64."""
    rows = matrix(layer, net.consts[layer.weight]).astype(np.float64)
    groups, outputs, _ = rows.shape
    bias = net.consts[layer.bias].reshape(-1) if layer.bias else np.zeros(1)
    return np.concatenate([rows, np.broadcast_to(bias, groups * outputs).reshape(groups, outputs, 1)], axis=2)


def _layer(
    net: Net, made: Net, layer: Layer, halves: tuple[Moments, Moments] | None, effort: Effort
) -> tuple[np.ndarray, Grid]:
    """One layer's integers and grid; its bias is corrected in `made`."""
    stored = net.consts[layer.weight]
    if halves is None:
        return _nearest(net, layer, effort)
    full, has_bias = with_bias(net, layer), layer.op != "MatMul"
    whole, live = effort.whole.get(layer.y), held.zeros(stored)
    if effort.refit and has_bias and whole is None and live is None:
        full = rounding.refit(full, halves)
    total = halves[0].merged(halves[1])
    xx = rounding.spread(total, has_bias)
    w = full[:, :, :-1]
    if whole is not None:
        rounded, peak = whole[0], whole[1] * (2 ** (effort.bits - 1) - 1)
    else:
        peak = rounding.scales(w, np.maximum(np.einsum("gff->gf", xx), 1e-12), layer.axis is not None, effort.bits)
        alive = None if live is None else matrix(layer, live)
        rounded = (
            rounding.learned(w, peak, xx, effort.bits, alive)
            if effort.learned
            else rounding.nearest(w, peak, effort.bits)
        )
    if has_bias and effort.corrected:
        step = rounding.steps(peak, effort.bits)
        fixed = rounding.bias_only(np.concatenate([rounded * step, full[:, :, -1:]], axis=2), total)
        set_bias(made, made.makers[layer.y], fixed[:, :, -1].reshape(-1).astype(np.float32))
    return unmatrix(layer, rounded, stored.shape), rounding.grid_of(peak, layer.axis, effort.bits)


def _nearest(net: Net, layer: Layer, effort: Effort) -> tuple[np.ndarray, Grid]:
    """Integers and grid of a layer whose inputs are not looked at."""
    stored, whole = net.consts[layer.weight], effort.whole.get(layer.y)
    if whole is None:
        return nearest(stored, layer.axis, effort.bits)
    peak = whole[1] * (2 ** (effort.bits - 1) - 1)
    return unmatrix(layer, whole[0], stored.shape), rounding.grid_of(peak, layer.axis, effort.bits)


def on_grid(net: Net, placement: Placement, bits: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layers whose weights are whole steps of a grid of `bits` already: integers [G, O, F] and steps [G, O]."""
    found = {}
    for layer in placement.layers:
        if layer.axis is None or not correctable(layer):
            continue
        rows = matrix(layer, net.consts[layer.weight])
        groups, outputs, features = rows.shape
        if features < held.LEAST:
            continue
        if (made := held.lattice(rows.reshape(-1, features), 2 ** (bits - 1) - 1)) is not None:
            found[layer.y] = made[0].reshape(rows.shape), made[1].reshape(groups, outputs)
    return found
