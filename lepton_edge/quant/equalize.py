"""Cross-layer equalization: every channel of an activation tensor made to fill the one grid the tensor has.

max(s x, 0) = s max(x, 0) for s > 0, so a factor on a channel can be moved through Relu, sums and pools from the
layers that write it to the layers that read it (Nagel et al., "Data-Free Quantization Through Weight Equalization and
Bias Correction", ICCV 2019, section 4.1). With per-channel weights the writers' rows cost nothing, and readers' columns
are rounded by learned rounding, so factors serve the activations: s = sqrt(R / the channel's largest value), half of
the way to the grid's whole range R. A Clip at h stays exact: a channel that reaches h keeps s = 1, and no other is
brought near.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Layer, Placement, clip_limits
from lepton_edge.quant.prepare import set_bias
from lepton_edge.quant.tap import BUDGET, Sample, each, finite

PASSES = {"Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity", "Dropout"}
MOST = 1e3  # factors are kept within 1 / MOST .. MOST
DEAD = 1e-6  # of the tensor's range: a channel below it carries nothing
HEADROOM = 3.0  # below a Clip's limit, for samples that calibration has not seen
SHARE = 0.5  # of the way, in decades: all of it costs the readers' weights more than it gains


@dataclass(frozen=True)
class Family:
    """Tensors [batch, channels, ...] that share one factor a channel; `caps` are the Clip limits of some of them."""

    tensors: tuple[str, ...]
    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    caps: tuple[tuple[str, float], ...]
    channels: int


def find(net: Net, placement: Placement, skip: Iterable[str] = ()) -> list[Family]:
    """All families whose channels can be scaled; those with a tensor in `skip` are left out."""
    by_y = {layer.y: layer for layer in placement.layers}
    by_x: dict[str, list[Layer]] = {}
    for layer in placement.layers:
        by_x.setdefault(layer.x, []).append(layer)
    seen: set[str] = set(skip)
    found = []
    for start in by_y:
        if start in seen:
            continue
        family = _walk(net, start, by_y, by_x)
        if family is not None and not seen & set(family.tensors):
            seen.update(family.tensors)
            found.append(family)
    return found


def _walk(net: Net, start: str, by_y: dict[str, Layer], by_x: dict[str, list[Layer]]) -> Family | None:
    todo: list[str] = [start]
    tensors: dict[str, None] = {}
    writers: dict[str, Layer] = {}
    readers: dict[str, Layer] = {}
    caps: dict[str, float] = {}
    is_image = by_y[start].op in ("Conv", "ConvTranspose")
    while todo:
        tensor = todo.pop()
        if tensor in tensors:
            continue
        tensors[tensor] = None
        maker = net.makers.get(tensor)
        if tensor in net.outputs or maker is None or (is_image and len(net.shapes.get(tensor, ())) < 3):
            return None
        if tensor in by_y:
            layer = by_y[tensor]
            if not writable(net, layer) or (layer.op in ("Conv", "ConvTranspose")) != is_image:
                return None
            writers[tensor] = layer
        elif maker.op_type in PASSES:
            if maker.op_type == "Clip":
                limits = clip_limits(net, maker)
                if limits is None or limits[0] not in (0.0, -np.inf):
                    return None
                if limits[1] < np.inf:
                    caps[tensor] = limits[1]
            todo.append(maker.input[0])
        elif maker.op_type == "Add":
            if any(side in net.consts for side in maker.input) or len({net.shapes.get(s) for s in maker.input}) != 1:
                return None
            todo += list(maker.input)
        else:
            return None
        for user in net.users.get(tensor, []):
            reader = next((item for item in by_x.get(tensor, []) if item.y == user.output[0]), None)
            if reader is not None:
                if not net.private(reader.weight) or (reader.op in ("Conv", "ConvTranspose")) != is_image:
                    return None
                readers[reader.y] = reader
            elif user.op_type in PASSES or user.op_type == "Add":
                todo.append(user.output[0])
            else:
                return None
    first = next(iter(writers.values()))
    channels = len(_rows_of(net, first))
    if not readers or channels < 2 or any(len(_rows_of(net, w)) != channels for w in writers.values()):
        return None
    return Family(tuple(tensors), tuple(writers.values()), tuple(readers.values()), tuple(caps.items()), channels)


def writable(net: Net, layer: Layer) -> bool:
    """Whether each output channel of a layer has a row of its own in a weight that nobody else reads."""
    return layer.axis is not None and net.private(layer.weight) and (not layer.bias or layer.op != "MatMul")


def _rows_of(net: Net, layer: Layer) -> np.ndarray:
    """The weight with its output channels first."""
    return np.moveaxis(net.consts[layer.weight], layer.axis or 0, 0)


def extremes(
    net: Net, families: list[Family], samples: Iterable[Sample], memory: int = BUDGET
) -> dict[str, np.ndarray]:
    """Largest absolute value of every channel [channels] of each tensor, over all samples."""
    peaks: dict[str, np.ndarray] = {}
    image = {t: f.writers[0].op in ("Conv", "ConvTranspose") for f in families for t in f.tensors}

    def take(name: str, value: np.ndarray) -> None:
        rows = np.moveaxis(value, 1 if image[name] else -1, 0)
        high = finite(name, np.abs(rows.reshape(rows.shape[0], -1)).max(1))
        peaks[name] = np.maximum(peaks[name], high) if name in peaks else high

    each(net, list(image), samples, take, budget=memory)
    return peaks


def factors(family: Family, peaks: dict[str, np.ndarray], sites: set[str]) -> np.ndarray:
    """The factor of each channel [channels]; 1 where a Clip is reached or the channel is dead.

    `sites` are the tensors that get a grid: only their ranges count. With several of them, the least factor that fills
    any of their grids is taken, so no tensor's range grows.
    """
    seen = [t for t in family.tensors if t in sites] or list(family.tensors)
    caps = dict(family.caps)
    wanted = np.full(family.channels, np.inf)
    fixed = np.zeros(family.channels, bool)
    for tensor, cap in caps.items():
        fixed |= peaks[tensor] >= cap * 0.999
    for tensor in seen:
        peak = peaks[tensor].astype(np.float64)
        full = float(peak.max())
        if tensor in caps and not fixed.any():
            full = caps[tensor] / HEADROOM
        if full <= 0:
            return np.ones(family.channels)
        wanted = np.minimum(wanted, np.where(peak > DEAD * full, full / np.maximum(peak, 1e-30), 1.0))
    for tensor, cap in caps.items():
        peak = np.maximum(peaks[tensor].astype(np.float64), 1e-30)
        wanted = np.minimum(wanted, np.maximum(cap / HEADROOM / peak, 1.0))
    return np.where(fixed, 1.0, np.clip(wanted, 1 / MOST, MOST) ** SHARE)


def scale(net: Net, family: Family, s: np.ndarray) -> None:
    """Write factors into the weights: rows and biases of the writers times s, columns of the readers over s."""
    for layer in family.writers:
        weight = net.consts[layer.weight].astype(np.float64)
        shape = [1] * weight.ndim
        shape[layer.axis or 0] = -1
        net.consts[layer.weight] = (weight * s.reshape(shape)).astype(np.float32)
        if layer.bias:
            bias = net.consts[layer.bias].astype(np.float64)
            set_bias(net, net.makers[layer.y], (bias * s).astype(np.float32))
    for layer in family.readers:
        net.consts[layer.weight] = _columns(net, layer, s).astype(np.float32)
    net.link()


def _columns(net: Net, layer: Layer, s: np.ndarray) -> np.ndarray:
    """A reader's weight with its input channels divided by s."""
    weight = net.consts[layer.weight].astype(np.float64)
    if layer.op == "Conv":
        by_group = s.reshape(layer.group, 1, -1, *(1,) * (weight.ndim - 2))  # [groups, 1, in channels of a group, ...]
        rows = weight.reshape(layer.group, -1, *weight.shape[1:])
        return (rows / by_group).reshape(weight.shape)
    axis = 0 if layer.op in ("ConvTranspose", "MatMul") or layer.axis == 1 else 1
    shape = [1] * weight.ndim
    shape[axis] = -1
    return weight / s.reshape(shape)
