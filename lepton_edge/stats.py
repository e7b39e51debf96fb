"""Honest numbers from raw samples: percentiles with intervals, ratios with intervals, trends, proportions.

Percentile intervals are the distribution-free ones from order statistics: the number of samples below the
p-quantile is Binomial(n, p) (Hahn & Meeker, Statistical Intervals, 1991, section 5.2); LoadGen's early stopping
rests on the same count (MLPerf Inference Rules, "Early Stopping Criterion"). A percentile that the sample count
cannot bound is None, not a guess. Samples that come in bursts count for fewer (``effective_count``).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby, pairwise

PERCENTILES = (50, 90, 95, 99)
#: What a comparison of files never calls a difference: by so much differ files that are the same, for reasons that stay
#: the same in every process of a run, such as the length of a path (Mytkowicz et al., ASPLOS 2009).
RESOLUTION = 0.01
#: The same where each file had one process only: what differs from process to process is then in no interval.
RESOLUTION_ALONE = 0.05
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


def quantile_ranks(n: int, p: float) -> tuple[int, int] | None:
    """Ranks (from 1) of the order statistics of ``n`` samples that bound the p-quantile at 95 %; None: too few.

    The tightest (l, u) with P(B < l) <= 2.5 % and P(B >= u) <= 2.5 %, B ~ Binomial(n, p) being the samples below it.
    """
    lower = upper = 0
    below = 0.0  # P(B <= k - 1), then P(B <= k)
    for k in range(n + 1):
        if below <= 0.025:
            lower = k  # rank l = k has P(B < k) <= 2.5 %
        below += _binomial(n, p, k)
        if below >= 0.975:
            upper = k + 1
            break
    return (lower, upper) if lower and 0 < upper <= n else None


def quantile_interval(ordered: Sequence[float], p: float, count: float | None = None) -> tuple[float, float] | None:
    """A 95 % confidence interval for the p-quantile from sorted samples, or None when they are too few.

    ``count`` is how many independent samples they are worth, where that is fewer than there are.
    """
    n = len(ordered)
    worth = min(n, int(count)) if count is not None else n
    ranks = quantile_ranks(worth, p)
    if not ranks:
        return None
    lower, upper = ranks
    return ordered[(lower - 1) * n // worth], ordered[-(-upper * n // worth) - 1]


def _binomial(n: int, p: float, k: int) -> float:
    log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p)
    return math.exp(log)


def samples_needed(p: float) -> int:
    """The fewest independent samples that bound the p-quantile from both sides at 95 %."""
    return next(n for n in range(1, 10000) if quantile_ranks(n, p))


def effective_count(clusters: Sequence[Sequence[float]], limit: float) -> float:
    """How many independent samples all of them are worth as far as the share above ``limit`` goes.

    Slow samples come in bursts. The variance of their share from cluster to cluster (a turn, a process), over the
    variance that independent samples would have, is the design effect (Kish, Survey Sampling, 1965, section 5.4);
    for quantiles of dependent series it is that of the indicator (Heidelberger & Lewis, Operations Research 32, 1984).
    """
    n, counts = sum(map(len, clusters)), [(sum(v > limit for v in c), len(c)) for c in clusters if c]
    share = sum(above for above, _ in counts) / n
    if len(counts) < 2 or not 0 < share < 1:
        return n
    between = sum((above - share * size) ** 2 for above, size in counts) * len(counts) / (len(counts) - 1)
    return n / max(1.0, between / (n * share * (1 - share)))


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """A 95 % t-interval for the mean of ``values``, or None for fewer than two."""
    n = len(values)
    if n < 2:
        return None
    mean = math.fsum(values) / n
    spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = t95(n - 1) * spread / math.sqrt(n)
    return mean - half, mean + half


def t95(freedom: int) -> float:
    """The two-sided 95 % point of Student's t with ``freedom`` (from 1) degrees of freedom; above 30 the normal one."""
    return _T[freedom - 1] if freedom <= len(_T) else 1.96


def summarize(rounds: Sequence[Sequence[int]], processes: Sequence[int] | None = None) -> dict:
    """Latency figures in milliseconds from rounds of nanoseconds; ``processes`` says which process each round is of.

    Intervals are the order-statistic ones of as many samples as the turns and the processes are worth independent
    ones. That of the median is the hull of it and of the t-interval of the processes' own medians (of the rounds',
    where there is one process): it covers the scatter of samples, drift, and what differs from process to process.
    """
    turns = [[ns / 1e6 for ns in r] for r in rounds if r]
    by_process = _grouped(turns, [p for p, r in zip(processes, rounds, strict=True) if r] if processes else None)
    ordered = sorted(ms for turn in turns for ms in turn)
    figures: dict = {
        "count": len(ordered),
        "rounds": len(turns),
        "mean_ms": math.fsum(ordered) / len(ordered),
    }
    for percent in PERCENTILES:
        p = percent / 100
        limit = quantile(ordered, p)
        worth = min(effective_count(clusters, limit) for clusters in (turns, by_process))
        interval = quantile_interval(ordered, p, worth)
        if percent == 50:
            medians = [median(c) for c in (by_process if len(by_process) > 1 else turns)]
            ends = [x for i in (interval, mean_interval(medians)) if i for x in i]
            interval = (max(0.0, min(ends)), max(ends)) if ends else None
            figures["p50_ms"] = median(ordered)
        else:
            figures[f"p{percent}_ms"] = limit if interval else None
        figures[f"p{percent}_ci"] = list(interval) if interval else None
        figures[f"p{percent}_worth"] = round(worth)
    return figures


def _grouped(turns: Sequence[Sequence[float]], processes: Sequence[int] | None) -> list[list[float]]:
    if processes is None:
        return [[v for turn in turns for v in turn]]
    return [[v for turn in found for v in turn] for found in _by(turns, processes)]


def _by(values: Iterable, keys: Sequence[Hashable]) -> list[list]:
    """``values`` in groups of equal neighbouring keys."""
    pairs = zip(keys, values, strict=True)
    return [[value for _, value in group] for _, group in groupby(pairs, key=lambda pair: pair[0])]


def ratio(
    a: Sequence[Sequence[int]], b: Sequence[Sequence[int]], processes: Sequence[int] | None = None, p: float = 0.5
) -> dict:
    """How long ``a`` takes relative to ``b``, from rounds measured in turn: ratio, 95 % interval, verdict.

    Round k of ``a`` is paired with round k of ``b``, so slow drift of the machine cancels; their p-quantiles are held
    against each other. ``processes`` says of which pair of fresh processes each round is; the interval is that
    of the log ratios of those pairs (each the median of its rounds), for two processes of one file differ, too, and
    rounds of one pair do not show it (Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013). It is the
    order-statistic one of their median, which one pair that was disturbed does not widen (of nine pairs the second to
    the eighth); with one pair that of its rounds, and with fewer than six of either the t-interval. The verdict is
    "faster" or "slower" where the interval lies beyond ``RESOLUTION`` (with one pair ``RESOLUTION_ALONE``), else
    "no difference".
    """
    logs = [math.log(_middle(x, p) / _middle(y, p)) for x, y in zip(a, b, strict=True)]
    pairs = [median(group) for group in _by(logs, processes)] if processes else []
    values = pairs if len(pairs) > 1 else logs
    interval = quantile_interval(sorted(values), 0.5) or mean_interval(values)
    low, high = (math.exp(interval[0]), math.exp(interval[1])) if interval else (0.0, math.inf)
    least = RESOLUTION if len(pairs) > 1 else RESOLUTION_ALONE
    verdict = "faster" if high < 1 - least else "slower" if low > 1 + least else "no difference"
    return {
        "median": math.exp(median(values)),
        "ci95": [low, high] if interval else None,
        "verdict": verdict,
        "of": f"p{p * 100:g}",
        "processes": max(1, len(pairs)),
    }


def _middle(values: Sequence[float], p: float) -> float:
    return median(values) if p == 0.5 else quantile(sorted(values), p)


def trend(values: Sequence[float]) -> float | None:
    """The relative change over a series (0.08: it grew by 8 %), or None where it shows none.

    Kendall's S at 1 % (Mann, Econometrica 13, 1945; normal approximation, from ten values on); the change is the
    slope of Sen (JASA 63, 1968) times the length, over the median. Values are above 0; of more than 100 the medians of
    as many stretches are looked at.
    """
    if len(values) > 100:
        ends = [len(values) * k // 100 for k in range(101)]
        values = [median(values[a:b]) for a, b in pairwise(ends)]
    n = len(values)
    if n < 10:
        return None
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    s = sum((values[j] > values[i]) - (values[j] < values[i]) for i, j in pairs)
    if abs(s) - 1 < 2.576 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18):
        return None
    return median([(values[j] - values[i]) / (j - i) for i, j in pairs]) * (n - 1) / median(values)


def proportion_interval(hits: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    z2 = 1.96**2
    share = hits / count
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = 1.96 * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, centre - half), min(1.0, centre + half)
