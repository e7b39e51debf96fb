"""What ``report`` does: a page of a run of compress or of results of bench, limits held, changes since a baseline told.

Which of them is meant is read off the files: run.json or bench.json.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_edge import report as run_report
from lepton_edge.bench_report import changes, documents, limits
from lepton_edge.bench_report.metrics import written, written_ends
from lepton_edge.bench_report.render import render
from lepton_edge.errors import LeptonError, LimitError, UsageError

#: The folder of a report of several results, where none is named.
FOLDER = Path("lepton-report")


@dataclass(frozen=True)
class Ask:
    """What is asked beside the page: limits as text, a baseline with its tolerance as text ("3%", "": the default)."""

    fail_if: Sequence[str] = ()
    strict: bool = False
    baseline: Path | None = None
    tolerance: str = ""
    any_machine: bool = False
    out: Path | None = None


def report(paths: Sequence[Path], ask: Ask) -> dict[str, Any]:
    """Write the report of ``paths``: the files that were written by kind, and "limits" and "changes" where asked for.

    Two runs of compress are compared instead ("a", "b", "candidates", ...: see report_diff). Raises UsageError for
    calls that do not fit together, and LeptonError for files that cannot be read or machines that differ.
    """
    wanted = [limits.parse(text) for text in ask.fail_if]
    tolerance = parse_tolerance(ask.tolerance) if ask.tolerance else changes.TOLERANCE
    if ask.baseline is None and (ask.tolerance or ask.any_machine):
        raise UsageError("--tolerance and --any-machine belong to --baseline", "add --baseline OLD.json")
    kinds = {documents.what_is(path) for path in paths}
    if len(kinds) > 1:
        raise UsageError("runs of 'compress' and results of 'bench' do not go into one report", "give one kind")
    if kinds == {"run"}:
        return _runs(paths, wanted, ask)
    return _benches(paths, wanted, ask, tolerance)


def require(made: dict[str, Any], strict: bool) -> None:
    """Raise LimitError for broken limits and regressions, naming each; LeptonError where a row was not measured.

    With ``strict`` what is not decided counts as broken.
    """
    held, found = made.get("limits") or [], made.get("changes")
    words = ("broken", "not decided") if strict else ("broken",)
    bad = [f"{_told(v)}{'' if v['verdict'] == 'broken' else ' (not decided)'}" for v in held if v["verdict"] in words]
    worse = list(found["regressions"]) if found else []
    if found and strict:
        worse += changes.undecided(found)
    parts = [f"limits broken: {'; '.join(bad)}"] if bad else []
    parts += [f"regressions: {'; '.join(worse)}"] if worse else []
    if parts:
        raise LimitError("; ".join(parts), "the report has all figures")
    lost = [v for v in held if v["verdict"] == "not measured"]
    if lost:
        raise LeptonError(
            f"'{lost[0]['limit']}' cannot be held against {lost[0]['row']} on {lost[0]['device']}: {lost[0]['why']}",
            "measure it again, or select the others: 'device:p95 > 12ms'",
        )


def parse_tolerance(text: str) -> float:
    """A share from "3%". Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", text)
    if not found or float(found[1]) > 100:
        raise UsageError(f"--tolerance '{text}' is not a percentage from 0% to 100%", "for example --tolerance 3%")
    return float(found[1]) / 100


def _told(v: dict[str, Any]) -> str:
    """A limit with the figure that it is held against."""
    value = v["why"] if v["value"] is None else written(v["metric"], v["value"])
    return (
        f"'{v['limit']}': {v['row']} on {v['device']}: {value} {written_ends(v['metric'], v['ci95'])}".rstrip()
        + f", {v['kind']}"
    )


def _runs(paths: Sequence[Path], wanted: Sequence[limits.Limit], ask: Ask) -> dict[str, Any]:
    run = run_report.load_run(paths[0])
    if ask.baseline is not None:
        raise UsageError("--baseline compares results of 'bench'", "for two runs: lepton-edge report BEFORE AFTER")
    if len(paths) > 2:
        raise UsageError("more than two runs of 'compress' were given", "give one, or two to compare")
    if len(paths) == 2:
        if wanted or ask.out:
            raise UsageError("two runs are compared: no report is written and no limit held", "give one run")
        return run_report.diff(run, run_report.load_run(paths[1]))
    held = limits.hold(wanted, _candidates(run))
    folder = ask.out or (paths[0] if paths[0].is_dir() else paths[0].parent)
    made: dict[str, Any] = {kind: str(path) for kind, path in run_report.render(run, folder).items()}
    return made | ({"limits": held} if wanted else {})


def _benches(paths: Sequence[Path], wanted: Sequence[limits.Limit], ask: Ask, tolerance: float) -> dict[str, Any]:
    found = documents.load(paths)
    held = limits.hold(wanted, _rows(found))
    against = None
    if ask.baseline is not None:
        old = documents.load([ask.baseline])
        if not old:
            raise LeptonError(f"{ask.baseline}: holds no result of 'bench'", "give what 'bench --out' wrote")
        against = changes.compare(old, found, tolerance, any_machine=ask.any_machine)
    made: dict[str, Any] = {k: str(v) for k, v in render(found, _folder(paths, ask), held, against).items()}
    if "changes" in made:
        made["comment"] = made.pop("changes")
    return made | ({"limits": held} if wanted else {}) | ({"changes": against} if against else {})


def _folder(paths: Sequence[Path], ask: Ask) -> Path:
    """Where a report of benches goes: beside a single result, but not over the report of a run."""
    if ask.out:
        return ask.out
    folder = FOLDER if len(paths) > 1 else paths[0] if paths[0].is_dir() else paths[0].parent
    if (folder / "run.json").is_file():
        raise UsageError(f"{folder}: holds a run of 'compress', whose report would be lost", "choose another --out")
    return folder


def _rows(found: Sequence[documents.Document]) -> list[limits.Subject]:
    subjects = []
    for e in documents.entries(found):
        facts = {
            "device": e.row["device"]["name"],
            "model": e.row["model"],
            "name": e.row["name"],
            "format": e.row["format"],
            "runtime": e.runtime,
            "batch": str(e.batch),
            "kind": e.kind,
        }
        subjects.append(limits.Subject(facts, e.row, (e.document.data.get("settings") or {}).get("seconds")))
    return subjects


def _candidates(run: dict[str, Any]) -> list[limits.Subject]:
    subjects = []
    for c in run["candidates"]:
        facts = {
            "device": run["device"]["name"],
            "model": Path(c.get("path") or c["name"]).name,
            "name": c["name"],
            "format": c["format"],
            "runtime": (c.get("runtime") or {}).get("runtime") or "",
            "batch": "1",
            "kind": (c.get("latency") or {}).get("kind") or "measured",
        }
        subjects.append(limits.Subject(facts, c, None, c["name"] == run.get("picked")))
    return subjects
