"""The plots of a report: inline SVG drawn with matplotlib, the same bytes for the same numbers.

Rules:
- A colour is a format, a marker shape and a hatch are a scheme, a ring or bold name is the picked one.
- An axis of times is logarithmic when its values span more than ten times.
- Text stays text (searchable, in the page's font) and ink, rules and paper are CSS variables of the page,
  so the same drawing is readable in light and dark.
- Labels come from untrusted files: they are never parsed as mathtext, and matplotlib or `html` escapes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lepton_edge.plots_labels import legend, name_points, rows_axis, rule, side
from lepton_edge.plots_style import INK, MUTED, PAPER, RULE, Mark, Point, Style, figure, fill_of, svg_text


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
    prefix: str = "tradeoff",
) -> str:
    """Quality against latency with intervals, the Pareto front and a name at every point.

    `lane`: values above it are drawn in one lane at the top, so that a float copy at 130 dB does not
    squeeze the others. `reference`, `floor` and `x_limit` are (value, text) lines drawn across.
    """
    with figure(min(max(400, 130 + 60 * len(points)), 520)) as fig:  # about as high as the other two plots
        ax = fig.add_subplot()
        ys, top = _lanes([p.y for p in points], lane)
        for n, (p, y) in enumerate(zip(points, ys, strict=True)):
            _draw_point(ax, p, y, style, n, inside=top is None or y < top[0])
        drawn = {p.y: y for p, y in zip(points, ys, strict=True)}
        steps = [(x, drawn[y]) for x, y in front((p.x, p.y) for p in points)]  # lanes do not make points equal
        ax.step(*zip(*steps, strict=True), where="post", color=MUTED, lw=1.2, zorder=2)
        log = scale_x(ax, [v for p in points for v in (p.x, *(p.x_ci or ()))], pad=0.10)
        _scale_y(ax, points, ys, top, [line[0] for line in (reference, floor) if line])
        notes = [rule(ax, reference, (1, 2))] if reference else []
        if floor:
            notes.append(rule(ax, floor, (5, 3), below=True))
        if x_limit and ax.get_xlim()[0] < x_limit[0] < ax.get_xlim()[1]:
            notes.append(rule(ax, x_limit, (5, 3), upright=True))
        ax.set(xlabel=x_label + log, ylabel=y_label)
        ax.grid(True)
        legend(fig, [p.mark for p in points], style, front=len(steps) > 1)
        across = [line[0] for line in (reference, floor) if line]
        name_points(fig, ax, points, ys, notes, _corners(steps), across)
        return svg_text(fig, prefix, f"{y_label} against {x_label}", [p.mark.tip for p in points])


def latencies(rows: Sequence[Spread], style: Style, *, x_label: str) -> str:
    """A box a candidate: quartiles and median, whiskers from the 5th to the 95th percentile, round medians.

    Under 40 samples the tails say little: the samples themselves are drawn instead of a box.
    """
    import numpy as np

    with figure(72 + 30 * len(rows)) as fig:
        ax = fig.add_subplot()
        ends: list[float] = []
        for i, row in enumerate(rows):
            values = np.concatenate([np.asarray(r, float) for r in row.rounds] or [np.empty(0)])
            _draw_spread(ax, i, row, values, style, ends)
            side(ax, i, row.text, f"name{i}")
        side(ax, -0.8, "p50, ms", "name-head", color=MUTED)
        log = scale_x(ax, ends, pad=0.04, from_zero=True)
        rows_axis(ax, [r.mark for r in rows])
        ax.set_xlabel(x_label + log)
        return svg_text(fig, "latency", f"Distribution of {x_label}", [r.mark.tip for r in rows])


def sizes(
    rows: Sequence[Bar],
    style: Style,
    *,
    x_label: str,
    limit: tuple[float, str] | None = None,
    prefix: str = "size",
) -> str:
    """A bar a file, a tick where the zipped file ends. Sizes are in `x_label`'s unit; the axis starts at 0.

    ``prefix`` starts the ids of a drawing: each on a page has its own.
    """
    with figure(58 + 30 * len(rows) + (14 if limit else 0)) as fig:
        ax = fig.add_subplot()
        for i, row in enumerate(rows):
            look = fill_of(row.mark, style)
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
        rows_axis(ax, [r.mark for r in rows])
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
        return svg_text(fig, prefix, x_label, [r.mark.tip for r in rows])


def _draw_point(ax: Any, p: Point, y: float, style: Style, n: int, inside: bool) -> None:
    colour = style.colours.get(p.mark.format, MUTED)
    bars = {"color": colour, "lw": 1.2, "alpha": 0.6, "zorder": 3, "solid_capstyle": "butt"}
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


def _draw_spread(ax: Any, i: int, row: Spread, values: Any, style: Style, ends: list[float]) -> None:
    """One row of the latency plot; adds its extent (ms) to `ends`."""
    import numpy as np

    look = fill_of(row.mark, style)
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


def _corners(steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The corners of the stairs through `steps`."""
    between = [corner for (_, y), (x, up) in pairwise(steps) for corner in ((x, y), (x, up))]
    return [*steps[:1], *between]


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


def scale_x(ax: Any, values: Sequence[float], pad: float, from_zero: bool = False) -> str:
    """Limits with `pad` of the span on both sides; returns what the axis' name adds when it is logarithmic."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    lo, hi = min(values, default=0.0), max(values, default=1.0)
    if wants_log(values):
        span = math.log10(hi / lo)
        ax.set_xscale("log")
        ax.set_xlim(lo / 10 ** (span * pad), hi * 10 ** (span * pad))
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 2.2 else (1.0,), numticks=20))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        return ", log scale"
    span = (hi - lo) or abs(hi) * 0.2 or 1.0
    start = 0.0 if from_zero and lo > 0 else lo - span * pad
    ax.set_xlim(start, hi + (hi - start) * pad)
    ax.xaxis.set_major_locator(_locator(6))
    return ""


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
