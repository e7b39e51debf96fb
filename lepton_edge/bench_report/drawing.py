"""Drawings of latency: distributions with their drift, curves over streams and batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lepton_edge.plots import scale_x, wants_log
from lepton_edge.plots_style import INK, MUTED, RULE, Mark, Style, figure, shorten, svg_text

#: From so many samples on a shape is drawn instead of each of them; the share of them that is drawn at most.
SHAPE_FROM, DRAWN = 40, 0.99
#: The least and the most that the drift strip spans, as a share of the median.
LEAST, MOST = 0.05, 0.5
#: Points of a curve that a drawing of this size can show.
POINTS = 80


@dataclass(frozen=True)
class Spread:
    """Samples of one row in ms, a sequence a round; ``text`` is printed beside its name."""

    mark: Mark
    rounds: Sequence[Sequence[float]]
    p50: float
    p50_ci: tuple[float, float] | None = None
    p95: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Line:
    """A curve: points (x, y), their intervals, and its name at its end."""

    name: str
    points: Sequence[tuple[float, float]]
    ends: Sequence[tuple[float, float] | None] = field(default_factory=tuple)
    colour: str = MUTED


@dataclass(frozen=True)
class Panel:
    """A small plot of curves over whole numbers that double."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str


def distributions(rows: Sequence[Spread], style: Style, *, x_label: str, prefix: str) -> str:
    """A violin a row (median, quartiles, p95) with its name above it, and beside it the medians of its rounds.

    The axis is logarithmic where what is drawn spans more than ten times; of each row the fastest 99 % are drawn.
    """
    import numpy as np

    values = [np.sort(np.concatenate([np.asarray(r, float) for r in row.rounds] or [np.empty(0)])) for row in rows]
    shown = [v[: max(1, math.ceil(DRAWN * len(v)))] for v in values]
    ends = [x for v in shown if len(v) for x in (float(v[0]), float(v[-1]))]
    ends += [x for r in rows for x in (r.p50, *(r.p50_ci or ()), *([r.p95] if r.p95 else []))]
    with figure(64 + 48 * len(rows)) as fig:
        left, right = fig.subplots(1, 2, width_ratios=(4, 1), sharey=True)
        log = scale_x(left, ends, pad=0.03, from_zero=False)
        for i, (row, sample) in enumerate(zip(rows, shown, strict=True)):
            _violin(left, i, row, sample, style, logarithmic=wants_log(ends))
            _name(left, i, row)
        drift = _drifts(right, rows, style)
        for ax in (left, right):
            ax.set_ylim(len(rows) - 0.4, -0.62)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            for i in range(1, len(rows)):
                ax.axhline(i - 0.6, color=RULE, lw=0.6, zorder=0)
        left.grid(True, axis="x")
        left.set_xlabel(x_label + log)
        right.set_xlabel(f"drift, ±{drift:.0%}".replace("%", " %"))
        return svg_text(fig, prefix, f"Distribution of {x_label}", [r.mark.tip for r in rows])


def _name(ax: Any, i: int, row: Spread) -> None:
    for x, text, side in ((0.0, shorten(row.mark.label, 44), "left"), (1.0, row.text, "right")):
        ax.annotate(
            text,
            (x, i - 0.38),
            xycoords=("axes fraction", "data"),
            ha=side,
            va="center",
            color=INK,
            fontsize=10.5,
            gid=f"name{i}{side}",
        )


def _violin(ax: Any, i: int, row: Spread, sample: Any, style: Style, *, logarithmic: bool) -> None:
    import numpy as np

    colour, y = style.colours.get(row.mark.format, MUTED), i + 0.1
    if len(sample) >= SHAPE_FROM:
        x, height = density(np.log(sample) if logarithmic else sample)
        x = np.exp(x) if logarithmic else x
        ax.fill_between(x, y - 0.27 * height, y + 0.27 * height, color=colour, alpha=0.35, lw=0, gid=f"tip{i}")
        q1, q3 = (float(v) for v in np.percentile(sample, (25, 75)))
        ax.plot((q1, q3), (y, y), color=colour, lw=5, solid_capstyle="butt", zorder=3)
    elif len(sample):
        ax.plot(sample, [y] * len(sample), "o", ms=4, mfc=colour, mec="none", alpha=0.6, gid=f"tip{i}")
    elif row.p50_ci:
        ax.plot(row.p50_ci, (y, y), color=colour, lw=5, solid_capstyle="butt", gid=f"tip{i}")
    else:
        ax.plot(row.p50, y, "D", ms=7, mfc=colour, mec="none", gid=f"tip{i}")
    if len(sample) or row.p50_ci:
        ax.plot((row.p50,) * 2, (y - 0.2, y + 0.2), color=INK, lw=1.4, zorder=4, solid_capstyle="butt")
    if row.p95:
        ax.plot((row.p95,) * 2, (y - 0.13, y + 0.13), color=INK, lw=1.0, zorder=4, solid_capstyle="butt")


def density(values: Any, points: int = POINTS) -> tuple[Any, Any]:
    """A Gaussian kernel density of sorted values on a grid, its peak 1 (bandwidth: Silverman, 1986, eq. 3.31)."""
    import numpy as np

    lo, hi = float(values[0]), float(values[-1])
    if hi <= lo:
        return np.array([lo, lo]), np.array([1.0, 1.0])
    q1, q3 = np.percentile(values, (25, 75))
    spread = min(float(np.std(values)), (q3 - q1) / 1.34) or float(np.std(values))
    grid = np.linspace(lo, hi, points)
    width = max(0.9 * spread * len(values) ** -0.2, 0.6 * (grid[1] - grid[0]))
    counts, edges = np.histogram(values, bins=8 * points, range=(lo, hi))
    middles = (edges[1:] + edges[:-1]) / 2
    height = np.exp(-0.5 * ((grid[:, None] - middles[None, :]) / width) ** 2) @ counts
    return grid, height / height.max()


def _drifts(ax: Any, rows: Sequence[Spread], style: Style) -> float:
    """The medians of rounds, relative to the row's own, in a strip a row; returns what half of a strip spans."""
    import numpy as np

    curves = [np.array([float(np.median(r)) for r in row.rounds if len(r)]) / row.p50 - 1 for row in rows]
    every = np.abs(np.concatenate([c for c in curves if len(c)] or [np.zeros(1)]))
    span = min(MOST, max(LEAST, float(np.percentile(every, 95))))
    span = next(s for s in (0.05, 0.1, 0.2, 0.3, 0.5) if span <= s)
    for i, (row, curve) in enumerate(zip(rows, curves, strict=True)):
        ax.axhline(i + 0.1, color=RULE, lw=0.8, zorder=1)
        if len(curve) < 2:
            continue
        shown = [float(np.median(part)) for part in np.array_split(curve, min(POINTS, len(curve)))]
        ys = i + 0.1 - 0.3 * np.clip(np.array(shown) / span, -1, 1)
        ax.plot(np.linspace(0, 1, len(ys)), ys, color=style.colours.get(row.mark.format, MUTED), lw=1.1)
    ax.set_xlim(-0.03, 1.03)
    ax.set_xticks([])
    return span


def panels(plots: Sequence[Panel], prefix: str, title: str) -> str:
    """Small plots, two beside each other; x doubles from tick to tick, y starts at 0."""
    lines = math.ceil(len(plots) / 2)
    with figure(24 + 168 * lines) as fig:
        axes = fig.subplots(lines, 2, squeeze=False).ravel()
        for ax, plot in zip(axes, plots, strict=False):
            _panel(ax, plot)
        for ax in axes[len(plots) :]:
            ax.set_visible(False)
        return svg_text(fig, prefix, title, [])


def _panel(ax: Any, plot: Panel) -> None:
    ticks = sorted({x for line in plot.lines for x, _ in line.points})
    top = max([y for line in plot.lines for _, y in line.points] or [1.0])
    for n, line in enumerate(plot.lines):
        style = ("-", "--", ":", "-.")[n % 4]
        xs, ys = zip(*sorted(line.points), strict=True)
        ax.plot(xs, ys, style, color=line.colour, lw=1.5, marker="osD^"[n % 4], ms=4.5, label=shorten(line.name, 24))
        for (x, _), ends in zip(line.points, line.ends, strict=False):
            if ends:
                ax.plot((x, x), ends, color=line.colour, lw=1.2, alpha=0.6, solid_capstyle="butt")
    ax.set_xscale("log", base=2)
    ax.set_xlim(ticks[0] / 1.15, ticks[-1] * 1.15)
    ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
    ax.minorticks_off()
    ax.set_ylim(0, top * (1.18 + 0.14 * math.ceil(len(plot.lines) / 2)))
    ax.locator_params(axis="y", nbins=4)
    ax.set_title(shorten(plot.title, 38), loc="left", fontsize=10.5, color=INK)
    ax.set(xlabel=plot.x_label, ylabel=plot.y_label)
    ax.grid(True, axis="y")
    ax.legend(loc="upper left", ncols=2, fontsize=9.5)
