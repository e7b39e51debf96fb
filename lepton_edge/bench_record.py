"""The result document of ``bench``: what was measured, where and how, with every raw sample."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_edge import __version__, noise, placement
from lepton_edge.artifact import Artifact
from lepton_edge.bench import Measured
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.feeds import Feed
from lepton_edge.record import save_json

SCHEMA = "lepton-edge.bench/1"
NAME = "bench.json"
#: What of a host has to be the same for two latencies of one model to be comparable.
SAME = ("machine_id", "cpu", "cores", "isa", "governor", "os")


def row(name: str, art: Artifact, device: dict[str, str], feed: Feed) -> dict[str, Any]:
    """One model on one device; what is measured of it is filled in as it comes."""
    return {
        "name": name,
        "model": art.path.name,
        "format": art.format,
        "sha256": art.sha256,
        "size_bytes": art.size_bytes,
        "device": device,
        "data": {"source": Path(feed.source).name, "count": feed.count, "sha256": feed.sha256},
        "batch": 1,
        "runtime": None,
        "latency": None,
        "parity": None,
        "accuracy": None,
        "throughput": None,
        "energy": None,
        "ratio": None,
        "warnings": [],
        "error": None,
    }


def fill(entry: dict[str, Any], measured: Measured, ratio: dict | None) -> None:
    """Put the timing of a row's own name into it, with what its samples say against it."""
    timing = measured.timings[entry["name"]]
    entry["runtime"], entry["latency"], entry["ratio"] = timing.info or entry["runtime"], timing.latency, ratio
    if timing.error is not None:
        fail(entry, timing.error)
    if timing.latency is not None:
        entry["batch"] = timing.latency["batch"]
        entry["warnings"] = [*placement.warnings(timing.info or {}), *noise.row_doubts(timing.latency)]


def fail(entry: dict[str, Any], error: LeptonError) -> None:
    """Put into a row why it was not measured."""
    entry["error"] = {"message": error.message, "hint": error.hint}


def environment(host: dict[str, Any], measured: Measured) -> dict[str, Any]:
    """A place as it was: its ``host_info``, its readings before and after, and what they say against the figures."""
    windows = measured.windows
    return {
        "machine_id": host["machine_id"],
        "host": host,
        "before": windows[0][0] if windows else None,
        "after": windows[-1][1] if windows else None,
        "others_cores": noise.others(windows),
        "warnings": noise.doubts(windows),
        "notes": [],
    }


def unknown_environment() -> dict[str, Any]:
    """That of a place which was never reached."""
    nothing = dict.fromkeys(("machine_id", "host", "before", "after", "others_cores"))
    return {**nothing, "warnings": [], "notes": []}


def document(
    rows: Sequence[dict], environments: dict[str, dict], settings: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The whole document; ``environments`` are by the name of the rows' device."""
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "bench",
        "seconds": round(seconds, 1),
        "tool": {"name": "lepton-edge", "version": __version__},
        "settings": settings,
        "environments": environments,
        "rows": list(rows),
    }


def place_of(out: Path) -> Path:
    """The file that ``--out`` means: itself where it ends in .json, else bench.json in that folder."""
    return out if out.suffix == ".json" and not out.is_dir() else out / NAME


def check(out: Path) -> None:
    """Refuse, before anything is measured, a place that holds something else. Raises UsageError."""
    path = place_of(out)
    if not path.exists() and (path.parent.is_dir() or not path.parent.exists()):
        return
    try:
        read(path)
    except LeptonError as e:
        raise UsageError(f"{out}: holds something other than a result of 'bench'", "choose another --out") from e


def write(document: dict[str, Any], out: Path) -> Path:
    """Write the document to ``place_of(out)``, aside first. Returns the file."""
    path = place_of(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_json(path, document)
    return path


def read(path: Path) -> dict[str, Any]:
    """A document that ``write`` wrote. Raises LeptonError naming the file where it is none, or of another version."""
    path = path / NAME if path.is_dir() else path
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise LeptonError(f"{path}: cannot be read ({e.strerror})", "give the file that 'bench --out' wrote") from e
    except ValueError as e:
        raise LeptonError(f"{path}: not JSON ({e})", "give the file that 'bench --out' wrote") from e
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise LeptonError(
            f"{path}: not a result of 'bench' (schema is {schema!r}, {SCHEMA!r} was expected)",
            "give the file that 'bench --out' wrote, of this version of lepton-edge",
        )
    return found


def differences(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Why latencies of two environments cannot be compared; [] where machine and governor are the same."""
    a, b = first.get("host") or {}, second.get("host") or {}
    if not a or not b:
        return [] if a == b else ["machine: one of them was not recorded"]
    return [f"{key}: {_apart(a.get(key), b.get(key))}" for key in SAME if a.get(key) != b.get(key)]


def _apart(a: Any, b: Any) -> str:
    """Two values; of lists only what one has and the other lacks."""
    if isinstance(a, list) and isinstance(b, list):
        lost, won = ([str(v) for v in x if v not in y] for x, y in ((a, b), (b, a)))
        told = [f"{word} {', '.join(found)}" for word, found in (("without", lost), ("with", won)) if found]
        return " and ".join(told) or "in another order"
    return f"{a} and {b}"
