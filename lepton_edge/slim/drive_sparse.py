"""Unstructured and N:M pruning on one screen: the same net with zeros in its weights, nothing trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant.core import decibels, distance_of, take
from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Layer
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.rounding import refit
from lepton_edge.quant.tap import Sample
from lepton_edge.slim.core import Pruned, Told, scaled
from lepton_edge.slim.cost import Meter
from lepton_edge.slim.explicit import explicit
from lepton_edge.slim.repair import Halves, layers_of, repaired
from lepton_edge.slim.sparse import Pattern, sparsified, takes
from lepton_edge.slim.spread import erk
from lepton_edge.slim.trace import Trace


def prune(
    path: str, samples: Sequence[Sample], wanted: Pattern, told: Told | None = None, *, spread: str = "uniform"
) -> Pruned:
    """Set weights of a float ONNX model to zero by a pattern, layer by layer, each fitted to what the others leave.

    With the `spread` "erk" a pattern without groups takes more of large layers than of small ones.

    Raises LeptonError for a file that cannot be prepared, for samples that do not fit, and for a model without a layer
    that can lose weights.
    """
    tell = told or (lambda done, total, what: None)
    net = prepare(path)
    explicit(net)
    layers = layers_of(net)
    reasons = {layer.y: takes(layer, net.consts[layer.weight], wanted) for layer in layers}
    if all(reasons.values()):
        some = "; ".join(f"{y}: {why}" for y, why in list(reasons.items())[:3])
        raise LeptonError(f"{Path(path).name}: no layer can lose weights" + (f" ({some})" if some else ""), "keep it")

    shares = spread_out([y for y in layers if not reasons[y.y]], net, wanted, spread)

    def fix(layer: Layer, full: np.ndarray, halves: Halves) -> np.ndarray:
        if reasons[layer.y]:
            return refit(full, halves)
        kernel = net.consts[layer.weight].shape[2:] if layer.op == "Conv" else ()
        return sparsified(layer, full, halves, int(np.prod(kernel, dtype=int)), shares[layer.y])

    total = Meter(Trace(net), []).total
    made = repaired(
        net, net, {}, take(samples, scaled(96, total)), fix=fix,
        told=lambda done, count: tell(done, count, "setting weights to zero, layer"),
    )  # fmt: skip
    after = {layer.y: made.consts[layer.weight] for layer in layers_of(made)}
    figures = {
        "layers": {y: _share(after[y]) for y, why in reasons.items() if not why},
        "left": {y: why for y, why in reasons.items() if why},
        "calibration_sqnr_db": decibels(distance_of(net, made, take(samples, 32))),
    }
    return Pruned(made, figures)


def spread_out(layers: Sequence[Layer], net: Net, wanted: Pattern, spread: str) -> dict[str, Pattern]:
    """The pattern of each layer, by what it makes."""
    shares = [wanted.share] * len(layers)
    if spread == "erk" and not wanted.of:
        shares = erk([[net.consts[layer.weight].shape] for layer in layers], wanted.share)
    return {layer.y: Pattern(share, wanted.of) for layer, share in zip(layers, shares, strict=True)}


def _share(weight: np.ndarray) -> float:
    return round(1 - np.count_nonzero(weight) / weight.size, 4)
