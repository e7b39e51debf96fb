"""Do int8 files answer the same on Arm as here? Under qemu-user, runtime by runtime, sample by sample.

    python benchmarks/emulated.py [--samples N]

Needs qemu-user-static and mmdebstrap (Debian's packages), and the development data. The emulated processors get the
releases of the runtimes that are installed here. Each file is held against the same file in the same runtime here:
emulation says whether the answers are the same, never how fast they come.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import edge_models
import numpy as np
from common import RESULTS
from page import table, update

from lepton_edge import registry
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError
from lepton_edge.place import Here, Place, open_place

#: Emulated processors: what they have of int8 instructions, and the runtimes that install there.
PLACES = {
    "Cortex-A72 (Armv8.0)": ({"arch": "aarch64", "cpu": "cortex-a72"}, ("litert", "tflite_runtime", "onnxruntime")),
    "Cortex-A76 (dotprod)": ({"arch": "aarch64", "cpu": "cortex-a76"}, ("litert", "tflite_runtime", "onnxruntime")),
    "Cortex-A7 (Armv7, 32 bits)": ({"arch": "armhf", "cpu": "cortex-a7"}, ("tflite_runtime",)),
    "Haswell (AVX2, no VNNI)": ({"arch": "x86_64", "cpu": "Haswell"}, ("litert", "onnxruntime")),
}
FILES = {"litert": ["tflite", "MLPerf"], "tflite_runtime": ["tflite", "MLPerf"], "onnxruntime": ["onnx"]}


def main() -> None:
    """Run every file everywhere and write the section of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=48, help="evaluation samples (48)")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        models = {}
        for name in edge_models.SOURCES:
            made = edge_models.make(name)
            models[name] = {**made.files, "MLPerf": made.reference}
            samples(made.eval, folder / name, args.samples)
        here = Here(lambda: Path(tempfile.mkdtemp(dir=scratch)))
        native = {}
        for title, (reach, runtimes) in PLACES.items():
            device = Device("emulated", title, "emulated", "qemu", "host", reach=reach)
            place = open_place(device)
            try:
                for name, runtime, kind in cells(title, runtimes):
                    key = (name, runtime, kind)
                    file = models[name][kind]
                    if key not in native:
                        native[key] = answers(here, file, registry.runtime(runtime), folder / name, folder)
                    got = answers(place, file, registry.runtime(runtime), folder / name, folder)
                    row = {"processor": title, "model": name, "file": kind, **compare(native[key], got)}
                    if runtime == "tflite_runtime" and native[key]["step"]:
                        exact = reference(file, folder / name)
                        row["reference"] = {
                            "here": steps(exact, native[key]["y"], native[key]["step"]),
                            "there": steps(exact, got["y"], native[key]["step"]),
                        }
                    rows.append(row)
                    print(rows[-1], flush=True)
            finally:
                place.close()
    version = subprocess.run(["qemu-aarch64-static", "--version"], capture_output=True, text=True, check=True).stdout
    record = {"kind": "emulated", "emulator": version.splitlines()[0], "samples": args.samples, "rows": rows}
    (RESULTS / "emulated.json").write_text(json.dumps(record, indent=1) + "\n")
    write(record)


def cells(title: str, runtimes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(model, runtime, file): ours in the runtime's format, and MLPerf's TFLite file where it runs."""
    files = FILES | ({"onnxruntime": ["onnx", "onnx for AVX2"]} if "AVX2" in title else {})
    return [(name, r, kind) for r in runtimes for name in edge_models.SOURCES for kind in files[r]]


def reference(file: Path, samples: Path) -> np.ndarray:
    """The only output [count, classes] of a TFLite file in LiteRT's reference kernels, quantized as it comes."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    from lepton_edge import worker
    from lepton_edge.runtimes import litert

    interpreter = Interpreter(model_path=str(file), experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
    interpreter.allocate_tensors()
    session = litert.Session(interpreter, {})
    count, arrays, whole = worker._open_feed(str(samples))
    rows = [worker._answers(session, worker._sample(session, arrays, whole, i)) for i in range(count)]
    return np.concatenate([next(iter(row.values())) for row in rows])


def samples(file: Path, folder: Path, count: int) -> None:
    """Evaluation samples as an array [count, ...] of float32, for feeds by whatever name an input has."""
    folder.mkdir()
    with np.load(file) as arrays:
        np.save(folder / "0.npy", arrays["x"][:count].astype(np.float32))


def answers(place: Place, file: Path, runtime: registry.Runtime, samples: Path, scratch: Path) -> dict:
    """The only output [count, classes] of a file, its step where it is quantized, and the runtime's release."""
    with place.worker(f"running {file.name} in {runtime.name}", runtime) as worker:
        loaded = worker.call("load", file=place.send(runtime.file), model=place.send(file), options={"threads": 1})
        (port,) = loaded["inputs"]
        count = len(np.load(samples / "0.npy", mmap_mode="r"))
        feed = {"count": count, "inputs": [port["name"]], "files": {port["name"]: "0.npy"}}
        (samples / "feed.json").write_text(json.dumps(feed))
        there, back = place.folder(), Path(tempfile.mkdtemp(dir=scratch))
        worker.call("predict", feed=place.send(samples), out=there)
    place.fetch(there, back)
    step = loaded["outputs"][0].get("quantization", [None])[0]
    info = loaded["info"]
    return {"y": np.load(back / "0.npy"), "step": step, "runtime": f"{info['runtime']} {info['version']}"}


def compare(native: dict, other: dict) -> dict:
    """How far the answers are apart: in steps of the output's scale where it has one, else in its own unit."""
    if native["runtime"] != other["runtime"]:
        raise LeptonError(f"{other['runtime']} there, {native['runtime']} here", "compare equal releases")
    # A softmax in float at the end is another library's exponential.
    tolerance = 0.0 if native["step"] else 1e-6
    off = np.abs(native["y"].astype(np.float64) - other["y"]).reshape(len(native["y"]), -1).max(1)
    return {
        "runtime": native["runtime"],
        "same": int((off <= tolerance).sum()),
        "top1_same": int((native["y"].argmax(1) == other["y"].argmax(1)).sum()),
        "max_abs": float(off.max()),
        "max_lsb": round(float(off.max()) / native["step"]) if native["step"] else None,
    }


def steps(a: np.ndarray, b: np.ndarray, step: float) -> int:
    """The largest difference in steps of the output."""
    return round(float(np.abs(a - b).max()) / step)


def write(record: dict) -> None:
    """The section of BENCHMARKS.md."""
    n = record["samples"]
    rows = [
        [
            r["processor"], r["runtime"], r["model"], "MLPerf's" if r["file"] == "MLPerf" else f"ours, {r['file']}",
            f"{r['same']} of {n}", f"{r['top1_same']} of {n}",
            f"{r['max_abs']:.2g}" if r["max_lsb"] is None else f"{r['max_lsb']} LSB",
        ]
        for r in record["rows"]
    ]  # fmt: skip
    told = [
        f"- {r['runtime']}, {r['model']} of MLPerf, {r['processor']}: {r['reference']['there']} LSB from LiteRT's "
        f"reference kernels, {r['reference']['here']} LSB on this machine"
        for r in record["rows"]
        if "reference" in r
    ]
    head = ["processor (emulated)", "runtime", "model", "int8 file", "same answers", "same top-1", "largest difference"]
    update("emulated", [
        "## The same answers on other processors",
        "",
        f"int8 files on {n} evaluation samples, each against the same file in the same release of the runtime on this "
        f"machine (x86-64 with VNNI). Emulated by {record['emulator']}; written by `benchmarks/emulated.py`. Largest "
        "difference: in steps of an output that is quantized, else in probability (the same then means to 1e-6).",
        "",
        *table(head, rows),
        "",
        "tflite-runtime differs between processors, since its kernels for x86 round otherwise than TensorFlow Lite's "
        "reference kernels:",
        "",
        *told,
    ])  # fmt: skip


if __name__ == "__main__":
    for tool in ("qemu-aarch64-static", "mmdebstrap"):
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} was not found: apt-get install qemu-user-static mmdebstrap")
    main()
