"""Streaming observers of a tensor's values: a fixed-size memory, whatever the number of samples.

A histogram's bins are [k * width, (k + 1) * width) with `width` a power of two. When values fall outside, the
width doubles and neighbouring bins are added up; because floor(x / 2w) = floor(floor(x / w) / 2), the result is
that of one pass with the final width, and merging two histograms is exact too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

BINS = 4096
MOST = 1 << 15  # values of one sample that the histogram counts, evenly spread; extremes are of all


@dataclass
class Observer:
    """Extremes over all samples, means of each sample's extremes, moments and a histogram of one tensor.

    `bins` counts values by floor(x / width) from `first` on; 0 bins where `histogram` is off.
    """

    histogram: bool = True
    count: int = 0
    samples: int = 0
    low: float = math.inf
    high: float = -math.inf
    sum_low: float = 0.0
    sum_high: float = 0.0
    sum_squares: float = 0.0
    width: float = 0.0
    first: int = 0
    bins: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, x: np.ndarray) -> tuple[float, float]:
        """Take one sample's values (any shape, real) and give their extremes. Raises ValueError for NaN or infinity."""
        x = np.asarray(x).reshape(-1)
        if not x.size:
            return 0.0, 0.0
        low, high = float(x.min()), float(x.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("holds NaN or infinity")
        self.samples += 1
        self.count += x.size
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.sum_low += low
        self.sum_high += high
        self.sum_squares += float(np.dot(x, x)) if x.dtype != np.float16 else float((x.astype(np.float64) ** 2).sum())
        if self.histogram:
            self._cover(low, high)
            x = x[:: -(-x.size // MOST) | 1]  # odd, so as not to walk along a column of an image
            index = np.floor(x * (1.0 / self.width)).astype(np.int64) - self.first
            self.bins += np.bincount(index, minlength=len(self.bins))
        return low, high

    def merge(self, other: Observer) -> None:
        """Add what another observer of the same tensor saw."""
        self.count += other.count
        self.samples += other.samples
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.sum_low += other.sum_low
        self.sum_high += other.sum_high
        self.sum_squares += other.sum_squares
        if not other.bins.size:
            return
        if not self.bins.size:
            self.width, self.first, self.bins = other.width, other.first, other.bins.copy()
            return
        self._cover(other.low, other.high, at_least=other.width)
        share = other.width / self.width  # a power of two, so the product is exact
        index = np.floor(np.arange(other.first, other.first + len(other.bins)) * share).astype(np.int64) - self.first
        filled = other.bins > 0
        np.add.at(self.bins, index[filled], other.bins[filled])

    @property
    def mean_range(self) -> tuple[float, float]:
        """Means over samples of each sample's minimum and maximum (the "moving average" range)."""
        return self.sum_low / max(self.samples, 1), self.sum_high / max(self.samples, 1)

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin, float64."""
        return (np.arange(self.first, self.first + len(self.bins)) + 0.5) * self.width

    def _cover(self, low: float, high: float, at_least: float = 0.0) -> None:
        """Make the bins hold [low, high] with a width of at least `at_least`, at most BINS of them."""
        if not self.bins.size:
            span = max(high - low, abs(high), abs(low), 1e-30)
            self.width = max(2.0 ** math.floor(math.log2(span / BINS) + 1), at_least)
            self.first, self.bins = math.floor(low / self.width), np.zeros(1, np.int64)
        while True:
            begin = min(self.first, math.floor(low / self.width))
            end = max(self.first + len(self.bins), math.floor(high / self.width) + 1)
            if end - begin <= BINS and self.width >= at_least:
                break
            self._halve()
        if (begin, end) != (self.first, self.first + len(self.bins)):
            grown = np.zeros(end - begin, np.int64)
            grown[self.first - begin : self.first - begin + len(self.bins)] = self.bins
            self.first, self.bins = begin, grown

    def _halve(self) -> None:
        odd_start, odd_end = self.first % 2, (self.first + len(self.bins)) % 2
        padded = np.pad(self.bins, (odd_start, odd_end))
        self.bins = padded.reshape(-1, 2).sum(1)
        self.first = (self.first - odd_start) // 2
        self.width *= 2
