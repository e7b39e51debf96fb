"""The ratio of latencies that were measured in different sessions: nothing pairs their rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lepton_edge.bench import DISTURBED_P
from lepton_edge.bench_report.metrics import by_process
from lepton_edge.noise import BUSY_CORES
from lepton_edge.stats import median, quantile, t95

Clusters = Sequence[Sequence[Sequence[float]]]


def ratio(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """How long ``new`` takes relative to ``old``, two latencies of bench documents with their raw samples.

    {"median", "ci95" (None: one of them is of a single process, or has no samples), "of"}. As in bench.ratios, the
    fastest tenth of each turn is compared where other processes kept one of the machines busy, else the medians.
    """
    busy = max(latency.get("others_cores") or 0.0 for latency in (old, new)) > BUSY_CORES
    p = DISTURBED_P if busy else 0.5
    a, b = by_process(old), by_process(new)
    if not a or not b:
        return {"median": new["p50_ms"] / old["p50_ms"], "ci95": None, "of": "p50"}
    middle, ends = welch(logs(b, p), logs(a, p))
    return {
        "median": _exp(middle),
        "ci95": [_exp(end) for end in ends] if ends else None,
        "of": f"p{p * 100:g}",
    }


def _exp(x: float) -> float:
    """The exponential of a difference of logarithms, within what JSON can say."""
    return math.exp(max(-200.0, min(200.0, x)))


def logs(processes: Clusters, p: float) -> list[float]:
    """The logarithm of each process's time: the median over its rounds of their p-quantiles."""
    return [median([math.log(_middle(turn, p)) for turn in turns]) for turns in processes]


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, tuple[float, float] | None]:
    """The difference of the means of ``a`` and ``b`` and its 95 % interval; None where one holds a single value.

    The values are those of fresh processes, so their variance holds what differs between rounds and between processes
    (Kalibera & Jones, Quantifying Performance Changes with Effect Size Confidence Intervals, 2012); variances may
    differ (Welch, Biometrika 34, 1947, degrees of freedom rounded down).
    """
    middle = math.fsum(a) / len(a) - math.fsum(b) / len(b)
    if min(len(a), len(b)) < 2:
        return middle, None
    u, v = (_variance(values) / len(values) for values in (a, b))
    if not u + v:
        return middle, (middle, middle)
    share = u / (u + v)
    freedom = 1 / (share**2 / (len(a) - 1) + (1 - share) ** 2 / (len(b) - 1))
    half = t95(max(1, math.floor(freedom))) * math.sqrt(u + v)
    return middle, (middle - half, middle + half)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def _middle(values: Sequence[float], p: float) -> float:
    return median(values) if p == 0.5 else quantile(sorted(values), p)
