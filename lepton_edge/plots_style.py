"""What all plots of a report share: the house style, what stands for what, and the figure as an SVG element."""

from __future__ import annotations

import html
import io
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


def fill_of(mark: Mark, style: Style) -> dict[str, Any]:
    """How a box or bar is filled; ones without a scheme (the source model) are plain grey."""
    if not mark.scheme:
        return {"facecolor": RULE, "edgecolor": MUTED, "linewidth": 0.8}
    return {"facecolor": style.colours.get(mark.format, MUTED), "hatch": style.hatches.get(mark.scheme, "")}


@contextmanager
def figure(height: int) -> Iterator[Any]:
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


def svg_text(fig: Any, prefix: str, title: str, tips: Sequence[str]) -> str:
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
