"""Which plots a run has numbers for, and what goes into them."""

from __future__ import annotations

from typing import Any

from lepton_edge import plots
from lepton_edge.plots_style import Mark, Point, Style, style_of
from lepton_edge.report_cells import accuracy_cell, kind_of, size_cell, sqnr_cell, time_cell
from lepton_edge.report_schema import finite
from lepton_edge.texts import number, size

SQNR_LANE = 60.0  # dB; above it a file is a copy of the source for any purpose, and plotted in one lane


def drawings(run: dict[str, Any]) -> list[dict[str, str]]:
    """The plots there are numbers for, as {"svg", "title", "caption"}."""
    ok = [c for c in run["candidates"] if c["status"] == "ok"]
    style = style_of({c["format"] for c in ok}, {c["scheme"] for c in ok})
    timed = [c for c in ok if finite((c.get("latency") or {}).get("p50_ms")) and c["latency"]["p50_ms"] > 0]
    made = [_tradeoff(run, timed, style), _latencies(run, timed, style), _sizes(run, ok, style)]
    return [m for m in made if m]


def _mark(c: dict[str, Any], run: dict[str, Any]) -> Mark:
    bits = [c["name"]]
    for cell, word in ((accuracy_cell(c, run), "top-1"), (sqnr_cell(c.get("parity")), "SQNR")):
        bits += [] if cell.missing else [f"{word} {cell.text} {cell.sub}".strip()]
    p50 = time_cell(c, "p50")
    bits += [] if p50.missing else [f"p50 {p50.text} ms {p50.sub}".strip()]
    bits += [size_cell(c, run).text]
    return Mark(c["name"], c["format"], c["scheme"], c["name"] == run.get("picked"), "; ".join(bits))


def _pair(value: Any, scale: float = 1.0) -> tuple[float, float] | None:
    return (value[0] * scale, value[1] * scale) if value is not None and finite(value) else None


def _times_label(timed: list[dict[str, Any]]) -> str:
    kinds = "/".join(sorted({kind_of(c) for c in timed}))
    threads = {c["latency"].get("threads") for c in timed}
    only = threads.pop() if len(threads) == 1 else None
    using = f", {only:g} thread{'s' * (only != 1)}" if only else ""
    return f"latency, ms ({kinds}{using})"


def _tradeoff(run: dict[str, Any], timed: list[dict[str, Any]], style: Style) -> dict[str, str] | None:
    scored = [c for c in timed if not accuracy_cell(c, run).missing]
    points, lane, reference, floor = [], None, None, None
    if scored:
        what = "accuracy"
        y_label = "top-1 accuracy, %"
        for c in scored:
            acc = c["accuracy"]
            points.append(_point(c, run, acc["top1"] * 100, _pair(acc.get("ci95"), 100)))
        top1 = ((run.get("reference") or {}).get("accuracy") or {}).get("top1")
        if finite(top1):
            reference = (top1 * 100, "reference")
            drop = run["settings"].get("max_drop")
            floor = (top1 * 100 - drop, f"limit: {drop:g} {'point' if drop == 1 else 'points'} lower") if drop else None
    else:
        what, y_label, lane = "SQNR", "SQNR, dB (higher is closer to the source)", SQNR_LANE
        compared = [c for c in timed if not sqnr_cell(c.get("parity")).missing]
        points = [_point(c, run, float(sqnr_cell(c["parity"]).sort or 0.0), None) for c in compared]
    if not points:
        return None
    shown = [c for c in timed if c["name"] in {p.mark.label for p in points}]
    limit = run["settings"].get("max_latency")
    svg = plots.tradeoff(
        points,
        style,
        x_label=f"p50 {_times_label(shown)}",
        y_label=y_label,
        lane=lane,
        reference=reference,
        floor=floor,
        x_limit=(limit, "limit") if limit else None,
    )
    names = "Bars are 95 % intervals. " if any(p.x_ci or p.y_ci for p in points) else ""
    return {
        "svg": svg,
        "title": f"{what[0].upper()}{what[1:]} against latency",
        "caption": f"Up and left is better. {names}Nothing is both faster and better than a candidate on the line.",
    }


def _point(c: dict[str, Any], run: dict[str, Any], y: float, y_ci: tuple[float, float] | None) -> Point:
    return Point(_mark(c, run), c["latency"]["p50_ms"], y, _pair(c["latency"].get("p50_ci")), y_ci)


def _latencies(run: dict[str, Any], timed: list[dict[str, Any]], style: Style) -> dict[str, str] | None:
    rows = []
    for c in timed:
        rounds = [[ns / 1e6 for ns in r if finite(ns)] for r in c["latency"].get("samples_ns") or []]
        p50 = c["latency"]["p50_ms"]
        rows.append(plots.Spread(_mark(c, run), rounds, p50, _pair(c["latency"].get("p50_ci")), number(p50)))
    if not rows:
        return None
    svg = plots.latencies(rows, style, x_label=_times_label(timed))
    return {
        "svg": svg,
        "title": "Latency distributions",
        "caption": "Box: middle half of the runs, line: median, whiskers: 5th to 95th percentile, "
        "ticks above: the median of each round.",
    }


def _sizes(run: dict[str, Any], ok: list[dict[str, Any]], style: Style) -> dict[str, str] | None:
    files = [c for c in ok if c.get("size_bytes") and finite(c["size_bytes"])]
    if not files:
        return None
    source, limit = run["model"].get("size_bytes"), run["settings"].get("max_size")
    biggest = max([c["size_bytes"] for c in files] + ([source] if source else []))
    scale, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")) if biggest >= s or s == 1)
    bars = [
        plots.Bar(
            _mark(c, run),
            c["size_bytes"] / scale,
            (c.get("zip_bytes") or 0) / scale or None,
            size(c["size_bytes"]),
        )
        for c in files
    ]
    if source:
        name = run["model"]["name"]
        bars.insert(
            0,
            plots.Bar(Mark(name, "", "", tip=f"{name}: the source model"), source / scale, None, size(source)),
        )
    svg = plots.sizes(bars, style, x_label=f"size on disk, {unit}", limit=(limit / scale, "limit") if limit else None)
    return {
        "svg": svg,
        "title": "Size",
        "caption": "Bar: file on disk, dark tick: the same file zipped, grey: the source.",
    }
