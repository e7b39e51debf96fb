"""Will this file load in that release of that runtime? Answered from the tables in compat/, without the runtime."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lepton_edge import registry
from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.launch import Workers, python_path

TABLES = registry.PACKAGE / "compat"
ALIASES = {"litert": "ai-edge-litert", "tflite": "tflite-runtime", "ort": "onnxruntime", "tflm": "tflite-micro",
           "vela": "ethos-u", "gpu": "gpu-delegate"}  # fmt: skip


@dataclass(frozen=True)
class Release:
    """One row of a table: what release ``found`` of ``family`` loads; ``asked`` is the release that was asked for."""

    family: str
    asked: str
    found: str
    format: str
    kind: str
    source: str
    types: tuple[str, ...]
    row: dict[str, Any]


@cache
def tables() -> dict[str, dict]:
    """Every family's table, by name."""
    return {f.stem: json.loads(f.read_text(encoding="utf-8")) for f in sorted(TABLES.glob("*.json"))}


def release(text: str, format_: str = "") -> Release:
    """The row that ``text`` ("tflite-runtime==2.14") asks for: that release, else the nearest older one.

    Of a family that loads several formats, ``format_`` says which is meant; each has a table of its own.
    Raises UsageError for an unknown family, and for a release older than the table.
    """
    from packaging.version import InvalidVersion, Version

    name, _, asked = text.partition("==")
    name, asked = name.strip().lower().replace("_", "-"), asked.strip()
    family = ALIASES.get(name, name)
    if family not in tables():
        raise UsageError(f"unknown runtime '{name}'", did_you_mean(name, [*tables(), *ALIASES]))
    own = [t for t in tables().values() if t["family"] == family]
    table = next((t for t in own if t["format"] == format_), tables()[family])
    rows = table["releases"]
    if asked in rows:
        found = asked
    else:
        try:
            known = sorted((Version(r), r) for r in rows)
            wanted = Version(asked) if asked else known[-1][0]
        except InvalidVersion:
            if asked:
                raise UsageError(f"unknown release '{asked}' of {family}", f"known: {', '.join(rows)}") from None
            known, wanted = [], None
        if wanted is None:
            found = next(iter(rows))
        else:
            # "2.14" stands for the last patch of it that is known.
            fit = [r for v, r in known if v <= wanted or r.startswith(f"{asked}.")]
            if not fit:
                raise UsageError(f"{family} {asked} is older than the table, which starts at {known[0][1]}",
                                 f"known: {', '.join(r for _, r in known)}")  # fmt: skip
            found = fit[-1]
    kind, types = table.get("kind", "loader"), tuple(table.get("types", ()))
    return Release(family, asked or found, found, table["format"], kind, table["source"], types, rows[found])


def facts(path: Path) -> dict[str, Any]:
    """What a loader looks at first in the file, read by a worker."""
    with Workers() as workers:
        worker = workers.get(f"reading {path.name}")
        return worker.call("inspect", file=python_path(TABLES / "facts.py"), path=python_path(path))


def problems(found: dict[str, Any], target: Release) -> list[str]:
    """Why a file with these facts does not load in ``target``; none when it does."""
    if found["format"] != target.format:
        return [f"{target.family} loads {_formats(target.family)} files, this is {found['format']}"]
    if target.kind == "coverage":
        return []
    reasons = _versions(found, target) if found["format"] == "onnx" else []
    if found["format"] == "openvino":
        return _ir(found, target.row)
    operators = target.row.get("operators")
    if operators is None:
        return reasons
    highest = operators if isinstance(operators, dict) else dict.fromkeys(operators, 10**9)
    for name, version in found.get("codes") or [o[:2] for o in found["operators"]]:
        if name not in highest:
            reasons.append(f"it has no operator {name}")
        elif version > highest[name]:
            reasons.append(f"operator {name} is version {version}, the newest it knows is {highest[name]}")
    reasons += [f"it has no custom operator {name}" for name in found.get("custom", ())
                if name not in target.row.get("custom", ())]  # fmt: skip
    for mixed in set(found.get("mixed", ())) & set(target.row.get("refused", ())):
        name, _, types = mixed.partition(" ")
        reasons.append(f"operator {name} does not take {types}")
    return list(dict.fromkeys(reasons))


def _formats(family: str) -> str:
    return " or ".join(sorted(t["format"] for t in tables().values() if t["family"] == family))


def _versions(found: dict[str, Any], target: Release) -> list[str]:
    reasons = []
    limits = {"IR version": (found["ir"], target.row.get("ir")),
              "opset": (found["opset"].get("ai.onnx"), target.row.get("opset"))}  # fmt: skip
    for what, (value, limit) in limits.items():
        if limit and value is not None and not limit[0] <= value <= limit[1]:
            reasons.append(f"{what} is {value}, it takes {limit[0]} to {limit[1]}")
    return reasons


def _ir(found: dict[str, Any], row: dict[str, Any]) -> list[str]:
    """Why an OpenVINO IR does not load: its version, an operator that an opset lacks, a type."""
    low, high = row["ir"]
    known = {name.lower(): opsets for name, opsets in row["operators"].items()}  # its reader takes any case
    known["const"] = known["constant"]
    reasons = [] if low <= found["ir"] <= high else [f"IR version is {found['ir']}, it takes {low} to {high}"]
    for name, opset, _ in found["operators"]:
        first, last = known.get(name.lower(), (0, 0))
        if not opset:
            reasons.append(f"operator {name} is of an extension")
        elif not first:
            reasons.append(f"it has no operator {name}")
        elif not first <= opset <= last:
            reasons.append(f"operator {name} is of opset{opset}, it knows those of opset{first} to opset{last}")
    reasons += [f"it has no type {kind}" for kind in found["types"] if kind not in row["types"]]
    return list(dict.fromkeys(reasons))


def coverage(found: dict[str, Any], target: Release) -> dict[str, Any]:
    """Of the operators of the file, how many the accelerator takes, and which are left; estimated from the table."""
    operators = target.row["operators"]
    highest = operators if isinstance(operators, dict) else dict.fromkeys(operators, 10**9)
    left: Counter = Counter()
    for name, version, kind in found["operators"]:
        known = highest
        if "quantized" in target.row and kind in ("int8", "uint8"):
            known = dict.fromkeys(target.row["quantized"], 10**9)
        if name not in known or version > known[name] or (target.types and kind not in target.types):
            left[f"{name} {kind}".strip()] += 1
    count = len(found["operators"])
    return {"operators": count, "covered": count - sum(left.values()), "left": dict(left.most_common())}


def check(model: Path, runtime: str) -> dict[str, Any]:
    """The verdict on one file and one runtime release.

    {"loads": bool, "problems": [why not], "coverage": for accelerators, "source": where the table comes from}.
    Raises UsageError for an unknown runtime, LeptonError for a file that cannot be read.
    """
    found = facts(model)
    target = release(runtime, found["format"])
    reasons = problems(found, target)
    verdict: dict[str, Any] = {
        "model": model.name,
        "runtime": target.family,
        "release": target.asked,
        "table_release": target.found,
        "loads": not reasons,
        "problems": reasons,
        "kind": "estimated",
        "source": target.source,
    }
    if target.kind == "coverage" and not reasons:
        verdict["coverage"] = coverage(found, target)
    return verdict


def fit_options(target: Release, format_: str) -> dict[str, str]:
    """What the pass 'fit' is told so that a file loads in ``target``. Raises UsageError when it takes other formats."""
    if target.format != format_:
        known = _formats(target.family)
        raise UsageError(f"{target.family} loads {known} files, not {format_}", f"give --to {known}")
    row = target.row
    limits: dict[str, Any] = {kind: row[kind][1] for kind in ("opset", "ir") if kind in row}
    if isinstance(row.get("operators"), dict):
        limits["operators"] = row["operators"]
    return {"limits": json.dumps(limits, sort_keys=True)}


def require(path: Path, target: Release) -> None:
    """Raise LeptonError when a file does not load in ``target``, saying why."""
    reasons = problems(facts(path), target)
    if reasons:
        shown = "; ".join(reasons[:4]) + ("; ..." if len(reasons) > 4 else "")
        raise LeptonError(
            f"the {target.format} file cannot be made to load in {target.family} {target.asked}: {shown}",
            "nothing was written; replace these operators in the model, or ship a newer runtime",
        )
