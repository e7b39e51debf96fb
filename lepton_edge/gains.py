"""What each step of a chain brought, held against the same chain without it: time, zipped size, accuracy.

Pure arithmetic on what was measured. A step has to pay: a candidate is as good as the file it began from where it is
neither faster, nor smaller zipped, nor more accurate than the candidate of the same format that lacks one of its steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lepton_edge import bench, verify
from lepton_edge.candidates import Candidate

SMALLER = 0.98  # of the zipped size: what saves less is not worth a step


def bases(c: Candidate, made: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of the same format whose chain is that of ``c`` less one step."""
    parts = c.chain.parts
    shorter = {parts[:k] + parts[k + 1 :] for k in range(len(parts))}
    return [other for other in made if other.format == c.format and other.chain.parts in shorter]


def gains(made: Sequence[Candidate], sizes: Mapping[str, int], labels: Any | None) -> dict[str, list[dict]]:
    """By name of a candidate, a row for each of its bases: "to", "zip" (a ratio), "latency" (as bench.ratios gives it,
    None where one was not timed), "points" of top-1 gained with their paired "points_ci95" (None without labels),
    "any" and a "text". ``sizes`` are zipped bytes by name."""
    timings = {c.name: c.timing for c in made if c.timing}
    found: dict[str, list[dict]] = {}
    for c in made:
        rows = []
        for base in bases(c, made):
            if c.error or base.error or c.name not in sizes or base.name not in sizes:
                continue
            latency = bench.ratios(timings, {c.name: base.name}).get(c.name)
            rows.append(_row(base.name, sizes[c.name] / sizes[base.name], latency, _points(base, c, labels)))
        found[c.name] = rows
    return found


def _points(base: Candidate, c: Candidate, labels: Any | None) -> dict | None:
    if labels is None or base.answers is None or c.answers is None:
        return None
    before, after = (
        verify.score({p.source: a.outputs[p.name] for p in a.wiring}, labels) for a in (base.answers, c.answers)
    )
    return verify.drop(before, after) if before and after else None


def _row(to: str, zipped: float, latency: dict | None, dropped: dict | None) -> dict:
    faster = latency is not None and latency["verdict"] == "faster"
    points = -dropped["drop_points"] if dropped else None
    ends = sorted(-x for x in dropped["drop_ci95"]) if dropped else None
    better = ends is not None and ends[0] > 0
    told = {"to": to, "zip": round(zipped, 4), "latency": latency, "points": points, "points_ci95": ends}
    return {**told, "any": faster or zipped <= SMALLER or better, "text": _text(told, faster, better)}


def _text(row: dict[str, Any], faster: bool, better: bool) -> str:
    latency, said = row["latency"], []
    if latency is not None:
        ends = f" [{latency['ci95'][0]:.2f}, {latency['ci95'][1]:.2f}]" if latency.get("ci95") else ""
        word = "faster" if faster else latency["verdict"] if latency["verdict"] == "slower" else "not faster"
        said.append(f"{word} ({latency['median']:.2f}x{ends})")
    else:
        said.append("not timed")
    said.append(f"{'smaller' if row['zip'] <= SMALLER else 'not smaller'} zipped ({row['zip']:.2f}x)")
    if row["points"] is not None:
        said.append(f"{'more' if better else 'not more'} accurate ({row['points']:+.2f} points)")
    return f"against {row['to']}: {', '.join(said)}"
