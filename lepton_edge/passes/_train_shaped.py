"""Weights that train in float and compute as what they will be: with zeros, of few values, on a grid of few bits.

A Shaped weight keeps a float twin of a layer's kernel. Before each batch the kernel is set to what the twin stands for,
and the kernel's gradient goes straight through the rounding to the twin (Bengio et al., arXiv:1308.3432; Jacob et al.,
"Quantization and Training of Neural Networks", CVPR 2018), and to the scales and centroids that took part (Esser et
al., "Learned Step Size Quantization", arXiv:1902.08153). So no wrapper enters the graph: every layer that has a kernel
can be trained so, recurrent, nested, shared and carried ones too, and there is nothing to strip afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.passes._train_kernels import Kernel

CUTS = np.linspace(1.0, 0.4, 25)  # of the largest weight, tried as the end of a grid


@dataclass(frozen=True)
class Grid:
    """`bits` of a weight: symmetric and narrow, -last .. last steps, one scale for each slice of the other axes than
    `shared`."""

    bits: int
    shared: tuple[int, ...]

    @property
    def last(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1


class Shaped:
    """One kernel under training, as tf.Variables.

    `mask` (0 or 1) says which weights live; with a `grid` weights are whole steps, with `centroids` (in shares of the
    grid's end, or in the weights' own unit without a grid) they take those values only. `refresh(twin, step)` may give
    another mask before a batch; `twin()` reads the float weights.
    """

    def __init__(
        self,
        kernel: Kernel,
        *,
        mask: np.ndarray | None = None,
        grid: Grid | None = None,
        centroids: np.ndarray | None = None,
        refresh: Callable[[Callable[[], np.ndarray], int], np.ndarray | None] | None = None,
        scale: np.ndarray | None = None,
    ) -> None:
        import tensorflow as tf

        start = kernel.variable.numpy().astype(np.float32)
        self.kernel, self.grid, self.refresh = kernel, grid, refresh
        self.twin = tf.Variable(start, name="twin")
        self.mask = tf.Variable(np.ones_like(start) if mask is None else mask.astype(np.float32), trainable=False)
        self.scale: Any = None  # of a step
        self.growth: Any = None  # its logarithm's change, which is what trains
        self.centroids: Any = None
        if grid is not None:
            self.scale = tf.constant(least_error_scale(start, grid) if scale is None else scale)
            self.growth = tf.Variable(tf.zeros_like(self.scale), name="growth")
        if centroids is not None:
            self.centroids = tf.Variable(np.sort(centroids).astype(np.float32), name="centroids")

    def trained(self) -> list[Any]:
        """The variables that gradients go to."""
        return [v for v in (self.twin, self.growth, self.centroids) if v is not None]

    def variables(self) -> dict[str, Any]:
        """Everything to go on from, by name."""
        parts = {"twin": self.twin, "mask": self.mask, "growth": self.growth, "centroids": self.centroids}
        return {name: v for name, v in parts.items() if v is not None}

    def update(self, step: int) -> None:
        """Give it the mask of this step."""
        if self.refresh is not None and (mask := self.refresh(self.twin.numpy, step)) is not None:
            self.mask.assign(mask.astype(np.float32))

    def value(self) -> Any:
        """The weight as it ships, float32: a function of trained() whose gradient goes straight through rounding."""
        import tensorflow as tf

        twin = self.twin * self.mask
        if self.grid is None:
            return (twin if self.centroids is None else self._nearest(twin, tf.sort(self.centroids))) * self.mask
        step, last = self.scale * tf.exp(self.growth), float(self.grid.last)
        whole = tf.clip_by_value(twin / step, -last, last)
        if self.centroids is None:
            whole = _through(tf.round(whole), whole)
        else:
            inside = tf.clip_by_value(tf.sort(self.centroids), -1.0, 1.0) * last
            whole = self._nearest(whole, _through(tf.round(inside), inside))
        return whole * step * self.mask

    @staticmethod
    def _nearest(x: Any, sorted_: Any) -> Any:
        """Each value's nearest centroid; its gradient goes to both."""
        import tensorflow as tf

        middles = (sorted_[1:] + sorted_[:-1]) / 2
        at = tf.reshape(tf.searchsorted(tf.stop_gradient(middles), tf.reshape(x, [-1])), tf.shape(x))
        return tf.gather(sorted_, at) + (x - tf.stop_gradient(x))  # the bracket is exactly 0

    def write(self) -> None:
        """Set the layer's kernel to what it ships as."""
        import tensorflow as tf

        self.kernel.variable.assign(tf.cast(self.value(), self.kernel.variable.dtype))


def _through(rounded: Any, exact: Any) -> Any:
    import tensorflow as tf

    return tf.stop_gradient(rounded) + (exact - tf.stop_gradient(exact))


def least_error_scale(weight: np.ndarray, grid: Grid) -> np.ndarray:
    """The step of each slice with the least squared error, with the axes of `grid.shared` as 1: float32."""
    peak = np.abs(weight).max(axis=grid.shared, keepdims=True)
    best, kept = np.full(peak.shape, np.inf), peak
    for cut in CUTS if grid.bits < 8 else CUTS[:1]:
        step = np.maximum(peak * cut, 1e-12) / grid.last
        moved = np.clip(np.rint(weight / step), -grid.last, grid.last) * step
        error = ((weight - moved) ** 2).sum(axis=grid.shared, keepdims=True)
        better = error < best
        best, kept = np.where(better, error, best), np.where(better, peak * cut, kept)
    return (np.where(kept > 1e-12, kept, 1.0) / grid.last).astype(np.float32)


def start_centroids(values: np.ndarray, count: int, sweeps: int = 3) -> np.ndarray:
    """`count` centroids of values [n] by k-means (Lloyd, 1982), sorted; fewer where there are fewer values.

    They start evenly over the range of the values, which keeps the rare large weights that matter most (Han et al.,
    "Deep Compression", arXiv:1510.00149, section 3.2). Few sweeps leave them nearly so: values then use them unevenly,
    and the file zips smaller (the sample CNN, with the same top-1: 0.60 of int8 without any, 0.61 after 3, 0.65 after
    30).
    """
    values = np.sort(values.reshape(-1).astype(np.float64))
    different = np.unique(values)
    if len(different) <= count:
        return different
    found = np.linspace(values[0], values[-1], count)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    for _ in range(sweeps):
        edges = np.searchsorted(values, (found[1:] + found[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(values)]])
        counts = np.diff(edges)
        means = (sums[edges[1:]] - sums[edges[:-1]]) / np.maximum(counts, 1)
        new = np.sort(np.where(counts > 0, means, found))
        if np.allclose(new, found, rtol=1e-6, atol=1e-12):
            break
        found = new
    return found
