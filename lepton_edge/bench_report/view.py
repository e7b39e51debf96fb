"""A set of bench documents as the templates print it: all of it text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lepton_edge.bench_report import facts
from lepton_edge.bench_report.cells import (
    accuracy_cell,
    energy_cell,
    limit_cell,
    parity_cell,
    plain_cell,
    rate_cell,
    ratio_cell,
    runtime_line,
    size_cell,
    time_cell,
)
from lepton_edge.bench_report.changes_view import changed
from lepton_edge.bench_report.documents import Document, Entry, entries, groups
from lepton_edge.bench_report.estimate_cells import arena_cell, cycles_cell, doubts, sram_cell
from lepton_edge.bench_report.figures import label
from lepton_edge.bench_report.metrics import written
from lepton_edge.report_cells import Cell, missing, runtime_text
from lepton_edge.report_facts import moment
from lepton_edge.report_schema import finite
from lepton_edge.texts import number

Show = Callable[[Entry], Cell]
_TAIL = "percentile; a dash where the samples do not bound it"


def swept(e: Entry) -> Cell:
    """Inferences a second, where more was asked for than one stream at batch 1."""
    return rate_cell(e) if e.row.get("throughput") or e.batch > 1 else missing("throughput was not measured")


#: key, heading, help, cell, whether the column is there only where some row has the figure
COLUMNS: tuple[tuple[str, str, str, Show, bool], ...] = (
    ("p50", "p50, ms", "median latency, 95 % interval below", lambda e: time_cell(e, "p50"), False),
    ("p90", "p90, ms", f"90th {_TAIL}", lambda e: time_cell(e, "p90"), False),
    ("p95", "p95, ms", f"95th {_TAIL}", lambda e: time_cell(e, "p95"), False),
    ("p99", "p99, ms", f"99th {_TAIL}", lambda e: time_cell(e, "p99"), False),
    ("first", "First, ms", "the first inference after loading", lambda e: time_cell(e, "first"), False),
    ("peak", "Peak, MB", "peak memory of the process", lambda e: plain_cell(e, "peak_mb"), True),
    ("size", "Size", "bytes on disk", size_cell, False),
    ("rate", "Per second", "inferences a second; the best of the sweep, streams × threads below", swept, True),
    ("energy", "Energy, mJ", "energy of an inference above idle, 95 % interval below", energy_cell, True),
    ("cycles", "Cycles", "cycles of an inference, estimated by Vela", cycles_cell, True),
    ("sram", "SRAM", "memory on the chip that Vela plans with, flash below", sram_cell, True),
    ("arena", "Arena", "working memory of TensorFlow Lite Micro", arena_cell, True),
    ("accuracy", "Accuracy", "top-1 on the device, 95 % interval below", accuracy_cell, True),
    ("parity", "Parity", "the device's answers against this machine's: SQNR, same top-1 below", parity_cell, True),
)


def view(
    documents: Sequence[Document], limits: Sequence[dict[str, Any]] = (), changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Everything the templates print; ``limits`` as limits.hold, ``changes`` as changes.compare told them."""
    rows = entries(documents)
    by = groups(rows)
    shown = [_group(key, found, rows, by) for key, found in by.items()]
    warnings = _warnings(rows)
    return {
        "title": _title(rows, by),
        "verdict": _verdict(rows, by, limits, changes),
        "byline": _byline(documents, rows),
        "tiles": [tile for key, found in by.items() if (tile := _tile(key, found, by))][:6],
        "groups": shown,
        "overview": _overview(by),
        "environments": facts.table(rows),
        "limits": [limit_row(v) for v in limits],
        "changes": changed(changes) if changes else None,
        "warnings": warnings,
        "how": _how(rows),
        "tool": " ".join(documents[-1].data["tool"][key] for key in ("name", "version")),
    }


def runs(found: Sequence[Entry]) -> int:
    """In how many documents these rows are."""
    return len({e.run for e in found})


def device_title(key: tuple[str, str], found: Sequence[Entry], by: dict) -> str:
    """A device's name; with its processor where two machines have one name."""
    told = found[0].row["device"]
    title = told["name"] if told.get("title") in (None, "", told["name"]) else f"{told['name']} ({told['title']})"
    if sum(name == key[0] for name, _ in by) > 1:
        cpu = (found[0].environment.get("host") or {}).get("cpu") or "processor not recorded"
        title += f", {cpu}, {key[1][:6] or 'machine not recorded'}"
    return title


def base_of(e: Entry) -> str:
    """The name of the row that a row's ratio is against: the first one of its device that was measured."""
    same = [r for r in e.document.data["rows"] if r["device"]["name"] == e.row["device"]["name"]]
    told = (e.row.get("ratio") or {}).get("to")
    return told or next((r["name"] for r in same if r.get("latency")), "")


def _group(key: tuple[str, str], found: Sequence[Entry], every: Sequence[Entry], by: dict) -> dict[str, Any]:
    needless = all(e.kind == "estimated" for e in found)  # an estimate has none of the usual figures but p50
    columns = [c for c in COLUMNS if not (c[4] or needless) or any(not c[3](e).missing for e in found)]
    several = runs(every)
    return {
        "title": device_title(key, found, by),
        "kind": "/".join(sorted({e.kind for e in found})),
        "mixed": len({e.kind for e in found}) > 1,
        "span": 3 if len(found) > 16 else 2 if len(found) > 7 else 1,
        "columns": [(name, head, tip) for name, head, tip, _, _ in columns],
        "rows": [_row(e, columns, several) for e in sorted(found, key=lambda e: e.failed)],
        "details": [_details(e, several) for e in found if e.latency],
        "detail_heads": DETAIL_HEADS,
        "entries": found,
    }


def _row(e: Entry, columns: Sequence[tuple[str, str, str, Show, bool]], several: int) -> dict[str, Any]:
    error = e.row.get("error") or {}
    return {
        "name": label(e, several),
        "line": runtime_line(e),
        "kind": e.kind,
        "failed": e.failed,
        "error": error.get("message") or "",
        "hint": error.get("hint") or "",
        "cells": [show(e) for _, _, _, show, _ in columns],
        "ratio": ratio_cell(e, base_of(e)),
    }


DETAIL_HEADS = (
    "Samples", "Rounds", "Processes", "Batch", "Threads", "Mean, ms", "Load, ms", "Per second", "Warm-up",
    "Interrupted/s", "Others' cores",
)  # fmt: skip


def _details(e: Entry, several: int) -> dict[str, Any]:
    def plain(key: str, places: int | None = 0) -> Cell:
        value = e.latency.get(key)
        return Cell(number(value, places), sort=value) if finite(value) else missing("not recorded")

    warm = plain("warmup_runs")
    if not warm.missing and e.latency.get("settled") is False:
        warm = Cell(f"{warm.text}, not steady", sort=warm.sort)
    cells = [plain("count"), plain("rounds"), plain("processes"), Cell(f"{e.batch}"), plain("threads")]
    cells += [
        time_cell(e, "mean"),
        time_cell(e, "load"),
        plain("per_s", None),
        warm,
        plain("involuntary_per_s"),
        plain("others_cores", 1),
    ]
    return {"name": label(e, several), "cells": cells, "runtime": runtime_text(e.info)}


def _title(rows: Sequence[Entry], by: dict) -> str:
    models = list(dict.fromkeys(e.row["model"] for e in rows))
    what = models[0] if len(models) == 1 else f"{len(models)} models" if models else "nothing"
    return f"{what} on {next(iter(by))[0] if len(by) == 1 else f'{len(by)} devices'}" if by else "Nothing was measured"


def _verdict(rows: Sequence[Entry], by: dict, limits: Sequence[dict], changes: dict[str, Any] | None) -> str:
    said = []
    if changes:
        count = len(changes["regressions"])
        said.append(f"{count} regression{'s' * (count != 1)} against the baseline." if count else "No regression.")
    if limits:
        broken = sum(v["verdict"] == "broken" for v in limits)
        open_ = sum(v["verdict"] in ("not decided", "not measured") for v in limits)
        said.append(f"{broken} of {len(limits)} limits broken" + (f", {open_} not decided." if open_ else "."))
    failed = sum(e.failed for e in rows)
    if not said:
        kinds = " and ".join(sorted({e.kind for e in rows if e.latency}))
        count = sum(bool(e.latency) for e in rows)
        said.append(f"{count} {'latency' if count == 1 else 'latencies'}{f', {kinds}' if kinds else ''}.")
    if failed:
        said.append(f"{failed} row{'s' * (failed != 1)} could not be measured.")
    return " ".join(said)


def _byline(documents: Sequence[Document], rows: Sequence[Entry]) -> str:
    times = [moment(d.data["created"]) for d in documents]
    when = times[0] if len(set(times)) == 1 else f"{times[0]} to {times[-1]}"
    counts = ((len(documents), "run"), (len(rows), "row"))
    return " · ".join([when, *(f"{n} {word}{'s' * (n != 1)}" for n, word in counts)])


def _tile(key: tuple[str, str], found: Sequence[Entry], by: dict) -> dict[str, Any] | None:
    """The fastest model of a device at batch 1, in its latest run."""
    last = max(e.run for e in found)
    timed = [e for e in found if e.latency and e.run == last]
    single = [e for e in timed if e.batch == 1] or timed
    best = min(single, key=lambda e: e.latency["p50_ms"], default=None)
    if best is None:
        return None
    p50 = time_cell(best, "p50")
    where = key[0] if sum(name == key[0] for name, _ in by) == 1 else device_title(key, found, by)
    note = f"p50 {p50.sub}, {best.kind}".replace(" ,", ",")
    return {"label": f"Fastest on {where}", "cell": Cell(f"{p50.text} ms"), "note": f"{best.row['name']}, {note}"}


def _overview(by: dict[tuple[str, str], list[Entry]]) -> dict[str, Any] | None:
    """p50 of every model on every device, of the latest run; only where there are several devices."""
    if len(by) < 2:
        return None
    names = dict.fromkeys((e.row["name"], e.row["format"]) for found in by.values() for e in found)
    rows = []
    for name, format_ in names:
        cells = []
        for found in by.values():
            mine = [e for e in found if (e.row["name"], e.row["format"]) == (name, format_)]
            cells.append(time_cell(mine[-1], "p50") if mine else missing("it was not measured there"))
        rows.append({"name": name, "line": format_, "cells": cells})
    heads = [Cell(device_title(key, found, by), found[0].kind) for key, found in by.items()]
    return {"heads": heads, "rows": rows}


def limit_row(v: dict[str, Any]) -> dict[str, Any]:
    """One verdict of limits.hold as text and cells."""
    needs = v["needs"]
    more = f" (needs about {needs:,} samples)" if needs else ""
    more = " (its interval holds the limit)" if v["verdict"] == "not decided" and not needs else more
    return {
        "limit": v["limit"],
        "row": v["row"],
        "device": v["device"],
        "cell": limit_cell(v),
        "kind": v["kind"],
        "bound": written(v["metric"], v["bound"]),
        "verdict": v["verdict"] + more,
        "bad": v["verdict"] in ("broken", "not measured"),
    }


def _warnings(rows: Sequence[Entry]) -> list[str]:
    """What is to be doubted: of the places first, then of the rows; each once."""
    said = []
    several = runs(rows)
    for e in rows:
        where = e.row["device"]["name"] + (f", run {e.run + 1}" if several > 1 else "")
        said += [f"{where}: {text}" for key in ("warnings", "notes") for text in e.environment.get(key) or []]
    for e in rows:
        where = f"{label(e, several)} on {e.row['device']['name']}"
        said += [f"{where}: {text}" for text in e.row.get("warnings") or []]
        said += [f"{where}: {text}" for text in doubts(e)]
        said += [f"{where}: {e.row['error']['message']}"] if e.row.get("error") and not e.failed else []
    return list(dict.fromkeys(said))


def _how(rows: Sequence[Entry]) -> list[str]:
    kinds = {e.kind for e in rows if e.latency}
    words = {
        "measured": "Measured: timed on the device itself.",
        "emulated": "Emulated: timed where something stands in for the device (an emulator, a quota); compare such "
        "figures with each other only.",
        "estimated": "Estimated: computed by a model of the hardware; nothing was timed.",
    }
    said = [words[kind] for kind in words if kind in kinds]
    said.append(
        "Brackets are 95 % intervals; those of latency cover the scatter of samples, rounds and fresh processes. p90, "
        "p95 and p99 are a dash where the samples do not bound them: rest on the dash for what they need."
    )
    said.append(
        "Models of one run took turns in random order, so their ratios hold; “no difference” is a result. Runs of "
        "different days are compared with --baseline. First: the first inference after loading, a median over the "
        "processes. Size is the file on disk, kB is 1,000 bytes; peak memory is that of the process."
    )
    if any(e.row.get("parity") for e in rows):
        said.append(
            "SQNR and agreement hold the device's answers against this machine's for the same file and samples."
        )
    return said
