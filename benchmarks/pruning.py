"""The pruning benchmark: models made smaller without training, by our command line, judged on unseen samples.

    python benchmarks/pruning.py [--models NAME ...] [--only-latency | --no-latency] [--quick]

Every variant of VARIANTS is one recipe. Its file is made by `lepton-edge prune` or `factorize` in ONNX, TFLite and
OpenVINO; each is judged in its runtime against the float model, then those of one runtime are timed in turn beside the
float file. Results are kept in benchmarks/results/pruning/<model>.json; BENCHMARKS.md is generated from them.
"""

from __future__ import annotations

import argparse
import json
import time

import artefacts
import judging
import models
from artefacts import FORMAT_OF, FORMATS, Artefact
from common import RESULTS, Missing, cache, cli
from judging import RUNTIMES, Entry
from page import table, update
from quantization import QUICK, TIMING, spread, stamp, tidy

FOLDER = RESULTS / "pruning"
# model: {variant: (title, command, its section of the recipe)}
VARIANTS = {
    "mobilenet_v2": {
        "channels-80": ("channels, 80 % of MACs", "prune", {"macs": 0.8}),
        "channels-80-any": ("the same, widths in multiples of 1", "prune", {"macs": 0.8, "round_to": 1}),
        "channels-80-magnitude": ("the same by magnitude", "prune", {"macs": 0.8, "importance": "magnitude"}),
        "weights-50": ("half of the weights zero", "prune", {"sparsity": 0.5}),
        "2-of-4": ("2:4", "prune", {"method": "2:4"}),
    },
    "minilm": {
        "channels-75": ("heads and neurons, 75 % of MACs", "prune", {"macs": 0.75}),
        "lowrank-85": ("low-rank products, 85 % of MACs", "factorize", {"macs": 0.85}),
        "lowrank-75": ("low-rank products, 75 % of MACs", "factorize", {"macs": 0.75}),
        "weights-50": ("half of the weights zero", "prune", {"sparsity": 0.5}),
        "2-of-4": ("2:4", "prune", {"method": "2:4"}),
    },
}


def main() -> None:
    """Run the models asked for and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--variants", nargs="+", default=None, help="(all)")
    parser.add_argument("--no-latency", action="store_true", help="only accuracy")
    parser.add_argument("--only-latency", action="store_true", help="time again what an earlier run judged")
    parser.add_argument("--quick", action="store_true", help="short timing")
    args = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in args.models:
        try:
            record = run(models.prepare(name), args)
        except Missing as error:
            print(f"{name}: left out: {error}")
            continue
        path = FOLDER / f"{name}.json"
        path.with_suffix(".part").write_text(json.dumps(tidy(record), indent=1) + "\n")
        path.with_suffix(".part").replace(path)
    write_section()


def run(made_of: models.Prepared, args: argparse.Namespace) -> dict:
    """Make, judge and time the variants of one model; what an earlier run kept stays where it is not done again."""
    path = FOLDER / f"{made_of.name}.json"
    record = json.loads(path.read_text()) if path.is_file() else {"model": made_of.name, "candidates": []}
    variants = [v for v in VARIANTS[made_of.name] if args.variants is None or v in args.variants]
    made = [artefacts.floats(made_of), *(pruned(made_of, v) for v in variants)]
    with judging.opened(made_of) as bench:
        entries = [entry for artefact in made for entry in spread(artefact)]
        for entry in entries:
            print(f"{made_of.name}: judging {entry.key}", flush=True)
            bench.judge(entry, answer=not args.only_latency)
        if not args.only_latency:
            rows = [{"name": e.artefact.name, "title": e.artefact.title, "runtime": e.runtime, "made": e.artefact.made,
                     "figures": e.figures, "error": e.error} for e in entries]  # fmt: skip
            done = {(row["name"], row["runtime"]) for row in rows}
            rows += [c for c in record["candidates"] if (c["name"], c["runtime"]) not in done]
            record |= {"reference": bench.facts(), "judged": stamp(), "candidates": rows}
        if not args.no_latency:
            time_entries(record, entries, bench, QUICK if args.quick else TIMING)
    return record


def pruned(made_of: models.Prepared, variant: str) -> Artefact:
    """A variant in every format, by the command line; finished steps come from the store."""
    title, verb, options = VARIANTS[made_of.name][variant]
    folder = cache("pruned", made_of.name, variant)
    recipe, result = folder / "recipe.toml", Artefact(variant, title, "ours")
    recipe.write_text(f"[{verb}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items()))
    data = ("--data", made_of.calib, "--eval", made_of.eval)
    start = time.monotonic()
    try:
        for runtime in RUNTIMES:
            file = folder / f"model{FORMATS[runtime]}"
            told = cli(verb, made_of.model, *data, "--recipe", recipe, "--to", FORMAT_OF[runtime], "-o", file)
            step = next(s for s in told["steps"] if s["step"] == f"{verb}_onnx")
            result.made = {"seconds": round(step["seconds"], 1), "result": step["result"]} | result.made
            result.files[runtime] = file
    except Missing as error:
        result.error = str(error)
    print(f"{made_of.name}: made {variant} in {time.monotonic() - start:.0f} s {result.error}", flush=True)
    return result


def time_entries(record: dict, entries: list[Entry], bench: judging.Bench, how: dict) -> None:
    """Time the entries, runtime by runtime, each beside the float file."""
    bench.road.workers.drop()
    for runtime in RUNTIMES:
        times = judging.latencies([e for e in entries if e.runtime == runtime and e.entrant], **how)
        base = times.get(f"float32@{runtime}", {"error": "not measured"})
        for c in record["candidates"]:
            mine = times.get(f"{c['name']}@{runtime}") if c["runtime"] == runtime else None
            if mine is not None:
                c["latency"] = mine
                known = "error" not in mine and "error" not in base and c["name"] != "float32"
                c["to_float"] = judging.against(mine, base) if known else None
    record["timed"] = {**stamp(), **how, "threads": 1, "batch": 1}


def write_section() -> None:
    """Generate the section of BENCHMARKS.md."""
    lines = [
        "# Pruning without training",
        "",
        "Generated by `make bench-prune` (benchmarks/pruning.py) from benchmarks/results/pruning/. All calibration",
        "samples of the model's case are given without labels; figures are *measured* on the evaluation samples, which",
        "pruning has not seen, in the runtime of each file. Times are ratios to the float file of the same runtime:",
        "one thread, batch 1, interleaved, with the least and greatest of paired rounds.",
    ]
    for file in sorted(FOLDER.glob("*.json")):
        record = json.loads(file.read_text())
        rows = [row for c in record["candidates"] if (row := cells(c))]
        head = ["variant", "runtime", "MACs", "non-zeros", "zip", "top-1", "cosine", "SQNR dB", "time / float"]
        reference = record["reference"]
        told = f"; float top-1 {reference['top1']:.4f}" if "top1" in reference else ""
        lines += ["", f"## {record['model']}", "", f"{reference['count']} evaluation samples{told}.", ""]
        lines += table(head, rows)
    update("pruning", lines)


def cells(c: dict) -> list[str]:
    """One row; empty for the float file."""
    if c["name"] == "float32":
        return []
    if not c.get("figures"):
        return [c["title"], c["runtime"], "", "", "", "", "", c["error"], ""]
    told, figures = c["made"]["result"], c["figures"]
    shares = [
        f"{told[key]['after'] / told[key]['before']:.3f}" if key in told else "1"
        for key in ("macs", "nonzeros", "zip_bytes")
    ]
    ratio = c.get("to_float")
    return [
        c["title"],
        c["runtime"],
        *shares,
        f"{figures['top1']:.4f}" if "top1" in figures else "",
        f"{figures['cosine_mean']:.4f}",
        f"{figures['sqnr_db']:.1f}",
        f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]" if ratio else "",
    ]


if __name__ == "__main__":
    main()
