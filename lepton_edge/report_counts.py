"""Before and after: what a model holds, takes and reaches, a row the source model and one each candidate."""

from __future__ import annotations

from typing import Any

from lepton_edge.report_cells import Cell, accuracy_cell, missing, runtime_text, size_cell, time_cell, zip_cell
from lepton_edge.report_schema import finite
from lepton_edge.texts import number

COUNTS = (("parameters", "Parameters"), ("nonzeros", "Non-zeros"), ("macs", "MACs"))
HEADS = (*(head for _, head in COUNTS), "Size", "Zipped", "Accuracy", "p50, ms")


def before_after(run: dict[str, Any]) -> dict[str, Any] | None:
    """The heads and rows of the table; None for a run in which nothing was counted."""
    ok = [c for c in run["candidates"] if c["status"] == "ok"]
    if not any(finite(c.get("parameters")) for c in ok):
        return None
    source = run["model"]
    reference = (run.get("reference") or {}).get("accuracy")
    first = {
        "name": f"{source['name']} (before)",
        "cells": [
            *(_count(source, source, key) for key, _ in COUNTS),
            size_cell(source, {"candidates": []}),
            zip_cell(source),
            accuracy_cell({"accuracy": reference}, run),
            missing("the source model is not timed: see the float32 candidates"),
        ],
        "runtime": runtime_text((run.get("reference") or {}).get("runtime")),
        "gains": [],
    }
    return {"heads": HEADS, "rows": [first, *(_row(c, run) for c in ok)]}


def _row(c: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": c["name"],
        "cells": [
            *(_count(c, run["model"], key) for key, _ in COUNTS),
            size_cell(c, run),
            zip_cell(c),
            accuracy_cell(c, run),
            time_cell(c, "p50"),
        ],
        "runtime": runtime_text(c.get("runtime")),
        "gains": [f"{'' if g['any'] else 'nothing gained '}{g['text']}" for g in c.get("gains") or []],
    }


def _count(c: dict[str, Any], source: dict[str, Any], key: str) -> Cell:
    """A count, and its share of the source model's."""
    if not finite(c.get(key)):
        return missing(c.get("uncounted") or "not counted in files of this kind")
    known = finite(source.get(key)) and source[key] > 0 and c is not source
    share = f"{number(c[key] / source[key], 2)}× source" if known else ""
    return Cell(f"{c[key]:,}", share, sort=c[key])
