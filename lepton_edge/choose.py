"""Which candidate to ship, and the reason for every one: pure arithmetic on what was measured.

The rules, in order: it ran; accuracy within ``max_drop`` (points of top-1, or without labels the mean cosine
to the source model, at least 1 - max_drop / 100); within ``max_size`` and ``max_latency``; a compressed model
is not slower than the float model of its own format. Among those left the fastest wins; candidates whose
latency intervals overlap the fastest's are decided by size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def choose(
    candidates: Sequence[dict],
    *,
    max_drop: float,
    max_size: int | None = None,
    max_latency: float | None = None,
) -> tuple[str | None, dict[str, str], set[str]]:
    """Pick from candidates in the form of run.json.

    ``max_drop`` in percentage points, ``max_size`` in bytes, ``max_latency`` in ms (p50).
    Returns (name of the picked one or None, a reason for each name, the names on the Pareto front).
    """
    reasons = {c["name"]: _objection(c, max_drop, max_size, max_latency) for c in candidates}
    fit = [c for c in candidates if not reasons[c["name"]]]
    front = pareto(candidates)
    if not fit:
        return None, reasons, front
    fastest = min(fit, key=lambda c: c["latency"]["p50_ms"])
    tied = [c for c in fit if _overlap(c, fastest)]
    best = min(tied, key=lambda c: (c["size_bytes"], c["latency"]["p50_ms"]))
    for c in fit:
        reasons[c["name"]] = _compared(c, best)
    reasons[best["name"]] = _why(best, fastest, len(fit))
    return best["name"], reasons, front


def _objection(c: dict, max_drop: float, max_size: int | None, max_latency: float | None) -> str:
    if c["status"] != "ok":
        return f"failed: {c['error']['message']}"
    if c["drop_points"] is not None:
        if c["drop_points"] > max_drop + 1e-9:
            return f"top-1 drops {c['drop_points']:.2f} points, more than the {max_drop:g} allowed"
    elif c["parity"]["cosine"] < 1 - max_drop / 100:
        least = 1 - max_drop / 100
        return f"cosine to the source model {c['parity']['cosine']:.4f}, below {least:.4f} (there are no labels)"
    if max_size is not None and c["size_bytes"] > max_size:
        return f"{c['size_bytes']:,} bytes, more than the {max_size:,} allowed"
    if c["latency"] is None:
        return "its latency was not measured"
    if max_latency is not None and c["latency"]["p50_ms"] > max_latency:
        return f"p50 {c['latency']['p50_ms']:.3g} ms, more than the {max_latency:g} ms allowed"
    ratio = c.get("ratio")
    if ratio and ratio["verdict"] == "slower":
        return f"{ratio['median']:.2f}x the time of {ratio['to']}: slower than the float model is never picked"
    return ""


def _overlap(a: dict, b: dict) -> bool:
    first, second = a["latency"]["p50_ci"], b["latency"]["p50_ci"]
    if first is None or second is None:
        return a["name"] == b["name"]
    return first[0] <= second[1] and second[0] <= first[1]


def _compared(c: dict, best: dict) -> str:
    if _overlap(c, best):
        return f"as fast as {best['name']} within the noise, and not smaller"
    return f"meets the limits, {c['latency']['p50_ms'] / best['latency']['p50_ms']:.2f}x the time of {best['name']}"


def _why(best: dict, fastest: dict, count: int) -> str:
    among = f"of the {count} that meet the limits" if count > 1 else "the only one that meets the limits"
    if best["name"] != fastest["name"]:
        return f"the smallest {among} and are as fast as {fastest['name']} within the noise"
    return f"the fastest {among}" if count > 1 else among


def pareto(candidates: Sequence[dict]) -> set[str]:
    """The names of the candidates that no other beats in both quality and latency."""
    points = [
        (c["name"], c["latency"]["p50_ms"], quality(c)) for c in candidates if c["status"] == "ok" and c["latency"]
    ]
    return {
        name
        for name, time, good in points
        if not any((t <= time and g >= good) and (t < time or g > good) for _, t, g in points)
    }


def quality(c: dict) -> float:
    """What "better" means for a candidate: top-1 when there are labels, else SQNR to the source model in dB."""
    if c["accuracy"]:
        return c["accuracy"]["top1"]
    parity = c["parity"]
    if parity["sqnr_db"] is None:
        return math.inf if parity["max_abs"] == 0 else -math.inf
    return parity["sqnr_db"]
