"""Which drawings a device has numbers for, and what goes into them."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_edge import plots
from lepton_edge.bench_report import drawing
from lepton_edge.bench_report.cells import accuracy_cell, parity_cell, size_cell, time_cell
from lepton_edge.bench_report.documents import Entry
from lepton_edge.bench_report.metrics import pair, positive
from lepton_edge.plots_style import SHAPES, Mark, Point, Style, style_of
from lepton_edge.report_schema import finite
from lepton_edge.texts import number

Drawing = dict[str, str]
SQNR_LANE = 60.0  # dB; above it, answers are the same for any purpose: plotted in one lane


def drawings(entries: Sequence[Entry], number_of_runs: int, prefix: str) -> list[Drawing]:
    """The drawings of one device, as {"svg", "title", "caption"}; ``prefix`` starts their ids."""
    timed = [e for e in entries if e.latency]
    marks = {id(e): _mark(e, _several(entries), number_of_runs) for e in entries}
    style = _style(entries)
    made = [
        _distributions(timed, marks, style, f"{prefix}-spread"),
        _tradeoff(timed, marks, style, f"{prefix}-tradeoff"),
        _memory(timed, marks, style, f"{prefix}-memory"),
        _throughput(entries, marks, style, f"{prefix}-throughput"),
        _batches(timed, style, f"{prefix}-batch"),
    ]
    return [m for m in made if m]


def label(e: Entry, number_of_runs: int) -> str:
    """What a row is called where rows of several runs stand together."""
    return e.row["name"] + (f" · run {e.run + 1}" if number_of_runs > 1 else "")


def _several(entries: Sequence[Entry]) -> bool:
    """Whether some format was run in more than one runtime, so that runtimes need a sign of their own."""
    return len({(e.row["format"], e.runtime) for e in entries if e.runtime}) > len({e.row["format"] for e in entries})


def _style(entries: Sequence[Entry]) -> Style:
    style = style_of({e.row["format"] for e in entries}, ())
    runtimes = sorted({e.runtime for e in entries if e.runtime}) if _several(entries) else []
    return Style(style.colours, {name: SHAPES[i % len(SHAPES)] for i, name in enumerate(runtimes)}, {})


def _mark(e: Entry, several: bool, number_of_runs: int) -> Mark:
    """One row in every drawing: a colour is a format, a shape a runtime (a blank one: it needs none)."""
    name = label(e, number_of_runs)
    cells = ((accuracy_cell(e), "top-1"), (parity_cell(e), "SQNR"), (time_cell(e, "p50"), "p50, ms"))
    bits = [name, *(f"{word} {c.text} {c.sub}".strip() for c, word in cells if not c.missing), size_cell(e).text]
    return Mark(name, e.row["format"], e.runtime or " " if several else " ", False, "; ".join(bits))


def _axis(entries: Sequence[Entry]) -> str:
    kinds = "/".join(sorted({e.kind for e in entries}))
    threads = {e.latency.get("threads") for e in entries} - {None}
    only = threads.pop() if len(threads) == 1 else None
    return f"latency, ms ({kinds}{f', {only:g} thread' + 's' * (only != 1) if only else ''})"


def _distributions(timed: Sequence[Entry], marks: dict[int, Mark], style: Style, prefix: str) -> Drawing | None:
    if not timed or (len(timed) == 1 and timed[0].kind == "estimated"):
        return None
    rows = [
        drawing.Spread(
            marks[id(e)],
            positive(e.latency.get("samples_ns")),
            e.latency["p50_ms"],
            pair(e.latency.get("p50_ci")),
            e.latency.get("p95_ms") if finite(e.latency.get("p95_ms")) else None,
            f"p50 {number(e.latency['p50_ms'])} ms",
        )
        for e in timed
    ]
    return {
        "svg": drawing.distributions(rows, style, x_label=_axis(timed), prefix=prefix),
        "title": "Latency distributions",
        "caption": "Shape: how often a time was seen (the slowest 1 % is left out); thick line: middle half; tall "
        "tick: median; short tick: p95, where the samples bound it. Right: the medians of the rounds in order, "
        "about the overall median. A diamond is one figure without samples.",
    }


def _tradeoff(timed: Sequence[Entry], marks: dict[int, Mark], style: Style, prefix: str) -> Drawing | None:
    scored = [e for e in timed if not accuracy_cell(e).missing]
    compared = [] if scored else [e for e in timed if not parity_cell(e).missing]
    if not scored and not compared:
        return None
    points = []
    for e in scored or compared:
        y = 100 * e.row["accuracy"]["top1"] if scored else float(parity_cell(e).sort or 0.0)
        y_ends = pair(e.row["accuracy"].get("ci95"), 100) if scored else None
        points.append(Point(marks[id(e)], e.latency["p50_ms"], y, pair(e.latency.get("p50_ci")), y_ends))
    svg = plots.tradeoff(
        points,
        style,
        x_label=f"p50 {_axis(scored or compared)}",
        y_label="top-1 accuracy, %" if scored else "SQNR, dB (higher: closer to this machine's answers)",
        lane=None if scored else SQNR_LANE,
        prefix=prefix,
    )
    return {
        "svg": svg,
        "title": f"{'Accuracy' if scored else 'Parity'} against latency",
        "caption": "Up and left is better. Bars are 95 % intervals. Nothing is both faster and better than what is on "
        "the line.",
    }


def _memory(timed: Sequence[Entry], marks: dict[int, Mark], style: Style, prefix: str) -> Drawing | None:
    known = [e for e in timed if finite(e.latency.get("peak_rss_mb"))]
    if not known:
        return None
    peaks = [e.latency["peak_rss_mb"] for e in known]
    bars = [plots.Bar(marks[id(e)], peak, None, number(peak)) for e, peak in zip(known, peaks, strict=True)]
    kinds = "/".join(sorted({e.kind for e in known}))
    return {
        "svg": plots.sizes(bars, style, x_label=f"peak memory, MB ({kinds})", prefix=prefix),
        "title": "Peak memory",
        "caption": "All that the process held at its peak: the runtime, its libraries, the model and the inputs.",
    }


def _throughput(entries: Sequence[Entry], marks: dict[int, Mark], style: Style, prefix: str) -> Drawing | None:
    swept = [e for e in entries if e.row.get("throughput")]
    plots_ = []
    for e in swept:
        lines = []
        for threads in sorted({load["threads"] for load in e.row["throughput"]}):
            loads = sorted((x for x in e.row["throughput"] if x["threads"] == threads), key=lambda x: x["streams"])
            points = [(load["streams"], load["per_s"]) for load in loads if load["streams"] > 0]
            ends = [pair(load.get("per_s_ci")) for load in loads if load["streams"] > 0]
            name = f"{threads:g} thread{'s' * (threads != 1)}"
            if points:
                lines.append(drawing.Line(name, points, ends, style.colours[e.row["format"]]))
        if lines:
            plots_.append(drawing.Panel(marks[id(e)].label, lines, "streams", "inferences/s"))
    if not plots_:
        return None
    kinds = "/".join(sorted({e.kind for e in swept}))
    return {
        "svg": drawing.panels(plots_, prefix, "Throughput by streams and threads"),
        "title": f"Throughput ({kinds})",
        "caption": "Inferences a second of all streams together, by the threads that each of them may use; "
        "bars are 95 % intervals.",
    }


def _batches(timed: Sequence[Entry], style: Style, prefix: str) -> Drawing | None:
    """Curves over the batch, of the models that were measured at more than one."""
    sweeps: dict[tuple, list[Entry]] = {}
    for e in timed:
        sweeps.setdefault((e.row["model"], e.row["format"], e.runtime, e.run), []).append(e)
    curves = {key: found for key, found in sweeps.items() if len({e.batch for e in found}) > 1}
    if not curves:
        return None
    rates, times = [], []
    for (model, format_, runtime, _), found in curves.items():
        name = model if sum(key[0] == model for key in curves) == 1 else f"{model}, {runtime}"
        colour = style.colours[format_]
        rated = [(e.batch, e.latency["per_s"]) for e in found if finite(e.latency.get("per_s"))]
        if rated:
            rates.append(drawing.Line(name, rated, (), colour))
        ends = [pair(e.latency.get("p50_ci")) for e in found]
        times.append(drawing.Line(name, [(e.batch, e.latency["p50_ms"]) for e in found], ends, colour))
    wanted = [drawing.Panel("Latency of a batch", times, "batch", "p50, ms")]
    if rates:
        wanted.insert(0, drawing.Panel("Samples a second", rates, "batch", "samples/s"))
    kinds = "/".join(sorted({e.kind for e in timed}))
    return {
        "svg": drawing.panels(wanted, prefix, "Samples a second and latency by batch"),
        "title": f"Batch sweep ({kinds})",
        "caption": "Left: samples a second; right: the median time of a whole batch, with its 95 % interval.",
    }
