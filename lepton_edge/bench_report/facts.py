"""The environments of measurements, side by side: what each is, and in what they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lepton_edge import bench_record
from lepton_edge.bench_report.documents import Entry
from lepton_edge.report_cells import Cell, missing
from lepton_edge.report_facts import moment
from lepton_edge.report_schema import clean
from lepton_edge.texts import number


def _plain(value: Any) -> str:
    return "not known" if value is None else str(value)


def software_changes(a: Entry, b: Entry) -> list[str]:
    """What else is not the same in two measurements of a model: versions, delegates, precision."""
    before, after = a.info, b.info
    if not before or not after:
        return []
    changed = [f"{k} {_plain(before.get(k))} → {_plain(after.get(k))}" for k in before if before.get(k) != after.get(k)]
    device = b.row["device"]["name"]
    return [f"{device}: the runtime changed: {b.runtime}, {', '.join(changed)}"] if changed else []


def table(found: Sequence[Entry]) -> dict[str, Any]:
    """The environments of entries (one each device and document) as columns, their facts as rows.

    {"heads": [Cell], "rows": [{"name", "cells", "differs"}], "notes": [texts on what cannot be compared]}.
    """
    columns: dict[tuple[str, int], Entry] = {}
    for entry in found:
        columns.setdefault((entry.row["device"]["name"], entry.run), entry)
    entries = list(columns.values())
    rows = []
    for name, show in FACTS:
        cells = [show(e) for e in entries]
        known = {c.text for c in cells if not c.missing}
        if known or name in ALWAYS:
            rows.append({"name": name, "cells": cells, "differs": name not in OWN and len(known) > 1})
    heads = [Cell(device, f"run {run + 1}" if len({r for _, r in columns}) > 1 else "") for device, run in columns]
    return {"heads": heads, "rows": rows, "notes": _comparable(entries)}


def _comparable(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each machine that is not the one of the first run on its device."""
    notes, first = [], {}  # type: list[str], dict[str, Entry]
    for e in entries:
        device = e.row["device"]["name"]
        base = first.setdefault(device, e)
        apart = bench_record.differences(base.environment, e.environment) if base is not e else []
        if apart:
            notes.append(f"{device}, runs {base.run + 1} and {e.run + 1} are not comparable: {'; '.join(apart)}")
    if len(first) > 1:
        notes.append("Latencies of different devices are those of different machines: they are not compared.")
    return notes


def _host(key: str, show: Callable[[Any], str] = str, why: str = "not recorded") -> Callable[[Entry], Cell]:
    def cell(e: Entry) -> Cell:
        host = e.environment.get("host") or {}
        if host.get(key) not in (None, [], ""):
            return Cell(show(host[key]))
        return missing((host.get("unknown") or {}).get(key) or why)

    return cell


def _reading(key: str, show: Callable[[Any], str]) -> Callable[[Entry], Cell]:
    """A reading before and after: "1,800 → 1,200" where it changed."""

    def cell(e: Entry) -> Cell:
        readings = [e.environment.get(when) or {} for when in ("before", "after")]
        texts = [show(r[key]) for r in readings if r.get(key) is not None]
        if texts:
            return Cell(" → ".join(dict.fromkeys(texts)))
        return missing((readings[-1].get("unknown") or {}).get(key) or "not recorded")

    return cell


def _governor(e: Entry) -> Cell:
    found = _reading("governor", lambda g: " ".join(v for v in (g.get("governor"), g.get("driver")) if v))(e)
    return found if not found.missing else _host("governor")(e)


def _frequency(values: Any) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return f"{low:,.0f} MHz" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f} MHz"


def _others(e: Entry) -> Cell:
    busy = e.environment.get("others_cores")
    return missing("not recorded") if busy is None else Cell(number(busy, 1))


def _packages(e: Entry) -> Cell:
    """Of the packages those that ran the models: the runtimes' own words."""
    rows = [r for r in e.document.data["rows"] if r["device"]["name"] == e.row["device"]["name"]]
    told = [
        f"{r['runtime'].get('runtime') or ''} {r['runtime'].get('version') or ''}" for r in rows if r.get("runtime")
    ]
    return Cell(", ".join(dict.fromkeys(t.strip() for t in told))) if told else missing("not recorded")


def _id(e: Entry) -> Cell:
    return Cell(e.machine) if e.machine else missing("not recorded")


#: Facts that are told even where nobody knows them; facts that each run has its own of.
ALWAYS = ("Frequency governor", "Temperature")
OWN = ("Measured at", "Device", "File")
FACTS: tuple[tuple[str, Callable[[Entry], Cell]], ...] = (
    ("Measured at", lambda e: Cell(moment(e.document.data["created"]))),
    ("Device", lambda e: Cell(e.row["device"].get("title") or e.row["device"]["name"])),
    ("Kind", lambda e: Cell(e.kind)),
    ("CPU", _host("cpu")),
    ("Cores", _host("cores", lambda v: f"{v:g}")),
    ("Instruction sets", _host("isa", ", ".join, "none was recognised")),
    ("Memory", _host("memory_gb", lambda v: f"{v:.1f} GB")),
    ("System", _host("os")),
    ("Frequency governor", _governor),
    ("Frequency", _reading("frequency_mhz", _frequency)),
    ("Temperature", _reading("temperature_c", lambda v: f"{v:g} °C")),
    ("Cores kept busy by others", _others),
    ("Runtimes", _packages),
    ("Python", _host("python")),
    ("Tool", lambda e: Cell(f"{e.document.data['tool']['name']} {e.document.data['tool']['version']}")),
    ("Machine", _id),
    ("File", lambda e: Cell(clean(e.document.path.name))),
)
