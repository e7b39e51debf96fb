"""Printing results on a terminal: tables for people. What machines read is the JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lepton_edge.texts import DASH, db, interval, ms, number, percent, runtime_name, shorten, size

_GOOD, _BAD = "green", "red"


def _console() -> Console:
    # Into a file or a pipe there is no width to fit: nothing is wrapped or cut there.
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _line(console: Console, text: str, style: str = "") -> None:
    """One line, wrapped by the terminal and not by us, so that it can be copied and searched."""
    console.print(Text(text, style=style), soft_wrap=True)


class _Table(Table):
    """A table that shows its cells as they are: the names in them are not rich markup."""

    def add_row(self, *cells: str | Text, **options: Any) -> None:  # type: ignore[override]
        super().add_row(*(Text(c) if isinstance(c, str) else c for c in cells), **options)


def _table(*columns: str, title: str | None = None) -> _Table:
    """A table whose columns are right-aligned where the heading starts with '>'."""
    table = _Table(
        title=title, title_justify="left", header_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for c in columns:
        # Folded, never cut: what is shown has to be true, also on a narrow terminal.
        whole = c.startswith(">") or c in ("candidate", "device", "step", "operator", "check")
        table.add_column(
            c.lstrip(">"), justify="right" if c.startswith(">") else "left", overflow="fold", no_wrap=whole
        )
    return table


def run(record: dict, out: Path) -> None:
    """The candidates of a compress run, which one was picked and why, and where everything lies."""
    console = _console()
    base = record["reference"]["accuracy"]
    title = f"{record['model']['name']} ({record['model']['format']}, {size(record['model']['size_bytes'])})"
    if base:
        title += f": top-1 {percent(base['top1'])} on {base['count']} samples"
    table = _table(
        "candidate", ">top-1", ">drop", ">SQNR dB", ">params", ">non-zero", ">MACs", ">size", ">zip", ">p50 ms",
        ">p95 ms", ">vs float", title=title,
    )  # fmt: skip
    source = record["model"]
    if source.get("parameters") is not None:
        table.add_row(
            "  (before)", percent(base["top1"]) if base else DASH, DASH, DASH, *_counts(source), DASH, DASH, DASH
        )
    for c in record["candidates"]:
        ratio = f"{c['ratio']['median']:.2f}x" if c["ratio"] else DASH
        mark = "*" if c["picked"] else "!" if c["status"] == "failed" else ""
        table.add_row(
            f"{mark:2}{c['name']}", *_figures(c), ratio, style=_GOOD if c["picked"] else _BAD if mark else None
        )
    console.print(table)
    for c in record["candidates"]:
        if c["picked"]:
            _line(console, f"picked {c['name']}: {c['reason']}", style=_GOOD)
    for c in record["candidates"]:
        if not c["picked"]:
            fix = f" ({c['error']['hint']})" if c["error"] and c["error"]["hint"] else ""
            _line(console, f"  not {c['name']}: {c['reason']}{fix}", style="dim")
    for row in record.get("left_out") or []:
        _line(console, f"  left out {row['scheme']}: {row['reason']}", style="dim")
    warnings(record["warnings"])
    _line(console, f"report: {out / 'report.html'}")
    if record["picked"]:
        _line(console, f"bundle: {out / 'bundle'}")


def _figures(c: dict) -> list[str]:
    accuracy, latency, parity = c["accuracy"], c["latency"], c["parity"]
    return [
        percent(accuracy["top1"]) if accuracy else DASH,
        f"{c['drop_points']:+.2f}" if c["drop_points"] is not None else DASH,
        db(parity) if parity else DASH,
        *_counts(c),
        _spread(latency) if latency else DASH,
        ms(latency["p95_ms"]) if latency else DASH,
    ]


def _counts(c: dict) -> list[str]:
    """Parameters, non-zeros, MACs, bytes, zipped bytes."""
    counts = [DASH if c.get(key) is None else _short(c[key]) for key in ("parameters", "nonzeros", "macs")]
    return [*counts, *(size(c.get(key)) for key in ("size_bytes", "zip_bytes"))]


def _short(count: int) -> str:
    """12.3M of a large count."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= scale:
            return f"{number(count / scale)}{unit}"
    return str(count)


def _spread(latency: dict) -> str:
    """The median with half of its 95 % interval: 0.0838 ±2 %."""
    low, high = latency["p50_ci"] or (0.0, 0.0)
    half = 50 * (high - low) / latency["p50_ms"]
    return (
        f"{ms(latency['p50_ms'])} ±{number(half, 0 if half >= 1 else 1)}%"
        if latency["p50_ci"]
        else ms(latency["p50_ms"])
    )


def warnings(lines: list[str]) -> None:
    """Warnings, one a line."""
    for line in lines:
        _line(_console(), f"warning: {line}", style="yellow")


def artifact(made: dict) -> None:
    """One artefact: where it lies and how it compares with its source."""
    console = _console()
    _line(
        console,
        f"{made['path']}: {made['format']} {made['scheme']}, {size(made['size_bytes'])}",
        style="bold",
    )
    for step in made["steps"]:
        took = "from the store" if step["cached"] else f"{step['seconds']:.1f} s"
        _line(console, f"  {step['step']} ({took})" + "".join(f"; {n}" for n in step["notes"]), style="dim")
    if made.get("rungs"):
        _rungs(made["rungs"])
    if made.get("latency_tried"):
        _tried(made["latency_tried"])
    _parity(made)
    warnings(made["warnings"])


def _rungs(rows: list[dict]) -> None:
    """The rescue ladder: what each rung gained and cost."""
    table = _table("rung", ">drop", ">SQNR dB", ">size", ">p50 ms", ">vs float", "what it adds")
    for row in rows:
        drop = DASH if row["drop_points"] is None else f"{row['drop_points']:+.2f}"
        sqnr = DASH if row["sqnr_db"] is None else f"{row['sqnr_db']:.1f}"
        latency = ms(row["latency"]["p50_ms"]) if row["latency"] else DASH
        ratio = f"{row['ratio']['median']:.2f}x" if row["ratio"] else DASH
        told = f"not possible: {row['error']}" if row["error"] else row["what"]
        table.add_row(
            row["rung"], drop, sqnr, size(row["size_bytes"]) if row["size_bytes"] else DASH, latency, ratio, told
        )
    _console().print(table)


def _tried(rows: list[dict]) -> None:
    """Shares of the multiply-accumulates, and what each was measured to take."""
    table = _table(">MACs", ">time", "95 %")
    for row in rows:
        table.add_row(percent(row["macs"]), f"{row['ratio']['median']:.3f}x", interval(row["ratio"]["ci95"]))
    _console().print(table)


def _parity(figures: dict) -> None:
    table = _table("output", ">max abs", ">cosine", ">SQNR dB", ">agreement")
    for name, p in figures["parity"]["outputs"].items():
        same = percent(p["agreement"]) if p["agreement"] is not None else DASH
        table.add_row(name, f"{p['max_abs']:.3g}", f"{p['cosine']:.6f}", db(p), same)
    _console().print(table)
    if figures["accuracy"]:
        a = figures["accuracy"]
        line = f"top-1 {percent(a['top1'])} {interval(a['ci95'], 100)} on {a['count']} samples"
        line += f", drop {figures['drop_points']:+.2f} points"
        _line(_console(), line)
    _line(_console(), f"measured on {figures['parity']['count']} samples of {figures['data']}", style="dim")


def evaluation(result: dict) -> None:
    """Accuracy of one model."""
    a = result["accuracy"]
    top5 = f", top-5 {percent(a['top5'])}" if a["top5"] is not None else ""
    line = f"{result['model']}: top-1 {percent(a['top1'])} {interval(a['ci95'], 100)}{top5}"
    line += f" on {a['count']} samples in {runtime_name(result['runtime'])}"
    _line(_console(), line)
    warnings(result["warnings"])


def comparison(result: dict) -> None:
    """Parity of two models."""
    _line(_console(), f"{result['second']['name']} against {result['first']['name']}", style="bold")
    _parity(result)
    warnings(result["warnings"])


def analysis(result: dict, out: Path, most: int = 15) -> None:
    """Layers by the noise they bring alone, worst first, and what to do about it."""
    from lepton_edge.analysis.files import ranked

    console = _console()
    layers = result["layers"]
    title = f"{result['model']['name']}: int8 leaves {_sqnr(result['total_db'])} dB at the outputs"
    title += f" (weights rounded to the nearest, {result['samples']} samples)"
    table = _table(
        "layer", "kind", ">alone dB", ">weights dB", ">activations dB", ">all up to it dB", ">share", title=title
    )
    for layer in ranked(layers)[:most]:
        figures = (layer[f"{key}_db"] for key in ("alone", "weights", "activations", "accumulated"))
        table.add_row(shorten(layer["name"]), layer["kind"], *map(_sqnr, figures), percent(layer["share"]))
    console.print(table)
    if len(layers) > most:
        _line(console, f"and {len(layers) - most} layers with less noise: see analyze.csv", style="dim")
    for line in result["advice"]:
        _line(console, f"- {line}")
    warnings(result["warnings"])
    _line(console, f"plot: {out / 'analyze.png'}")


def _sqnr(value: float | None) -> str:
    return "no noise" if value is None else number(value, 1)


def inspection(facts: dict) -> None:
    """What is in a model file."""
    console = _console()
    _line(console, f"{facts['name']}: {facts['format']}, {size(facts['size_bytes'])}", style="bold")
    rows = _table("", "")
    for side in ("inputs", "outputs"):
        for spec in facts[side]:
            rows.add_row(side[:-1], Text(f"{spec['name']} {spec['dtype']} {spec['shape']}"))
    for key in (
        "producer",
        "parameters",
        "nonzeros",
        "macs",
        "weight_bytes",
        "versions",
        "op_versions",
        "quantized",
    ):
        if facts.get(key) not in (None, {}, ""):
            value = facts[key]
            rows.add_row(key.replace("_", " "), f"{value:,}" if isinstance(value, int) else Text(_flat(value)))
    console.print(rows)
    table = _table("operator", ">count")
    for op, count in sorted(facts["operators"].items(), key=lambda kv: (-kv[1], kv[0])):
        table.add_row(op, str(count))
    console.print(table)
    layers = sorted(facts["layers"], key=lambda layer: -(layer.get("bytes") or 0))[:20]
    table = _table("largest layers", "operator", ">parameters", ">bytes", ">MACs")
    for layer in layers:
        macs = layer.get("macs")
        table.add_row(
            shorten(str(layer["name"])),
            str(layer["op"]),
            f"{layer.get('parameters') or 0:,}",
            f"{layer.get('bytes') or 0:,}",
            f"{macs:,}" if macs is not None else DASH,
        )
    console.print(table)
    for note in facts.get("notes", []):
        _line(console, f"note: {note}", style="dim")


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_flat(v)}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def files(written: dict[str, str]) -> None:
    """Names of files that were written."""
    for path in written.values():
        _line(_console(), path)


def change(difference: dict) -> None:
    """What changed between two runs: which run is which, the table, the pick and the warnings."""
    from lepton_edge.report_diff import diff_heading, diff_picked, diff_rows

    console = _console()
    for line in diff_heading(difference):
        _line(console, line)
    rows = diff_rows(difference)
    table = _table(*rows[0])
    for row in rows[1:]:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    _line(console, diff_picked(difference))
    warnings(difference["warnings"])


def parts(found: dict) -> None:
    """Formats, steps and runtimes."""
    console = _console()
    _line(console, "formats: " + ", ".join(found["formats"]))
    table = _table("step", "what it does", "state", title="\nsteps")
    for s in found["steps"]:
        table.add_row(s["name"], s["summary"], _state(s))
    console.print(table)
    table = _table("runtime", "formats", "what it is", "state", title="\nruntimes")
    for r in found["runtimes"]:
        told = ("", "") if ":" in r["name"] else (", ".join(r["formats"]), r["summary"])
        table.add_row(r["name"], *told, _state(r))
    console.print(table)


def _state(part: dict) -> Text:
    if part["broken"]:
        return Text(f"broken: {part['broken']}", style=_BAD)
    if part["missing"]:
        return Text(f"needs {', '.join(part['missing'])}", style="yellow")
    if part.get("unusable"):
        return Text(part["unusable"], style="yellow")
    return Text("ready", style=_GOOD)


def checks(found: list[dict]) -> None:
    """The doctor's findings."""
    styles = {"ok": _GOOD, "warn": "yellow", "missing": "yellow", "error": _BAD}
    table = _table("", "check", "finding", "what to do")
    for c in found:
        table.add_row(
            Text(c["status"], style=styles[c["status"]]),
            c["check"],
            c["detail"],
            c.get("fix") or "",
        )
    _console().print(table)


def verdicts(found: list[dict]) -> None:
    """Which runtimes a file loads in, and why not."""
    for v in found:
        name = f"{v['runtime']} {v['release']}"
        if v["table_release"] != v["release"]:
            name += f" (as {v['table_release']}, the nearest that is known)"
        _line(_console(), f"{name}: {'loads' if v['loads'] else 'does not load'}", _GOOD if v["loads"] else _BAD)
        for reason in v["problems"]:
            _line(_console(), f"  {reason}")
        if c := v.get("coverage"):
            left = ", ".join(f"{count} {op}" for op, count in c["left"].items()) or "none"
            _line(_console(), f"  {c['covered']} of {c['operators']} operators covered (estimated); left: {left}")


def devices(found: list[dict]) -> None:
    """The known devices."""
    table = _table("device", "what it is", "CPU", "formats", "latency here is")
    for d in found:
        table.add_row(
            d["name"],
            d["title"],
            Text(str(d.get("cpu") or "")),
            ", ".join(d.get("formats") or []),
            d["kind"],
        )
    _console().print(table)


def added(found: dict) -> None:
    """A device that was added."""
    _line(_console(), f"{found['name']}: {found['path']}", style="bold")
    device({k: v for k, v in found.items() if k not in ("name", "path", "facts")})
    _there(found["facts"])


def probed(found: dict) -> None:
    """What a device is now, and where its file says otherwise."""
    facts = found["facts"]
    keys = ("board", "cpu", "machine", "cores", "isa", "memory_gb", "available_gb", "governor", "frequency_mhz")
    device({"name": found["name"], **{k: facts[k] for k in (*keys, "temperature_c", "load_average", "os", "python")}})
    _there(facts)
    for key, value in found["changed"].items():
        warnings([f"its file says {key} = {_flat(value['file'])}, the device {_flat(value['device'])}"])


def _there(facts: dict) -> None:
    names = [f"{name} {version}" for name, version in facts["packages"].items()]
    _line(_console(), "installed there: " + (", ".join(names) or "no runtime that is known here"))
    if facts["swept"]:
        _line(_console(), f"removed what an earlier visit had to leave: {', '.join(facts['swept'])}", style="dim")


def device(found: dict) -> None:
    """One device."""
    table = _table("", "")
    for key, value in found.items():
        said = value if isinstance(value, list) and key in ("notes", "sources") else [value]
        for k, text in enumerate(said if value not in (None, "", [], {}, 0) else ()):  # 0: not known
            table.add_row("" if k else key.replace("_", " "), Text(_flat(text)))
    _console().print(table)
