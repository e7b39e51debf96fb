"""The plot of an analysis: which layers make the noise, and how it grows through the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_edge.plots_style import INK, MUTED, PAPER, RULE, figure, shorten

ROWS = 12  # layers that are shown by name
WEIGHTS, ACTIVATIONS = "#0072b2", "#d55e00"
DPI = 160


def write_plot(document: dict, folder: Path) -> list[Path]:
    """Write analyze.png and analyze.svg, the same picture, on paper white, with nothing to load."""
    worst = sorted(document["layers"], key=lambda layer: -layer["share"])[:ROWS]
    with figure(150 + 24 * len(worst) + 250) as fig:
        above, below = fig.subplots(2, 1, height_ratios=[24 * len(worst) + 70, 250])
        _shares(above, worst)
        _growth(below, document)
        title = f"{shorten(document['model']['name'], 40)}: the worst {len(worst)} of {len(document['layers'])} layers"
        fig.suptitle(title, fontsize=12.5, color=INK, x=0.01, ha="left")
        paths = [folder / "analyze.png", folder / "analyze.svg"]
        fig.savefig(paths[0], dpi=DPI, facecolor=PAPER, metadata={"Software": None})
        fig.savefig(paths[1], facecolor=PAPER, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return paths


def _shares(ax: Any, worst: list[dict]) -> None:
    """A bar a layer: the part of all noise that its weights make, then its activations."""
    rows = range(len(worst))
    weights = [100 * layer["weights_share"] for layer in worst]
    activations = [100 * layer["activations_share"] for layer in worst]
    ax.barh(rows, weights, height=0.62, color=WEIGHTS, label="weights")
    ax.barh(rows, activations, left=weights, height=0.62, color=ACTIVATIONS, hatch="///", label="activations")
    for k, layer in enumerate(worst):
        text = f"{100 * layer['share']:.1f} %"
        ax.annotate(
            text, (weights[k] + activations[k], k), (5, 0), textcoords="offset points", va="center", fontsize=10
        )
    ax.set_yticks(list(rows), [shorten(layer["name"], 34) for layer in worst])
    ax.invert_yaxis()
    ax.set_xlim(0, max(max((layer["share"] for layer in worst), default=0.01) * 118, 0.1))
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("share of the noise at the outputs, %")
    ax.legend(loc="lower right")


def _growth(ax: Any, document: dict) -> None:
    """SQNR of each layer alone and of all layers up to it, in graph order."""
    layers = document["layers"]
    places = range(1, len(layers) + 1)
    for key, look in (
        ("alone_db", {"marker": "o", "ls": "", "ms": 4.5, "color": MUTED, "label": "this layer alone"}),
        ("accumulated_db", {"marker": "", "lw": 1.8, "color": INK, "label": "all layers up to it"}),
    ):
        known = [(k, layer[key]) for k, layer in zip(places, layers, strict=True) if layer[key] is not None]
        if known:
            ax.plot(*zip(*known, strict=True), **look)
    ax.margins(x=0.02, y=0.12)
    ax.grid(True, color=RULE)
    ax.set(xlabel="layer, in the order of the graph", ylabel="SQNR at the outputs, dB")
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2)
