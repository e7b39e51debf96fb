"""Outlier channels of a transformer's activations moved into the weights that read them.

x W = (x / s) (diag(s) W) for any s > 0 of each channel. What a grid must cover is then set by all channels alike, and
the rows of W take the difference (Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for
Large Language Models", arXiv:2211.10438). The exponent of s = max|x|^a / max|W|^(1 - a) is chosen for each tensor by
the noise that both grids together leave in the readers' outputs. The division goes into the constants of the
LayerNormalization or of the product before it where nobody else reads its result; else it is a product of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Layer, Placement
from lepton_edge.quant.tap import BUDGET, Sample, each, finite

EXPONENTS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
GAIN_DB, DEAR_DB = 0.5, 5.5  # what it has to gain: inside constants that are there, and with an operator of its own
TINY = 1e-6


@dataclass
class Channels:
    """What the channels (last axis) of a tensor hold: extremes and sum of squares [channels], `count` rows."""

    low: np.ndarray
    high: np.ndarray
    squares: np.ndarray
    count: int = 0

    def add(self, value: np.ndarray) -> None:
        """Take a value [..., channels]."""
        rows = value.reshape(-1, value.shape[-1])
        self.low = np.minimum(self.low, rows.min(0))
        self.high = np.maximum(self.high, rows.max(0))
        self.squares = self.squares + np.einsum("pc,pc->c", rows, rows, dtype=np.float64)
        self.count += len(rows)


def smoothed(
    net: Net,
    placement: Placement,
    samples: Iterable[Sample],
    bits: tuple[int, int] = (8, 8),
    memory: int = BUDGET,
) -> Net:
    """A copy of `net` whose quantized products read balanced channels; its float outputs are the same.

    `bits` of activations and of weights. Place the copy anew: its layers read other tensors.
    """
    readers = _readers(net, placement)
    seen: dict[str, Channels] = {}

    def take(name: str, value: np.ndarray) -> None:
        if name not in seen:
            seen[name] = Channels(np.zeros(value.shape[-1]), np.zeros(value.shape[-1]), np.zeros(value.shape[-1]))
        seen[name].add(finite(name, value))

    each(net, list(readers), samples, take, budget=memory)
    made = net.copy()
    for name, layers in readers.items():
        if name not in seen:
            continue
        free = _fold(made, name, len(layers), np.ones(len(seen[name].low)), made=False)
        s = factors(seen[name], _weight(net, layers), bits, GAIN_DB if free else DEAR_DB)
        if s is None:
            continue
        _scale_readers(made, layers, s)
        if not (free and _fold(made, name, len(layers), s, made=True)):
            _divide(made, name, layers, s)
    return made


def _readers(net: Net, placement: Placement) -> dict[str, list[Layer]]:
    """The products with a constant weight of their own, by the tensor they read."""
    found: dict[str, list[Layer]] = {}
    shared: set[str] = set()
    for layer in placement.layers:
        if layer.op in ("MatMul", "Gemm"):
            found.setdefault(layer.x, []).append(layer)
            if not net.private(layer.weight):
                shared.add(layer.x)
    return {name: layers for name, layers in found.items() if name not in shared}


def _weight(net: Net, layers: list[Layer]) -> np.ndarray:
    """[channels, outputs of all layers]."""
    return np.concatenate([net.consts[y.weight] if y.axis == 1 else net.consts[y.weight].T for y in layers], axis=1)


def factors(
    seen: Channels, weight: np.ndarray, bits: tuple[int, int] = (8, 8), gain: float = GAIN_DB
) -> np.ndarray | None:
    """s [channels] of least noise in x W, weight [channels, outputs]; None where it gains less than `gain` dB."""
    weight = weight.astype(np.float64)
    peak = np.maximum(np.maximum(-seen.low, seen.high), 0.0)
    if not peak.max() > 0:
        return None
    peak = np.maximum(peak, TINY * peak.max())
    rows = np.maximum(np.abs(weight).max(1), 1e-12)
    best, kept = _noise(seen, weight, np.ones(len(peak)), bits) * 10 ** (-gain / 10), None
    for exponent in EXPONENTS:
        for wanted in (peak**exponent, peak**exponent / rows ** (1 - exponent)):
            s = wanted / np.exp(np.log(wanted).mean())
            noise = _noise(seen, weight, s, bits)
            if noise < best:
                best, kept = noise, s
    return kept


def _noise(seen: Channels, weight: np.ndarray, s: np.ndarray, bits: tuple[int, int]) -> float:
    """Expected squared error of a row of x W, of both roundings: steps squared over 12 through the other operand."""
    low, high = min(float((seen.low / s).min()), 0.0), max(float((seen.high / s).max()), 0.0)
    step = (high - low) / (2 ** bits[0] - 1)
    of_x = step**2 / 12 * float((s**2 * (weight**2).sum(1)).sum())
    steps = np.abs(weight * s[:, None]).max(0) / (2 ** (bits[1] - 1) - 1)
    return of_x + float((steps**2).sum()) / 12 * float((seen.squares / max(seen.count, 1) / s**2).sum())


def _scale_readers(net: Net, layers: list[Layer], s: np.ndarray) -> None:
    for layer in layers:
        by_row = s[:, None] if layer.axis == 1 else s[None, :]
        net.consts[layer.weight] = (net.consts[layer.weight].astype(np.float64) * by_row).astype(np.float32)


def _fold(net: Net, name: str, readers: int, s: np.ndarray, made: bool) -> bool:
    """Divide `name` by s inside constants that make it, where only `readers` nodes read it; whether that can be done.

    It is in the scale and bias of a LayerNormalization, in a constant factor, or in one further up. Nothing is changed
    unless `made`.
    """
    maker = net.makers.get(name)
    if maker is None or name in net.outputs or len(net.users.get(name, [])) != readers:
        return False
    if maker.op_type == "LayerNormalization":
        constants = [c for c in maker.input[1:] if c]
        if not all(net.private(c) and net.consts[c].shape == s.shape for c in constants):
            return False
        if made:
            for c in constants:
                net.consts[c] = (net.consts[c] / s).astype(np.float32)
        return True
    if maker.op_type != "Mul":
        return False
    for k, side in enumerate(maker.input):
        if side in net.consts and net.consts[side].size in (1, len(s)) and net.consts[side].ndim <= 1:
            if made:
                factor = net.fresh(f"{side}_balanced")
                net.consts[factor] = (net.consts[side].reshape(-1) / s).astype(np.float32)
                maker.input[k] = factor
                net.link()
            return True
    return any(_fold(net, side, 1, s, made) for side in maker.input)


def _divide(net: Net, name: str, layers: list[Layer], s: np.ndarray) -> None:
    from onnx import helper

    balanced, inverse = net.fresh(f"{name}_balanced"), net.fresh(f"{name}_inverse")
    net.consts[inverse] = (1 / s).astype(np.float32)
    names = {layer.node for layer in layers}
    at = next((k + 1 for k, node in enumerate(net.nodes) if name in node.output), 0)
    for node in net.nodes:
        if node.name in names:
            node.input[0] = balanced
    net.nodes.insert(at, helper.make_node("Mul", [name, inverse], [balanced], name=f"{balanced}_Mul"))
    net.dtypes[balanced] = 1
    if name in net.shapes:
        net.shapes[balanced] = net.shapes[name]
    net.link()
