"""Honest numbers from raw samples: percentiles with intervals, ratios with intervals, proportions.

Percentile intervals are the distribution-free ones from order statistics: the number of samples below the
p-quantile is Binomial(n, p) (Hahn & Meeker, Statistical Intervals, 1991, section 5.2). A percentile that
the sample count cannot bound is None, not a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Two-sided 95 % points of Student's t for 1..30 degrees of freedom.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def median(values: Sequence[float]) -> float:
    """The median of ``values`` (not empty)."""
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def quantile(ordered: Sequence[float], p: float) -> float:
    """The p-quantile of sorted values: the smallest value with at least a share p of the samples at or below it."""
    return ordered[max(0, math.ceil(p * len(ordered)) - 1)]


def quantile_interval(ordered: Sequence[float], p: float) -> tuple[float, float] | None:
    """A 95 % confidence interval for the p-quantile from sorted samples, or None when they are too few.

    The ranks (l, u) are the tightest with P(B < l) <= 2.5 % and P(B >= u) <= 2.5 %, B ~ Binomial(n, p).
    """
    n = len(ordered)
    lower = upper = None
    below = 0.0  # P(B <= k - 1), then P(B <= k)
    for k in range(n + 1):
        if below <= 0.025:
            lower = k  # rank l = k has P(B < k) <= 2.5 %
        below += _binomial(n, p, k)
        if below >= 0.975:
            upper = k + 1
            break
    if not lower or upper is None or upper > n:
        return None
    return ordered[lower - 1], ordered[upper - 1]


def _binomial(n: int, p: float, k: int) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return math.exp(log)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """A 95 % t-interval for the mean of ``values``, or None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = (_T[n - 2] if n - 1 <= len(_T) else 1.96) * spread / math.sqrt(n)
    return mean - half, mean + half


def summarize(rounds: Sequence[Sequence[int]]) -> dict:
    """Latency figures in milliseconds from rounds of nanoseconds.

    The interval of the median covers both the scatter of the samples and the drift between rounds: it is the
    hull of the order-statistic interval and the t-interval of the rounds' own medians.
    """
    ordered = sorted(ns / 1e6 for r in rounds for ns in r)
    figures: dict = {
        "count": len(ordered),
        "rounds": len(rounds),
        "mean_ms": math.fsum(ordered) / len(ordered),
    }
    for p in (50, 90, 95, 99):
        interval = quantile_interval(ordered, p / 100)
        if p == 50:
            drift = mean_interval([median(r) / 1e6 for r in rounds])
            ends = [x for i in (interval, drift) if i for x in i]
            interval = (max(0.0, min(ends)), max(ends)) if ends else None
            figures["p50_ms"] = median(ordered)
        else:
            figures[f"p{p}_ms"] = quantile(ordered, p / 100) if interval else None
        figures[f"p{p}_ci"] = list(interval) if interval else None
    return figures


def ratio(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> dict:
    """How long ``a`` takes relative to ``b``, from rounds measured in turn: median ratio, 95 % interval, verdict.

    Round k of ``a`` is paired with round k of ``b``, so slow drift of the machine cancels; the interval is the
    t-interval of the log ratios of the rounds' medians.
    """
    logs = [math.log(median(x) / median(y)) for x, y in zip(a, b, strict=True)]
    interval = mean_interval(logs)
    low, high = (math.exp(interval[0]), math.exp(interval[1])) if interval else (0.0, math.inf)
    verdict = "faster" if high < 1 else "slower" if low > 1 else "no difference"
    return {"median": math.exp(median(logs)), "ci95": [low, high] if interval else None, "verdict": verdict}


def proportion_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    z2 = 1.96**2
    share = hits / count
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = 1.96 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)
