"""Half of ResNet-8's multiply-accumulates removed: by us from the file, by torch-pruning from the network in Python.

    python benchmarks/versus_torch_pruning.py [--epochs N] [make | time | page]

Both prune MLPerf Tiny's model by Taylor importance on the 4,148 training images, in multiples of 8 channels, until half
of the MACs is left, and then learn from it and the labels for as many epochs, flipped and shifted; torch-pruning's
network is trained by rivals/_torch_pruning.py in an environment of its own. Both, and the original, are quantized by us
with the same samples, judged on the 600 unseen images, and timed in turn.
Results: benchmarks/results/versus_torch_pruning.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import RESULTS, Missing, cache, cli, environment, last_words, shared  # noqa: E402
from page import table, update  # noqa: E402
from trained_pruning import LONG, MODEL, weights  # noqa: E402

from lepton_edge import api  # noqa: E402
from lepton_edge.recipe import Recipe  # noqa: E402

RESULT = RESULTS / "versus_torch_pruning.json"
TITLES = {"original": "the original", "ours": "ours", "torch-pruning": "torch-pruning"}
FORMATS = {"tflite": ".tflite", "onnx": ".onnx"}


def theirs(folder: Path, epochs: int) -> tuple[Path, dict]:
    """torch-pruning's network as ONNX, and what its script tells."""
    out = folder / "torch-pruning.onnx"
    command = [environment("torch_pruning"), HERE / "rivals" / "_torch_pruning.py", "--weights", weights(folder)]
    command += ["--train", shared("cifar10/train.npz"), "--eval", shared("cifar10/eval.npz"), "--out", out]
    done = subprocess.run([*map(str, command), "--epochs", str(epochs)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Missing(f"torch-pruning: exit code {done.returncode}: {last_words(done.stderr)}")
    return out, json.loads(done.stdout.splitlines()[-1])


def ours(folder: Path, epochs: int) -> tuple[Path, dict]:
    """Our network as ONNX by our command line, and what it tells."""
    out, recipe = folder / "ours.onnx", folder / "recipe.toml"
    options = {"macs": 0.5, "importance": "taylor", **LONG, "epochs": epochs}
    recipe.write_text("[prune]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in options.items()))
    data = ["--train", shared("cifar10/train.npz"), "--eval", shared("cifar10/eval.npz"), "--recipe", recipe]
    told = cli("prune", shared(MODEL), *data, "--to", "onnx", "--out", out)
    step = next(s for s in told["steps"] if s["step"] == "prune_onnx")
    return out, {"seconds": round(step["seconds"], 1), "result": step["result"]}


def main() -> None:
    """Make all, judge, time, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("part", nargs="?", choices=["make", "time", "page"], help="only this (make, time and page)")
    args = parser.parse_args()
    if args.part in (None, "make"):
        RESULT.write_text(json.dumps(run(args.epochs), indent=1) + "\n")
    if args.part in (None, "time"):
        RESULT.write_text(json.dumps(timed(json.loads(RESULT.read_text())), indent=1) + "\n")
    update("versus_torch_pruning", page(json.loads(RESULT.read_text())))


def run(epochs: int) -> dict:
    """The record of all three."""
    folder = cache("versus_torch_pruning")
    data = ["--data", shared("cifar10/calib.npz"), "--eval", shared("cifar10/eval.npz")]
    made: dict[str, tuple[Path, dict]] = {"original": (shared(MODEL), {})}
    made["torch-pruning"], made["ours"] = theirs(folder, epochs), ours(folder, epochs)
    rows: dict[str, dict] = {name: {"told": told, "int8": {}} for name, (_, told) in made.items()}
    for name, (model, _) in made.items():
        rows[name]["float"] = cli("evaluate", model, "--eval", shared("cifar10/eval.npz"))["accuracy"]
        for format_, suffix in FORMATS.items():
            out = folder / f"{name}.int8{suffix}"
            told = cli("quantize", model, *data, "--to", format_, "--out", out)
            rows[name]["int8"][format_] = {k: told[k] for k in ("accuracy", "size_bytes")}
    return {"epochs": epochs, "rows": rows}


def timed(kept: dict) -> dict:
    """The record with the latency of every int8 file, those of a runtime in turn."""
    folder, recipe, rows = cache("versus_torch_pruning"), Recipe(), kept["rows"]
    for format_, suffix in FORMATS.items():
        files = [folder / f"{name}.int8{suffix}" for name in rows]
        found = api.bench(files, replace(recipe, bench=replace(recipe.bench, seconds=4.5, threads=1)))["rows"]
        for name, row in zip(rows, found, strict=True):
            rows[name]["int8"][format_] |= {"p50_ms": row["latency"]["p50_ms"], "ratio": row["ratio"]}
    return kept


def page(kept: dict) -> list[str]:
    """The section of BENCHMARKS.md."""
    lines = [
        "## Half of ResNet-8 removed: torch-pruning beside ours",
        "",
        "Generated by benchmarks/versus_torch_pruning.py: both by Taylor importance on the 4,148 training images of",
        f"CIFAR-10 in multiples of 8 channels, then {kept['epochs']} epochs on the original's answers and the labels;",
        "int8 by our quantizer; 600 unseen images. torch-pruning prunes every group by the same share, as it does by",
        "default: widths in multiples of 8 leave it less than half.",
        "",
    ]
    rows = []
    for name, row in kept["rows"].items():
        cells = [TITLES[name], f"{_macs(row['told']):.1%}", f"{row['float']['top1']:.1%}"]
        for format_ in FORMATS:
            int8 = row["int8"][format_]
            p50 = f"{int8['p50_ms']:.3f}" if "p50_ms" in int8 else ""
            cells += [f"{int8['accuracy']['top1']:.1%}", p50, _ratio(int8.get("ratio"))]
        rows.append(cells)
    head = ["model", "MACs", "float top-1"]
    for runtime in ("LiteRT", "ONNX Runtime"):
        head += [f"{runtime} int8 top-1", "p50 ms", "to the original"]
    return [*lines, *table(head, rows)]


def _macs(told: dict) -> float:
    """The share of the multiply-accumulates that is left."""
    if "result" in told:
        return told["result"]["macs"]["after"] / told["result"]["macs"]["before"]
    return told.get("macs", 1.0)


def _ratio(ratio: dict | None) -> str:
    return "" if ratio is None else f"{ratio['median']:.3f} [{ratio['ci95'][0]:.3f}, {ratio['ci95'][1]:.3f}]"


if __name__ == "__main__":
    main()
