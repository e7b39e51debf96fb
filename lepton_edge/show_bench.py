"""Printing what ``bench`` measured: a table of latencies, one of throughput, energy, and what is to be doubted."""

from __future__ import annotations

from typing import Any

from lepton_edge.show import _console, _line, _spread, _table, warnings
from lepton_edge.texts import DASH, db, ms, number, percent, runtime_name, size


def timings(document: dict[str, Any]) -> None:
    """The document of a bench: see bench_record."""
    rows = document["rows"]
    many = len({r["device"]["name"] for r in rows}) > 1
    batched = any(r["batch"] != 1 for r in rows)
    there = any(r["parity"] for r in rows)  # of the answers on a device with those of the same file here
    columns = ["candidate", *(["device"] if many else []), "runtime", *([">same as here"] if there else [])]
    columns += [">size", ">p50 ms", ">p90 ms", ">p95 ms"]
    columns += [">p99 ms", ">first ms", ">peak MB", *([">samples/s"] if batched else []), "vs first"]
    table = _table(*columns)
    for r in rows:
        name = [r["name"], *([r["device"]["name"]] if many else [])]
        told = runtime_name(r["runtime"] or {})
        cells = (*([_same(r)] if there else []), size(r["size_bytes"]))
        style = "red" if r["error"] else None
        table.add_row(*name, told, *cells, *_latency(r, batched), style=style)
    _console().print(table)
    for r in rows:
        if r["throughput"]:
            _throughput(r)
        if r["energy"]:
            _line(_console(), f"{r['name']}: {energy(r['energy'])}")
    _notes(document)


def _latency(r: dict[str, Any], batched: bool) -> list[str]:
    """The cells from p50 to the ratio; an estimate has a p50 alone."""
    t = r["latency"]
    if t is None or t["kind"] == "estimated":
        first = f"{ms(t['p50_ms'])} est." if t else DASH
        return [first, *[DASH] * (5 + batched), "not measured" if r["error"] else r["device"]["kind"]]
    figures = [*(ms(t[f"p{p}_ms"]) for p in (90, 95, 99)), ms(t["first_ms"]), f"{t['peak_rss_mb']:.0f}"]
    return [_spread(t), *figures, *([_rate(t["per_s"])] if batched else []), against(r["ratio"])]


def _same(r: dict[str, Any]) -> str:
    """How nearly a device answers as this machine does: dB, or that the answers are equal."""
    return db(r["parity"]) if r["parity"] else DASH


def against(ratio: dict[str, Any] | None) -> str:
    """A ratio as a cell: 0.52x [0.50, 0.54] faster; with its interval, or "no difference" beside it."""
    if not ratio:
        return DASH
    if not ratio["ci95"]:
        return f"{ratio['median']:.2f}x"
    low, high = ratio["ci95"]
    digits = 3 if high - low < 0.05 else 2
    return f"{ratio['median']:.{digits}f}x [{low:.{digits}f}, {high:.{digits}f}] {ratio['verdict']}"


def energy(found: dict[str, Any]) -> str:
    """The energy of an inference as words, or why there is none."""
    if found["joules"] is None:
        return f"energy not measured: {found['reason']}"
    low, high = found["ci95"]
    text = f"{1e3 * found['joules']:.3g} mJ an inference above idle [{1e3 * low:.3g}, {1e3 * high:.3g}], "
    return text + f"{found['watts']:.3g} W against {found['idle_watts']:.3g} W idle ({found['source']}: {found['of']})"


def _throughput(r: dict[str, Any]) -> None:
    title = f"\n{r['name']}: throughput"
    table = _table(">streams", ">threads", ">inferences/s", ">95 %", ">p50 ms", ">p95 ms", title=title)
    best = max(r["throughput"], key=lambda t: t["per_s"])
    for t in r["throughput"]:
        ends = " to ".join(map(_rate, t["per_s_ci"])) if t["per_s_ci"] else DASH
        cells = (str(t["streams"]), str(t["threads"]), _rate(t["per_s"]), ends, _spread(t), ms(t["p95_ms"]))
        table.add_row(*cells, style="green" if t is best else None)
    _console().print(table)


def _rate(value: float) -> str:
    return number(value, 0 if value >= 100 else 2)


def _notes(document: dict[str, Any]) -> None:
    rows = document["rows"]
    for name, e in document["environments"].items():
        t = next((r["latency"] for r in rows if r["latency"] and r["device"]["name"] == name), None)
        if t is None or t["kind"] == "estimated":
            continue
        batch = "batch 1" if all(r["batch"] == 1 for r in rows) else "batches as named"
        kind = next(r["device"]["kind"] for r in rows if r["device"]["name"] == name)
        line = f"{kind} on {name}: {batch}, {t['threads']} thread(s), {t['rounds']} interleaved rounds in "
        line += f"{t['processes']} process(es) each, 95 % intervals; {e['host']['cpu']}"
        _line(_console(), line, style="dim")
    if any((r["ratio"] or {}).get("of", "p50") != "p50" for r in rows):
        _line(_console(), "the machine was busy: the fastest tenth of each turn was compared", style="dim")
    many = len(document["environments"]) > 1
    for name, e in document["environments"].items():
        warnings([f"{name}: {text}" if many else text for text in (*e["notes"], *e["warnings"])])
    for r in rows:
        if "estimates" in r:
            estimate(r)
        who = f"{r['name']} on {r['device']['name']}" if many else r["name"]
        warnings([f"{who}: {text}" for text in r["warnings"]])
        if r["error"]:
            _line(_console(), f"{who}: {r['error']['message']}", style="red")


def estimate(r: dict[str, Any]) -> None:
    """What estimators say of a model on a device that nobody has here."""
    said, vela, micro = [], r["estimates"].get("vela", {}), r["estimates"].get("tflite_micro", {})
    if "cycles_total" in vela:
        said.append(f"{vela['cycles_total']:,} cycles at {vela['clock_mhz']:g} MHz")
        said.append(f"{percent(vela['operators_on_npu'])} of the operators on {vela['accelerator']}")
        said.append(f"{size(vela['sram_bytes'])} SRAM")
    if "arena_bytes" in micro:
        said.append(f"{size(micro['arena_bytes'])} arena in TensorFlow Lite Micro")
    if said:
        _line(_console(), f"estimated for {r['device']['name']}, {r['name']}: {', '.join(said)}", style="dim")
