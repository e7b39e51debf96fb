"""The plots of a report: inline SVG drawn with matplotlib, the same bytes for the same numbers.

Rules:
- A colour is a format, a marker shape and a hatch are a scheme, a ring or bold name is the picked one.
- An axis of times is logarithmic when its values span more than ten times.
- Text stays text (searchable, in the page's font) and ink, rules and paper are CSS variables of the page,
  so the same drawing is readable in light and dark.
- Labels come from untrusted files: they are never parsed as mathtext, and matplotlib or `html` escapes them.
"""

from __future__ import annotations

import html
import io
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

WIDTH = 560  # user units of every drawing; the page scales it to the column
INK, MUTED, RULE, PAPER = "#1f2328", "#59636e", "#d8dee4", "#ffffff"
CSS_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    PAPER: "var(--paper)",
    "#0072b2": "var(--blue)",
}

# Okabe and Ito's colour-blind-safe palette; the three with the best contrast go to the common formats.
FORMAT_COLOURS = {
    "tflite": "#0072b2",
    "onnx": "#d55e00",
    "openvino": "#009e73",
    "keras": "#cc79a7",
    "savedmodel": "#e69f00",
    "pt2": "#56b4e9",
    "h5": "#999999",
}
SCHEME_ORDER = ("float32", "float16", "int8")  # always the same three; the others follow by name
SHAPES = ("o", "s", "D", "^", "v", "P", "X", "p", "h", "*")
HATCHES = (
    "",
    "|||",
    "///",
    "\\\\\\",
    "xxx",
    "---",
    "+++",
    "//",
    "\\\\",
    "--",
)  # lines only: dots make big files

RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "lepton-edge",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.labelpad": 6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "hatch.color": PAPER,
    "hatch.linewidth": 1.1,
    "legend.frameon": False,
    "legend.fontsize": 11,
    "legend.handletextpad": 0.3,
    "legend.columnspacing": 1.2,
    "legend.borderaxespad": 0.0,
}


@dataclass(frozen=True)
class Mark:
    """What a candidate looks like in every plot; `tip` is shown when the pointer rests on it."""

    label: str
    format: str
    scheme: str
    picked: bool = False
    tip: str = ""


@dataclass(frozen=True)
class Point:
    """One candidate in the trade-off: latency in ms, quality in `y`'s unit (inf: exact), their intervals."""

    mark: Mark
    x: float
    y: float
    x_ci: tuple[float, float] | None = None
    y_ci: tuple[float, float] | None = None


@dataclass(frozen=True)
class Spread:
    """The latency samples of one candidate in ms, one sequence a round; `text` is printed beside the box."""

    mark: Mark
    rounds: Sequence[Sequence[float]]
    p50: float
    p50_ci: tuple[float, float] | None = None
    text: str = ""


@dataclass(frozen=True)
class Bar:
    """The size of one file in bytes, and of the same file zipped; `text` is printed beside the bar."""

    mark: Mark
    size: float
    zipped: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Style:
    """Colour by format, shape and hatch by scheme: the same in all plots of a report."""

    colours: dict[str, str]
    shapes: dict[str, str]
    hatches: dict[str, str]


def style_of(formats: Iterable[str], schemes: Iterable[str]) -> Style:
    """Give every format a colour and every scheme a shape and a hatch, in an order that names alone fix."""
    spare = [c for c in FORMAT_COLOURS.values() if c not in {FORMAT_COLOURS.get(f) for f in formats}] or [MUTED]
    unknown = sorted(set(formats) - set(FORMAT_COLOURS))
    colours = FORMAT_COLOURS | {name: spare[-1 - i % len(spare)] for i, name in enumerate(unknown)}
    order = list(SCHEME_ORDER) + sorted(set(schemes) - set(SCHEME_ORDER))
    return Style(
        colours,
        {name: SHAPES[i % len(SHAPES)] for i, name in enumerate(order)},
        {name: HATCHES[i % len(HATCHES)] for i, name in enumerate(order)},
    )


def shorten(text: str, limit: int = 30) -> str:
    """Cut the middle out of a long name: both ends tell candidates apart."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def wants_log(values: Iterable[float]) -> bool:
    """True when positive values span more than ten times."""
    found = [v for v in values if math.isfinite(v)]
    return bool(found) and min(found) > 0 and max(found) > 10 * min(found)


def front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both: x lower, y higher. Sorted by x; equal points once."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda p: (p[0], -p[1])):
        if not kept or y > kept[-1][1]:
            kept.append((x, y))
    return kept


def tradeoff(
    points: Sequence[Point],
    style: Style,
    *,
    x_label: str,
    y_label: str,
    lane: float | None = None,
    reference: tuple[float, str] | None = None,
    floor: tuple[float, str] | None = None,
    x_limit: tuple[float, str] | None = None,
) -> str:
    """Quality against latency with intervals, the Pareto front and a name at every point.

    `lane`: values above it are drawn in one lane at the top, so that a float copy at 130 dB does not
    squeeze the others. `reference`, `floor` and `x_limit` are (value, text) lines drawn across.
    """
    with _figure(400) as fig:
        ax = fig.add_subplot()
        ys, top = _lanes([p.y for p in points], lane)
        for n, (p, y) in enumerate(zip(points, ys, strict=True)):
            _draw_point(ax, p, y, style, n, inside=top is None or y < top[0])
        steps = front((p.x, y) for p, y in zip(points, ys, strict=True))
        ax.step(*zip(*steps, strict=True), where="post", color=MUTED, lw=1.2, zorder=2)
        _scale_x(ax, [v for p in points for v in (p.x, *(p.x_ci or ()))], pad=0.10)
        _scale_y(ax, points, ys, top, [line[0] for line in (reference, floor) if line])
        notes = [_rule(ax, reference, (1, 2))] if reference else []
        if floor:
            notes.append(_rule(ax, floor, (5, 3), below=True))
        if x_limit and ax.get_xlim()[0] < x_limit[0] < ax.get_xlim()[1]:
            notes.append(_rule(ax, x_limit, (5, 3), upright=True))
        ax.set(xlabel=x_label, ylabel=y_label)
        ax.grid(True)
        _legend(fig, [p.mark for p in points], style)
        _name_points(fig, ax, points, ys, notes)
        return _svg(fig, "tradeoff", f"{y_label} against {x_label}", [p.mark.tip for p in points])


def latencies(rows: Sequence[Spread], style: Style, *, x_label: str) -> str:
    """A box a candidate: quartiles and median, whiskers from the 5th to the 95th percentile, round medians.

    Under 40 samples the tails say little: the samples themselves are drawn instead of a box.
    """
    import numpy as np

    with _figure(58 + 30 * len(rows)) as fig:
        ax = fig.add_subplot()
        ends: list[float] = []
        for i, row in enumerate(rows):
            values = np.concatenate([np.asarray(r, float) for r in row.rounds] or [np.empty(0)])
            right = _draw_spread(ax, i, row, values, style, ends)
            ax.annotate(
                row.text,
                (right, i),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=10.5,
                gid=f"name{i}",
            )
        _scale_x(ax, ends, pad=0.04, right=0.14)
        _rows_axis(ax, [r.mark for r in rows])
        ax.set_xlabel(x_label)
        return _svg(fig, "latency", f"Distribution of {x_label}", [r.mark.tip for r in rows])


def sizes(rows: Sequence[Bar], style: Style, *, x_label: str, limit: tuple[float, str] | None = None) -> str:
    """A bar a file, a tick where the zipped file ends. Sizes are in `x_label`'s unit; the axis starts at 0"""
    with _figure(58 + 30 * len(rows) + (14 if limit else 0)) as fig:
        ax = fig.add_subplot()
        for i, row in enumerate(rows):
            look = _look(row.mark, style)
            ax.barh(i, row.size, height=0.58, gid=f"tip{i}", **look)
            if row.zipped is not None:
                ax.plot([row.zipped] * 2, [i - 0.42, i + 0.42], color=INK, lw=1.6, solid_capstyle="butt")
            end = max(row.size, row.zipped or 0)
            ax.annotate(
                row.text,
                (end, i),
                (6, 0),
                textcoords="offset points",
                va="center",
                fontsize=10.5,
                gid=f"name{i}",
            )
        widest = max([max(r.size, r.zipped or 0) for r in rows] or [1]) or 1
        ax.set_xlim(0, widest * 1.3)
        ax.xaxis.set_major_locator(_locator(5))
        _rows_axis(ax, [r.mark for r in rows])
        if limit and limit[0] < widest * 1.3:
            ax.axvline(limit[0], color=MUTED, lw=1, dashes=(5, 3), zorder=3)
            ax.annotate(
                limit[1],
                (limit[0], 1),
                (4, 3),
                xycoords=("data", "axes fraction"),
                fontsize=10.5,
                textcoords="offset points",
                color=MUTED,
            )
        ax.set_xlabel(x_label)
        return _svg(fig, "size", x_label, [r.mark.tip for r in rows])


@contextmanager
def _figure(height: int) -> Iterator[Any]:
    """A figure in the house style, whatever the user's matplotlibrc says."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    with matplotlib.style.context(["default", RC]), warnings.catch_warnings():
        # The page's font draws the text; DejaVu only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        fig = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04))
        FigureCanvasAgg(fig)
        yield fig


def _svg(fig: Any, prefix: str, title: str, tips: Sequence[str]) -> str:
    """Write the figure as an SVG element for a page: no prologue, own ids, the page's colours and font."""
    out = io.StringIO()
    unwanted = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    fig.savefig(out, format="svg", metadata=unwanted, transparent=True)
    svg = re.sub(r"<style.*?</style>|<!--.*?-->", "", out.getvalue(), flags=re.S)
    svg = svg[svg.index("<svg") :]
    svg = re.sub(
        r"<svg[^>]*>",
        f'<svg viewBox="0 0 {fig.get_figwidth() * 72:g} {fig.get_figheight() * 72:g}" role="img" '
        f'aria-label="{html.escape(title)}">',
        svg,
        count=1,
    )
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    svg = re.sub(r'(<rect[^>]*) fill="(#\w+)"', r'\1 style="fill: \2"', svg)
    for name, css in CSS_COLOURS.items():
        svg = re.sub(rf'(style="[^"]*?): {name}', rf"\1: {css}", svg)
        svg = re.sub(rf'(style="[^"]*?): {name}', rf"\1: {css}", svg)  # fill and stroke of one element
    svg = svg.replace(f'id="{prefix}-name', f'class="name" id="{prefix}-name')
    for n, tip in enumerate(tips):
        opening = f'<g id="{prefix}-tip{n}">'
        svg = svg.replace(opening, f"{opening}<title>{html.escape(tip)}</title>" if tip else opening)
    return re.sub(r"\n\s*", "\n", svg).strip()


def _look(mark: Mark, style: Style) -> dict[str, Any]:
    """How a box or bar is filled; ones without a scheme (the source model) are plain grey."""
    if not mark.scheme:
        return {"facecolor": RULE, "edgecolor": MUTED, "linewidth": 0.8}
    return {"facecolor": style.colours.get(mark.format, MUTED), "hatch": style.hatches.get(mark.scheme, "")}


def _draw_point(ax: Any, p: Point, y: float, style: Style, n: int, inside: bool) -> None:
    colour = style.colours.get(p.mark.format, MUTED)
    bars = {"color": colour, "lw": 1.3, "alpha": 0.75, "zorder": 3, "solid_capstyle": "butt"}
    if p.x_ci:
        ax.plot(p.x_ci, (y, y), **bars)
    if p.y_ci and inside:
        ax.plot((p.x, p.x), p.y_ci, **bars)
    if p.mark.picked:
        ax.plot(p.x, y, "o", ms=17, mfc="none", mec=INK, mew=1.5, zorder=5)
    ax.plot(
        p.x,
        y,
        style.shapes.get(p.mark.scheme, "o"),
        ms=8,
        mfc=colour,
        mec=PAPER,
        mew=0.8,
        zorder=4,
        gid=f"tip{n}",
    )


def _draw_spread(ax: Any, i: int, row: Spread, values: Any, style: Style, ends: list[float]) -> float:
    """One row of the latency plot; adds its extent to `ends` and returns where its drawing ends (ms)."""
    import numpy as np

    look = _look(row.mark, style)
    lo = hi = row.p50
    if len(values) >= 40:
        lo, q1, q3, hi = (float(v) for v in np.percentile(values, (5, 25, 75, 95)))
        ax.plot((lo, hi), (i, i), color=MUTED, lw=1.2, zorder=2)
        for x in (lo, hi):
            ax.plot((x, x), (i - 0.14, i + 0.14), color=MUTED, lw=1.2, zorder=2)
        ax.barh(i, q3 - q1, left=q1, height=0.5, zorder=3, gid=f"tip{i}", **look)
        medians = [float(np.median(r)) for r in row.rounds if len(r)]
        if len(medians) > 1:
            ax.plot(medians, [i - 0.4] * len(medians), "|", color=MUTED, ms=4.5, mew=1, zorder=3)
            lo, hi = min(lo, *medians), max(hi, *medians)
    elif len(values):
        lo, hi = float(values.min()), float(values.max())
        ax.plot(values, [i] * len(values), "o", ms=4, mfc=look["facecolor"], mec="none", alpha=0.6, gid=f"tip{i}")
    elif row.p50_ci:
        lo, hi = row.p50_ci
        ax.plot(row.p50_ci, (i, i), color=look["facecolor"], lw=5, solid_capstyle="butt", gid=f"tip{i}")
    ax.plot((row.p50,) * 2, (i - 0.3, i + 0.3), color=INK, lw=1.8, zorder=4, solid_capstyle="butt")
    ends += [lo, hi]
    return max(hi, row.p50)


def _lanes(ys: list[float], lane: float | None) -> tuple[list[float], tuple[float, str] | None]:
    """Where points are drawn: those over the lane, or infinite, share one line above the others."""
    if lane is not None and any(y <= lane for y in ys):
        limit, text = lane, f"over {lane:g}"
    else:
        limit, text = max([y for y in ys if math.isfinite(y)] or [0.0]), "exact"
    low = [y for y in ys if y <= limit]
    if len(low) == len(ys):
        return ys, None
    if not low:
        return [1.0] * len(ys), (1.0, text)
    at = max(low) + max(0.22 * (max(low) - min(low)), 2.0)
    return [y if y <= limit else at for y in ys], (at, text)


def _scale_x(ax: Any, values: Sequence[float], pad: float, right: float = 0.0) -> None:
    """Limits with `pad` of the span on both sides and `right` more for text; logarithmic over ten times."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    lo, hi = min(values, default=0.0), max(values, default=1.0)
    if wants_log(values):
        span = math.log10(hi / lo)
        ax.set_xscale("log")
        ax.set_xlim(lo / 10 ** (span * pad), hi * 10 ** (span * (pad + right)))
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 2.2 else (1.0,), numticks=20))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        return
    span = (hi - lo) or abs(hi) * 0.2 or 1.0
    start = 0.0 if right and lo > 0 else lo - span * pad
    ax.set_xlim(start, hi + (hi - start) * (pad + right))
    ax.xaxis.set_major_locator(_locator(6))


def _scale_y(
    ax: Any, points: Sequence[Point], ys: list[float], top: tuple[float, str] | None, more: list[float]
) -> None:
    shown = [y for y in ys if top is None or y < top[0]]
    spread = [v for p, y in zip(points, ys, strict=True) if y in shown for v in (p.y_ci or ())]
    values = [*ys, *spread, *more]
    lo, hi = min(values), max(values)
    span = max(hi - lo, 0.02 * abs(hi), 1e-3)
    ax.set_ylim(lo - 0.10 * span, hi + 0.12 * span)
    ticks = [t for t in _locator(6).tick_values(lo - 0.05 * span, hi + 0.05 * span)]
    if top:
        ticks = [t for t in ticks if shown and t <= max(shown)]
        ax.set_yticks([*ticks, top[0]], [*(f"{t:g}" for t in ticks), top[1]])
        if shown:
            ax.axhspan(top[0] - 0.07 * span, hi + 0.12 * span, color=RULE, alpha=0.35, lw=0, zorder=0)
    else:
        ax.yaxis.set_major_locator(_locator(6))


def _locator(bins: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=bins, steps=[1, 2, 2.5, 5, 10])


def _rule(ax: Any, at: tuple[float, str], dash: tuple[int, int], *, upright: bool = False, below: bool = False) -> Any:
    """A thin line across the plot with its name at the far end (above or below it); returns the name."""
    value, text = at
    line = {"color": MUTED, "lw": 1, "dashes": dash, "zorder": 1}
    where: tuple[float, float]
    if upright:
        ax.axvline(value, **line)
        where, offset, coords, side = (value, 0), (4, 4), ("data", "axes fraction"), "left"
    else:
        ax.axhline(value, **line)
        where, offset, coords, side = (1, value), (-2, -3 if below else 3), ("axes fraction", "data"), "right"
    note = ax.annotate(
        text,
        where,
        offset,
        textcoords="offset points",
        xycoords=coords,
        color=MUTED,
        fontsize=10,
        ha=side,
        va="top" if below else "bottom",
        zorder=6,
        gid=f"name-{'x' if upright else dash[0]}",
    )
    note.set_in_layout(False)
    return note


def _rows_axis(ax: Any, marks: Sequence[Mark]) -> None:
    """Candidates down the side, first on top, the picked one in bold."""
    ax.set_yticks(range(len(marks)), [shorten(m.label) for m in marks])
    ax.set_ylim(len(marks) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=11)
    for text, mark in zip(ax.get_yticklabels(), marks, strict=True):
        text.set_fontweight("bold" if mark.picked else "normal")
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")


def _legend(fig: Any, marks: Sequence[Mark], style: Style) -> None:
    """Formats as colours, schemes as shapes; above the plot, wrapped to its width."""
    from matplotlib.lines import Line2D

    def dot(shape: str, colour: str, label: str, size: float = 8, **more: Any) -> Any:
        return Line2D([], [], ls="", marker=shape, ms=size, mfc=colour, mec="none", label=shorten(label, 18), **more)

    colours = [dot("s", style.colours[f], f, 10) for f in dict.fromkeys(m.format for m in marks)]
    shapes = [dot(style.shapes[s], MUTED, s) for s in dict.fromkeys(m.scheme for m in marks)]
    lines = [Line2D([], [], color=MUTED, lw=1.2, label="Pareto front")]
    if any(m.picked for m in marks):
        lines.insert(0, Line2D([], [], ls="", marker="o", ms=12, mfc="none", mec=INK, mew=1.5, label="picked"))
    handles = colours + shapes + lines
    groups = (colours, shapes + lines)
    widest = max(len(h.get_label()) for h in handles)
    columns = max(1, min(max(map(len, groups)), int(WIDTH / (6.5 * widest + 34))))
    rows = [group[i : i + columns] for group in groups for i in range(0, len(group), columns)]
    blank = Line2D([], [], ls="", label=" ")
    padded = [row + [blank] * (columns - len(row)) for row in rows]
    # matplotlib fills columns first
    fig.legend(handles=[row[c] for c in range(columns) for row in padded], loc="outside upper left", ncols=columns)


def _name_points(fig: Any, ax: Any, points: Sequence[Point], ys: Sequence[float], notes: Sequence[Any]) -> None:
    """Print each name near its point, without covering points, intervals, other names or the frame.

    Greedy, nearest free place first; a name with no free place is left out (its tip and the table have it),
    the picked one is placed first.
    """
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    to_px = ax.transData.transform
    frame = ax.get_window_extent(renderer)
    spots = [tuple(to_px((p.x, y))) for p, y in zip(points, ys, strict=True)]
    taken = [_box(x, y, 11 if p.mark.picked else 7) for p, (x, y) in zip(points, spots, strict=True)]
    taken += [tuple(n.get_window_extent(renderer).padded(3).extents) for n in notes]
    bars = []
    for p, y in zip(points, ys, strict=True):
        if p.x_ci:
            bars.append((*to_px((p.x_ci[0], y)), *to_px((p.x_ci[1], y))))
        if p.y_ci:
            bars.append((*to_px((p.x, p.y_ci[0])), *to_px((p.x, p.y_ci[1]))))
    for n in sorted(range(len(points)), key=lambda i: (not points[i].mark.picked, -spots[i][0], i)):
        mark = points[n].mark
        text = ax.annotate(
            shorten(mark.label, 26),
            (points[n].x, ys[n]),
            (0, 0),
            textcoords="offset points",
            zorder=6,
            fontsize=10.5,
            fontweight="bold" if mark.picked else "normal",
            gid=f"name{n}",
        )
        text.set_in_layout(False)
        drawn = text.get_window_extent(renderer)
        place = _free_place(spots[n], drawn.width, drawn.height, frame, taken, bars, 13 if mark.picked else 9)
        if place is None:
            text.remove()
            continue
        x0, y0, x1, y1 = place
        text.set_position((x0 - drawn.x0, y0 - drawn.y0))  # points and pixels are the same at 72 dpi
        taken.append(place)
        near = (min(max(spots[n][0], x0), x1), min(max(spots[n][1], y0), y1))
        if math.dist(near, spots[n]) > 18:
            ends = ax.transData.inverted().transform([spots[n], near])
            ax.plot(*zip(*ends, strict=True), color=MUTED, lw=0.7, zorder=2)


Box = tuple[float, ...]


def _box(x: float, y: float, r: float) -> Box:
    return (x - r, y - r, x + r, y + r)


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _free_place(
    spot: Box, width: float, height: float, frame: Any, taken: Sequence[Box], bars: Sequence[Box], gap: float
) -> Box | None:
    """The nearest place of a width x height text around `spot` that is free; crossing an interval costs."""
    best: tuple[float, Box] | None = None
    beside = [(s, 0.0) for s in (1.0, -1.0)]
    stacked = [(shift, s) for shift in (0.0, 0.5, -0.5, 1.0, -1.0) for s in (1.0, -1.0)]
    for reach in (gap, gap + 8, gap + 18, gap + 30, gap + 45, gap + 65, gap + 90):
        for rank, (sx, sy) in enumerate([*beside, *stacked]):
            cx = spot[0] + sx * (width / 2 + (0 if sy else reach))
            cy = spot[1] + sy * (height / 2 + reach * 0.8)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            if box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1:
                continue
            if any(_overlap(box, (t[0] - 1, t[1] - 1, t[2] + 1, t[3] + 1)) for t in taken):
                continue
            crossed = sum(_overlap(box, b) for b in bars)
            cost = reach + rank * 0.5 + 14 * crossed
            if best is None or cost < best[0]:
                best = (cost, box)
    return best[1] if best else None
