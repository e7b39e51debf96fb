"""Render a run as one HTML file, Markdown and CSV, and compare two runs.

Rules:
- `run.json` is checked before anything is drawn: a wrong type is an error that names the place.
- A number that was not measured is an en dash that says why; nothing is filled in.
- Latencies are compared only on the same machine, and "no difference" is an answer.
- Names, errors and notes come from untrusted files: control characters go here, the templates escape.
- All three texts are made before the first is written, each is written aside and moved into place.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import os
import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from numbers import Real
from pathlib import Path
from typing import Any, TypeGuard

from lepton_edge import plots
from lepton_edge.errors import LeptonError

SCHEMA = "lepton-edge.run/1"
TEMPLATES = Path(__file__).parent / "templates"
SQNR_LANE = 60.0  # dB; above it a file is a copy of the source for any purpose, and plotted in one lane
DASH, MINUS = "–", "−"

NUMBER, PAIR, ANY = "a number", "a pair of numbers", "anything"
_PARITY = {"count?": NUMBER, "max_abs?": NUMBER, "cosine?": NUMBER, "sqnr_db?": NUMBER, "agreement?": NUMBER}
# A key with "?" may be missing or null; keys that are not listed are ignored.
SHAPE: dict[str, Any] = {
    "schema": str,
    "created": str,
    "seconds?": NUMBER,
    "tool": {"name": str, "version": str},
    "host": {
        "cpu?": str,
        "cores?": NUMBER,
        "isa?": [str],
        "governor?": str,
        "memory_gb?": NUMBER,
        "os?": str,
        "python?": str,
        "packages?": {"*": str},
        "unknown?": {"*": str},
    },
    "device": {"name": str, "title?": str, "kind?": str},
    "model": {
        "name": str,
        "format": str,
        "sha256?": str,
        "size_bytes?": NUMBER,
        "inputs?": [{"name": str, "shape?": [ANY], "dtype?": str}],
        "outputs?": [{"name": str, "shape?": [ANY], "dtype?": str}],
    },
    "data?": {
        "calibration?": {"source?": str, "count?": NUMBER},
        "evaluation?": {"source?": str, "count?": NUMBER, "labels?": bool},
    },
    "preprocessing?": {"*": ANY},
    "settings": {
        "to?": [str],
        "max_drop?": NUMBER,
        "max_size?": NUMBER,
        "max_latency?": NUMBER,
        "threads?": NUMBER,
        "seed?": NUMBER,
    },
    "reference?": {"runtime?": ANY, "accuracy?": {"top1?": NUMBER, "top5?": NUMBER, "count?": NUMBER}},
    "candidates": [
        {
            "name": str,
            "format": str,
            "scheme": str,
            "status": str,
            "path?": str,
            "sha256?": str,
            "size_bytes?": NUMBER,
            "zip_bytes?": NUMBER,
            "steps?": [{"step": str, "seconds?": NUMBER, "cached?": bool, "options?": {"*": ANY}, "notes?": [str]}],
            "error?": {"message": str, "hint?": str},
            "runtime?": {"runtime?": str, "version?": str},
            "parity?": {**_PARITY, "kind?": str, "outputs?": {"*": _PARITY}},
            "accuracy?": {"top1": NUMBER, "top5?": NUMBER, "count?": NUMBER, "ci95?": PAIR},
            "drop_points?": NUMBER,
            "latency?": {
                "kind?": str,
                "p50_ms": NUMBER,
                "p50_ci?": PAIR,
                "p90_ms?": NUMBER,
                "p95_ms?": NUMBER,
                "p95_ci?": PAIR,
                "p99_ms?": NUMBER,
                "mean_ms?": NUMBER,
                "count?": NUMBER,
                "rounds?": NUMBER,
                "first_ms?": NUMBER,
                "load_ms?": NUMBER,
                "peak_rss_mb?": NUMBER,
                "threads?": NUMBER,
                "samples_ns?": [[NUMBER]],
            },
            "ratio?": {"to": str, "median": NUMBER, "ci95?": PAIR, "verdict?": str},
            "picked?": bool,
            "pareto?": bool,
            "reason?": str,
        }
    ],
    "picked?": str,
    "warnings?": [str],
}


@dataclass(frozen=True)
class Cell:
    """One value as printed: `sub` is the smaller second line, `title` explains, `sort` is the raw number."""

    text: str
    sub: str = ""
    title: str = ""
    sort: float | None = None
    missing: bool = False


# ---------------------------------------------------------------- reading


def load_run(path: Path) -> dict[str, Any]:
    """Read a run folder or its run.json, checked against the schema.

    Raises LeptonError when it is missing, not JSON, not a run, of a newer schema, or of a wrong shape.
    """
    file = path / "run.json" if path.is_dir() else path
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LeptonError(
            f"{file}: no run to read",
            hint="give the folder a `lepton-edge compress` run wrote, or its run.json",
        ) from None
    except OSError as err:
        raise LeptonError(
            f"{file}: reading the run: {err.strerror}", hint="check the path and its permissions"
        ) from None
    except (ValueError, RecursionError) as err:
        raise LeptonError(
            f"{file}: reading the run: not valid JSON ({err})",
            hint="the file is damaged or is not a run.json; run again to write a fresh one",
        ) from None
    check_run(run, str(file))
    return run


def check_run(run: Any, where: str = "run") -> None:
    """Raise LeptonError naming the first place where `run` is not a run of this schema."""
    found = run.get("schema") if isinstance(run, dict) else None
    version = re.fullmatch(r"lepton-edge\.run/(\d{1,9})", found) if isinstance(found, str) else None
    if not version:
        raise LeptonError(
            f"{where}: not a Lepton Edge run (schema is {found!r}, {SCHEMA!r} was expected)",
            hint="give the run.json of a `lepton-edge compress` run",
        )
    if found != SCHEMA:
        raise LeptonError(
            f"{where}: written by another lepton-edge (schema {found}, this one reads {SCHEMA})",
            hint="upgrade lepton-edge, or repeat the run with this version",
        )
    hint = "the file was edited or damaged; repeat the run"
    problem = _mismatch(run, SHAPE, "")
    if problem:
        raise LeptonError(f"{where}: {problem}", hint=hint)
    names = [c["name"] for c in run["candidates"]]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise LeptonError(f"{where}: two candidates are named {twice[0]!r}", hint=hint)
    if run.get("picked") is not None and run["picked"] not in names:
        raise LeptonError(f"{where}: picked {run['picked']!r}, which is not among the candidates", hint=hint)


def _mismatch(value: Any, shape: Any, place: str) -> str | None:
    """The first place where a value differs from its shape, in words; None when it fits."""
    if shape is ANY:
        return None
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place or 'the run'} is {_kind(value)}, an object was expected"
        if "*" in shape:
            return _first(_mismatch(v, shape["*"], f"{place}.{k}") for k, v in value.items() if v is not None)
        return _first(_mismatch_key(value, key, inner, place) for key, inner in shape.items())
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            return f"{place} is {_kind(value)}, a list was expected"
        return _first(_mismatch(v, shape[0], f"{place}[{i}]") for i, v in enumerate(value))
    if shape is PAIR:
        fits = isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(v) for v in value)
    else:
        fits = _is_number(value) if shape is NUMBER else isinstance(value, shape)
    expected = {str: "text", bool: "true or false"}.get(shape, shape)
    return None if fits else f"{place} is {_kind(value)}, {expected} was expected"


def _mismatch_key(value: dict[str, Any], key: str, shape: Any, place: str) -> str | None:
    name = key.removesuffix("?")
    inner = f"{place}.{name}" if place else name
    if value.get(name) is None:
        return None if key.endswith("?") else f"{inner} is missing"
    return _mismatch(value[name], shape, inner)


def _first(problems: Iterable[str | None]) -> str | None:
    return next((p for p in problems if p), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), "a number" if _is_number(value) else type(value).__name__)


def clean(value: Any) -> Any:
    """A copy with texts on one line and without control, direction-changing or half characters."""
    if isinstance(value, str):
        if value.isascii() and value.isprintable():
            return value
        line = " ".join(value.split())
        return "".join(c if c.isprintable() else "\ufffd" for c in line)
    if isinstance(value, dict):
        return {clean(k): v if k == "samples_ns" else clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return value


# ---------------------------------------------------------------- numbers as text


def decimals(x: float, digits: int = 3) -> int:
    """Decimal places that show `digits` significant digits of x, never more than 6."""
    if not x or not math.isfinite(x):
        return 0
    rounded = float(f"{abs(x):.{digits - 1}e}")  # 9.996 has the digits of 10.0
    return min(6, max(0, digits - 1 - math.floor(math.log10(rounded))))


def number(x: float, places: int | None = None) -> str:
    """A number with three significant digits (or `places` decimals) and a true minus sign."""
    if x and abs(x) < 1e-6 and places is None:
        return f"{x:.1e}".replace("-", MINUS)
    text = f"{x:,.{decimals(x) if places is None else places}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def size(count: float) -> str:
    """Bytes in decimal units: 98.5 kB, 1.23 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale * 0.9995:
            return f"{number(count / scale)} {unit}"
    return f"{count:,.0f} B"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 12 s, 1 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"


def _interval(pair: Any, places: int, scale: float = 1.0) -> str:
    if pair is None or not _finite(pair):
        return ""
    return f"[{number(pair[0] * scale, places)}, {number(pair[1] * scale, places)}]"


def _finite(value: Any) -> TypeGuard[Any]:
    """True for a finite number, or a pair of them."""
    if isinstance(value, list | tuple):
        return all(_finite(v) for v in value)
    return _is_number(value) and math.isfinite(value)


def _percent_places(count: float | None) -> int:
    """One more image changes the percentage by 100/count: more decimals than that say nothing."""
    return 2 if count and count > 1000 else 1


def missing(why: str) -> Cell:
    return Cell(DASH, title=why, missing=True)


# ---------------------------------------------------------------- one candidate


def baseline(run: dict[str, Any], c: dict[str, Any]) -> dict[str, Any] | None:
    """The float32 candidate of the same format that `c` is compared with; None for that one itself."""
    to = (c.get("ratio") or {}).get("to")
    for other in run["candidates"]:
        same = other["name"] == to if to else (other["format"], other["scheme"]) == (c["format"], "float32")
        if same and other["status"] == "ok" and other is not c:
            return other
    return None


def _accuracy_cell(c: dict[str, Any], run: dict[str, Any]) -> Cell:
    acc = c.get("accuracy")
    if not acc or not _finite(acc["top1"]):
        labels = ((run.get("data") or {}).get("evaluation") or {}).get("labels")
        return missing("accuracy was not measured" if labels else "the evaluation data has no labels")
    places = _percent_places(acc.get("count"))
    n = f" on {acc['count']:,} samples" if acc.get("count") else ""
    top5 = f"; top-5 {number(acc['top5'] * 100, places)} %" if _finite(acc.get("top5")) else ""
    return Cell(
        f"{number(acc['top1'] * 100, places)} %",
        _interval(acc.get("ci95"), places, 100),
        f"top-1{n}, with its 95 % interval{top5}",
        acc["top1"],
    )


def _drop_cell(c: dict[str, Any], run: dict[str, Any]) -> Cell:
    drop = c.get("drop_points")
    if not _finite(drop):
        return missing("no accuracy to compare with the reference's")
    places = _percent_places((c.get("accuracy") or {}).get("count"))
    limit = run["settings"].get("max_drop")
    over = limit is not None and drop > limit
    return Cell(
        number(drop, places),
        "over the limit" if over else "",
        "percentage points below the reference" if drop >= 0 else "percentage points: more accurate than the reference",
        drop,
    )


def _sqnr_cell(p: dict[str, Any] | None) -> Cell:
    if not p:
        return missing("outputs were not compared")
    db, worst = p.get("sqnr_db"), p.get("max_abs")
    if db is None or db == math.inf:
        if worst is None or worst == 0:
            return Cell("exact", title="no output differs from the source model's", sort=math.inf)
        return missing("the source model's outputs are all zero: no ratio exists")
    if not math.isfinite(db):
        return missing("an output held a value that is not a number")
    return Cell(f"{number(db, 1)} dB", title=_count_title(p, "signal to error ratio of all outputs"), sort=db)


def _agreement_cell(p: dict[str, Any] | None) -> Cell:
    if not p:
        return missing("outputs were not compared")
    if not _finite(p.get("agreement")):
        return missing("the outputs are not class scores: there is no top-1 to agree on")
    places = _percent_places(p.get("count"))
    return Cell(
        f"{number(p['agreement'] * 100, places)} %",
        title=_count_title(p, "same top-1 as the source model"),
        sort=p["agreement"],
    )


def _count_title(p: dict[str, Any], text: str) -> str:
    return f"{text}, {p['count']:,} samples" if p.get("count") else text


def _plain_cell(p: dict[str, Any], key: str, text: str) -> Cell:
    value = p.get(key)
    if value is not None and not math.isfinite(value):
        return missing("an output held a value that is not a number")
    if value is None:
        return missing(f"{text} was not computed")
    return Cell(
        f"{value:.6f}" if key == "cosine" else f"{value:.2e}".replace("-", MINUS) if value else "0",
        sort=value,
    )


def _size_cell(c: dict[str, Any], run: dict[str, Any]) -> Cell:
    if not _finite(c.get("size_bytes")):
        return missing("there is no file")
    float_file = baseline(run, c)
    ratio = ""
    if float_file and float_file.get("size_bytes") and c["size_bytes"]:
        ratio = f"{number(c['size_bytes'] / float_file['size_bytes'], 2)}× float"
    return Cell(size(c["size_bytes"]), ratio, f"{c['size_bytes']:,} bytes on disk", c["size_bytes"])


def _zip_cell(c: dict[str, Any]) -> Cell:
    if not _finite(c.get("zip_bytes")):
        return missing("the file was not zipped")
    return Cell(size(c["zip_bytes"]), title=f"{c['zip_bytes']:,} bytes when zipped", sort=c["zip_bytes"])


def _time_cell(c: dict[str, Any], key: str) -> Cell:
    """p50, p95 and the like in ms; the interval below where there is one."""
    latency = c.get("latency")
    if not latency:
        return missing("latency was not measured")
    value = latency.get(f"{key}_ms")
    if not _finite(value):
        n = f" ({latency['count']:,})" if latency.get("count") else ""
        tail = key in ("p90", "p95", "p99")
        return missing(f"too few samples{n} for a {key}" if tail else "not recorded")
    places = decimals(value)
    runs = f"{latency['count']:,} runs" if latency.get("count") else "number of runs not recorded"
    return Cell(
        number(value, places),
        _interval(latency.get(f"{key}_ci"), places),
        f"ms, {latency.get('kind', 'kind not recorded')}, {runs}",
        value,
    )


def speed(c: dict[str, Any]) -> tuple[float, tuple[float, float] | None, str] | None:
    """How many times as fast as its float file a candidate is, the interval and the verdict.

    run.json holds the ratio of times, below 1 for a faster candidate: this is its inverse.
    None if it was not measured.
    """
    ratio = c.get("ratio")
    if not ratio or not _finite(ratio["median"]) or ratio["median"] <= 0:
        return None
    pair = ratio.get("ci95")
    known = pair is not None and _finite(pair) and all(v > 0 for v in pair)
    word = ratio.get("verdict") or ("faster" if ratio["median"] < 1 else "slower")
    return 1 / ratio["median"], (1 / pair[1], 1 / pair[0]) if known else None, word


def _speed_cell(c: dict[str, Any]) -> Cell:
    found = speed(c)
    if not found:
        own = c["scheme"] == "float32"
        return missing("this is the float file itself" if own else "no float file of this format was measured")
    times, pair, word = found
    places = decimals(times)
    interval = _interval(pair, places)
    title = f"{word} {'to' if word == 'no difference' else 'than'} {c['ratio']['to']}"
    return Cell(
        f"{number(times, places)}×",
        word if word == "no difference" else interval,
        f"{title}, 95 % interval {interval}" if interval else f"{title}; too few rounds for an interval",
        times,
    )


def _runtime_text(info: Any) -> str:
    """Everything a runtime said about itself: 'ai-edge-litert 2.3.0, delegate xnnpack'."""
    if not isinstance(info, dict):
        return str(info or "")
    more = [f"{k} {_text(v)}" for k, v in info.items() if k not in ("runtime", "version") and v is not None]
    return ", ".join([f"{info.get('runtime', '')} {info.get('version', '')}".strip(), *more]).strip(", ")


def _text(value: Any) -> str:
    """A setting as it reads in a file: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


# ---------------------------------------------------------------- the whole run, as the templates want it

COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("accuracy", "Accuracy", "top-1 on the evaluation data, 95 % interval below"),
    ("drop", "Drop, points", "percentage points below the reference model"),
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
        "byline": _byline(run),
        "tiles": _tiles(run),
        "columns": shown,
        "rows": sorted(rows, key=lambda r: r["failed"]),
        "detail_heads": [head for head, _ in _details(None)],
        "parity": [row for c in run["candidates"] for row in _parity_rows(c)],
        "environment": _environment(run),
        "data": _data(run),
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
            "accuracy": _accuracy_cell(c, run),
            "drop": _drop_cell(c, run),
            "sqnr": _sqnr_cell(parity),
            "agreement": _agreement_cell(parity),
            "size": _size_cell(c, run),
            "zip": _zip_cell(c),
            "p50": _time_cell(c, "p50"),
            "p95": _time_cell(c, "p95"),
            "speed": _speed_cell(c),
        },
        "details": [cell for _, cell in _details(c)],
        "measured": bool(c.get("latency")),
        "runtime": _runtime_text(c.get("runtime")),
        "path": c.get("path") or "",
        "sha256": c.get("sha256") or "",
        "steps": [_step(s) for s in c.get("steps") or []],
        "chain": " → ".join(s["step"] for s in c.get("steps") or []),
        "seconds": duration(sum(s.get("seconds") or 0 for s in c.get("steps") or [])),
    }


def _step(s: dict[str, Any]) -> dict[str, Any]:
    return {
        "step": s["step"],
        "seconds": Cell(duration(s["seconds"])) if _finite(s.get("seconds")) else missing("not recorded"),
        "cached": "from the store" if s.get("cached") else "run",
        "options": ", ".join(f"{k} = {_text(v)}" for k, v in (s.get("options") or {}).items()),
        "notes": s.get("notes") or [],
    }


def _details(c: dict[str, Any] | None) -> list[tuple[str, Cell]]:
    """The latency figures beside p50 and p95, each with its heading."""
    latency = (c or {}).get("latency") or {}

    def plain(key: str, show: Any) -> Cell:
        value = latency.get(key)
        return Cell(show(value), sort=value) if _finite(value) else missing("not recorded")

    return [
        ("Runs", plain("count", lambda v: f"{v:,}")),
        ("Rounds", plain("rounds", lambda v: f"{v:,}")),
        ("Threads", plain("threads", lambda v: f"{v:,}")),
        ("Mean, ms", plain("mean_ms", number)),
        ("p90, ms", _time_cell(c or {}, "p90")),
        ("p99, ms", _time_cell(c or {}, "p99")),
        ("First run, ms", plain("first_ms", number)),
        ("Load, ms", plain("load_ms", number)),
        ("Peak memory, MB", plain("peak_rss_mb", number)),
    ]


def limits(run: dict[str, Any]) -> str:
    """The limits the user set, as words; empty when there were none."""
    settings = run["settings"]
    drop, most, slowest = (settings.get(k) for k in ("max_drop", "max_size", "max_latency"))
    said = [
        f"drop at most {drop:g} {'point' if drop == 1 else 'points'}" if drop is not None else "",
        f"size at most {size(most)}" if most is not None else "",
        f"p50 at most {slowest:g} ms" if slowest is not None else "",
    ]
    return ", ".join(s for s in said if s)


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
            min((c for c in ok if _finite(c.get("drop_points"))), key=lambda c: c["drop_points"], default=None),
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
    p50 = _time_cell(c, "p50")
    found = speed(c)
    if not found:
        return {"label": "Latency", "cell": Cell(f"{p50.text} ms"), "note": f"p50 {p50.sub}, {_kind_of(c)}"}
    times, pair, word = found
    if word == "slower":  # read the other way round: 2x slower, not 0.5x the speed
        times, pair = 1 / times, (1 / pair[1], 1 / pair[0]) if pair else None
    text = word if word == "no difference" else f"{number(times)}× {word}"
    interval = f"{_interval(pair, decimals(times))} " if pair else ""
    note = f"{interval}against {c['ratio']['to']}, p50 {p50.text} ms, {_kind_of(c)}"
    return {"label": "Latency", "cell": Cell(text), "note": note}


def _kind_of(c: dict[str, Any]) -> str:
    return (c.get("latency") or {}).get("kind") or "kind not recorded"


def _quality_tile(c: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    drop, parity = _drop_cell(c, run), _sqnr_cell(c.get("parity"))
    if not drop.missing:
        acc = _accuracy_cell(c, run)
        lost = drop.sort or 0.0
        text = (
            "no change"
            if not lost
            else f"{number(abs(lost), decimals_of(drop.text))} points {'lost' if lost > 0 else 'gained'}"
        )
        reference = ((run.get("reference") or {}).get("accuracy") or {}).get("top1")
        before = f", reference {number(reference * 100, decimals_of(acc.text))} %" if _finite(reference) else ""
        return {"label": "Accuracy", "cell": Cell(text), "note": f"{acc.text} {acc.sub}".strip() + before}
    agree = _agreement_cell(c.get("parity"))
    note = f"{agree.text} same top-1" if not agree.missing else "outputs against the source model"
    return {"label": "Parity", "cell": parity, "note": f"{note}; no labels, so no accuracy"}


def decimals_of(text: str) -> int:
    """How many decimals a printed number has, so that its neighbours get as many."""
    return len(re.sub(r"[^\d].*", "", text.partition(".")[2]))


def _byline(run: dict[str, Any]) -> str:
    device = run["device"].get("title") or run["device"]["name"]
    took = f"took {duration(run['seconds'])}" if _finite(run.get("seconds")) else ""
    count = len(run["candidates"])
    parts = [_moment(run["created"]), device, f"{count} candidate{'s' * (count != 1)}", took]
    return " · ".join(p for p in parts if p)


def _moment(text: str) -> str:
    """An ISO-8601 time to the minute; text that is none stays as it is."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when:%Y-%m-%d %H:%M}{' UTC' if when.utcoffset() == datetime.timedelta(0) else f'{when:%z}'}"


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
                _sqnr_cell(p),
                _plain_cell(p, "max_abs", "the largest error"),
                _plain_cell(p, "cosine", "cosine similarity"),
                _agreement_cell(p),
                Cell(f"{count:,}") if (count := p.get("count") or parity.get("count")) else missing("not recorded"),
            ],
            "kind": parity.get("kind") or "",
        }
        for name, p in each.items()
    ]


def _environment(run: dict[str, Any]) -> list[tuple[str, Cell]]:
    host, device = run["host"], run["device"]

    def known(key: str, show: Any = str, why: str = "not recorded") -> Cell:
        reason = (host.get("unknown") or {}).get(key) or why
        return Cell(show(host[key])) if host.get(key) not in (None, [], "") else missing(reason)

    packages = host.get("packages") or {}
    listed = ", ".join(f"{k} {packages[k]}" for k in sorted(packages))
    return [
        (
            "Device",
            Cell(f"{device.get('title') or device['name']} ({device.get('kind') or 'kind not recorded'})"),
        ),
        ("CPU", known("cpu")),
        ("Cores", known("cores", lambda v: f"{v:g}")),
        ("Instruction sets", known("isa", ", ".join, "none was recognised")),
        (
            "Frequency governor",
            known("governor", str, "this system does not tell: frequency may have varied"),
        ),
        ("Memory", known("memory_gb", lambda v: f"{v:.1f} GB")),
        ("System", known("os")),
        ("Python", known("python")),
        ("Packages", Cell(listed) if listed else missing("not recorded")),
        ("Tool", Cell(f"{run['tool']['name']} {run['tool']['version']}")),
    ]


def _spec(s: dict[str, Any]) -> str:
    """An input or output as 'image [?, 28, 28, 1] float32'."""
    shape = ", ".join("?" if d is None else str(d) for d in s.get("shape") or [])
    return f"{s['name']} [{shape}] {s.get('dtype') or ''}".strip()


def _data(run: dict[str, Any]) -> list[tuple[str, Cell]]:
    model, data, settings = run["model"], run.get("data") or {}, run["settings"]

    def specs(key: str) -> Cell:
        found = model.get(key) or []
        return Cell("; ".join(_spec(s) for s in found)) if found else missing("not recorded")

    def samples(key: str, extra: str = "") -> Cell:
        part = data.get(key) or {}
        if not part.get("source"):
            return missing("none was used")
        count = f", {part['count']:,} samples" if part.get("count") is not None else ""
        return Cell(f"{part['source']}{count}{extra}")

    scored = ", labelled" if (data.get("evaluation") or {}).get("labels") else ", no labels"
    weight = f", {size(model['size_bytes'])}" if _finite(model.get("size_bytes")) else ""
    others = {k: v for k, v in settings.items() if k not in ("max_drop", "max_size", "max_latency") and v is not None}
    acc = (run.get("reference") or {}).get("accuracy") or {}
    places = _percent_places(acc.get("count"))
    reference = _runtime_text((run.get("reference") or {}).get("runtime"))
    if _finite(acc.get("top1")):
        reference = f"{reference}, top-1 {number(acc['top1'] * 100, places)} %".strip(", ")
    rows = [
        ("Source model", Cell(f"{model['name']}, {model['format']}{weight}")),
        ("Source SHA-256", Cell(model["sha256"]) if model.get("sha256") else missing("not recorded")),
        ("Inputs", specs("inputs")),
        ("Outputs", specs("outputs")),
        ("Calibration data", samples("calibration")),
        ("Evaluation data", samples("evaluation", scored)),
        ("Reference", Cell(reference) if reference else missing("not recorded")),
        ("Limits", Cell(limits(run)) if limits(run) else missing("none was set")),
        ("Settings", Cell("; ".join(f"{k} = {_text(v)}" for k, v in others.items()))),
    ]
    prepared = [(f"Preprocessing: {k}", Cell(_text(v))) for k, v in (run.get("preprocessing") or {}).items()]
    return rows + (prepared or [("Preprocessing", missing("none: the samples were used as they are"))])


def how_to_read(run: dict[str, Any]) -> list[str]:
    """Which numbers are measured, how, and what was left out."""
    timed = [c for c in run["candidates"] if c.get("latency")]
    kinds = sorted({_kind_of(c) for c in timed})
    counts = [c["latency"]["count"] for c in timed if c["latency"].get("count")]
    threads = sorted({c["latency"]["threads"] for c in timed if c["latency"].get("threads")})
    said = []
    if timed:
        runs = f" in {min(counts):,} to {max(counts):,} timed runs" if len(set(counts)) > 1 else ""
        runs = f" in {counts[0]:,} timed runs a candidate" if len(set(counts)) == 1 else runs
        using = f" with {' or '.join(f'{t:g}' for t in threads)} thread{'s' * (threads != [1])}" if threads else ""
        where = run["device"].get("title") or run["device"]["name"]
        said.append(
            f"Latency is {' and '.join(kinds)} on {where}{using}{runs}, after the first run, which is listed "
            "apart. It holds for this machine only."
        )
        said.append(
            "Brackets are 95 % intervals. A ratio whose interval holds 1 is “no difference”. "
            "p90, p95 and p99 are left out where there are too few runs to bound them."
        )
    else:
        said.append("Latency was not measured in this run.")
    if any(c.get("accuracy") for c in run["candidates"]):
        said.append("Accuracy is measured on the evaluation data; drop is in percentage points below the reference.")
    said.append(
        "Parity is measured on the same samples in the source model and in the artefact: SQNR is "
        "10·log10(Σ ref² / Σ (ref − out)²) in dB over all outputs, agreement the share of samples with the "
        "same top-1. Size is the file on disk, kB is 1,000 bytes. A dash is a number that was not measured; "
        "rest on it for the reason."
    )
    return said


# ---------------------------------------------------------------- plots


def drawings(run: dict[str, Any]) -> list[dict[str, str]]:
    """The plots there are numbers for, as {"svg", "title", "caption"}."""
    ok = [c for c in run["candidates"] if c["status"] == "ok"]
    style = plots.style_of({c["format"] for c in ok}, {c["scheme"] for c in ok})
    timed = [c for c in ok if _finite((c.get("latency") or {}).get("p50_ms")) and c["latency"]["p50_ms"] > 0]
    made = [_tradeoff(run, timed, style), _latencies(run, timed, style), _sizes(run, ok, style)]
    return [m for m in made if m]


def _mark(c: dict[str, Any], run: dict[str, Any]) -> plots.Mark:
    bits = [c["name"]]
    for cell, word in ((_accuracy_cell(c, run), "top-1"), (_sqnr_cell(c.get("parity")), "SQNR")):
        bits += [] if cell.missing else [f"{word} {cell.text} {cell.sub}".strip()]
    p50 = _time_cell(c, "p50")
    bits += [] if p50.missing else [f"p50 {p50.text} ms {p50.sub}".strip()]
    bits += [_size_cell(c, run).text]
    return plots.Mark(c["name"], c["format"], c["scheme"], c["name"] == run.get("picked"), "; ".join(bits))


def _pair(value: Any, scale: float = 1.0) -> tuple[float, float] | None:
    return (value[0] * scale, value[1] * scale) if value is not None and _finite(value) else None


def _times_label(timed: list[dict[str, Any]], log: bool) -> str:
    kinds = "/".join(sorted({_kind_of(c) for c in timed}))
    threads = {c["latency"].get("threads") for c in timed}
    only = threads.pop() if len(threads) == 1 else None
    using = f", {only:g} thread{'s' * (only != 1)}" if only else ""
    return f"latency, ms ({kinds}{using}{', log scale' if log else ''})"


def _tradeoff(run: dict[str, Any], timed: list[dict[str, Any]], style: plots.Style) -> dict[str, str] | None:
    scored = [c for c in timed if not _accuracy_cell(c, run).missing]
    points, lane, reference, floor = [], None, None, None
    if scored:
        what = "accuracy"
        y_label = "top-1 accuracy, %"
        for c in scored:
            acc = c["accuracy"]
            points.append(_point(c, run, acc["top1"] * 100, _pair(acc.get("ci95"), 100)))
        top1 = ((run.get("reference") or {}).get("accuracy") or {}).get("top1")
        if _finite(top1):
            reference = (top1 * 100, "reference")
            drop = run["settings"].get("max_drop")
            floor = (top1 * 100 - drop, f"limit: {drop:g} {'point' if drop == 1 else 'points'} lower") if drop else None
    else:
        what, y_label, lane = "SQNR", "SQNR, dB (higher is closer to the source)", SQNR_LANE
        compared = [c for c in timed if not _sqnr_cell(c.get("parity")).missing]
        points = [_point(c, run, float(_sqnr_cell(c["parity"]).sort or 0.0), None) for c in compared]
    if not points:
        return None
    shown = [c for c in timed if c["name"] in {p.mark.label for p in points}]
    limit = run["settings"].get("max_latency")
    log = plots.wants_log(v for p in points for v in (p.x, *(p.x_ci or ())))
    svg = plots.tradeoff(
        points,
        style,
        x_label=f"p50 {_times_label(shown, log)}",
        y_label=y_label,
        lane=lane,
        reference=reference,
        floor=floor,
        x_limit=(limit, "limit") if limit else None,
    )
    names = "Bars are 95 % intervals. " if any(p.x_ci or p.y_ci for p in points) else ""
    return {
        "svg": svg,
        "title": f"{what[0].upper()}{what[1:]} against latency",
        "caption": f"Up and left is better. {names}Nothing is both faster and better than a candidate on the line.",
    }


def _point(c: dict[str, Any], run: dict[str, Any], y: float, y_ci: tuple[float, float] | None) -> plots.Point:
    return plots.Point(_mark(c, run), c["latency"]["p50_ms"], y, _pair(c["latency"].get("p50_ci")), y_ci)


def _latencies(run: dict[str, Any], timed: list[dict[str, Any]], style: plots.Style) -> dict[str, str] | None:
    rows = []
    for c in timed:
        rounds = [[ns / 1e6 for ns in r if _finite(ns)] for r in c["latency"].get("samples_ns") or []]
        p50 = c["latency"]["p50_ms"]
        rows.append(plots.Spread(_mark(c, run), rounds, p50, _pair(c["latency"].get("p50_ci")), number(p50)))
    if not rows:
        return None
    log = plots.wants_log(r.p50 for r in rows)
    svg = plots.latencies(rows, style, x_label=_times_label(timed, log))
    return {
        "svg": svg,
        "title": "Latency distributions",
        "caption": "Box: middle half of the runs, line: median, whiskers: 5th to 95th percentile, "
        "ticks above: the median of each round.",
    }


def _sizes(run: dict[str, Any], ok: list[dict[str, Any]], style: plots.Style) -> dict[str, str] | None:
    files = [c for c in ok if c.get("size_bytes") and _finite(c["size_bytes"])]
    if not files:
        return None
    source, limit = run["model"].get("size_bytes"), run["settings"].get("max_size")
    biggest = max([c["size_bytes"] for c in files] + ([source] if source else []))
    scale, unit = next((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")) if biggest >= s or s == 1)
    bars = [
        plots.Bar(
            _mark(c, run),
            c["size_bytes"] / scale,
            (c.get("zip_bytes") or 0) / scale or None,
            size(c["size_bytes"]),
        )
        for c in files
    ]
    if source:
        name = run["model"]["name"]
        bars.insert(
            0,
            plots.Bar(plots.Mark(name, "", "", tip=f"{name}: the source model"), source / scale, None, size(source)),
        )
    svg = plots.sizes(bars, style, x_label=f"size on disk, {unit}", limit=(limit / scale, "limit") if limit else None)
    return {
        "svg": svg,
        "title": "Size",
        "caption": "Bar: file on disk, dark tick: the same file zipped, grey: the source.",
    }


# ---------------------------------------------------------------- writing


def render(run: dict[str, Any], folder: Path) -> dict[str, Path]:
    """Write report.html, report.md and report.csv into `folder`; returns their paths by "html", "md", "csv".

    The HTML is one file without external resources; the same run gives the same bytes.
    Raises LeptonError when `run` does not fit the schema or the folder cannot be written.
    """
    check_run(run)
    run = clean(run)
    shown = view(run)
    texts = {"html": html_text(shown, drawings(run)), "md": markdown_text(shown), "csv": csv_text(run)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {kind: _write(folder / f"report.{kind}", text) for kind, text in texts.items()}
    except OSError as err:
        raise LeptonError(
            f"{folder}: writing the report: {err.strerror}",
            hint="check that the folder can be written and has space",
        ) from None


def _write(path: Path, text: str) -> Path:
    """Write aside, then move into place: a reader never sees half a report."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _template(name: str, **options: Any) -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    env = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        **options,
    )
    env.filters["md"] = markdown_escape
    return env.get_template(name)


def html_text(shown: dict[str, Any], figures: list[dict[str, str]]) -> str:
    """The page. Only its own script may run: its hash is in the content security policy."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    page = _template("report.html.j2", autoescape=True)
    return page.render(**shown, figures=figures, css=css, script=script, script_hash=digest)


def markdown_text(shown: dict[str, Any]) -> str:
    return _template("report.md.j2", autoescape=False).render(**shown)


def markdown_escape(value: Any) -> str:
    """Text that Markdown shows as it is, also in a table cell and at the start of a line."""
    text = re.sub(r"([\\`*|~$]|\](?=[(:\[]))", r"\\\1", str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    text = re.sub(r"^([#+=-])", r"\\\1", text)
    return re.sub(r"^(\d+)([.)](?:\s|$))", r"\1\\\2", text)


def csv_text(run: dict[str, Any]) -> str:
    """A line a candidate, raw numbers with the unit in the heading, empty where not measured."""
    out = io.StringIO()
    rows = [_csv_row(c, run) for c in run["candidates"]]
    heads = list(_csv_row({"name": "", "format": "", "scheme": "", "status": ""}, run))
    writer = csv.DictWriter(out, heads, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def _csv_row(c: dict[str, Any], run: dict[str, Any]) -> dict[str, Any]:
    acc, par, lat, ratio = (c.get(k) or {} for k in ("accuracy", "parity", "latency", "ratio"))
    sqnr, found = _sqnr_cell(c.get("parity")), speed(c)
    pairs = {
        "top1": acc.get("ci95"),
        "p50_ms": lat.get("p50_ci"),
        "p95_ms": lat.get("p95_ci"),
        "speed": found[1] if found else None,
    }
    row = {
        **{k: c[k] for k in ("name", "format", "scheme", "status")},
        "picked": int(c["name"] == run.get("picked")),
        "pareto": int(bool(c.get("pareto"))),
        "top1": acc.get("top1"),
        "top5": acc.get("top5"),
        "accuracy_count": acc.get("count"),
        "drop_points": c.get("drop_points"),
        "sqnr_db": None if sqnr.missing else sqnr.sort,
        **{k: par.get(k) for k in ("agreement", "max_abs", "cosine")},
        **{k: c.get(k) for k in ("size_bytes", "zip_bytes")},
        **{f"{k}_ms": lat.get(f"{k}_ms") for k in ("p50", "p90", "p95", "p99", "mean", "first", "load")},
        **{k: lat.get(k) for k in ("peak_rss_mb", "threads")},
        "latency_count": lat.get("count"),
        "latency_rounds": lat.get("rounds"),
        "latency_kind": lat.get("kind"),
        "speed": found[0] if found else None,
        "speed_to": ratio.get("to"),
        "speed_verdict": ratio.get("verdict"),
        "runtime": _runtime_text(c.get("runtime")),
        **{k: c.get(k) for k in ("path", "sha256", "reason")},
        "error": (c.get("error") or {}).get("message"),
    }
    line: dict[str, Any] = {}
    for key, value in row.items():
        line[key] = _csv_value(value)
        if key in pairs:
            lo, hi = pairs.get(key) or (None, None)
            line |= {f"{key}_lo": _csv_value(lo), f"{key}_hi": _csv_value(hi)}
    return line


def _csv_value(value: Any) -> Any:
    """Spreadsheets run a text that starts like a formula: a quote in front makes it text again."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value


# ---------------------------------------------------------------- two runs

SAME_MACHINE = ("cpu", "machine", "cores", "isa")


def diff(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What changed from run `a` to run `b`.

    Latencies are compared only when both were taken on the same machine and device in the same way; where
    their p50 intervals overlap the answer is "no difference". Accuracies are compared only on the same data.
    Returns {"a", "b", "comparable": {"latency", "accuracy"}, "warnings", "added", "removed", "candidates",
    "picked"}; every candidate holds "accuracy", "size" and "latency" as {"a", "b", "delta_points" or "ratio",
    "verdict"}.
    """
    check_run(a, "first run")
    check_run(b, "second run")
    a, b = clean(a), clean(b)
    hosts = _host_differences(a, b)
    data = _changed((a.get("data") or {}).get("evaluation") or {}, (b.get("data") or {}).get("evaluation") or {})
    warnings = []
    if hosts:
        warnings.append(f"different machines ({'; '.join(hosts)}): latencies are not compared")
    if data:
        warnings.append(f"different evaluation data ({'; '.join(data)}): accuracies are not compared")
    if a["model"].get("sha256") != b["model"].get("sha256"):
        warnings.append("the source models differ: the changes below are not the tool's alone")
    for key, name in (("governor", "frequency governor"), ("os", "operating system")):
        if not hosts and a["host"].get(key) != b["host"].get(key):
            warnings.append(f"the {name} changed between the runs: latencies may differ for that reason")
    packages = _changed(a["host"].get("packages") or {}, b["host"].get("packages") or {})
    if packages:
        warnings.append(f"package versions changed: {'; '.join(packages)}")
    before, after = ({c["name"]: c for c in run["candidates"]} for run in (a, b))
    return {
        "a": _identity(a),
        "b": _identity(b),
        "comparable": {"latency": not hosts, "accuracy": not data},
        "warnings": warnings,
        "added": [n for n in after if n not in before],
        "removed": [n for n in before if n not in after],
        "candidates": [
            _changes(before[n], after[n], latency=not hosts, accuracy=not data) for n in before if n in after
        ],
        "picked": {"a": a.get("picked"), "b": b.get("picked")},
    }


def _identity(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": run["model"]["name"],
        "sha256": run["model"].get("sha256"),
        "created": run["created"],
        "device": run["device"].get("title") or run["device"]["name"],
        "tool": run["tool"]["version"],
    }


def _host_differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    def machine(run: dict[str, Any]) -> dict[str, Any]:
        host = {k: run["host"].get(k) for k in SAME_MACHINE}
        host["isa"] = sorted(host["isa"] or [])
        host["memory, GB"] = round(run["host"].get("memory_gb") or 0)
        device = {"device": run["device"]["name"], "device kind": run["device"].get("kind")}
        return host | device

    return _changed(machine(a), machine(b))


def _changed(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys whose values differ, as 'key old → new'."""
    keys = dict.fromkeys([*a, *b])
    return [f"{k} {_short(a.get(k))} → {_short(b.get(k))}" for k in keys if a.get(k) != b.get(k)]


def _short(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _changes(a: dict[str, Any], b: dict[str, Any], *, latency: bool, accuracy: bool) -> dict[str, Any]:
    return {
        "name": a["name"],
        "status": {"a": a["status"], "b": b["status"]},
        "accuracy": _accuracy_change(a.get("accuracy") or {}, b.get("accuracy") or {}, accuracy),
        "size": _size_change(a, b),
        "latency": _latency_change(a.get("latency") or {}, b.get("latency") or {}, latency),
    }


def _accuracy_change(a: dict[str, Any], b: dict[str, Any], comparable: bool) -> dict[str, Any]:
    old, new = a.get("top1"), b.get("top1")
    change: dict[str, Any] = {"a": old, "b": new, "delta_points": None, "verdict": "not measured"}
    if not _finite(old) or not _finite(new):
        return change
    if not comparable or a.get("count") != b.get("count"):
        return change | {"verdict": "not compared"}
    delta = (new - old) * 100
    if delta == 0:
        return change | {"delta_points": 0.0, "verdict": "same"}
    word = "higher" if delta > 0 else "lower"
    if _touch(a.get("ci95"), b.get("ci95")):
        word += ", within the intervals"
    return change | {"delta_points": delta, "verdict": word}


def _size_change(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    old, new = a.get("size_bytes"), b.get("size_bytes")
    if not _finite(old) or not _finite(new) or not old:
        return {"a": old, "b": new, "ratio": None, "verdict": "not measured"}
    word = "same" if old == new else "smaller" if new < old else "larger"
    if word == "same" and a.get("sha256") and a["sha256"] == b.get("sha256"):
        word = "same file"
    return {"a": old, "b": new, "ratio": new / old, "verdict": word}


def _latency_change(a: dict[str, Any], b: dict[str, Any], comparable: bool) -> dict[str, Any]:
    old, new = a.get("p50_ms"), b.get("p50_ms")
    change: dict[str, Any] = {"a": old, "b": new, "ratio": None, "verdict": "not measured"}
    if not _finite(old) or not _finite(new) or old <= 0:
        return change
    if not comparable or any(a.get(k) != b.get(k) for k in ("kind", "threads")):
        return change | {"verdict": "not compared"}
    change["ratio"] = new / old
    if not _finite(a.get("p50_ci") or ("",)) or not _finite(b.get("p50_ci") or ("",)):
        return change | {"verdict": "no interval to tell"}
    if _touch(a["p50_ci"], b["p50_ci"]):
        return change | {"verdict": "no difference"}
    return change | {"verdict": "faster" if new < old else "slower"}


def _touch(a: Any, b: Any) -> bool:
    """True when two intervals share a point."""
    return bool(a and b and _finite(a) and _finite(b) and a[0] <= b[1] and b[0] <= a[1])


def diff_rows(d: dict[str, Any]) -> list[list[str]]:
    """The comparison as a table for a terminal: the first row is the heading."""
    rows = [["candidate", "accuracy", "size", "latency p50", "status"]]
    for c in d["candidates"]:
        old, new = c["status"]["a"], c["status"]["b"]
        rows.append(
            [
                c["name"],
                _accuracy_text(c["accuracy"]),
                _size_text(c["size"]),
                _latency_text(c["latency"]),
                old if old == new else f"{old} → {new}",
            ]
        )
    rows += [[name, DASH, DASH, DASH, "added"] for name in d["added"]]
    rows += [[name, DASH, DASH, DASH, "removed"] for name in d["removed"]]
    return rows


def _accuracy_text(c: dict[str, Any]) -> str:
    if c["delta_points"] is None:
        return c["verdict"]
    old, new = (number(c[k] * 100, 2) for k in ("a", "b"))
    if c["verdict"] == "same":
        return f"{new} % (same)"
    sign = "+" if c["delta_points"] > 0 else ""
    return f"{old} → {new} % ({sign}{number(c['delta_points'], 2)} points, {c['verdict']})"


def _size_text(c: dict[str, Any]) -> str:
    if c["ratio"] is None:
        return c["verdict"]
    if c["a"] == c["b"]:
        return f"{size(c['b'])} ({c['verdict']})"
    return f"{size(c['a'])} → {size(c['b'])} ({c['verdict']}, {number(c['ratio'], 2)}×)"


def _latency_text(c: dict[str, Any]) -> str:
    if c["a"] is None or c["b"] is None:
        return c["verdict"]
    if c["ratio"] is None:
        return f"{number(c['a'])} ms and {number(c['b'])} ms ({c['verdict']})"
    times = f"{number(c['a'])} → {number(c['b'])} ms"
    return (
        f"{times} ({c['verdict']})"
        if c["verdict"].startswith("no ")
        else f"{times} ({c['verdict']}, {number(c['ratio'], 2)}×)"
    )


def render_diff_text(d: dict[str, Any]) -> str:
    """The comparison as plain text: what is compared, the table, what was picked, and the warnings."""
    rows = diff_rows(d)
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [f"{k}: {d[k]['model']}, {d[k]['created']}, {d[k]['device']}" for k in ("a", "b")] + [""]
    lines += ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    old, new = (d["picked"][k] or "nothing" for k in ("a", "b"))
    lines += ["", f"picked: {new}" if old == new else f"picked: {old} → {new}"]
    lines += [f"warning: {w}" for w in d["warnings"]]
    return "\n".join(lines) + "\n"
