"""Peak memory and wall time of calibration as the samples grow, MobileNetV2: ours against ONNX Runtime.

    python benchmarks/calibration_memory.py [--ours "--option value ..."] ... [--only ours|rivals]

Samples are made from the calibration photographs by mirroring, shifting and changing light. Every command runs with
all its processes accounted for and is stopped when it would take more memory than the system can spare, for ONNX
Runtime's entropy calibration keeps every tensor of every sample. Ours is called as a user would, with an empty cache.
It verifies what it made on a few evaluation images, which are in its figures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import zipfile
from pathlib import Path

import artefacts
import models
import numpy as np
from accounting import Run, available_mb, measured
from common import BIN, HERE, RESULTS, cache, environment, last_words
from quantization import stamp
from quantization_page import write_section

COUNTS = (100, 300, 3000)
RIVAL_COUNTS = {"minmax": (100, 300), "entropy": (100, 300)}
VERIFIED = 32
ALONE = "--recipe calibration-alone"  # all samples observed, weights to the nearest, nothing else done
RECIPE = '[quantize]\nrung = "ranges"\n'
PATH = RESULTS / "quantization" / "calibration_memory.json"


def main() -> None:
    """Measure what is asked for, keep it beside what is known, and write the section of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", action="append", metavar="OPTIONS", help="options of `lepton-edge quantize` (repeat)")
    parser.add_argument("--only", choices=["ours", "rivals"])
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="samples (100 300 3000)")
    args = parser.parse_args()
    presets = ["--preset fast", "--preset default", *(f"--ranges {m} {ALONE}" for m in ("entropy", "mse"))]
    made_of = models.prepare("mobilenet_v2")
    known = {(r["tool"], r["samples"]): r for r in (json.loads(PATH.read_text())["rows"] if PATH.is_file() else [])}
    for count in args.counts:
        data = samples(made_of, count)
        if args.only != "rivals":
            for options in args.ours or presets:
                keep(known, f"lepton-edge {options}".strip(), count, ours(made_of, data, count, options.split()))
        if args.only != "ours":
            for method, counts in RIVAL_COUNTS.items():
                if count in counts:
                    keep(known, f"onnxruntime {method}", count, rival(made_of, data, count, method))
    rows = sorted(known.values(), key=lambda r: (r["tool"], r["samples"]))
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(json.dumps({"rows": rows, **stamp()}, indent=1) + "\n")
    write_section()


def keep(known: dict, tool: str, count: int, done: Run) -> None:
    """Add a row: wall seconds, peak MiB, and how it ended where that was not well."""
    why = f"stopped, out of {done.ended}" if done.ended else last_words(done.stderr) if done.code else ""
    row = {"tool": tool, "samples": count, "wall_s": done.wall_s, "peak_mb": done.peak_mb, "error": why}
    known[tool, count] = row
    print(f"{tool}, {count} samples: {done.wall_s:.1f} s, {done.peak_mb:,.0f} MB {why}", flush=True)


def samples(made_of: models.Prepared, count: int) -> Path:
    """An .npz of ``count`` normalised images, changed copies of the calibration set; written one by one."""
    path = cache("models") / f"calibration-{count}.npz"
    if path.is_file():
        return path
    with np.load(made_of.calib) as arrays:
        base = arrays["input"]
    rng, part = np.random.default_rng(0), path.with_suffix(".part")
    with (
        zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive,
        archive.open("input.npy", "w", force_zip64=True) as f,
    ):
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *base.shape[1:])}
        np.lib.format.write_array_header_1_0(f, header)
        for k in range(count):
            image = base[k % len(base)]
            if k >= len(base):
                image = image[:, :, ::-1] if rng.random() < 0.5 else image
                image = np.roll(image, rng.integers(-16, 17, 2), (1, 2)) * np.float32(rng.uniform(0.8, 1.2))
            f.write(np.ascontiguousarray(image, np.float32).tobytes())
    part.replace(path)
    return path


def ours(made_of: models.Prepared, data: Path, count: int, options: list[str]) -> Run:
    """Our command on ``count`` samples."""
    few = cache("models") / f"verified-{VERIFIED}.npz"
    if not few.is_file():
        with np.load(made_of.eval) as arrays:
            np.savez(few, **{k: arrays[k][:VERIFIED] for k in arrays.files})
    with tempfile.TemporaryDirectory(dir=cache("scratch")) as fresh:
        recipe = Path(fresh) / "recipe.toml"
        recipe.write_text(RECIPE)
        options = [str(recipe) if o == "calibration-alone" else o for o in options]
        command = [str(BIN / "lepton-edge"), "quantize", str(made_of.model), "--data", str(data), "--eval", str(few)]
        command += ["--samples", str(count), "-o", str(Path(fresh) / "model.onnx"), "--quiet", *options]
        return measured(command, environ={"LEPTON_EDGE_CACHE": fresh}, timeout_s=artefacts.TIMEOUT_S)


def rival(made_of: models.Prepared, data: Path, count: int, method: str) -> Run:
    """ONNX Runtime's quantize_static on ``count`` samples, within the memory there is."""
    with tempfile.TemporaryDirectory(dir=cache("scratch")) as out:
        script = [str(environment("onnxruntime")), str(HERE / "rivals" / "ort.py"), "--method", method, "--out", out]
        command = [*script, "--model", str(made_of.model), "--calib", str(data), "--samples", str(count)]
        limit = available_mb() - artefacts.SPARE_MB
        return measured(command, memory_mb=limit, timeout_s=artefacts.TIMEOUT_S)


if __name__ == "__main__":
    main()
