"""Render a run as one HTML file, Markdown and CSV.

Rules:
- `run.json` is checked before anything is drawn: a wrong type is an error that names the place.
- A number that was not measured is an en dash that says why; nothing is filled in.
- Names, errors and notes come from untrusted files: control characters go here, the templates escape.
- All three texts are made before the first is written, each is written aside and moved into place.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError
from lepton_edge.report_cells import runtime_text, speed, sqnr_cell
from lepton_edge.report_diff import diff, diff_rows, render_diff_text
from lepton_edge.report_figures import drawings
from lepton_edge.report_schema import check_run, clean
from lepton_edge.report_view import view

__all__ = ["diff", "diff_rows", "load_run", "render", "render_diff_text"]

TEMPLATES = Path(__file__).parent / "templates"


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
            hint="give the folder of a `lepton-edge compress` run, or what `bench --out` wrote",
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
        return {kind: write_aside(folder / f"report.{kind}", text) for kind, text in texts.items()}
    except OSError as err:
        raise LeptonError(
            f"{folder}: writing the report: {err.strerror}",
            hint="check that the folder can be written and has space",
        ) from None


def write_aside(path: Path, text: str) -> Path:
    """Write aside, then move into place: a reader never sees half a report."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        aside.write_text(text, encoding="utf-8", newline="\n")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def template(name: str, **options: Any) -> Any:
    """A template of this package; ``options`` are Jinja's."""
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
    """The page of a run."""
    return page("report.html.j2", **shown, figures=figures)


def page(name: str, **shown: Any) -> str:
    """A page from its template. Only its own script may run: its hash is in the content security policy."""
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    css = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return template(name, autoescape=True).render(**shown, css=css, script=script, script_hash=digest)


def markdown_text(shown: dict[str, Any]) -> str:
    """The report as Markdown."""
    return template("report.md.j2", autoescape=False).render(**shown)


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
    sqnr, found = sqnr_cell(c.get("parity")), speed(c)
    pairs = {
        "top1": acc.get("ci95"),
        "drop_points": c.get("drop_ci95"),
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
        **{k: c.get(k) for k in ("size_bytes", "zip_bytes", "parameters", "nonzeros", "macs")},
        **{f"{k}_ms": lat.get(f"{k}_ms") for k in ("p50", "p90", "p95", "p99", "mean", "first", "load")},
        **{k: lat.get(k) for k in ("peak_rss_mb", "threads")},
        "latency_count": lat.get("count"),
        "latency_rounds": lat.get("rounds"),
        "latency_kind": lat.get("kind"),
        "speed": found[0] if found else None,
        "speed_to": ratio.get("to"),
        "speed_verdict": ratio.get("verdict"),
        "runtime": runtime_text(c.get("runtime")),
        **{k: c.get(k) for k in ("path", "sha256", "reason")},
        "error": (c.get("error") or {}).get("message"),
    }
    line: dict[str, Any] = {}
    for key, value in row.items():
        line[key] = csv_value(value)
        if key in pairs:
            lo, hi = pairs.get(key) or (None, None)
            line |= {f"{key}_lo": csv_value(lo), f"{key}_hi": csv_value(hi)}
    return line


def csv_value(value: Any) -> Any:
    """Spreadsheets run a text that starts like a formula: a quote in front makes it text again."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value
