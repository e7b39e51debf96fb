"""What earlier steps made of a kernel, read from its weights: zeros, and values on a grid shared by few centroids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lepton_edge.passes._train_kernels import Kernel
from lepton_edge.quant import held

MOST = 64  # different integers of a kernel that count as centroids


@dataclass(frozen=True)
class Found:
    """`live`: which weights are not zero, where some are (bool). `levels`: the different integers, sorted, of a kernel
    of few of them on a grid of 8 bits; `step` of that grid, with the axes of `shared` as 1."""

    live: np.ndarray | None
    levels: np.ndarray | None = None
    step: np.ndarray | None = None


def read(kernel: Kernel) -> Found:
    """Of a kernel as it is now."""
    weight = kernel.variable.numpy().astype(np.float64)
    live = weight != 0
    zeros = None if live.all() else live
    if kernel.shared is None:
        return Found(zeros)
    rows, shape = rows_of(weight, kernel.shared)
    made = held.lattice(rows, 127) if rows.shape[1] >= held.LEAST else None
    if made is None:
        return Found(zeros)
    levels = np.unique(made[0])
    if len(levels) > min(MOST, weight.size // 3):  # on a grid, but with no centroids
        return Found(zeros)
    return Found(zeros, levels, made[1].reshape(shape).astype(np.float32))


def rows_of(weight: np.ndarray, shared: tuple[int, ...]) -> tuple[np.ndarray, tuple[int, ...]]:
    """A kernel as [slices, weights that share a scale], and the shape of its scales with the shared axes as 1."""
    own = [axis for axis in range(weight.ndim) if axis not in shared]
    turned = weight.transpose(*own, *shared)
    sizes = [weight.shape[axis] for axis in own]
    shape = tuple(1 if axis in shared else weight.shape[axis] for axis in range(weight.ndim))
    return turned.reshape(int(np.prod(sizes, dtype=np.int64)), -1), shape
