"""The folder that an analysis leaves: analyze.json with all figures, analyze.csv, the plot as PNG and SVG."""

from __future__ import annotations

import csv
from pathlib import Path

from lepton_edge.analysis.plot import write_plot
from lepton_edge.record import save_json

MARK = "analyze.json"
COLUMNS = (
    "rank", "name", "kind", "alone_db", "weights_db", "activations_db", "reads_db", "writes_db", "accumulated_db",
    "share", "weights_share", "activations_share", "channel_spread", "parameters", "reads", "writes",
)  # fmt: skip


def write(document: dict, folder: Path) -> None:
    """Write all four files into `folder`. Layers are in graph order in the JSON, worst first in the CSV."""
    save_json(folder / MARK, document)
    with (folder / "analyze.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for layer in ranked(document["layers"]):
            table.writerow([_cell(layer[key]) for key in COLUMNS])
    write_plot(document, folder)


def ranked(layers: list[dict]) -> list[dict]:
    """Layers by rank, worst first."""
    return sorted(layers, key=lambda layer: layer["rank"])


def _cell(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.6g}"
    # A spreadsheet takes a text with one of these in front for a formula, and names come from model files.
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value
