"""From what an observer saw to the range [low, high] that a tensor's grid covers."""

from __future__ import annotations

import numpy as np

from lepton_edge.quant.observe import Observer

METHODS = ("minmax", "average", "percentile", "mse", "entropy")
PERCENTILE = 99.99


def choose(observer: Observer, method: str, bits: int = 8) -> tuple[float, float]:
    """The range by `method`, one of METHODS. It always holds zero."""
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    if method == "minmax" or not observer.bins.size or high <= low:
        return low, high
    if method == "average":
        first, last = observer.mean_range
        return max(low, min(first, 0.0)), min(high, max(last, 0.0))
    if method == "percentile":
        return percentile(observer, PERCENTILE)
    return mse(observer, bits) if method == "mse" else entropy(observer, bits)


def percentile(observer: Observer, share: float) -> tuple[float, float]:
    """The range that leaves (100 - share) / 2 per cent of the values out on each side."""
    mass = np.cumsum(observer.bins) / observer.bins.sum()
    tail = (100 - share) / 200
    edges = (np.arange(observer.first, observer.first + len(observer.bins) + 1)) * observer.width
    low = edges[int(np.searchsorted(mass, tail, side="right"))]
    high = edges[min(int(np.searchsorted(mass, 1 - tail)) + 1, len(edges) - 1)]
    return max(min(low, 0.0), min(observer.low, 0.0)), min(max(high, 0.0), max(observer.high, 0.0))


def mse(observer: Observer, bits: int = 8, steps: int = 40) -> tuple[float, float]:
    """The range of least squared error: rounding inside (step^2 / 12) and clipping outside, by the histogram.

    Each end is searched in turn from the extremes inwards (coordinate descent), as in the L2 range setting of
    Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, section 3.1.
    """
    x, weights = observer.centres, observer.bins.astype(np.float64)
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    levels = 2**bits - 1
    cuts = np.linspace(1.0, 0.2, steps)

    # Sums over the tails make every candidate O(1).
    total = (np.cumsum(weights), np.cumsum(weights * x), np.cumsum(weights * x * x))

    def clipped(edge: float, above: bool) -> float:
        """Sum of w * (x - edge)^2 over bins beyond `edge`."""
        at = int(np.searchsorted(x, edge))
        if above:
            n, s, q = (t[-1] - (t[at - 1] if at else 0.0) for t in total)
        else:
            n, s, q = (t[at - 1] if at else 0.0 for t in total)
        return max(float(q - 2 * edge * s + edge * edge * n), 0.0)

    count = float(total[0][-1])

    def error(a: float, b: float) -> float:
        step = (b - a) / levels
        return count * step * step / 12 + clipped(a, False) + clipped(b, True)

    best_low, best_high = low, high
    for _ in range(2):
        best_high = float(min((high * c for c in cuts), key=lambda b: error(best_low, b))) if high > 0 else high
        best_low = float(min((low * c for c in cuts), key=lambda a: error(a, best_high))) if low < 0 else low
    return best_low, best_high


def entropy(observer: Observer, bits: int = 8, steps: int = 40) -> tuple[float, float]:
    """The range whose quantized distribution has the least Kullback-Leibler divergence from the clipped one.

    After Migacz, "8-bit Inference with TensorRT", GTC 2017; both ends are scaled together, and the histogram is
    compared at its own resolution.
    """
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    levels = 2**bits
    best, kept = np.inf, (low, high)
    x, counts = observer.centres, observer.bins.astype(np.float64)
    for cut in np.linspace(1.0, 0.2, steps):
        a, b = low * cut, high * cut
        inside = (x >= a) & (x <= b)
        if inside.sum() < levels:
            break
        p = counts[inside].copy()
        raw = p.copy()
        p[0] += counts[x < a].sum()
        p[-1] += counts[x > b].sum()
        group = np.minimum((np.arange(len(p)) * levels) // len(p), levels - 1)
        filled = raw > 0
        mass = np.bincount(group, raw, levels)
        spread = np.bincount(group, filled, levels)
        q = np.where(filled, mass[group] / np.maximum(spread[group], 1), 0.0)
        both = (p > 0) & (q > 0)
        lost = p[(p > 0) & (q == 0)].sum() / p.sum()
        divergence = float((p[both] / p.sum() * np.log((p[both] / p.sum()) / (q[both] / q.sum()))).sum()) + 10 * lost
        if divergence < best - 1e-9:
            best, kept = divergence, (a, b)
    return kept
