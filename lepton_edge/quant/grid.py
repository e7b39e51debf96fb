"""The affine grid of integer quantization: real = scale * (q - zero point).

Conventions of the ONNX QuantizeLinear and TFLite quantization specifications: round half to even, saturate;
weights symmetric and narrow ([-127, 127] for 8 bits), activations asymmetric with zero exactly on the grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SMALLEST = 1e-9  # below it a range is taken for zero


@dataclass(frozen=True)
class Grid:
    """`scale` and `zero` of one tensor, or of each slice along `axis` (arrays of the same length); float32, int64."""

    scale: np.ndarray
    zero: np.ndarray
    low: int
    high: int
    axis: int | None = None

    @property
    def bits(self) -> int:
        """Bits that hold low..high."""
        return int(np.ceil(np.log2(self.high - self.low + 1)))

    def shaped(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point, to be broadcast with a tensor of `rank` axes."""
        if self.axis is None:
            return self.scale.reshape(()), self.zero.reshape(())
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero.reshape(shape)


def activation_grid(low: float, high: float, bits: int = 8, symmetric: bool = False, signed: bool = False) -> Grid:
    """The grid that covers [low, high] and zero. Unsigned unless `signed`; `symmetric` puts the zero in the middle."""
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    first, last = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if symmetric:
        middle = 0 if signed else 2 ** (bits - 1)
        scale = np.float32(max(max(-low, high), SMALLEST) / (last - middle))
        return Grid(scale.reshape(1), np.array([middle]), first, last)
    scale = np.float32(max(high - low, SMALLEST) / (last - first))
    zero = int(np.clip(np.rint(first - low / float(scale)), first, last))
    return Grid(scale.reshape(1), np.array([zero]), first, last)


def weight_grid(peak: np.ndarray, axis: int | None, bits: int = 8) -> Grid:
    """Symmetric, narrow grid whose largest value is `peak` (one a channel along `axis`, or a single one)."""
    last = 2 ** (bits - 1) - 1
    peak = np.atleast_1d(np.asarray(peak, np.float64))
    scale = np.where(peak > SMALLEST, peak, 1.0) / last
    return Grid(scale.astype(np.float32), np.zeros(len(scale), np.int64), -last, last, axis)


def quantize(x: np.ndarray, grid: Grid) -> np.ndarray:
    """Integers of `x` on the grid, int64, same shape: round half to even, saturated."""
    scale, zero = grid.shaped(x.ndim)
    return np.clip(np.rint(x / scale) + zero, grid.low, grid.high).astype(np.int64)


def dequantize(q: np.ndarray, grid: Grid) -> np.ndarray:
    """float32 values of integers on the grid."""
    scale, zero = grid.shaped(q.ndim)
    return ((q - zero) * scale).astype(np.float32)


def nearest(weight: np.ndarray, axis: int | None, bits: int = 8) -> tuple[np.ndarray, Grid]:
    """Integers of weights on the symmetric grid that their largest values need, one scale a slice along `axis`."""
    others = tuple(k for k in range(weight.ndim) if k != axis) if axis is not None else None
    grid = weight_grid(np.abs(weight).max(axis=others), axis, bits)
    return quantize(weight, grid), grid


def fake(x: np.ndarray, grid: Grid) -> np.ndarray:
    """`x` moved onto the grid, float32."""
    return dequantize(quantize(x, grid), grid)
