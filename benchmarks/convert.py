"""Every source x target of the conversion matrix, as a user would type it; writes results and the table.

    python benchmarks/convert.py [--only TEXT ...] [--failed] [--dtype float32|float16|int8] [--page]

A cell is one `lepton-edge convert MODEL --to TARGET --json` with an empty store: it passes when the command succeeds
(the file loads in its runtime) and the cosine with the source is 0.9999 or better (0.999 where weights are rounded to
float16). int8 is for sources that compute on integers already: 0.99, and there have to be integers in the file.
Seconds are wall clock, peak memory is the largest of its processes. Results are kept in benchmarks/results/convert/;
`--failed` runs only the cells that did not pass there, `--page` only writes the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from convert_models import HERE, Model, cache, models, quantized
from convert_table import without_paths, write_section

RESULTS = HERE / "results" / "convert"
TARGETS = ("tflite", "onnx", "openvino")
BAR = {"float32": 0.9999, "float16": 0.999, "int8": 0.99}
LIMIT_S = 900


def run_cell(model: Model, path: Path, target: str, dtype: str) -> dict:
    """Convert one model to one target; the cell's record."""
    suffix = {"tflite": ".tflite", "onnx": ".onnx", "openvino": ".xml"}[target]
    command = [str(Path(sys.executable).parent / "lepton-edge"), "convert", str(path), "--to", target, "--json"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"out{suffix}"
        command += ["--out", str(out), *(["--dtype", "float16"] if dtype == "float16" else []), *model.args]
        env = os.environ | {"LEPTON_EDGE_CACHE": str(Path(folder) / "store"), "LEPTON_EDGE_TIMEOUT": str(LIMIT_S)}
        start = time.monotonic()
        with (Path(folder) / "out").open("w+b") as stdout, (Path(folder) / "err").open("w+b") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=env)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            stdout.seek(0)
            text = stdout.read().decode()
        seconds = time.monotonic() - start
        kept = integers(out) if dtype == "int8" and not process.returncode else None
    cell = {
        "model": model.name, "source": model.format, "target": target, "dtype": dtype,
        "seconds": round(seconds, 2), "peak_mb": round(usage.ru_maxrss / 1024), "exit": process.returncode,
    }  # fmt: skip
    cell |= _figures(text, BAR[dtype], process.returncode)
    if kept is not None:
        cell["integers"] = kept
        if cell["passed"] and not kept:
            cell |= {"passed": False, "reason": "no tensor of it is int8"}
    return cell


def integers(path: Path) -> int:
    """How many tensors of a model are 8-bit integers."""
    command = [str(Path(sys.executable).parent / "lepton-edge"), "inspect", str(path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return sum(json.loads(done.stdout)["quantized"].get(f"{kind}_tensors", 0) for kind in ("int8", "uint8"))


def _figures(text: str, bar: float, code: int) -> dict:
    try:
        record = json.loads(text)
    except json.JSONDecodeError:
        return {"passed": False, "reason": f"exit code {code} without a document"}
    if code or "parity" not in record:
        return {"passed": False, "reason": without_paths(record.get("error", {}).get("message", f"exit code {code}"))}
    parity = record["parity"]
    passed = parity["cosine"] >= bar
    return {
        "passed": passed,
        "reason": "" if passed else f"cosine {parity['cosine']:.6f}",
        "max_abs": parity["max_abs"],
        "cosine": parity["cosine"],
        "sqnr_db": parity["sqnr_db"],
        "bytes": record["size_bytes"],
        "steps": [s["step"] for s in record["steps"] if s["step"] != "detour"],
        "detours": [n for s in record["steps"] if s["step"] == "detour" for n in s["notes"]],
        "transposes": record.get("transposes"),
        "operators": sum(record.get("operators", {}).values()),
    }


def machine() -> dict:
    """What the figures were measured on."""
    from importlib.metadata import version

    from lepton_edge.host import host_info

    names = (
        "ai-edge-litert",
        "onnxruntime",
        "openvino",
        "onnx",
        "tensorflow",
        "keras",
        "torch",
        "litert-torch",
        "tf2onnx",
    )
    host = host_info()
    return {
        "cpu": host["cpu"], "cores": host["cores"], "python": platform.python_version(),
        "packages": {n: version(n) for n in names},
    }  # fmt: skip


def keep(file: Path, key: tuple[str, str, str], cell: dict) -> None:
    """Lay one cell into the results (which another run may be filling too): aside, then renamed."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    cells = load(file) | {key: cell}
    part = file.with_suffix(f".{os.getpid()}.part")
    rows = ",\n".join(json.dumps(c) for _, c in sorted(cells.items()))
    part.write_text(f'{{"machine": {json.dumps(machine())}, "cells": [\n{rows}\n]}}\n')
    part.replace(file)


def load(file: Path) -> dict[tuple, dict]:
    """The cells kept from earlier runs, by (source, model, target)."""
    if not file.is_file():
        return {}
    return {(c["source"], c["model"], c["target"]): c for c in json.loads(file.read_text())["cells"]}


def main() -> None:
    """Run the cells asked for, one at a time, keeping each result as it comes; then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="cells whose 'source model target' holds one of these")
    parser.add_argument("--failed", action="store_true", help="only cells that have not passed yet")
    parser.add_argument("--dtype", default="float32", choices=list(BAR))
    parser.add_argument("--page", action="store_true", help="only write the table")
    args = parser.parse_args()
    file = RESULTS / f"{args.dtype}.json"
    cells = load(file)
    print(f"models are kept in {cache()}")
    for model in [] if args.page else quantized() if args.dtype == "int8" else models():
        path = None
        for target in TARGETS:
            key = (model.format, model.name, target)
            wanted = not args.only or any(text in " ".join(key) for text in args.only)
            if target == model.format or not wanted or (args.failed and cells.get(key, {}).get("passed")):
                continue
            path = path or model.find()
            if path is None:
                print(*key, "left out: the model cannot be had")
                continue
            cells[key] = run_cell(model, path, target, args.dtype)
            cell = cells[key]
            verdict = f"cosine {cell['cosine']:.7f}" if cell["passed"] else f"FAILED {cell['reason'][:300]}"
            print(*key, f"{cell['seconds']:.0f} s {cell['peak_mb']} MB", verdict, flush=True)
            keep(file, key, cell)
    write_section(HERE.parent / "BENCHMARKS.md", RESULTS)


if __name__ == "__main__":
    main()
