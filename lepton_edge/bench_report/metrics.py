"""The figures that limits are set on: each with its 95 % interval, its unit, and why it is not there.

Times are in ms, sizes in bytes, peak memory in MB, shares in percent, energy in mJ, rates in inferences a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from lepton_edge.report_schema import finite
from lepton_edge.stats import mean_interval, samples_needed
from lepton_edge.texts import decimals, duration, interval, number, size

Ends = tuple[float, float] | None


@dataclass(frozen=True)
class Metric:
    """The units that a figure is written in, by what they are worth; ``default`` is the one that may be left out."""

    units: Mapping[str, float]
    default: str | None = None


TIME = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
BYTES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9}
METRICS: dict[str, Metric] = {
    **{name: Metric(TIME) for name in ("p50", "p90", "p95", "p99", "mean", "first", "load")},
    "peak_mb": Metric({"kB": 1e-3, "MB": 1.0, "GB": 1e3}, "MB"),
    "size": Metric(BYTES),
    "top1": Metric({"%": 1.0}),
    "drop": Metric({"points": 1.0}, "points"),
    "sqnr": Metric({"dB": 1.0}, "dB"),
    "energy_mj": Metric({"uJ": 1e-3, "mJ": 1.0, "J": 1e3}, "mJ"),
    "throughput": Metric({"/s": 1.0}, "/s"),
}
#: What has to be asked of a measurement so that the figure is there.
ASK = {
    "top1": "give labelled samples with --eval",
    "drop": "give labelled samples with --eval, to 'compress'",
    "sqnr": "measure on a device that is reached, or use a run of 'compress'",
    "energy_mj": "measure with --energy on a machine whose power can be read",
    "throughput": "measure with --throughput",
}


_samples_needed = cache(samples_needed)
_PLACES = {"top1": 2, "drop": 2, "sqnr": 1}


@dataclass(frozen=True)
class Figure:
    """A value with its interval (None: none is known) and the samples it rests on; or None, why, and the fix.

    ``short`` is set where samples are there and too few: that is a mistake in the asking, not in the model.
    """

    value: float | None
    ends: Ends = None
    count: int = 0
    why: str = ""
    hint: str = ""
    short: bool = False


def figure(row: Mapping[str, Any], metric: str, seconds: float | None = None) -> Figure:
    """A metric of a row of bench, or of a candidate of a run; ``seconds`` is how long a model was measured."""
    if metric in ("size", "drop", "sqnr", "top1"):
        return _of_file(row, metric)
    if metric == "energy_mj":
        return _energy(row.get("energy") or {})
    if metric == "throughput":
        return _throughput(row.get("throughput") or [])
    latency = row.get("latency") or {}
    if not finite(latency.get("p50_ms")):
        return Figure(None, why="its latency was not measured", hint="measure it, with 'bench'")
    if latency.get("kind") == "estimated" and metric != "p50":
        return Figure(None, why=f"it is estimated, and an estimate has no {metric}", hint="measure it, with 'bench'")
    if metric in ("p90", "p95", "p99") and not finite(latency.get(f"{metric}_ms")):
        return _too_few(latency, metric, seconds)
    value = latency.get("peak_rss_mb" if metric == "peak_mb" else f"{metric}_ms")
    if not finite(value):
        return Figure(None, why=f"its {metric} was not recorded", hint="measure it, with 'bench'")
    ends = _mean_ends(latency, value) if metric == "mean" else pair(latency.get(f"{metric}_ci"))
    return Figure(value, ends, latency.get("count") or 0)


def pair(value: Any, scale: float = 1.0) -> Ends:
    """An interval as a pair of finite numbers, times ``scale``; None where there is none."""
    return (value[0] * scale, value[1] * scale) if value is not None and finite(value) else None


def positive(rounds: Any) -> list[list[float]]:
    """Samples of nanoseconds as ms, a list a round; rounds without samples, and what is no time, are left out."""
    kept = [[ns / 1e6 for ns in turn if finite(ns) and ns > 0] for turn in rounds or []]
    return [turn for turn in kept if turn]


def by_process(latency: Mapping[str, Any]) -> list[list[list[float]]]:
    """The rounds of ms of each fresh process; one process where the document does not tell them apart."""
    rounds = latency.get("samples_ns") or []
    told = latency.get("process_of_round")
    of = told if told and len(told) == len(rounds) else [0] * len(rounds)
    kept = [positive(turn for turn, p in zip(rounds, of, strict=True) if p == process) for process in dict.fromkeys(of)]
    return [process for process in kept if process]


def written(metric: str, value: float) -> str:
    """A value with its unit, as it is printed."""
    if metric == "size":
        return size(value)
    unit = METRICS[metric].default or ("%" if metric == "top1" else "ms")
    if math.isinf(value):
        return "exact"
    text = number(value, _PLACES.get(metric))
    return text + ("" if unit == "/s" else " ") + unit


def written_ends(metric: str, ends: Ends) -> str:
    """An interval in the unit that ``written`` uses for its lower end, without it; "" where there is none."""
    if ends is None:
        return ""
    if metric == "size":
        return f"[{size(ends[0])}, {size(ends[1])}]"
    return interval(ends, places=_PLACES.get(metric, decimals(ends[0])))


def _of_file(row: Mapping[str, Any], metric: str) -> Figure:
    accuracy, parity = row.get("accuracy") or {}, row.get("parity") or {}
    count = accuracy.get("count") or parity.get("count") or 0
    if metric == "size" and finite(row.get("size_bytes")):
        return Figure(row["size_bytes"])
    if metric == "top1" and finite(accuracy.get("top1")):
        return Figure(100 * accuracy["top1"], pair(accuracy.get("ci95"), 100), count)
    if metric == "drop" and finite(row.get("drop_points")):
        return Figure(row["drop_points"], pair(row.get("drop_ci95")), count)
    if metric == "sqnr" and parity:
        if finite(parity.get("sqnr_db")):
            return Figure(parity["sqnr_db"], None, count)
        if parity.get("max_abs") == 0:
            return Figure(math.inf, None, count)
    return Figure(None, why=f"its {metric} was not measured", hint=ASK.get(metric, "measure again"))


def _energy(energy: Mapping[str, Any]) -> Figure:
    if finite(energy.get("joules")):
        return Figure(1e3 * energy["joules"], pair(energy.get("ci95"), 1e3))
    reason = f" ({energy['reason']})" if energy.get("reason") else ""
    return Figure(None, why=f"its energy was not measured{reason}", hint=ASK["energy_mj"])


def _throughput(loads: list[dict[str, Any]]) -> Figure:
    """That of the best combination of streams and threads."""
    if not loads:
        return Figure(None, why="its throughput was not measured", hint=ASK["throughput"])
    best = max(loads, key=lambda load: load["per_s"])
    return Figure(best["per_s"], pair(best.get("per_s_ci")))


def _mean_ends(latency: Mapping[str, Any], mean: float) -> Ends:
    """The t-interval of the means of the processes (of the rounds, where there is one), which holds the ``mean``."""
    processes = by_process(latency)
    clusters = processes[0] if len(processes) == 1 else [[v for turn in p for v in turn] for p in processes]
    ends = mean_interval([math.fsum(c) / len(c) for c in clusters])
    return (max(0.0, min(ends[0], mean)), max(ends[1], mean)) if ends else None


def _too_few(latency: Mapping[str, Any], metric: str, seconds: float | None) -> Figure:
    """A percentile that the samples do not bound, and for how long to measure so that they do."""
    needed, count = _samples_needed(int(metric[1:]) / 100), latency.get("count") or 0
    worth = latency.get(f"{metric}_worth") or count
    why = f"its {count:,} samples" + (f", worth {worth:,.0f} independent ones," if worth < count else "")
    why += f" are too few for a {metric}, which needs {needed:,}"
    spent = seconds or sum(map(sum, latency.get("samples_ns") or [])) / 1e9
    if not count or not spent:
        return Figure(None, why=why, hint="measure for longer, with --seconds", short=True)
    longer = max(0.1, 1.3 * spent * needed / max(1.0, worth))  # 1.3: so that it is not missed by a hair
    asked = math.ceil(longer) if longer >= 1 else round(longer, 1)
    hint = f"measure each model for about {duration(longer)}: bench --seconds {asked}"
    return Figure(None, why=why, hint=hint, count=count, short=True)
