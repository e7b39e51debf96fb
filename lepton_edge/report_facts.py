"""What surrounds the figures of a report: the machine, the data, the limits, and how to read it all."""

from __future__ import annotations

import datetime
from typing import Any

from lepton_edge.report_cells import Cell, kind_of, missing, percent_places, runtime_text, setting_text
from lepton_edge.report_schema import finite
from lepton_edge.texts import duration, number, size


def byline(run: dict[str, Any]) -> str:
    """When, where, how many candidates and how long, in one line."""
    device = run["device"].get("title") or run["device"]["name"]
    took = f"took {duration(run['seconds'])}" if finite(run.get("seconds")) else ""
    count = len(run["candidates"])
    parts = [moment(run["created"]), device, f"{count} candidate{'s' * (count != 1)}", took]
    return " · ".join(p for p in parts if p)


def moment(text: str) -> str:
    """An ISO-8601 time to the minute; text that is none stays as it is."""
    try:
        when = datetime.datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{when:%Y-%m-%d %H:%M}{' UTC' if when.utcoffset() == datetime.timedelta(0) else f'{when:%z}'}"


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


def environment(run: dict[str, Any]) -> list[tuple[str, Cell]]:
    """The machine, its software and its state, as names and cells."""
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


def data(run: dict[str, Any]) -> list[tuple[str, Cell]]:
    """The source model, its data, the limits and the preprocessing, as names and cells."""
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
    weight = f", {size(model['size_bytes'])}" if finite(model.get("size_bytes")) else ""
    others = {k: v for k, v in settings.items() if k not in ("max_drop", "max_size", "max_latency") and v is not None}
    acc = (run.get("reference") or {}).get("accuracy") or {}
    places = percent_places(acc.get("count"))
    reference = runtime_text((run.get("reference") or {}).get("runtime"))
    if finite(acc.get("top1")):
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
        ("Settings", Cell("; ".join(f"{k} = {setting_text(v)}" for k, v in others.items()))),
    ]
    prepared = [(f"Preprocessing: {k}", Cell(setting_text(v))) for k, v in (run.get("preprocessing") or {}).items()]
    return rows + (prepared or [("Preprocessing", missing("none: the samples were used as they are"))])


def _spec(s: dict[str, Any]) -> str:
    """An input or output as 'image [?, 28, 28, 1] float32'."""
    shape = ", ".join("?" if d is None else str(d) for d in s.get("shape") or [])
    return f"{s['name']} [{shape}] {s.get('dtype') or ''}".strip()


def how_to_read(run: dict[str, Any]) -> list[str]:
    """Which numbers are measured, how, and what was left out."""
    timed = [c for c in run["candidates"] if c.get("latency")]
    kinds = sorted({kind_of(c) for c in timed})
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
        paired = any(c.get("drop_ci95") for c in run["candidates"])
        how = ", its interval is paired: both models answered the same samples" if paired else ""
        said.append(
            f"Accuracy is measured on the evaluation data; drop is in percentage points below the reference{how}."
        )
    said.append(
        "Parity is measured on the same samples in the source model and in the artefact: SQNR is "
        "10·log10(Σ ref² / Σ (ref − out)²) in dB over all outputs, agreement the share of samples with the "
        "same top-1. Size is the file on disk, kB is 1,000 bytes. A dash is a number that was not measured; "
        "rest on it for the reason."
    )
    return said
