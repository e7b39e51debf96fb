"""A set of bench documents as one HTML file, Markdown and CSV. The rules are those of report.py."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_edge.bench_report.cells import seconds
from lepton_edge.bench_report.documents import Document, Entry, entries
from lepton_edge.bench_report.estimate_cells import told
from lepton_edge.bench_report.figures import drawings
from lepton_edge.bench_report.metrics import figure
from lepton_edge.bench_report.view import base_of, runs, view
from lepton_edge.errors import LeptonError
from lepton_edge.report import csv_value, page, template, write_aside
from lepton_edge.report_schema import finite


def render(
    documents: Sequence[Document],
    folder: Path,
    limits: Sequence[dict[str, Any]] = (),
    changes: dict[str, Any] | None = None,
) -> dict[str, Path]:
    """Write report.html, report.md and report.csv into ``folder``, and changes.md where there are ``changes``.

    Returns their paths by kind. Raises LeptonError when the folder cannot be written.
    """
    shown = view(documents, limits, changes)
    texts = {
        "html": html_text(shown),
        "md": template("bench.md.j2", autoescape=False).render(**shown),
        "csv": csv_text(entries(documents)),
    }
    if changes:
        texts["changes"] = template("changes.md.j2", autoescape=False).render(**shown)
    names = {kind: f"report.{kind}" for kind in texts} | {"changes": "changes.md"}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return {kind: write_aside(folder / names[kind], text) for kind, text in texts.items()}
    except OSError as err:
        raise LeptonError(
            f"{folder}: writing the report: {err.strerror}", "check that the folder can be written and has space"
        ) from None


def html_text(shown: dict[str, Any]) -> str:
    """The page, with the drawings of each device."""
    several = runs([e for group in shown["groups"] for e in group["entries"]])
    figures = [drawings(group["entries"], several, f"d{n}") for n, group in enumerate(shown["groups"])]
    return page("bench.html.j2", **shown, figures=figures)


def csv_text(found: Sequence[Entry]) -> str:
    """A line a row, raw numbers with the unit in the heading, empty where not measured."""
    lines = [_line(e) for e in found]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]) if lines else ["device"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: csv_value(value) for key, value in line.items()} for line in lines)
    return out.getvalue()


def _line(e: Entry) -> dict[str, Any]:
    row, latency, energy = e.row, e.latency, e.row.get("energy") or {}
    runtime, parity, ratio = (row.get(key) or {} for key in ("runtime", "parity", "ratio"))
    line: dict[str, Any] = {
        "device": row["device"]["name"],
        "machine": e.machine,
        "created": e.document.data["created"],
        "kind": e.kind,
        **{key: row.get(key) for key in ("name", "model", "format", "sha256", "size_bytes")},
        "batch": e.batch,
        "runtime": runtime.get("runtime"),
        "runtime_version": runtime.get("version"),
    }
    for metric in ("p50", "p90", "p95", "p99", "mean"):
        line |= _with_ends(e, metric, f"{metric}_ms")
    line |= {key: latency.get(key) for key in ("first_ms", "load_ms", "peak_rss_mb", "per_s")}
    line |= {key: latency.get(key) for key in ("count", "rounds", "processes", "threads", "others_cores")}
    line |= _with_ends(e, "throughput", "throughput_per_s") | _with_ends(e, "energy_mj", "energy_mj")
    line |= {"energy_reason": energy.get("reason")} | _with_ends(e, "top1", "top1_percent")
    line |= {key: parity.get(key) for key in ("sqnr_db", "agreement", "max_abs")}
    vela, micro = told(e, "vela"), told(e, "tflite_micro")
    line |= {key: vela.get(key) for key in ("cycles_total", "sram_bytes", "flash_bytes", "operators_on_npu")}
    line |= {"arena_bytes": micro.get("arena_bytes"), "fits": micro.get("fits")}
    line |= {"ratio_to": base_of(e) if ratio else None, "ratio": ratio.get("median")}
    low, high = ratio.get("ci95") or (None, None)
    line |= {"ratio_lo": low, "ratio_hi": high, "verdict": ratio.get("verdict")}
    return line | {"error": (row.get("error") or {}).get("message")}


def _with_ends(e: Entry, metric: str, name: str) -> dict[str, Any]:
    found = figure(e.row, metric, seconds(e))
    low, high = found.ends or (None, None)
    value = found.value if finite(found.value) else None
    return {name: value, f"{name}_lo": low, f"{name}_hi": high}
