"""Sensitivity of an ONNX model to int8, measured in a worker: noise by layer and by activation site, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.passes._samples import Progress, Samples, silent

REQUIRES = ("onnx>=1.17", "onnxruntime>=1.20")
OBSERVED = 64  # samples that ranges are taken from
SPREAD = 24  # samples that the spread of channels is taken from
QUIET = 1e-15  # noise below it is none: 150 dB


def run(
    src: str,
    dst: str,
    *,
    data: str,
    samples: int = 16,
    ranges: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> dict:
    """Measure `src`; nothing is written to `dst`, the result is the answer.

    `data` is a feed folder; ranges come from up to OBSERVED of its samples by the method `ranges` ("auto": least
    squares, where the search of the quantizer starts), noise from `samples`. Raises LeptonError as quantizing does:
    for a model that is quantized already or has nothing to quantize, and for no samples or those of other inputs.
    """
    from lepton_edge.quant import core
    from lepton_edge.quant.grid import activation_grid
    from lepton_edge.quant.sensitivity import measure
    from lepton_edge.tflite_writer.load import inputs

    tell = progress or silent
    feed = Samples(data, inputs(src), max(samples, OBSERVED), seed, src)
    options = core.Options(core.PRESETS["fast"], ranges="mse" if ranges == "auto" else ranges, seed=seed)
    net, placement = ready(src)
    net, placement = core.balanced(net, placement, feed, options)
    seen, _ = core.observed(net, placement, feed, options, tell)
    found = core.chosen(net, placement, seen, feed, options, tell)
    grids = {name: activation_grid(*pair) for name, pair in found.items()}
    used = core.take(feed, samples)
    result = measure(net, placement, grids, used, told=lambda done, total: tell(done, total, "measurements"))
    spreads = _spreads(net, placement, core.take(feed, SPREAD))
    return {"samples": len(used), "observed": len(feed), "ranges": ranges, **told(net, result, seen, found, spreads)}


def ready(src: str) -> tuple[Any, Any]:
    """The net of an ONNX file and what of it is quantized. Raises LeptonError as `prepare` does, and for nothing."""
    from lepton_edge.quant.place import place
    from lepton_edge.quant.prepare import prepare

    net = prepare(src)
    placement = place(net)
    if not placement.layers:
        raise LeptonError(
            f"{Path(src).name}: nothing in it can be quantized to int8",
            "it has no convolution or product with constant float32 weights; keep it float",
        )
    return net, placement


def told(net: Any, result: Any, seen: dict, found: dict, spreads: dict[str, float]) -> dict:
    """A Sensitivity as plain data: SQNR in dB (None: no noise at all), shares of all noise, and what sites hold."""
    shares, names = result.shares(), names_of([item.layer for item in result.layers])
    whole = sum(item.weights for item in result.layers) + sum(item.noise for item in result.sites)
    layers = []
    for item in result.layers:
        layer = item.layer
        booked = sum(site.noise for site in result.sites if site.owner == layer.y)
        layers.append(
            {
                "name": names[layer.y],
                "kind": _kind(net, layer),
                "reads": layer.x,
                "writes": layer.out,
                "parameters": int(net.consts[layer.weight].size),
                "alone_db": _db(item.alone),
                "weights_db": _db(item.weights),
                "activations_db": _db(item.activations),
                "reads_db": _db(item.reads),
                "writes_db": _db(item.writes),
                "accumulated_db": _db(item.accumulated),
                "share": shares[layer.y],
                "weights_share": item.weights / whole if whole else 0.0,
                "activations_share": booked / whole if whole else 0.0,
                "channel_spread": spreads.get(layer.y),
            }
        )
    sites = [
        {
            "name": item.site.name,
            "tensors": list(item.site.tensors),
            "input": item.site.name in net.inputs,
            "layer": names.get(item.owner),
            "noise_db": _db(item.noise),
            "share": item.noise / whole if whole else 0.0,
            "range": [float(v) for v in found[item.site.name]],
            **_held(seen[item.site.name]),
        }
        for item in result.sites
    ]
    return {"total_db": _db(result.total), "layers": layers, "sites": sites}


def _db(noise: float) -> float | None:
    return round(-10 * math.log10(noise), 2) if noise > QUIET else None


def _held(observer: Any) -> dict:
    rms = math.sqrt(observer.sum_squares / observer.count) if observer.count else 0.0
    peak = max(abs(observer.low), abs(observer.high)) if observer.count else 0.0
    return {"low": observer.low, "high": observer.high, "rms": rms, "peak_over_rms": peak / rms if rms else None}


def _kind(net: Any, layer: Any) -> str:
    if layer.op in ("Gemm", "MatMul"):
        return "dense"
    name = "conv" if layer.op == "Conv" else "transposed conv"
    if layer.group == 1:
        return name
    return f"depthwise {name}" if net.consts[layer.weight].shape[1] == 1 else f"grouped {name}"


def _spreads(net: Any, placement: Any, samples: Sequence[dict]) -> dict[str, float]:
    """How unlike the channels of each layer's output are: the largest peak over the median one, by `y`."""
    from lepton_edge.quant.tap import each

    axis = {layer.out: 1 if layer.op.startswith("Conv") else -1 for layer in placement.layers}
    peaks: dict[str, np.ndarray] = {}

    def take(name: str, value: np.ndarray) -> None:
        rows = np.moveaxis(value, axis[name], 0)
        high = np.abs(rows.reshape(rows.shape[0], -1)).max(1, initial=0.0)
        peaks[name] = np.maximum(peaks[name], high) if name in peaks else high

    each(net, list(axis), samples, take)
    made = {}
    for layer in placement.layers:
        alive = [float(p) for p in peaks.get(layer.out, ()) if p > 0]
        if len(alive) > 1:
            made[layer.y] = max(alive) / float(np.median(alive))
    return made


_TAILS = {
    "Relu", "Relu6", "BiasAdd", "merged_input", "convolution", "Conv2D", "ReadVariableOp", "MatMul", "Cast", "add_1",
    "batchnorm", "FusedBatchNormV3", "depthwise", "mul", "Add", "add",
}  # fmt: skip


def names_of(layers: Sequence[Any]) -> dict[str, str]:
    """A short name for people for each layer, by its `y`: what the framework that made the model called it."""
    made: dict[str, str] = {}
    for layer in layers:
        if layer.weight.endswith(".weight"):
            name = layer.weight.removesuffix(".weight")
        else:
            full = next((n for n in (layer.out, layer.weight, layer.y) if "/" in n), layer.out)
            parts = [p for p in full.split(":")[0].split("/") if p and p != "StatefulPartitionedCall"]
            while len(parts) > 1 and parts[-1] in _TAILS:
                parts.pop()
            name = "/".join(parts) or full
        taken = set(made.values())
        made[layer.y] = name if name not in taken else f"{name} [{layer.y}]"
    return made
