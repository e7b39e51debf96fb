"""Scheme w8a16 on one screen: int16 activations lose next to nothing, so only the weights' rounding is worked on.

Activations are symmetric (zero point 0, as TFLite's 16x8 kernels want) and reach to twice the extremes, for values that
no calibration sample had: one of 16 bits costs less than clipping. Weights are those of `weight_only.py`, rounded for
the float model's inputs; fitting weights to the noise of activations, as for 8 bits, would only fit them to the samples
(MobileNetV2, 32 samples: 27 dB instead of 35).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant import core, weight_only
from lepton_edge.quant.grid import Grid, activation_grid
from lepton_edge.quant.place import Site, place
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.spec import QuantSpec
from lepton_edge.quant.tap import Sample

BITS, OPSET = 16, 21
ROOM = 2.0


def quantize(path: str, samples: Sequence[Sample], options: core.Options, told: core.Told) -> core.Quantized:
    """Quantize a float ONNX model with calibration samples {input: array}; raises LeptonError as core.quantize().

    Of `options` the preset, ranges ("auto": min-max), seed and memory count.
    """
    net = prepare(path, OPSET)
    placement = place(net, whole=options.whole)
    if not placement.layers:
        raise LeptonError(
            f"{Path(path).name}: scheme w8a16 finds nothing to quantize",
            "it has no convolution or product with constant float32 weights; keep it float",
        )
    preset = options.preset
    ranges = "minmax" if options.ranges == "auto" else options.ranges
    options = replace(options, activation_bits=BITS, signed=True, symmetric=True, ranges=ranges)
    seen, growth = core.observed(net, placement, core.take(samples, preset.observed), options, told)
    found = core.chosen(net, placement, seen, samples, options, told)
    grids = {
        site.name: activation_grid(*_roomy(site, *found[site.name]), BITS, symmetric=True, signed=True)
        for site in placement.sites
    }
    made, stored = weight_only.solve(
        net,
        placement.layers,
        core.take(samples, preset.solved),
        weight_only.Kind(),
        preset.positions,
        lambda done, total: told(done, total, "rounding weights, layer"),
        memory=options.memory,
    )
    weights = {
        layer.y: (stored[layer.y].values.astype(np.int64), _grid(stored[layer.y].scale, layer.axis))
        for layer in placement.layers
    }
    spec = QuantSpec(placement, grids, weights)
    figures = {
        "layers": len(placement.layers),
        "sites": len(placement.sites),
        "observed": min(preset.observed, len(samples)),
        "growth": growth,
        "calibration_sqnr_db": core.decibels(core.distance_of(net, core.written(made, spec), core.take(samples, 32))),
    }
    return core.Quantized(made, spec, figures)


def _roomy(site: Site, low: float, high: float) -> tuple[float, float]:
    """Twice the range, as far as the site's limits let values go."""
    if site.fixed is not None:
        return low, high
    first, last = site.limits or (-np.inf, np.inf)
    return max(ROOM * low, first), min(ROOM * high, last)


def _grid(scale: np.ndarray, axis: int | None) -> Grid:
    return Grid(scale, np.zeros(len(scale), np.int64), -127, 127, axis)
