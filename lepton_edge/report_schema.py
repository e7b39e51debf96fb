"""What a run.json must look like before anything is drawn from it, and its texts made safe to print."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from numbers import Real
from typing import Any, TypeGuard

from lepton_edge.errors import LeptonError

SCHEMA = "lepton-edge.run/1"
NUMBER, PAIR, ANY = "a number", "a pair of numbers", "anything"
_PARITY = {"count?": NUMBER, "max_abs?": NUMBER, "cosine?": NUMBER, "sqnr_db?": NUMBER, "agreement?": NUMBER}
_COUNTS = {"parameters?": NUMBER, "nonzeros?": NUMBER, "macs?": NUMBER}
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
        "zip_bytes?": NUMBER,
        **_COUNTS,
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
    "reference?": {
        "runtime?": {"runtime?": str, "version?": str},
        "accuracy?": {"top1?": NUMBER, "top5?": NUMBER, "count?": NUMBER},
    },
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
            **_COUNTS,
            "steps?": [{"step": str, "seconds?": NUMBER, "cached?": bool, "options?": {"*": ANY}, "notes?": [str]}],
            "error?": {"message": str, "hint?": str},
            "runtime?": {"runtime?": str, "version?": str},
            "parity?": {**_PARITY, "kind?": str, "outputs?": {"*": _PARITY}},
            "accuracy?": {"top1": NUMBER, "top5?": NUMBER, "count?": NUMBER, "ci95?": PAIR},
            "drop_points?": NUMBER,
            "drop_ci95?": PAIR,
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
            "gains?": [
                {
                    "to": str,
                    "any": bool,
                    "text": str,
                    "zip?": NUMBER,
                    "latency?": {"median": NUMBER, "ci95?": PAIR, "verdict?": str},
                    "points?": NUMBER,
                    "points_ci95?": PAIR,
                }
            ],
            "picked?": bool,
            "pareto?": bool,
            "reason?": str,
        }
    ],
    "picked?": str,
    "goal?": str,
    "left_out?": [{"scheme": str, "reason": str}],
    "warnings?": [str],
}


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
    problem = mismatch(run, SHAPE, "")
    if problem:
        raise LeptonError(f"{where}: {problem}", hint=hint)
    names = [c["name"] for c in run["candidates"]]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise LeptonError(f"{where}: two candidates are named {twice[0]!r}", hint=hint)
    if run.get("picked") is not None and run["picked"] not in names:
        raise LeptonError(f"{where}: picked {run['picked']!r}, which is not among the candidates", hint=hint)


def mismatch(value: Any, shape: Any, place: str) -> str | None:
    """The first place where a value differs from its shape, in words; None when it fits."""
    if shape is ANY:
        return None
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place or 'the run'} is {_kind(value)}, an object was expected"
        if "*" in shape:
            return _first(mismatch(v, shape["*"], f"{place}.{k}") for k, v in value.items() if v is not None)
        return _first(_mismatch_key(value, key, inner, place) for key, inner in shape.items())
    if isinstance(shape, list):
        if not isinstance(value, list | tuple):
            return f"{place} is {_kind(value)}, a list was expected"
        return _first(mismatch(v, shape[0], f"{place}[{i}]") for i, v in enumerate(value))
    if shape is PAIR:
        fits = isinstance(value, list | tuple) and len(value) == 2 and all(is_number(v) for v in value)
    else:
        fits = is_number(value) if shape is NUMBER else isinstance(value, shape)
    expected = {str: "text", bool: "true or false"}.get(shape, shape)
    return None if fits else f"{place} is {_kind(value)}, {expected} was expected"


def _mismatch_key(value: dict[str, Any], key: str, shape: Any, place: str) -> str | None:
    name = key.removesuffix("?")
    inner = f"{place}.{name}" if place else name
    if value.get(name) is None:
        return None if key.endswith("?") else f"{inner} is missing"
    return mismatch(value[name], shape, inner)


def _first(problems: Iterable[str | None]) -> str | None:
    return next((p for p in problems if p), None)


def is_number(value: Any) -> bool:
    """True for a number that is no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    kinds = {str: "text", bool: "true or false", list: "a list", dict: "an object", type(None): "null"}
    return kinds.get(type(value), "a number" if is_number(value) else type(value).__name__)


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


def finite(value: Any) -> TypeGuard[Any]:
    """True for a finite number, or a pair of them."""
    if isinstance(value, list | tuple):
        return all(finite(v) for v in value)
    return is_number(value) and math.isfinite(value)
