"""The rows a weighted layer multiplies: its input as [positions, features], its output as [positions, channels]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_edge.quant.net import Net, attribute
from lepton_edge.quant.place import Layer


def matrix(layer: Layer, weight: np.ndarray) -> np.ndarray:
    """The weight as [groups, out channels of a group, features]; features run as rows() gives them."""
    if layer.op == "Conv":
        return weight.reshape(layer.group, weight.shape[0] // layer.group, -1)
    return (weight if layer.axis == 0 else weight.T)[None]


def unmatrix(layer: Layer, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of matrix()."""
    if layer.op == "Conv":
        return rows.reshape(shape)
    return rows[0] if layer.axis == 0 else np.ascontiguousarray(rows[0].T)


def correctable(layer: Layer) -> bool:
    """Whether rows() can be taken: all but transposed convolutions."""
    return layer.op != "ConvTranspose"


class Rows:
    """Takes the same random positions from a layer's input and output, at most `most` a sample.

    `live` says by sample which positions count (bool, None: all), where a tensor has as many.
    """

    def __init__(
        self, net: Net, layer: Layer, most: int, seed: int = 0, live: Sequence[np.ndarray | None] = ()
    ) -> None:
        self.layer, self._live = layer, live
        self._most, self._seed = most, seed
        node = net.makers[layer.y]
        weight = net.consts[layer.weight]
        self._kernel = weight.shape[2:] if layer.op == "Conv" else ()
        rank = len(self._kernel)
        self._strides = attribute(node, "strides", [1] * rank)
        self._dilations = attribute(node, "dilations", [1] * rank)
        self._pads = attribute(node, "pads", [0] * 2 * rank)
        self._auto = attribute(node, "auto_pad", "NOTSET") if rank else "NOTSET"

    def y(self, value: np.ndarray, sample: int) -> np.ndarray:
        """Outputs [groups, positions, out channels of a group] at the positions of a sample."""
        if self.layer.op != "Conv":
            flat = value.reshape(-1, value.shape[-1])
            return flat[self._positions(len(flat), sample)][None]
        n, *place = self._places(value, sample)
        out = np.moveaxis(value, 1, -1)[(n, *place)].reshape(len(n), self.layer.group, -1)
        return np.ascontiguousarray(out.transpose(1, 0, 2))

    def x(self, value: np.ndarray, out_size: tuple[int, ...], sample: int) -> np.ndarray:
        """Inputs [groups, positions, features] that give those outputs; `out_size` is the shape of y's value."""
        if self.layer.op != "Conv":
            flat = value.reshape(-1, value.shape[-1])
            return flat[self._positions(len(flat), sample)][None]
        value = np.pad(value, [(0, 0), (0, 0), *self._padding(value.shape[2:], out_size[2:])])
        flat = self._positions(out_size[0] * int(np.prod(out_size[2:])), sample)
        n, *place = np.unravel_index(flat, (out_size[0], *out_size[2:]))
        rank = len(self._kernel)
        index = []
        for axis, origin in enumerate(place):
            offsets = np.arange(self._kernel[axis]) * self._dilations[axis]
            grid = (origin * self._strides[axis])[:, None] + offsets[None]
            index.append(grid.reshape(len(flat), *[-1 if k == axis else 1 for k in range(rank)]))
        taken = np.moveaxis(value, 1, -1)[(n.reshape((len(flat),) + (1,) * rank), *index)]
        taken = np.moveaxis(taken, -1, 1).reshape(len(flat), self.layer.group, -1)  # [positions, groups, features]
        return np.ascontiguousarray(taken.transpose(1, 0, 2))

    def _places(self, value: np.ndarray, sample: int) -> Any:
        shape = (value.shape[0], *value.shape[2:])
        return np.unravel_index(self._positions(int(np.prod(shape)), sample), shape)

    def _positions(self, count: int, sample: int) -> Any:
        mask = self._live[sample] if self._live else None
        where = np.arange(count) if mask is None or len(mask) != count else np.flatnonzero(mask)
        if len(where) <= self._most:
            return where
        return np.sort(np.random.default_rng((self._seed, sample)).choice(where, self._most, replace=False))

    def _padding(self, have: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[int, int]]:
        rank = len(self._kernel)
        if self._auto in ("SAME_UPPER", "SAME_LOWER"):
            pairs = []
            for k in range(rank):
                reach = (self._kernel[k] - 1) * self._dilations[k] + 1
                total = max((size[k] - 1) * self._strides[k] + reach - have[k], 0)
                less, more = total // 2, total - total // 2
                pairs.append((less, more) if self._auto == "SAME_UPPER" else (more, less))
            return pairs
        pads = [0] * 2 * rank if self._auto == "VALID" else self._pads
        return [(int(pads[k]), int(pads[k + rank])) for k in range(rank)]
