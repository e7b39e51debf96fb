"""One row's figures as cells of a table; what was not measured is a dash that says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lepton_edge.bench_report.documents import Entry
from lepton_edge.bench_report.metrics import figure, written, written_ends
from lepton_edge.report_cells import Cell, agreement_cell, missing, percent_places, sqnr_cell
from lepton_edge.report_schema import finite
from lepton_edge.texts import decimals, interval, number, size


def seconds(e: Entry) -> float | None:
    """How long each model was measured, by the settings of its document."""
    return (e.document.data.get("settings") or {}).get("seconds")


def time_cell(e: Entry, metric: str) -> Cell:
    """A latency figure in ms with its interval and kind."""
    found = figure(e.row, metric, seconds(e))
    if found.value is None:
        return missing(found.why + (f": {found.hint}" if found.short else ""))
    places = decimals(found.value)
    runs = f", {found.count:,} runs" if found.count else ""
    return Cell(number(found.value, places), interval(found.ends, places=places), f"ms, {e.kind}{runs}", found.value)


def plain_cell(e: Entry, metric: str) -> Cell:
    """Another figure of the latency: its peak memory, say."""
    found = figure(e.row, metric)
    if found.value is None:
        return missing(found.why)
    return Cell(number(found.value), title=e.kind, sort=found.value)


def size_cell(e: Entry) -> Cell:
    count = e.row.get("size_bytes")
    return Cell(size(count), title=f"{count:,} bytes on disk", sort=count) if finite(count) else missing("not recorded")


def accuracy_cell(e: Entry) -> Cell:
    """Top-1 on the device in percent, with its interval."""
    found = figure(e.row, "top1")
    if found.value is None:
        return missing("accuracy was not measured: there were no labels")
    places = percent_places(found.count)
    runs = f" on {found.count:,} samples" if found.count else ""
    return Cell(
        f"{number(found.value, places)} %", interval(found.ends, places=places), f"top-1, measured{runs}", found.value
    )


def parity_cell(e: Entry) -> Cell:
    """SQNR of the device's answers against this machine's, and below it the share of samples with the same top-1."""
    parity = e.row.get("parity")
    cell, same = sqnr_cell(parity), agreement_cell(parity)
    if cell.missing or same.missing:
        return cell
    return replace(cell, sub=f"{same.text} agree", title=f"{cell.title}, {e.kind}")


def energy_cell(e: Entry) -> Cell:
    """Energy of an inference above idle, in mJ."""
    found = figure(e.row, "energy_mj")
    if found.value is None:
        return missing(found.why)
    told = e.row["energy"]
    what = "; ".join(str(told[key]) for key in ("kind", "source", "of") if told.get(key))
    return Cell(number(found.value), interval(found.ends), f"mJ an inference above idle: {what}", found.value)


def rate_cell(e: Entry) -> Cell:
    """The best throughput of a sweep, else samples a second of one stream."""
    found = figure(e.row, "throughput")
    if found.value is not None:
        best = max(e.row["throughput"], key=lambda load: load["per_s"])
        loads = f"{best['streams']:g} × {best['threads']:g}"
        title = f"inferences a second, {e.kind}; best of {len(e.row['throughput'])}: streams × threads = {loads}"
        return Cell(number(found.value), loads, title, found.value)
    rate = e.latency.get("per_s")
    if not finite(rate):
        return missing("not recorded")
    return Cell(number(rate), "one stream", f"samples a second of one stream, {e.kind}", rate)


def ratio_cell(e: Entry, base: str) -> Cell:
    """How many times as fast as the first model a row is, or "no difference"."""
    ratio = e.row.get("ratio")
    if not ratio or not finite(ratio["median"]) or ratio["median"] <= 0:
        return missing("the first model itself" if e.row["name"] == base else "it was not compared")
    times, word = ratio["median"], ratio.get("verdict") or "no interval"
    pair = ratio.get("ci95") if finite(ratio.get("ci95") or ("",)) and all(v > 0 for v in ratio["ci95"]) else None
    if word == "faster":
        times, pair = 1 / times, (1 / pair[1], 1 / pair[0]) if pair else None
    text = f"{number(times)}× {word}" if word in ("faster", "slower") else word
    of = {"p10": "the fastest tenth of each turn, for the machine was busy"}.get(ratio.get("of") or "", "medians")
    title = f"times against {ratio.get('to') or base}, of {of}; below, the 95 % interval of the ratio"
    return Cell(text, interval(pair, places=decimals(times)), title, ratio["median"])


def runtime_line(e: Entry) -> str:
    """Format and runtime in a few words: "tflite · ai-edge-litert 2.3.0"."""
    version = (e.row.get("runtime") or {}).get("version") or ""
    told = f"{e.runtime} {version}".strip()
    return " · ".join(text for text in (e.row["format"], told) if text)


def limit_cell(verdict: dict[str, Any]) -> Cell:
    """The figure of a limit with its interval and unit."""
    if verdict["value"] is None:
        return Cell("exact") if verdict["why"].startswith("exact") else missing(verdict["why"])
    metric = verdict["metric"]
    return Cell(written(metric, verdict["value"]), written_ends(metric, verdict["ci95"]), sort=verdict["value"])
