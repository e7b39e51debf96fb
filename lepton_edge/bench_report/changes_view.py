"""What changed since a baseline, as a table for pages, comments and the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_edge.report_cells import Cell, missing
from lepton_edge.report_facts import moment
from lepton_edge.texts import DASH, decimals, interval, number, size

HEADS = ("Model", "Device", "p50, ms", "Ratio of times", "Verdict", "Size", "Peak, MB", "Accuracy")


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """What changes.compare told, as text: a heading, a row a model, and what is new or gone."""
    old = changes["baseline"]
    return {
        "heading": f"against {Path(old['path']).name} of {moment(old['created'])}",
        "tolerance": f"{100 * changes['tolerance']:g} %",
        "heads": HEADS,
        "rows": [_row(r) for r in changes["rows"]]
        + [_lone(r, "new") for r in changes["added"]]
        + [_lone(r, "gone") for r in changes["gone"]],
        "regressions": changes["regressions"],
        "warnings": changes["warnings"],
        "summary": summary(changes),
    }


def summary(changes: dict[str, Any]) -> str:
    """How many are slower, faster, the same: "1 slower, 3 no difference"."""
    words = [r["verdict"] for r in changes["rows"]] + ["new"] * len(changes["added"]) + ["gone"] * len(changes["gone"])
    order = ("slower", "failed", "faster", "no difference", "not decided", "not compared", "new", "gone")
    return ", ".join(f"{words.count(w)} {w}" for w in order if w in words)


def _row(r: dict[str, Any]) -> dict[str, Any]:
    t = r["latency"]
    places = decimals(t["old"] or t["new"] or 1.0)
    times = " → ".join(DASH if v is None else number(v, places) for v in (t["old"], t["new"]))
    ratio = missing(t["why"] or "there is nothing to compare")
    if t["ratio"] is not None:
        of = f"of the {'medians' if t['of'] == 'p50' else 'fastest tenth of each turn: the machine was busy'}"
        ratio = Cell(f"{number(t['ratio'], 3)}×", interval(t["ci95"], places=3), of, t["ratio"])
    why = t["why"] if t["verdict"] not in ("slower", "faster") else ""
    undecided = "" if t["decided"] or why else "slower cannot be excluded"
    return {
        "name": r["name"],
        "line": " · ".join(v for v in (r["format"], r["runtime"], r["kind"]) if v),
        "device": r["device"],
        "times": times,
        "ratio": ratio,
        "verdict": Cell(r["verdict"], why or undecided),
        "size": _scaled(r["size"], size),
        "memory": _scaled(r["memory"], lambda v: number(v)),
        "accuracy": _accuracy(r["accuracy"]),
        "bad": bool(r["regressions"]),
    }


def _lone(r: dict[str, Any], word: str) -> dict[str, Any]:
    none = missing("there is nothing to compare with")
    return {
        "name": r["name"],
        "line": " · ".join(v for v in (r["format"], r["runtime"], r["kind"]) if v),
        "device": r["device"],
        "times": DASH,
        "ratio": none,
        "verdict": Cell(word),
        "size": none,
        "memory": none,
        "accuracy": none,
        "bad": False,
    }


def _scaled(change: dict[str, Any], show: Any) -> Cell:
    if change["ratio"] is None:
        return missing("not known of both")
    if change["old"] == change["new"]:
        return Cell(show(change["new"]), "same")
    return Cell(f"{show(change['old'])} → {show(change['new'])}", change["verdict"], sort=change["ratio"])


def _accuracy(change: dict[str, Any]) -> Cell:
    if change["points"] is None:
        return missing("not measured of both on the same samples")
    sign = "+" if change["points"] > 0 else ""
    text = f"{sign}{number(change['points'], 2)} points"
    return Cell(text, f"{interval(change['ci95'], places=2)} {change['verdict']}", sort=change["points"])
