"""Printing what ``report`` found: limits, changes since a baseline, and the files that were written."""

from __future__ import annotations

from typing import Any

from lepton_edge.bench_report.changes_view import changed
from lepton_edge.bench_report.view import limit_row
from lepton_edge.show import _console, _line, _table, change, files, warnings


def told(made: dict[str, Any]) -> None:
    """What reporting.report returned."""
    if "candidates" in made:
        change(made)
        return
    if made.get("limits"):
        _limits(made["limits"])
    if made.get("changes"):
        _changes(made["changes"])
    files({kind: path for kind, path in made.items() if isinstance(path, str)})


def _limits(held: list[dict[str, Any]]) -> None:
    table = _table("fails if", "candidate", "device", ">value", "kind", "verdict")
    for row in map(limit_row, held):
        cells = (row["limit"], row["row"], row["device"], f"{row['cell'].text} {row['cell'].sub}".strip())
        table.add_row(*cells, row["kind"], row["verdict"], style="red" if row["bad"] else None)
    _console().print(table)


def _changes(found: dict[str, Any]) -> None:
    shown = changed(found)
    _line(_console(), f"{shown['summary']} {shown['heading']} (beyond {shown['tolerance']} counts)")
    table = _table("candidate", "device", ">p50 ms", ">ratio", "verdict", ">size", ">peak MB", ">accuracy")
    for r in shown["rows"]:
        cells = [f"{c.text} {c.sub}".strip() for c in (r["ratio"], r["verdict"], r["size"], r["memory"], r["accuracy"])]
        table.add_row(r["name"], r["device"], r["times"], *cells, style="red" if r["bad"] else None)
    _console().print(table)
    warnings(shown["warnings"])
