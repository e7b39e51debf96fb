"""ONNX to TFLite: our writer beside onnx2tf 2.6, on every ONNX model of the matrix.

    python benchmarks/versus_onnx2tf.py [--only TEXT ...] [--rounds N]

onnx2tf runs in the environment of its own that the fall-back step uses, on a static, folded copy of each model, which
is kinder than its plain command line. Each tool is one process a model; wall time and peak memory are measured, the
file is loaded in LiteRT and compared with ONNX Runtime on the same seeded samples (pass: cosine 0.9999 or better).
MobileNetV2 is then converted by both in turn for `--rounds` rounds, onnx2tf by its plain command line on a fresh copy.
Results: benchmarks/results/convert/versus.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

RESULT = HERE / "results" / "convert" / "versus.json"
STEPS = {"ours": "onnx_to_tflite", "onnx2tf": "onnx_to_tflite__onnx2tf"}
ONE = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("step", sys.argv[1])
step = importlib.util.module_from_spec(spec)
spec.loader.exec_module(step)
try:
    result = step.run(sys.argv[2], sys.argv[3], input_shapes=sys.argv[4], input_values=sys.argv[5])
    print("RESULT" + json.dumps({k: result[k] for k in ("inputs", "outputs")}))
except Exception as error:  # whatever a converter raises is its row in the table
    print("FAILED" + " ".join(str(error).split())[:300])
"""


LAUNCH = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(f"{code} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss}")
"""


def timed(command: list[str], folder: Path, limit: float = 600) -> tuple[str, float, float]:
    """(stdout, wall seconds, peak MB of the largest process) of one command.

    It is started by a small process: Linux hands the memory peak of a process down to what it forks.
    """
    env = os.environ | {"PYTHONPATH": str(HERE.parent), "TMPDIR": str(folder)}
    small = [sys.executable, "-S", "-c", LAUNCH, str(folder / "usage")]
    start = time.monotonic()
    with (folder / "stdout").open("w+b") as out, (folder / "stderr").open("w+b") as err:
        subprocess.run(
            [*small, "timeout", str(limit), *command], stdout=out, stderr=err, env=env, cwd=folder, check=True
        )
        seconds = time.monotonic() - start
        out.seek(0)
        text = out.read().decode(errors="replace")
    return text, seconds, int((folder / "usage").read_text().split()[1]) / 1024


def convert(model, path: Path, side: str, python: str, folder: Path) -> dict:
    """One conversion by one tool: its figures, and the file's ports where there is one."""
    from convert_table import without_paths

    from lepton_edge import registry

    step = next(s for s in registry.steps() if s.name == STEPS[side])
    shapes, values = _options(model.args)
    dst = folder / f"{side}.tflite"
    command = [python, "-c", ONE, str(step.file), str(path), str(dst), shapes, values]
    text, seconds, peak = timed(command, folder)
    line = next((x for x in reversed(text.splitlines()) if x.startswith(("RESULT", "FAILED"))), "FAILEDno answer")
    record = {"seconds": round(seconds, 2), "peak_mb": round(peak), "passed": False, "reason": ""}
    if line.startswith("FAILED"):
        return record | {"reason": without_paths(line.removeprefix("FAILED"))}
    return record | {"ports": json.loads(line.removeprefix("RESULT")), "file": str(dst)}


def _options(args: tuple[str, ...]) -> tuple[str, str]:
    pairs = list(zip(args[::2], args[1::2], strict=True))
    return tuple(";".join(v for k, v in pairs if k == name) for name in ("--input-shape", "--fix"))


def judge(model, path: Path, record: dict) -> dict:
    """The cosine of a made file with ONNX Runtime on 8 samples, laid into its record."""
    from lepton_edge import ports, run_feeds, stages
    from lepton_edge.artifact import open_artifact
    from lepton_edge.conversion import Conversion
    from lepton_edge.errors import LeptonError
    from lepton_edge.progress import Silent
    from lepton_edge.recipe import Data, Recipe

    shapes, values = _options(model.args)
    data = next((v for k, v in zip(model.args[::2], model.args[1::2], strict=True) if k == "--data"), None)
    ask = Conversion(shapes, values=values)
    made, file = record.pop("ports"), record.pop("file")
    try:
        with stages.road(Path(file).parent, Silent()) as road:
            source = stages.load_source(road, path, ask=ask)
            feeds = run_feeds.open_feeds(road, source, Recipe(data=Data(calibration=data)), seeded=True, ask=ask)
            start = source.model(feeds.evaluation)
            sides = (ports.after(start.inputs, made["inputs"]), ports.after(start.outputs, made["outputs"]))
            candidate = stages.Model(open_artifact(Path(file)), *sides)
            reference = stages.reference(road, source, feeds.evaluation)
            parity = stages.judge(reference, stages.answers(road, candidate, feeds.evaluation), None)["parity"]
    except LeptonError as error:
        return record | {"reason": error.message[:300]}
    passed = parity["cosine"] >= 0.9999
    reason = "" if passed else f"cosine {parity['cosine']:.6f}"
    return record | {"passed": passed, "cosine": parity["cosine"], "max_abs": parity["max_abs"], "reason": reason}


def interleaved(path: Path, python: str, rounds: int) -> dict:
    """Both tools on MobileNetV2 in turn: every round's seconds and MB."""
    from lepton_edge import registry

    step = next(s for s in registry.steps() if s.name == STEPS["ours"])
    found: dict[str, list] = {"ours": [], "onnx2tf": []}
    for _ in range(rounds):
        for side in found:
            with tempfile.TemporaryDirectory() as folder:
                copy = Path(folder) / "model.onnx"
                shutil.copyfile(path, copy)
                if side == "ours":
                    command = [sys.executable, "-c", ONE, str(step.file), str(copy), f"{folder}/out.tflite", "", ""]
                else:
                    command = [str(Path(python).parent / "onnx2tf"), "-i", str(copy), "-o", f"{folder}/out", "-n"]
                _, seconds, peak = timed(command, Path(folder))
                found[side].append([round(seconds, 2), round(peak)])
    medians = {s: [statistics.median(r[k] for r in rows) for k in (0, 1)] for s, rows in found.items()}
    ratio = [medians["ours"][k] / medians["onnx2tf"][k] for k in (0, 1)]
    return {"rounds": found, "median": medians, "ratio": {"seconds": ratio[0], "peak_mb": ratio[1]}}


def main() -> None:
    """Run the models asked for and keep the results."""
    from convert_models import models
    from convert_table import write_section

    from lepton_edge import envs, registry

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    step = next(s for s in registry.steps() if s.name == STEPS["onnx2tf"])
    pythons = {"ours": sys.executable, "onnx2tf": envs.ensure(step.name, step.python, step.requires)}
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {"models": {}}
    for model in [m for m in models() if m.format == "onnx"]:
        path = model.find()
        if path is None or (args.only and not any(t in model.name for t in args.only)):
            continue
        row = {}
        for side, python in pythons.items():
            with tempfile.TemporaryDirectory() as folder:
                row[side] = convert(model, path, side, python, Path(folder))
                if "ports" in row[side]:
                    row[side] = judge(model, path, row[side])
        kept["models"][model.name] = row
        shown = {
            s: (r["passed"], r.get("cosine"), r["seconds"], r["peak_mb"], r["reason"][:100]) for s, r in row.items()
        }
        print(model.name, shown, flush=True)
        if args.rounds and model.name == "mobilenet_v2":
            kept["interleaved"] = interleaved(path, pythons["onnx2tf"], args.rounds)
            print("interleaved", kept["interleaved"]["median"], kept["interleaved"]["ratio"], flush=True)
        kept["note"] = _note(kept, step.requires[0])
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(kept, indent=1) + "\n")
    write_section(HERE.parent / "BENCHMARKS.md", RESULT.parent)


def _note(kept: dict, tool: str) -> str:
    rows = kept["models"].values()
    ours, theirs = (sum(r[s]["passed"] for r in rows) for s in ("ours", "onnx2tf"))
    note = (
        f"{tool} passes {theirs} of {len(rows)} models, our writer alone {ours}; a pass is a file that loads in LiteRT "
        "with a cosine of 0.9999 or better to ONNX Runtime on seeded samples. Seconds and peak memory of one process. "
        "Where onnx2tf fails on silero_vad, its file takes the scalar `sr` as a vector (it no longer fits the model's "
        "signature); by its plain command line the file it writes does not load in LiteRT at all."
    )
    if pair := kept.get("interleaved"):
        m, r = pair["median"], pair["ratio"]
        note += (
            f" MobileNetV2 in turn, {len(pair['rounds']['ours'])} rounds, medians: ours {m['ours'][0]:.2f} s and "
            f"{m['ours'][1]:.0f} MB, onnx2tf {m['onnx2tf'][0]:.2f} s and {m['onnx2tf'][1]:.0f} MB: "
            f"{r['seconds']:.2f}x the time, {r['peak_mb']:.2f}x the memory."
        )
    return note


if __name__ == "__main__":
    main()
