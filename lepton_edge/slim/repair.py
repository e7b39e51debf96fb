"""Weights fitted anew, layer by layer, so that each gives what the dense model's layer gives.

The walk is that of quant/solve.py: segment by segment, each layer for the inputs that the changed layers before it
really leave. Its target are the dense layer's outputs, those of channels that are still there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.quant import rounding
from lepton_edge.quant.net import Net
from lepton_edge.quant.patches import Rows, correctable, matrix, unmatrix
from lepton_edge.quant.place import Layer, Placement, place
from lepton_edge.quant.rounding import Moments
from lepton_edge.quant.segments import Kept, Segment, cut, run_all, sub_net, waves
from lepton_edge.quant.solve import BATCH, Effort, float_outputs, with_bias
from lepton_edge.quant.tap import Runner, Sample
from lepton_edge.slim.fold import bias_of, put
from lepton_edge.slim.live import live

WIDEST = 6144  # features of a layer whose weights are fitted
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
Halves = tuple[Moments, Moments]
Fix = Callable[[Layer, np.ndarray, Halves], np.ndarray]


def layers_of(net: Net) -> list[Layer]:
    """The layers with weights; the constant sum that follows a MatMul is its bias."""
    found = []
    for layer in place(net).layers:
        where = bias_of(net, net.makers[layer.y]) if layer.op == "MatMul" else None
        if where is not None:
            holder, port = where
            layer = replace(layer, bias=holder.input[port], y=holder.output[0], out=holder.output[0])
        found.append(layer)
    return found


def repaired(
    dense: Net,
    pruned: Net,
    kept: Mapping[str, np.ndarray | None],
    samples: Sequence[Sample],
    *,
    fix: Fix | None = None,
    positions: int = 128,
    told: Callable[[int, int], None] | None = None,
) -> Net:
    """A copy of `pruned` with other weights and biases.

    `kept` says by layer output which of the dense layer's channels are there (bool; all where it is silent; None: the
    layer is left alone). `fix` makes weights [groups, outputs, features + 1] of those that are there and the sums over
    two halves of the samples, by default least squares (rounding.refit).
    """
    made = pruned.copy()
    fix = fix or (lambda layer, full, halves: rounding.refit(full, halves, RIDGES))
    old, new = layers_of(dense), {layer.y: layer for layer in layers_of(pruned)}
    effort, done, counted = Effort(positions=positions), 0, live(samples)
    floats: Sequence[Sample] | Kept = samples
    thinned: Sequence[Sample] | Kept = samples
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        for k, segment in enumerate(cut(dense, Placement(tuple(old), (), (), False, frozenset()), effort.layers)):
            segment = replace(segment, layers=tuple(y for y in segment.layers if _within(dense, segment, y)))
            next_floats = Kept(Path(folder) / f"f{k}", segment.gives)
            ys, sizes, _ = float_outputs(dense, segment, floats, next_floats, effort, counted)
            for wave in waves(sub_net(dense, segment), segment.layers):
                taken = [
                    new[layer.y] for layer in wave if _fits(made, new, layer.y) and kept.get(layer.y, ()) is not None
                ]
                sums = _sums(made, segment, taken, thinned, (ys, sizes, kept), effort, counted)
                for layer in taken:
                    full = fix(layer, with_bias(made, layer), sums[layer.y])
                    _write(made, layer, full)
                done += len(wave)
                if told:
                    told(done, len(old))
            next_thinned = Kept(Path(folder) / f"q{k}", segment.gives)
            run_all(sub_net(made, segment), thinned, next_thinned)
            for before in (floats, thinned):
                if isinstance(before, Kept):
                    before.drop()
            floats, thinned = next_floats, next_thinned
    return made


def _within(net: Net, segment: Segment, layer: Layer) -> bool:
    """Whether a segment holds a layer's input too: a cut may lie between a MatMul and the sum with its bias."""
    inside = {out for node in net.nodes[segment.first : segment.last] for out in node.output}
    return layer.x in inside or layer.x in segment.takes


def _fits(net: Net, layers: Mapping[str, Layer], y: str) -> bool:
    layer = layers.get(y)
    return layer is not None and correctable(layer) and matrix(layer, net.consts[layer.weight]).shape[2] <= WIDEST


def _sums(
    made: Net,
    segment: Segment,
    layers: Sequence[Layer],
    samples: Sequence[Sample] | Kept,
    outputs: tuple,
    effort: Effort,
    counted: Sequence[np.ndarray | None],
) -> dict[str, Halves]:
    """Sums over even and odd batches of samples: inputs of the changed net, outputs of the dense one."""
    if not layers:
        return {}
    ys, sizes, kept = outputs
    part = sub_net(made, segment)
    runner = Runner(part, list(dict.fromkeys(layer.x for layer in layers)))
    rows = {layer.y: Rows(made, layer, effort.positions, live=counted) for layer in layers}
    shapes = {layer.y: with_bias(made, layer).shape for layer in layers}
    sums = {y: (Moments.of(g, o, f - 1), Moments.of(g, o, f - 1)) for y, (g, o, f) in shapes.items()}
    held: dict[str, tuple[list[Any], list[Any]]] = {y: ([], []) for y in sums}
    for k, sample in enumerate(samples):
        values = dict(zip(runner.fetch, runner.run({n: sample[n] for n in part.inputs}), strict=True))
        for layer in layers:
            groups, outs, _ = shapes[layer.y]
            held[layer.y][0].append(rows[layer.y].x(values[layer.x], sizes[layer.y][k], k))
            held[layer.y][1].append(_those(ys[layer.y][k], kept.get(layer.y), groups, outs))
        if (k + 1) % BATCH == 0 or k + 1 == len(samples):
            for y, (xs, wanted) in held.items():
                sums[y][k // BATCH % 2].add(np.concatenate(xs, 1), np.concatenate(wanted, 1))
                held[y] = ([], [])
    for layer in layers:
        if layer.op == "MatMul" and not layer.bias:
            for half in sums[layer.y]:  # without a bias there is no constant to fit
                half.xx[:, -1, :-1] = half.xx[:, :-1, -1] = 0.0
                half.yx[:, :, -1] = 0.0
    return sums


def _those(y: np.ndarray, kept: np.ndarray | None, groups: int, outs: int) -> np.ndarray:
    """The dense outputs [groups, positions, outputs] of channels that are kept, in the groups of the pruned layer."""
    if kept is None:
        return y
    flat = y.transpose(1, 0, 2).reshape(y.shape[1], -1)[:, kept]
    return np.ascontiguousarray(flat.reshape(len(flat), groups, outs).transpose(1, 0, 2))


def _write(made: Net, layer: Layer, full: np.ndarray) -> None:
    """Put weights [groups, outputs, features + 1] into a layer's constants."""
    node = next(n for n in made.nodes if n.name == layer.node)
    stored = made.consts[layer.weight]
    put(made, node, 1, unmatrix(layer, full[:, :, :-1], stored.shape).astype(stored.dtype))
    where = bias_of(made, node)
    if where is not None:
        holder, port = where
        value = made.consts[holder.input[port]]
        put(made, holder, port, full[:, :, -1].reshape(value.shape).astype(value.dtype))
