"""Makes what is compared: the float model in each format, every rival's artefact, and ours."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
from accounting import Run, available_mb, measured
from common import BIN, HERE, ROOT, Missing, cache, cli, environment, last_words, shared
from models import Prepared

SPARE_MB = 3000  # of the system's available memory, left for others
TIMEOUT_S = 3600
FORMATS = {"onnxruntime": ".onnx", "litert": ".tflite", "openvino": ".xml"}
FORMAT_OF = {"onnxruntime": "onnx", "litert": "tflite", "openvino": "openvino"}
PRESETS = ("fast", "default", "best")


@dataclass
class Artefact:
    """One maker's result: the file for each runtime that can run it, what it took, or why there is none."""

    name: str
    title: str
    kind: str  # float, rival or ours
    files: dict[str, Path] = field(default_factory=dict)
    made: dict = field(default_factory=dict)
    error: str = ""
    refused: dict[str, str] = field(default_factory=dict)  # runtime: why the file does not go there

    def to_json(self) -> dict:
        """Plain data."""
        return {**vars(self), "files": {k: str(v) for k, v in self.files.items()}}


def rivals() -> dict[str, tuple[ModuleType, str]]:
    """Every rival's method: {"<script>-<method>": (script as a module, method)}."""
    sys.path.append(str(HERE / "rivals"))
    found = {}
    for file in sorted((HERE / "rivals").glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(f"rival_{file.stem}", file)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.update({f"{file.stem}-{method}": (module, method) for method in module.METHODS})
    return found


def rival(name: str, made_of: Prepared, again: bool = False) -> Artefact:
    """A rival's artefact of a model, from the cache while model, script and pins are the same.

    Where the rival needs more memory than there is, it is tried again with half of the samples, and the notes say so.
    """
    module, method = rivals()[name]
    script = Path(module.__file__ or "")
    pins = ROOT / "constraints" / "rivals" / f"{module.ENVIRONMENT}.txt"
    parts = [*(f.read_bytes() for f in (script, HERE / "rivals" / "_shared.py", pins, made_of.model, made_of.calib))]
    key = hashlib.sha256(b"".join(parts)).hexdigest()
    folder = cache("artefacts", made_of.name, name)
    record = folder / "made.json"
    if not again and record.is_file() and json.loads(record.read_text())["key"] == key:
        return known(made_of, name)
    shutil.rmtree(folder)
    folder.mkdir()
    made = Artefact(name, module.METHODS[method], "rival")
    try:
        _run_rival(made, module, method, made_of, folder)
        if "onnxruntime" in made.files:
            _to_openvino(made, folder)
    except Missing as error:
        made.error = str(error)
    record.write_text(json.dumps({"key": key, "artefact": made.to_json()}, indent=1))
    return made


def known(made_of: Prepared, name: str) -> Artefact:
    """An artefact that was made before. Raises Missing when there is none."""
    record = cache("artefacts", made_of.name, name) / "made.json"
    if not record.is_file():
        raise Missing(f"{name} has not been made for {made_of.name} yet: run without --only-latency first")
    told = json.loads(record.read_text())["artefact"]
    return Artefact(**{**told, "files": {k: Path(v) for k, v in told["files"].items()}})


def _run_rival(made: Artefact, module: ModuleType, method: str, made_of: Prepared, folder: Path) -> None:
    """Run a rival's script; fills in ``made`` or raises Missing with the reason."""
    source, calib = getattr(module, "SOURCE", "onnx"), made_of.calib
    arguments = ["--method", method, "--out", str(folder)]
    if source == "keras":
        if not hasattr(made_of.case, "SOURCE"):
            raise Missing("does not apply: it takes Keras models and SavedModels, this model is neither")
        arguments += ["--source", str(shared(made_of.case.SOURCE))]
    model = made_of.model
    if source == "tflite":
        model, calib = float_tflite(made_of)
    if made_of.case.TRANSFORMER:
        arguments.append("--transformer")
    python = environment(module.ENVIRONMENT)
    command = [str(python), str(module.__file__), "--model", str(model), "--calib", str(calib), *arguments]
    with np.load(made_of.calib) as arrays:
        count, notes = len(arrays[arrays.files[0]]), []
    limit = available_mb() - SPARE_MB
    while True:
        done = measured([*command, "--samples", str(count)], memory_mb=limit, timeout_s=TIMEOUT_S)
        if done.ended != "memory" or count < 20:
            break
        notes.append(f"out of memory at {limit / 1024:.1f} GiB with {count} samples")
        count //= 2
    told = _answer(done)
    made.files = {runtime: Path(file) for runtime, file in told["artefacts"].items()}
    made.made = {
        "seconds": told["seconds"],
        "wall_s": done.wall_s,
        "peak_mb": done.peak_mb,
        "samples": count if method in module.CALIBRATES else None,
        "versions": told["versions"],
        "notes": [*notes, *told["notes"]],
    }


def _answer(done: Run) -> dict:
    if done.ended:
        raise Missing(f"ended by us, out of {done.ended} after {done.wall_s:.0f} s at {done.peak_mb:.0f} MB")
    if done.code:
        raise Missing(f"failed: {last_words(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def _to_openvino(made: Artefact, folder: Path) -> None:
    """The rival's QDQ file is also what OpenVINO reads; a file it refuses is a row with the reason."""
    target = folder / "from_onnx.xml"
    script = HERE / "rivals" / "_onnx_to_ir.py"
    command = [sys.executable, str(script), str(made.files["onnxruntime"]), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        made.refused["openvino"] = f"OpenVINO cannot read it: {last_words(done.stderr)}"
    else:
        made.files["openvino"] = target


def floats(made_of: Prepared) -> Artefact:
    """The float model for each runtime, converted by the project's own CLI."""
    made = Artefact("float32", "float32", "float", {"onnxruntime": made_of.model})
    for runtime in ("litert", "openvino"):
        try:
            made.files[runtime] = _converted(made_of, runtime)
        except Missing as error:
            made.refused[runtime] = str(error)
    return made


def _converted(made_of: Prepared, runtime: str) -> Path:
    out = cache("artefacts", made_of.name, "float32") / f"model{FORMATS[runtime]}"
    stamp = out.with_name(f"{runtime}.made")
    if not (stamp.is_file() and stamp.read_text() == made_of.facts["model_sha256"]):
        cli("convert", made_of.model, "--to", FORMAT_OF[runtime], "-o", out, "--data", made_of.eval)
        stamp.write_text(made_of.facts["model_sha256"])
    return out


def float_tflite(made_of: Prepared) -> tuple[Path, Path]:
    """The float TFLite file, and the calibration samples under the names and in the layout of its inputs."""
    from lepton_edge import run_feeds, stages
    from lepton_edge.progress import Silent

    model = _converted(made_of, "litert")
    with stages.road(cache("scratch"), Silent()) as road:
        ports, _ = run_feeds.match(stages.load_source(road, made_of.model), own := stages.load_source(road, model))
    types = {spec["name"]: spec["dtype"] for spec in own.inputs}
    calib = model.with_name("calib.npz")
    with np.load(made_of.calib) as arrays:
        moved = {p.name: np.transpose(arrays[p.source], p.perm) if p.perm else arrays[p.source] for p in ports}
        np.savez(calib, **{name: array.astype(types[name]) for name, array in moved.items()})
    return model, calib


def has_presets() -> bool:
    """Whether this checkout's `lepton-edge quantize` takes --preset."""
    told = subprocess.run([str(BIN / "lepton-edge"), "quantize", "--help"], capture_output=True, text=True, check=True)
    return "--preset" in told.stdout


def ours(made_of: Prepared, presets: tuple[str, ...] = PRESETS) -> list[Artefact]:
    """Our artefacts, one a preset, each made as a user would for one format after the other, from an empty cache."""
    chosen: tuple[str | None, ...] = presets if has_presets() else (None,)
    return [_ours(made_of, preset) for preset in chosen]


def _run(made_of: Prepared, runtime: str, out: Path, extra: list[str], store: str) -> Run:
    """Our command for one format; what an earlier one quantized is taken from the store."""
    command = [str(BIN / "lepton-edge"), "quantize", str(made_of.model), "--data", str(made_of.calib)]
    command += ["--eval", str(made_of.eval), "--to", FORMAT_OF[runtime], "-o", str(out), *extra, "--json"]
    return measured(command, timeout_s=TIMEOUT_S, environ={"LEPTON_EDGE_CACHE": store})


def _ours(made_of: Prepared, preset: str | None) -> Artefact:
    name = f"ours-{preset}" if preset else "ours"
    made = Artefact(name, f"lepton-edge {preset}" if preset else "lepton-edge", "ours")
    folder = cache("artefacts", made_of.name, name)
    extra = ["--preset", preset] if preset else []
    with tempfile.TemporaryDirectory(dir=cache("scratch")) as fresh:
        runs = {
            runtime: _run(made_of, runtime, folder / f"model{suffix}", extra, fresh)
            for runtime, suffix in FORMATS.items()
        }
    for runtime, suffix in FORMATS.items():
        out, done = folder / f"model{suffix}", runs[runtime]
        if done.code:
            made.refused[runtime] = f"failed: {done.ended or last_words(done.stderr)}"
            continue
        told = json.loads(done.stdout)
        made.files[runtime] = out
        steps = {s["step"]: s["seconds"] for s in told["steps"]}
        notes = [n for s in told["steps"] for n in s["notes"]]
        made.made[runtime] = {"wall_s": done.wall_s, "peak_mb": done.peak_mb, "steps_s": steps, "notes": notes}
    if not made.files:
        made.error = "; ".join(f"{k}: {v}" for k, v in made.refused.items())
    (folder / "made.json").write_text(json.dumps({"key": "", "artefact": made.to_json()}, indent=1))
    return made
