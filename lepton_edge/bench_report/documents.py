"""Results of ``bench`` as a report takes them: found, checked, and their rows in groups, one a machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_edge import bench_record
from lepton_edge.errors import LeptonError
from lepton_edge.report_schema import ANY, NUMBER, PAIR, clean, finite, mismatch

FAMILY, LARGEST = "lepton-edge.bench/", 1e100
_LATENCY = {
    "kind?": str,
    **{f"{key}_ms?": NUMBER for key in ("p50", "p90", "p95", "p99", "mean", "first", "load")},
    **{f"p{p}_ci?": PAIR for p in (50, 90, 95, 99)},
    **{f"p{p}_worth?": NUMBER for p in (50, 90, 95, 99)},
    **{f"{key}?": NUMBER for key in ("count", "rounds", "processes", "per_s", "peak_rss_mb", "threads")},
    **{f"{key}?": NUMBER for key in ("others_cores", "involuntary_per_s", "warmup_runs")},
    "settled?": bool,
    "cpus?": [NUMBER],
    "process_of_round?": [NUMBER],
    "samples_ns?": [[NUMBER]],
}
_LOAD = {"streams": NUMBER, "threads": NUMBER, "per_s": NUMBER, "per_s_ci?": PAIR, "p50_ms?": NUMBER, "p95_ms?": NUMBER}
_PARITY = {f"{key}?": NUMBER for key in ("count", "max_abs", "cosine", "sqnr_db", "agreement")}
_ACCURACY = {"top1": NUMBER, "top5?": NUMBER, "count?": NUMBER, "ci95?": PAIR}
_READING = {"governor?": {"*": str}, "frequency_mhz?": [NUMBER], "temperature_c?": NUMBER, "load_average?": [NUMBER]}
#: As in report_schema: a key with "?" may be missing or null, and others are ignored.
SHAPE: dict[str, Any] = {
    "schema": str,
    "created": str,
    "tool": {"name": str, "version": str},
    "settings?": {"seconds?": NUMBER},
    "environments?": {
        "*": {
            "machine_id?": str,
            "host?": {
                **{f"{key}?": str for key in ("cpu", "machine", "governor", "os", "python")},
                **{f"{key}?": NUMBER for key in ("cores", "memory_gb", "frequency_mhz", "temperature_c")},
                "isa?": [str],
                "packages?": {"*": str},
                "unknown?": {"*": str},
            },
            "before?": _READING,
            "after?": _READING,
            "others_cores?": NUMBER,
            "warnings?": [str],
            "notes?": [str],
        }
    },
    "rows": [
        {
            "name": str,
            "model": str,
            "format": str,
            "sha256?": str,
            "size_bytes?": NUMBER,
            "device": {"name": str, "title?": str, "kind?": str},
            "data?": {"source?": str, "count?": NUMBER, "sha256?": str},
            "batch?": NUMBER,
            "runtime?": {"runtime?": str, "version?": str, "device?": str},
            "latency?": _LATENCY,
            "throughput?": [_LOAD],
            "energy?": {"joules?": NUMBER, "ci95?": PAIR, "reason?": str, "source?": ANY, "of?": str, "kind?": str},
            "ratio?": {"to?": str, "median": NUMBER, "ci95?": PAIR, "verdict?": str, "of?": str},
            "parity?": _PARITY,
            "accuracy?": _ACCURACY,
            "estimates?": {
                "vela?": {
                    **{f"{key}?": NUMBER for key in ("cycles_total", "sram_bytes", "flash_bytes", "operators_on_npu")},
                    "on_cpu?": [{"operator?": str, "name?": str, "reason?": str}],
                },
                "tflite_micro?": {
                    **{"loads?": bool, "reason?": str, "arena_bytes?": NUMBER, "fits?": bool, "samples?": NUMBER},
                    "reference?": {"same?": NUMBER},
                },
            },
            "warnings?": [str],
            "error?": {"message": str, "hint?": str},
        }
    ],
}


@dataclass(frozen=True)
class Document:
    """One result of ``bench``, checked and with its texts made safe to print, and the file it was read from."""

    path: Path
    data: dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A row with what surrounds it: which document it is of (from 0), its environment ({}: none was recorded)."""

    row: dict[str, Any]
    run: int
    environment: dict[str, Any]
    document: Document

    @property
    def kind(self) -> str:
        """Its figures are "measured", "emulated" or "estimated"."""
        named = (self.row.get("latency") or {}).get("kind") or self.row["device"].get("kind")
        return named or "kind not recorded"

    @property
    def machine(self) -> str:
        return self.environment.get("machine_id") or ""

    @property
    def runtime(self) -> str:
        """Its name, and behind a colon the processor where that is not the CPU: "onnxruntime:cuda"."""
        info = self.row.get("runtime") or {}
        device = info.get("device") or "cpu"
        return (info.get("runtime") or "") + (f":{device}" if device != "cpu" else "")

    @property
    def info(self) -> dict[str, Any]:
        """What its runtime said of itself, with the share of nodes that an accelerator took as words."""
        info = {key: value for key, value in (self.row.get("runtime") or {}).items() if key != "notes"}
        placed = info.get("delegated")
        if isinstance(placed, dict) and placed.get("of"):
            info["delegated"] = f"{placed.get('nodes')} of {placed['of']} nodes in {placed.get('partitions')} part(s)"
        return info

    @property
    def batch(self) -> int:
        return max(1, int(self.row.get("batch") or 1))

    @property
    def failed(self) -> bool:
        """Whether there is an error in place of a latency; one of a later measurement is a warning."""
        return bool(self.row.get("error")) and not self.latency

    @property
    def latency(self) -> dict[str, Any]:
        """Its latency where there is a median above 0, else {}."""
        found = self.row.get("latency") or {}
        return found if finite(found.get("p50_ms")) and found["p50_ms"] > 0 else {}


def what_is(path: Path) -> str:
    """ "bench" for a result of bench (a file, or a folder that holds some), else "run": a run folder or nothing."""
    if path.is_dir():
        return "bench" if not (path / "run.json").is_file() and _files(path) else "run"
    return "bench" if _is_bench(path) else "run"


def load(paths: Sequence[Path]) -> list[Document]:
    """The documents of files and folders, each file once, oldest first.

    A folder stands for its bench.json, else for all results of bench in it and the bench.json of its sub-folders.
    Raises LeptonError naming the file that cannot be read or is damaged.
    """
    files = dict.fromkeys(file for path in paths for file in (_files(path) if path.is_dir() else [path]))
    made = [Document(file, checked(bench_record.read(file), str(file))) for file in files]
    return sorted(made, key=lambda d: d.data["created"])


def checked(document: dict[str, Any], where: str) -> dict[str, Any]:
    """The document with its texts made safe to print.

    Raises LeptonError naming the first place of a wrong type, or of a number that is none or beyond all measure.
    """
    problem = mismatch(document, SHAPE, "") or _no_number(document, "")
    if problem:
        raise LeptonError(f"{where}: {problem}", "the file was edited or damaged; measure again")
    return clean(document)


def _no_number(value: Any, place: str) -> str | None:
    """The first place of a number that is not finite, in words; None where all are."""
    if isinstance(value, dict):
        inside = ((f"{place}.{key}".lstrip("."), v) for key, v in value.items())
    elif isinstance(value, list):
        inside = ((f"{place}[{i}]", v) for i, v in enumerate(value))
    else:
        bad = isinstance(value, int | float) and not -LARGEST < value < LARGEST
        return f"{place} is {str(value)[:20]}, a finite number was expected" if bad else None
    return next((found for name, v in inside if (found := _no_number(v, name))), None)


def entries(documents: Sequence[Document]) -> list[Entry]:
    """All rows, in the order of the documents."""
    return [
        Entry(row, run, (document.data.get("environments") or {}).get(row["device"]["name"]) or {}, document)
        for run, document in enumerate(documents)
        for row in document.data["rows"]
    ]


def groups(found: Iterable[Entry]) -> dict[tuple[str, str], list[Entry]]:
    """Entries by (device, machine): "local" of two machines is two devices."""
    by: dict[tuple[str, str], list[Entry]] = {}
    for entry in found:
        by.setdefault((entry.row["device"]["name"], entry.machine), []).append(entry)
    return by


def _files(folder: Path) -> list[Path]:
    own = folder / bench_record.NAME
    if own.is_file():
        return [own]
    inside = [*sorted(folder.glob("*.json")), *sorted(folder.glob(f"*/{bench_record.NAME}"))]
    return [file for file in inside if _is_bench(file)]


def _is_bench(file: Path) -> bool:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # whoever reads it says what is wrong with it
    return isinstance(found, dict) and str(found.get("schema")).startswith(FAMILY)
