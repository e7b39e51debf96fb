"""The quantization benchmark: ours against every rival, on the same models, data, threads and machine.

    python benchmarks/quantization.py [--models NAME ...] [--rivals NAME ...] [--only-latency] [--quick]

For each model: makes every rival's artefact (in the rival's own environment) and ours (by the command line, once a
preset), runs each in every runtime that takes it (ONNX Runtime, LiteRT, OpenVINO at f32), then times those of one
runtime in turn. What cannot be made or run is a row with the reason. Results are kept in
benchmarks/results/quantization/<model>.json; BENCHMARKS.md is generated from them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import artefacts
import judging
import models
from artefacts import Artefact
from common import RESULTS, ROOT, SHARED, Missing, cache
from judging import RUNTIMES, Entry
from quantization_page import write_section

FOLDER = RESULTS / "quantization"
SLOW = ("aimet-adaround", "ort-entropy", "ort-percentile")  # what --quick leaves out
TIMING = {"seconds": 3.0, "rounds": 10, "passes": 2}
QUICK = {"seconds": 0.5, "rounds": 5, "passes": 1}


def main() -> None:
    """Run the models asked for and write the page."""
    args = parse()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        start = time.monotonic()
        try:
            made_of = models.prepare(name)
        except Missing as error:
            print(f"{name}: left out: {error}")
            continue
        record = run_latency(made_of, args) if args.only_latency else run_all(made_of, args)
        path = FOLDER / f"{name}.json"
        path.with_suffix(".part").write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".part").replace(path)
        print(f"{name}: {time.monotonic() - start:.0f} s, kept in {path.relative_to(RESULTS.parent.parent)}")
    write_section()


def parse() -> argparse.Namespace:
    """The command line."""
    rivals = artefacts.rivals()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=models.names(), default=models.names())
    parser.add_argument("--rivals", nargs="*", choices=list(rivals), default=None, help="(all)")
    parser.add_argument("--presets", nargs="*", choices=artefacts.PRESETS, default=list(artefacts.PRESETS))
    parser.add_argument("--again", action="store_true", help="make the rivals' artefacts again, too")
    parser.add_argument("--no-latency", action="store_true", help="only accuracy")
    parser.add_argument("--only-latency", action="store_true", help="time again what was made and judged before")
    parser.add_argument("--quick", action="store_true", help=f"short timing; without {', '.join(SLOW)}")
    args = parser.parse_args()
    if args.rivals is None:
        aside = [
            f"{m.__name__.removeprefix('rival_')}-{a}" for m, _ in rivals.values() for a in getattr(m, "ASIDE", ())
        ]
        args.rivals = [r for r in rivals if r not in aside and not (args.quick and r in SLOW)]
    return args


def run_all(made_of: models.Prepared, args: argparse.Namespace) -> dict:
    """Make, judge and time everything for one model; what an earlier run kept of others stays in the record."""
    made = [artefacts.floats(made_of)]
    for name in args.rivals:
        say(made_of, f"making {name}")
        made.append(artefacts.rival(name, made_of, args.again))
    if args.presets:
        say(made_of, "making ours")
        made += artefacts.ours(made_of, tuple(args.presets))
    with judging.opened(made_of) as bench:
        entries = [entry for artefact in made for entry in spread(artefact)]
        for entry in entries:
            say(made_of, f"judging {entry.key}")
            bench.judge(entry)
        record = {
            "schema": "lepton-edge.benchmark.quantization/1",
            "model": made_of.name,
            "about": made_of.case.ABOUT,
            "facts": made_of.facts,
            "reference": bench.facts(),
            "judged": stamp(),
            "candidates": [row(entry) for entry in entries],
        }
        keep_earlier(record)
        if not args.no_latency:
            time_entries(record, entries, bench, args)
    return record


def run_latency(made_of: models.Prepared, args: argparse.Namespace) -> dict:
    """Time again the artefacts of an earlier run, figures kept."""
    path = FOLDER / f"{made_of.name}.json"
    if not path.is_file():
        raise SystemExit(f"{path.name} is not there: run once without --only-latency")
    record = json.loads(path.read_text())
    made = [artefacts.floats(made_of)]
    names = {c["name"] for c in record["candidates"]} - {"float32"}
    wanted = [n for n in names if n in args.rivals or n.startswith("ours")]
    made += [artefacts.known(made_of, name) for name in sorted(wanted)]
    with judging.opened(made_of) as bench:
        entries = [entry for artefact in made for entry in spread(artefact)]
        for entry in entries:
            bench.judge(entry, answer=False)
        time_entries(record, entries, bench, args)
    return record


def time_entries(record: dict, entries: list[Entry], bench: judging.Bench, args: argparse.Namespace) -> None:
    """Time the entries, runtime by runtime, into ``record``: ratios to the float file and to the fastest rival."""
    bench.road.workers.drop()
    how = QUICK if args.quick else TIMING
    times: dict[str, dict] = {}
    for runtime in RUNTIMES:
        present = [e for e in entries if e.runtime == runtime and e.entrant]
        say(bench.made_of, f"timing {len(present)} in {runtime}")
        times |= judging.latencies(present, **how)
    fastest = {}
    for runtime in RUNTIMES:
        mine = {k: t for k, t in times.items() if k.endswith(f"@{runtime}") and "error" not in t}
        rivals = {e.key for e in entries if e.artefact.kind == "rival"}
        fastest[runtime] = min((k for k in mine if k in rivals), key=lambda k: mine[k]["p50_ms"], default=None)
    for c in record["candidates"]:
        key = f"{c['name']}@{c['runtime']}"
        c["latency"] = times.get(key)
        c["to_float"] = c["to_fastest_rival"] = None
        if c["latency"] and "error" not in c["latency"]:
            for field, base in (("to_float", f"float32@{c['runtime']}"), ("to_fastest_rival", fastest[c["runtime"]])):
                if base in times and base != key and "error" not in times[base]:
                    c[field] = {"to": base, **judging.against(times[key], times[base])}
    record["timed"] = {**stamp(), **how, "threads": 1, "batch": 1}


def spread(artefact: Artefact) -> list[Entry]:
    """One entry a runtime: those with a file, those that refuse it, and one row for what could not be made."""
    if artefact.error:
        return [Entry(artefact, "", None, error=artefact.error)]
    entries = [Entry(artefact, r, artefact.files[r]) for r in RUNTIMES if r in artefact.files]
    return entries + [Entry(artefact, r, None, error=why) for r, why in artefact.refused.items()]


def row(entry: Entry) -> dict:
    """A candidate as the results keep it (no paths of this machine)."""
    a = entry.artefact
    made = a.made.get(entry.runtime, {}) if a.kind == "ours" else a.made
    keep = {"name": a.name, "title": a.title, "kind": a.kind, "runtime": entry.runtime, "made": tidy(made)}
    return {**keep, "figures": entry.figures, "info": entry.info, "error": tidy(entry.error)}


def tidy(value):
    """The value without the folders of this machine in its texts."""
    if isinstance(value, dict):
        return {k: tidy(v) for k, v in value.items()}
    if isinstance(value, list):
        return [tidy(v) for v in value]
    if isinstance(value, str):
        for folder in (cache(), SHARED.resolve(), SHARED, ROOT, Path.home(), tempfile.gettempdir()):
            value = value.replace(str(folder), "…")
    return value


def keep_earlier(record: dict) -> None:
    """Put rows of an earlier run of the same model and data beside the new ones, so that a part can be run alone."""
    path = FOLDER / f"{record['model']}.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    if earlier.get("facts", {}).get("model_sha256") == record["facts"]["model_sha256"]:
        new = {c["name"] for c in record["candidates"]}
        record["candidates"] += [
            {**c, "earlier": earlier["judged"]["date"]} for c in earlier["candidates"] if c["name"] not in new
        ]
        record["timed"] = earlier.get("timed")


def stamp() -> dict:
    """When and where: the date, the machine, the versions of the runtimes."""
    from lepton_edge.record import host

    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "load": os.getloadavg()[0], "host": host()}


def say(made_of: models.Prepared, text: str) -> None:
    """A line of progress."""
    print(f"{time.strftime('%H:%M:%S')} {made_of.name}: {text}", flush=True)


if __name__ == "__main__":
    main()
