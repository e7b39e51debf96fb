"""Which candidate to ship, and the reason for every one: pure arithmetic on what was measured.

The rules, in order: it ran; accuracy within ``max_drop`` (points of top-1, or without labels the mean cosine
to the source model, at least 1 - max_drop / 100); within ``max_size`` and ``max_latency``; a compressed model
is not slower than the float model of its own format, unless the smallest is asked for; each of its steps brought
something that was measured (gains.py). Among those left the fastest wins, and candidates whose latency intervals
overlap the fastest's are decided by size; or the smallest zipped, those within 1 % decided by latency; or the least
product of both, where one per cent of the one is worth one of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SAME_SIZE = 1.01  # zipped sizes that differ less are the same


def choose(
    candidates: Sequence[dict],
    *,
    max_drop: float,
    max_size: int | None = None,
    max_latency: float | None = None,
    goal: str = "latency",
) -> tuple[str | None, dict[str, str], set[str]]:
    """Pick from candidates in the form of run.json.

    ``max_drop`` in percentage points, ``max_size`` in bytes, ``max_latency`` in ms (p50); ``goal`` is minimised:
    "latency", "size" (zipped) or "balanced" (their product).
    Returns (name of the picked one or None, a reason for each name, the names on the Pareto front).
    """
    reasons = {c["name"]: _objection(c, max_drop, max_size, max_latency, goal) for c in candidates}
    fine = {name for name, why in reasons.items() if not why}
    for c in candidates:
        if c["name"] in fine:
            reasons[c["name"]] = _no_gain(c, fine)
    fit = [c for c in candidates if not reasons[c["name"]]]
    front = pareto(candidates)
    if not fit:
        return None, reasons, front
    first = min(fit, key=lambda c: _value(c, goal)[1])
    tied = [c for c in fit if _tied(c, first, goal)]
    best = min(tied, key=lambda c: _tie(c, goal))
    for c in fit:
        reasons[c["name"]] = _compared(c, best, goal)
    reasons[best["name"]] = _why(best, first, len(fit), goal)
    return best["name"], reasons, front


def too_much(figures: dict, max_drop: float) -> str:
    """What a candidate loses beyond ``max_drop``; "" where it is within."""
    if figures["drop_points"] is not None:
        if figures["drop_points"] > max_drop + 1e-9:
            return f"top-1 drops {figures['drop_points']:.2f} points, more than the {max_drop:g} allowed"
    elif figures["parity"]["cosine"] < 1 - max_drop / 100:
        least, cosine = 1 - max_drop / 100, figures["parity"]["cosine"]
        return f"cosine to the source model {cosine:.4f}, below {least:.4f} (there are no labels)"
    return ""


def _objection(c: dict, max_drop: float, max_size: int | None, max_latency: float | None, goal: str) -> str:
    if c["status"] != "ok":
        return f"failed: {c['error']['message']}"
    if loss := too_much(c, max_drop):
        return loss
    if max_size is not None and c["size_bytes"] > max_size:
        return f"{c['size_bytes']:,} bytes, more than the {max_size:,} allowed"
    if c["latency"] is None:
        return "its latency was not measured"
    if max_latency is not None and c["latency"]["p50_ms"] > max_latency:
        return f"p50 {c['latency']['p50_ms']:.3g} ms, more than the {max_latency:g} ms allowed"
    ratio = c.get("ratio")
    if ratio and ratio["verdict"] == "slower" and goal != "size":
        return f"{ratio['median']:.2f}x the time of {ratio['to']}: slower than the float model is never picked"
    return ""


def _no_gain(c: dict, fine: set[str]) -> str:
    """What a step that brought nothing is held against: a candidate without it that could be picked as well."""
    idle = next((g for g in c.get("gains") or () if not g["any"] and g["to"] in fine), None)
    return f"a step that brought nothing {idle['text']}" if idle else ""


def _value(c: dict, goal: str) -> tuple[float, float, float]:
    """What is minimised, with its interval: low, middle, high."""
    zipped, latency = c.get("zip_bytes") or c["size_bytes"], c["latency"]
    if goal == "size":
        return zipped / SAME_SIZE, zipped, zipped
    low, high = latency["p50_ci"] or (math.nan, math.nan)  # without an interval nothing is tied
    weight = zipped if goal == "balanced" else 1
    return low * weight, latency["p50_ms"] * weight, high * weight


def _tied(a: dict, b: dict, goal: str) -> bool:
    if a["name"] == b["name"]:
        return True
    first, second = _value(a, goal), _value(b, goal)
    return first[0] <= second[2] and second[0] <= first[2]


def _tie(c: dict, goal: str) -> tuple[float, float]:
    if goal == "size":
        return c["latency"]["p50_ms"], c["zip_bytes"]
    return (-quality(c), c["zip_bytes"]) if goal == "balanced" else (c["size_bytes"], c["latency"]["p50_ms"])


def _compared(c: dict, best: dict, goal: str) -> str:
    if goal == "latency":
        if _tied(c, best, goal):
            return f"as fast as {best['name']} within the noise, and not smaller"
        return f"meets the limits, {c['latency']['p50_ms'] / best['latency']['p50_ms']:.2f}x the time of {best['name']}"
    what = "zipped size" if goal == "size" else "product of time and zipped size"
    if _tied(c, best, goal):
        more = "not faster" if goal == "size" else "not nearer to the source model"
        return f"the same {what} as {best['name']} within the noise, and {more}"
    return f"meets the limits, {_value(c, goal)[1] / _value(best, goal)[1]:.2f}x the {what} of {best['name']}"


def _why(best: dict, first: dict, count: int, goal: str) -> str:
    among = f"of the {count} that meet the limits" if count > 1 else "the only one that meets the limits"
    if goal == "latency":
        if best["name"] != first["name"]:
            return f"the smallest {among} and are as fast as {first['name']} within the noise"
        return f"the fastest {among}" if count > 1 else among
    said = "the smallest zipped" if goal == "size" else "the least product of time and zipped size"
    told = f"{said} {among}" if count > 1 else among
    if best["name"] != first["name"]:
        told += f" (the same as {first['name']} within the noise)"
    ratio = best.get("ratio")
    slow = f"; {ratio['median']:.2f}x the time of {ratio['to']}" if ratio and ratio["verdict"] == "slower" else ""
    return told + slow


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
