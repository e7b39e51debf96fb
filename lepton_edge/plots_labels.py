"""The texts of a plot: names beside points, names of lines, the legend, candidates down the side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lepton_edge.plots_style import INK, MUTED, WIDTH, Mark, Point, Style, shorten

Box = tuple[float, ...]


def rule(ax: Any, at: tuple[float, str], dash: tuple[int, int], *, upright: bool = False, below: bool = False) -> Any:
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


def rows_axis(ax: Any, marks: Sequence[Mark]) -> None:
    """Candidates down the side, first on top, the picked one in bold."""
    ax.set_yticks(range(len(marks)), [shorten(m.label) for m in marks])
    ax.set_ylim(len(marks) - 0.45, -0.55)
    ax.tick_params(axis="y", length=0, labelcolor=INK, labelsize=11)
    for text, mark in zip(ax.get_yticklabels(), marks, strict=True):
        text.set_fontweight("bold" if mark.picked else "normal")
    ax.spines["left"].set_visible(False)
    ax.grid(True, axis="x")


def side(ax: Any, row: float, text: str, gid: str, color: str = INK) -> None:
    """A text of a row, in a column right of the plot."""
    ax.annotate(
        text,
        (1, row),
        (6, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=10.5,
        gid=gid,
    )


def legend(fig: Any, marks: Sequence[Mark], style: Style, front: bool) -> None:
    """Formats as colours, schemes as shapes; above the plot, wrapped to its width."""
    from matplotlib.lines import Line2D

    def dot(shape: str, colour: str, label: str, size: float = 8, **more: Any) -> Any:
        return Line2D([], [], ls="", marker=shape, ms=size, mfc=colour, mec="none", label=shorten(label, 18), **more)

    colours = [dot("s", style.colours[f], f, 10) for f in dict.fromkeys(m.format for m in marks)]
    shapes = [dot(style.shapes[s], MUTED, s) for s in dict.fromkeys(m.scheme for m in marks) if s.strip()]
    lines = [Line2D([], [], color=MUTED, lw=1.2, label="Pareto front")] if front else []
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


def name_points(
    fig: Any,
    ax: Any,
    points: Sequence[Point],
    ys: Sequence[float],
    notes: Sequence[Any],
    path: Sequence[tuple[float, float]] = (),
    across: Sequence[float] = (),
) -> None:
    """Print each name near its point, without covering points, other names or the frame.

    Crossing an interval, the front (`path`, its corners) or a line `across` the plot is avoided where there is
    room. Greedy, nearest free place first; a name with no free place is left out (its tip and the table have
    it), the picked one is placed first.
    """
    fig.draw_without_rendering()
    renderer = fig.canvas.get_renderer()
    to_px = ax.transData.transform
    frame = ax.get_window_extent(renderer)
    spots = [tuple(to_px((p.x, y))) for p, y in zip(points, ys, strict=True)]
    taken = [box(x, y, 11 if p.mark.picked else 7) for p, (x, y) in zip(points, spots, strict=True)]
    taken += [tuple(n.get_window_extent(renderer).padded(3).extents) for n in notes]
    bars = []
    for p, y in zip(points, ys, strict=True):
        if p.x_ci:
            bars.append((*to_px((p.x_ci[0], y)), *to_px((p.x_ci[1], y))))
        if p.y_ci:
            bars.append((*to_px((p.x, p.y_ci[0])), *to_px((p.x, p.y_ci[1]))))
    bars += [(*to_px(a), *to_px(b)) for a, b in pairwise(path)]
    bars += [(frame.x0, to_px((0, y))[1], frame.x1, to_px((0, y))[1]) for y in across]
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
        place = free_place(spots[n], drawn.width, drawn.height, frame, taken, bars, 13 if mark.picked else 9)
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


def box(x: float, y: float, r: float) -> Box:
    """The square around a point, (x0, y0, x1, y1)."""
    return (x - r, y - r, x + r, y + r)


def overlap(a: Box, b: Box) -> bool:
    """True when two boxes share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def free_place(
    spot: Box, width: float, height: float, frame: Any, taken: Sequence[Box], bars: Sequence[Box], gap: float
) -> Box | None:
    """The nearest place of a width x height text around `spot` that is free; crossing a line costs."""
    best: tuple[float, Box] | None = None
    beside = [(s, 0.0) for s in (1.0, -1.0)]
    stacked = [(shift, s) for shift in (0.0, 0.5, -0.5, 1.0, -1.0) for s in (1.0, -1.0)]
    for reach in (gap, gap + 8, gap + 18, gap + 30, gap + 45, gap + 65, gap + 90):
        for rank, (sx, sy) in enumerate([*beside, *stacked]):
            aside = 0 if not sx else reach if not sy else 4 if abs(sx) == 1 else 0
            cx = spot[0] + sx * (width / 2 + aside)
            cy = spot[1] + sy * (height / 2 + reach * 0.8)
            box = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
            if box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1:
                continue
            if any(overlap(box, (t[0] - 1, t[1] - 1, t[2] + 1, t[3] + 1)) for t in taken):
                continue
            crossed = sum(overlap((box[0] - 2, box[1], box[2] + 2, box[3]), b) for b in bars)
            cost = reach + rank * 0.5 + 14 * crossed
            if best is None or cost < best[0]:
                best = (cost, box)
    return best[1] if best else None
