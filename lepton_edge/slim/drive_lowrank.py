"""Low-rank factorisation on one screen: an ONNX file and samples in, a net with thin products for thick ones out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant import rounding
from lepton_edge.quant.core import decibels, distance_of, take
from lepton_edge.quant.net import Net, attribute
from lepton_edge.quant.place import Layer
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.tap import BUDGET, Runner, Sample
from lepton_edge.slim import lowrank
from lepton_edge.slim.core import REPAIRED, Pruned, Told, scaled
from lepton_edge.slim.cost import Meter
from lepton_edge.slim.explicit import explicit
from lepton_edge.slim.lowrank import Spectrum
from lepton_edge.slim.moments import WIDEST, Stats, moments
from lepton_edge.slim.repair import Halves, layers_of, repaired
from lepton_edge.slim.trace import Consumer, Trace

Fastest = Callable[[int, int, int, tuple[int, ...]], int]  # rows, inputs, outputs, ranks -> the largest that is faster


def factorized(
    path: str,
    samples: Sequence[Sample],
    share: float,
    round_to: int,
    fastest: Fastest,
    told: Told | None = None,
    *,
    kept: Collection[str] = (),
    seed: int = 0,
    memory: int = BUDGET,
) -> Pruned:
    """Factorise dense layers of a float ONNX model until `share` of its multiply-accumulates is left.

    `fastest` gives for a layer of that many rows, inputs and outputs the largest rank that is faster than the layer,
    0 for none. `kept` are layers (by what they make) that stay. Raises LeptonError for a file that cannot be prepared,
    for samples that do not fit, for a model without a layer to factorise and for a share that cannot be reached.
    """
    tell = told or (lambda done, total, what: None)
    name = Path(path).name
    net = prepare(path)
    explicit(net)
    layers = [layer for layer in layers_of(net) if layer.op in ("MatMul", "Gemm")]
    check_kept(kept, layers, name)
    total = Meter(Trace(net), []).total
    candidates, left = takes(net, layers, kept, round_to)
    rows = rows_of(net, candidates, samples[0]) if candidates else {}
    ranks: dict[str, tuple[int, ...]] = {}
    for k, layer in enumerate(candidates):
        outputs, inputs = dense(net, layer).shape
        able = lowrank.worth(inputs, outputs, round_to)
        most = fastest(rows[layer.y], inputs, outputs, able)
        ranks[layer.y] = tuple(r for r in able if r <= most)
        if not ranks[layer.y]:
            left[layer.y] = f"{inputs} x {outputs}: no rank was measured faster"
        tell(k + 1, len(candidates), "timing ranks, layer")
    candidates = [layer for layer in candidates if ranks[layer.y]]
    if not candidates:
        some = "; ".join(f"{y}: {why}" for y, why in list(left.items())[:3])
        raise LeptonError(f"{name}: no layer to factorise" + (f" ({some})" if some else ""), "leave it as it is")
    places = {layer.y: consumer(net, layer) for layer in candidates}
    stats = moments(
        net, list(places.values()), samples, memory=memory, seed=seed,
        told=lambda done: tell(done, len(samples), "calibration samples"),
    )  # fmt: skip
    spectra = []
    for layer in candidates:
        place, weight = places[layer.y], dense(net, layer)
        values, _, _ = lowrank.decomposed(weight, spread_of(layer, stats[place.x, place.axis]))
        outputs, inputs = weight.shape
        each = rows[layer.y] * (inputs + outputs)
        left_by_rank = lowrank.missing(values)
        spectra.append(Spectrum(layer.y, left_by_rank, rows[layer.y] * inputs * outputs, each, ranks[layer.y]))
    chosen = lowrank.allocate(spectra, total, share, name)

    def fix(layer: Layer, full: np.ndarray, halves: Halves) -> np.ndarray:
        full = rounding.refit(full, halves)
        return reduced(layer, full, halves, chosen[layer.y]) if layer.y in chosen else full

    made = repaired(
        net, net, {}, take(samples, scaled(REPAIRED, total)), fix=fix,
        told=lambda done, count: tell(done, count, "fitting weights, layer"),
    )  # fmt: skip
    made = split(made, [layer for layer in layers_of(made) if layer.y in chosen], chosen)
    by_name = {s.name: s for s in spectra}
    figures = {
        "macs": {"before": total, "after": lowrank.summed(spectra, chosen, total)},
        "ranks": {y: [rank, min(dense(net, layer_of(layers, y)).shape)] for y, rank in chosen.items()},
        "missing": {y: round(float(by_name[y].left[rank]), 5) for y, rank in chosen.items()},
        "left": left | {s.name: "worth more as it is" for s in spectra if s.name not in chosen},
        "calibration_sqnr_db": decibels(distance_of(net, made, take(samples, 32))),
    }
    return Pruned(made, figures)


def check_kept(kept: Collection[str], layers: Sequence[Layer], name: str) -> None:
    """Raise LeptonError where a layer that is to be kept is none."""
    for wanted in kept:
        if wanted not in {layer.y for layer in layers}:
            raise LeptonError(
                f"{name}: no dense layer makes '{wanted}', which was to be kept",
                f"layers are named by what they make: {', '.join(layer.y for layer in layers[:5])} ...",
            )


def takes(
    net: Net, layers: Sequence[Layer], kept: Collection[str], round_to: int
) -> tuple[list[Layer], dict[str, str]]:
    """Layers that could be two products, and by name why others cannot."""
    found, left = [], {}
    for layer in layers:
        weight = net.consts[layer.weight]
        node = net.makers[layer.y] if layer.op == "Gemm" else None
        if layer.y in kept:
            left[layer.y] = "kept by request"
        elif weight.ndim != 2 or (node is not None and attribute(node, "transA", 0)):
            left[layer.y] = "not a product of rows with one matrix"
        elif max(weight.shape) > WIDEST:
            left[layer.y] = f"{weight.shape[0]} x {weight.shape[1]} is wider than {WIDEST}"
        elif not lowrank.worth(weight.shape[0], weight.shape[1], round_to):
            left[layer.y] = f"{weight.shape[0]} x {weight.shape[1]} is too small for ranks in steps of {round_to}"
        else:
            found.append(layer)
    return found, left


def dense(net: Net, layer: Layer) -> np.ndarray:
    """A layer's weights as [outputs, inputs]."""
    weight = net.consts[layer.weight]
    return weight if layer.axis == 0 else weight.T


def consumer(net: Net, layer: Layer) -> Consumer:
    """What a layer sums over, for moments(): the last axis of its input."""
    k = next(i for i, node in enumerate(net.nodes) if node.name == layer.node)
    shape = net.shapes.get(layer.x) or (None, None)
    inputs = dense(net, layer).shape[1]
    return Consumer(k, layer.x, len(shape) - 1, layer.weight, 1 if layer.axis == 0 else 0, np.arange(inputs))


def rows_of(net: Net, layers: Sequence[Layer], sample: Sample) -> dict[str, int]:
    """How many rows each layer multiplies for a sample, by layer."""
    values = Runner(net, [layer.x for layer in layers]).run(sample)
    return {
        layer.y: int(np.prod(value.shape[:-1], dtype=np.int64)) for layer, value in zip(layers, values, strict=True)
    }


def spread_of(layer: Layer, stats: Stats) -> np.ndarray:
    """What of the inputs weights answer for: a bias takes the mean."""
    return stats.covariance if layer.op != "MatMul" or layer.bias else stats.second


def reduced(layer: Layer, full: np.ndarray, halves: Halves, rank: int) -> np.ndarray:
    """Weights [1, outputs, features + 1] of that rank, the bias fitted anew."""
    total = halves[0].merged(halves[1])
    biased = layer.op != "MatMul" or bool(layer.bias)
    xx = rounding.spread(total, biased)[0]
    power = np.einsum("ff->f", xx)
    damped = xx + np.diag(0.01 * power + 1e-6 * power.mean() + 1e-12)
    made = full.copy()
    made[0, :, :-1] = lowrank.cut(full[0, :, :-1], damped, rank)
    return rounding.bias_only(made, total) if biased else made


def split(net: Net, layers: Sequence[Layer], ranks: dict[str, int]) -> Net:
    """A copy in which these layers are two products each; the second keeps the bias and the name of what it makes."""
    from onnx import helper

    made = net.copy()
    nodes: list[Any] = []
    by_node = {layer.node: layer for layer in layers}
    for node in made.nodes:
        layer = by_node.get(node.name)
        if layer is None:
            nodes.append(node)
            continue
        weight = dense(made, layer)
        pair = lowrank.factors(weight.astype(np.float64), ranks[layer.y])
        outer, inner = (part.astype(weight.dtype) for part in pair)
        first, second, thin = (made.fresh(f"{layer.y}_{part}") for part in ("inner", "outer", "thin"))
        made.consts |= {first: np.ascontiguousarray(inner.T), second: np.ascontiguousarray(outer.T)}
        nodes.append(helper.make_node("MatMul", [node.input[0], first], [thin], name=f"{node.name}_inner"))
        node.input[0], node.input[1] = thin, second
        for extra in [a for a in node.attribute if a.name == "transB"]:
            node.attribute.remove(extra)
        nodes.append(node)
        shape = made.shapes.get(layer.x)
        if shape is not None:
            made.shapes[thin] = (*shape[:-1], ranks[layer.y])
        made.dtypes[thin] = made.dtypes.get(layer.x, 1)
    made.nodes = nodes
    made.link()
    return made


def layer_of(layers: Sequence[Layer], y: str) -> Layer:
    """The layer that makes a tensor."""
    return next(layer for layer in layers if layer.y == y)
