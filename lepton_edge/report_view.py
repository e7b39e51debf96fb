"""A run as the templates want it: the verdict, the tiles, a row a candidate, all of it text."""

from __future__ import annotations

import re
from typing import Any

from lepton_edge.report_cells import (
    Cell,
    accuracy_cell,
    agreement_cell,
    baseline,
    drop_cell,
    kind_of,
    missing,
    plain_cell,
    runtime_text,
    setting_text,
    size_cell,
    speed,
    speed_cell,
    sqnr_cell,
    time_cell,
    zip_cell,
)
from lepton_edge.report_counts import before_after
from lepton_edge.report_facts import byline, data, environment, how_to_read, limits
from lepton_edge.report_schema import finite
from lepton_edge.texts import decimals, duration, interval, number, size

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("accuracy", "Accuracy", "top-1 on the evaluation data, 95 % interval below"),
    ("drop", "Drop, points", "percentage points below the reference model; paired 95 % interval below"),
    (
        "sqnr",
        "SQNR",
        "signal to quantization noise ratio against the source model's outputs; higher is closer",
    ),
    ("agreement", "Agreement", "share of samples with the source model's top-1"),
    ("size", "Size", "bytes on disk"),
    ("zip", "Zipped", "bytes of the file zipped, as an app store or an update ships it"),
    ("p50", "p50, ms", "median latency, 95 % interval below"),
    (
        "p95",
        "p95, ms",
        "95th percentile of latency; left out when there are too few samples for its interval",
    ),
    (
        "speed",
        "Speed to float",
        "how many times the speed of the float32 file of the same format, 95 % interval below",
    ),
)


def view(run: dict[str, Any]) -> dict[str, Any]:
    """Everything the templates print, as text. `run` must have passed `check_run` and `clean`."""
    labelled = any(c.get("accuracy") for c in run["candidates"])
    ran = any(c["status"] == "ok" for c in run["candidates"])
    shown = [col for col in COLUMNS if ran and (labelled or col[0] not in ("accuracy", "drop"))]
    rows = [_row(c, run) for c in run["candidates"]]
    return {
        "title": run["model"]["name"],
        "verdict": verdict(run),
        "picked": run.get("picked"),
        "byline": byline(run),
        "tiles": _tiles(run),
        "columns": shown,
        "rows": sorted(rows, key=lambda r: r["failed"]),
        "detail_heads": [head for head, _ in _details(None)],
        "counts": before_after(run),
        "left_out": run.get("left_out") or [],
        "parity": [row for c in run["candidates"] for row in _parity_rows(c)],
        "environment": environment(run),
        "data": data(run),
        "warnings": run.get("warnings") or [],
        "how": how_to_read(run),
        "tool": f"{run['tool']['name']} {run['tool']['version']}",
    }


def _row(c: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    failed = c["status"] != "ok"
    error = c.get("error") or {}
    parity = None if failed else c.get("parity")
    return {
        "name": c["name"],
        "format": c["format"],
        "scheme": c["scheme"],
        "kind": f"{c['format']} · {c['scheme']}",
        "failed": failed,
        "picked": c["name"] == run.get("picked"),
        "pareto": bool(c.get("pareto")),
        "reason": c.get("reason") or "",
        "error": error.get("message") or ("failed without a message" if failed else ""),
        "hint": error.get("hint") or "",
        "cells": {
            "accuracy": accuracy_cell(c, run),
            "drop": drop_cell(c, run),
            "sqnr": sqnr_cell(parity),
            "agreement": agreement_cell(parity),
            "size": size_cell(c, run),
            "zip": zip_cell(c),
            "p50": time_cell(c, "p50"),
            "p95": time_cell(c, "p95"),
            "speed": speed_cell(c),
        },
        "details": [cell for _, cell in _details(c)],
        "measured": bool(c.get("latency")),
        "runtime": runtime_text(c.get("runtime")),
        "path": c.get("path") or "",
        "sha256": c.get("sha256") or "",
        "steps": [_step(s) for s in c.get("steps") or []],
        "chain": " → ".join(s["step"] for s in c.get("steps") or []),
        "seconds": duration(sum(s.get("seconds") or 0 for s in c.get("steps") or [])),
    }


def _step(s: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": s["step"],
        "seconds": Cell(duration(s["seconds"])) if finite(s.get("seconds")) else missing("not recorded"),
        "cached": "from the store" if s.get("cached") else "run",
        "options": ", ".join(f"{k} = {setting_text(v)}" for k, v in (s.get("options") or {}).items()),
        "notes": s.get("notes") or [],
    }


def _details(c: dict[str, Any] | None) -> list[tuple[str, Cell]]:
    """The latency figures beside p50 and p95, each with its heading."""
    latency = (c or {}).get("latency") or {}

    def plain(key: str, show: Any) -> Cell:
        value = latency.get(key)
        return Cell(show(value), sort=value) if finite(value) else missing("not recorded")

    return [
        ("Runs", plain("count", lambda v: f"{v:,}")),
        ("Rounds", plain("rounds", lambda v: f"{v:,}")),
        ("Threads", plain("threads", lambda v: f"{v:,}")),
        ("Mean, ms", plain("mean_ms", number)),
        ("p90, ms", time_cell(c or {}, "p90")),
        ("p99, ms", time_cell(c or {}, "p99")),
        ("First run, ms", plain("first_ms", number)),
        ("Load, ms", plain("load_ms", number)),
        ("Peak memory, MB", plain("peak_rss_mb", number)),
    ]


def verdict(run: dict[str, Any]) -> dict[str, str]:
    """The one sentence of the report, as its start, the picked name and the rest."""
    asked = limits(run)
    picked = next((c for c in run["candidates"] if c["name"] == run.get("picked")), None)
    if picked:
        why = (picked.get("reason") or "").removeprefix("picked: ").rstrip(". ")
        return {"lead": "Picked ", "name": picked["name"], "rest": f": {why}." if why else "."}
    ok = [c for c in run["candidates"] if c["status"] == "ok"]
    if not run["candidates"]:
        return {"lead": "There were no candidates.", "name": "", "rest": ""}
    if not ok:
        return {"lead": "Nothing was picked: every candidate failed.", "name": "", "rest": ""}
    lead = f"Nothing met the limits: {asked}." if asked else "Nothing was picked: no limits and no goal were set."
    return {"lead": lead, "name": "", "rest": ""}


def _tiles(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Size, speed and quality of the picked candidate; of the best ones where nothing was picked."""
    picked = next((c for c in run["candidates"] if c["name"] == run.get("picked")), None)
    if picked:
        return [_size_tile(picked, run), _speed_tile(picked, run), _quality_tile(picked, run)]
    ok = [c for c in run["candidates"] if c["status"] == "ok"]
    made = [
        (
            _size_tile,
            min((c for c in ok if c.get("size_bytes")), key=lambda c: c["size_bytes"], default=None),
        ),
        (
            _speed_tile,
            min((c for c in ok if c.get("latency")), key=lambda c: c["latency"]["p50_ms"], default=None),
        ),
        (
            _quality_tile,
            min((c for c in ok if finite(c.get("drop_points"))), key=lambda c: c["drop_points"], default=None),
        ),
    ]
    names = {_size_tile: "Smallest", _speed_tile: "Fastest", _quality_tile: "Smallest drop"}
    return [tile(c, run) | {"label": f"{names[tile]}: {c['name']}"} for tile, c in made if c]


def _size_tile(c: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    other, own = baseline(run, c), c.get("size_bytes")
    name, before = (
        (other["name"], other.get("size_bytes")) if other else (run["model"]["name"], run["model"].get("size_bytes"))
    )
    if not own or not before:
        return {"label": "Size", "cell": missing("a size is not known"), "note": ""}
    ratio = before / own
    text = f"{number(ratio)}× smaller" if ratio >= 1 else f"{number(1 / ratio)}× larger"
    if text.startswith("1.00"):
        text = "same size"
    return {"label": "Size", "cell": Cell(text), "note": f"{size(own)} against {size(before)} of {name}"}


def _speed_tile(c: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    if not c.get("latency"):
        return {"label": "Latency", "cell": missing("latency was not measured"), "note": "not measured"}
    p50 = time_cell(c, "p50")
    found = speed(c)
    if not found:
        return {"label": "Latency", "cell": Cell(f"{p50.text} ms"), "note": f"p50 {p50.sub}, {kind_of(c)}"}
    times, pair, word = found
    if word == "slower":  # read the other way round: 2x slower, not 0.5x the speed
        times, pair = 1 / times, (1 / pair[1], 1 / pair[0]) if pair else None
    text = word if word == "no difference" else f"{number(times)}× {word}"
    ends = f"{interval(pair, places=decimals(times))} " if pair else ""
    note = f"{ends}against {c['ratio']['to']}, p50 {p50.text} ms, {kind_of(c)}"
    return {"label": "Latency", "cell": Cell(text), "note": note}


def _quality_tile(c: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    drop, parity = drop_cell(c, run), sqnr_cell(c.get("parity"))
    if not drop.missing:
        acc = accuracy_cell(c, run)
        lost = drop.sort or 0.0
        text = (
            "no change"
            if not lost
            else f"{number(abs(lost), decimals_of(drop.text))} points {'lost' if lost > 0 else 'gained'}"
        )
        reference = ((run.get("reference") or {}).get("accuracy") or {}).get("top1")
        before = f", reference {number(reference * 100, decimals_of(acc.text))} %" if finite(reference) else ""
        sure = f"{drop.sub} points; " if drop.sub else ""  # the drop's own interval, in points lost
        shown = acc.text if sure else f"{acc.text} {acc.sub}".strip()
        return {"label": "Accuracy", "cell": Cell(text), "note": f"{sure}{shown}{before}"}
    agree = agreement_cell(c.get("parity"))
    note = f"{agree.text} same top-1" if not agree.missing else "outputs against the source model"
    return {"label": "Parity", "cell": parity, "note": f"{note}; no labels, so no accuracy"}


def decimals_of(text: str) -> int:
    """How many decimals a printed number has, so that its neighbours get as many."""
    return len(re.sub(r"[^\d].*", "", text.partition(".")[2]))


def _parity_rows(c: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an output; one for all outputs where they were not told apart."""
    parity = c.get("parity")
    if c["status"] != "ok" or not parity:
        return []
    each = parity.get("outputs") or {"all outputs": parity}
    return [
        {
            "candidate": c["name"],
            "output": name,
            "cells": [
                sqnr_cell(p),
                plain_cell(p, "max_abs", "the largest error"),
                plain_cell(p, "cosine", "cosine similarity"),
                agreement_cell(p),
                Cell(f"{count:,}") if (count := p.get("count") or parity.get("count")) else missing("not recorded"),
            ],
            "kind": parity.get("kind") or "",
        }
        for name, p in each.items()
    ]
