"""The deployable folder: model, runtime adapter, preprocessing, a runner, and golden outputs to check it by.

Everything in it is plain files; manifest.json lists them with their SHA-256 and says how they go together.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge import __version__
from lepton_edge import preprocess_core as core
from lepton_edge.errors import LeptonError
from lepton_edge.preprocess import Preprocess, image_layout
from lepton_edge.store import aside

SCHEMA = "lepton-edge.bundle/1"
TOLERANCE = 0.02  # of an output's largest value: kernels of another processor round elsewhere
OURS = frozenset(
    {
        "manifest.json",
        "runtime.py",
        "predict.py",
        "preprocess_core.py",
        "requirements.txt",
        "golden.npz",
        "README.md",
        "labels.txt",
    }
)


@dataclass(frozen=True)
class Adapter:
    """What a runtime file says of itself, and the requirements pinned to the versions at hand."""

    name: str
    package: str
    version: str | None
    formats: tuple[str, ...]
    requires: tuple[str, ...]


def write_bundle(
    folder: str | Path,
    *,
    artifact_path: str | Path,
    runtime_file: str | Path,
    ports: Mapping[str, Sequence[Mapping[str, Any]]],
    input_specs: Sequence[Mapping[str, Any]],
    preprocess: Preprocess,
    manifest_extra: Mapping[str, Any] | None = None,
    golden: tuple[Path, Path] | None = None,
    labels: Sequence[str] | None = None,
) -> Path:
    """Write the bundle of a model and return its folder; an older bundle there is replaced.

    ``ports`` lead from the source model ({"inputs": [{"name", "source", "perm"}], "outputs": [...]}), whose
    ``input_specs`` are {"name", "shape", "dtype"}. ``golden`` is two .npz files keyed by the source model's
    names: preprocessed inputs [count, ...] in the source's layout, and what this model answered,
    [count, ...] in its own layout. ``manifest_extra`` is kept as provenance; of it, "runtime" ({"version"}),
    "tolerance" and "kind" are used. Raises LeptonError, and then leaves nothing behind.
    """
    folder, artifact, extra = Path(folder), Path(artifact_path), dict(manifest_extra or {})
    adapter = _adapter(Path(runtime_file), extra.get("runtime"))
    format_, files = _model_files(artifact, adapter)
    specs = [{**spec, "shape": list(spec["shape"]), "dtype": str(spec["dtype"])} for spec in input_specs]
    prepared, resolved = _resolved(preprocess, specs)
    _check_ports(ports, specs)
    if folder.exists() and not (folder / "manifest.json").is_file() and (folder.is_file() or any(folder.iterdir())):
        raise LeptonError(f"{folder} exists and is not a bundle", "choose another folder")
    with aside(folder.absolute().parent) as scratch:
        part = scratch / "bundle"
        try:
            main = _copy_model(artifact, files, part)
            shutil.copyfile(runtime_file, part / "runtime.py")
            shutil.copyfile(core.__file__, part / "preprocess_core.py")
            shutil.copyfile(Path(__file__).parent / "templates" / "predict.py", part / "predict.py")
            (part / "requirements.txt").write_text(_requirements(adapter), encoding="utf-8")
            told, outputs = _golden(golden, ports, specs, part)
            if told:
                told["tolerance"] = float(extra.get("tolerance", TOLERANCE))
            if labels:
                _write_labels(labels, part)
            classifies = bool(labels) or (bool(outputs) and outputs[0].ndim == 2 and outputs[0].shape[1] > 1)
            manifest = {
                "schema": SCHEMA,
                "kind": extra.get("kind") or ("classification" if classifies else "tensors"),
                "tool": {"name": "lepton-edge", "version": __version__},
                "model": {"file": main, "format": format_},
                "runtime": {
                    "name": adapter.name,
                    "file": "runtime.py",
                    "package": adapter.package,
                    "version": adapter.version,
                    "requires": list(adapter.requires),
                },
                "inputs": specs,
                "ports": {side: [_port(port) for port in ports[side]] for side in ("inputs", "outputs")},
                "preprocess": resolved.to_dict(),
                "prepared": prepared,
                "image_sha256": _image_sha256(resolved),
                "labels": "labels.txt" if labels else None,
                "golden": told,
                "provenance": extra,
            }
            (part / "README.md").write_text(_readme(manifest), encoding="utf-8")
            manifest["files"] = _hashes(part)
            text = json.dumps(manifest, indent=1, default=str)
            (part / "manifest.json").write_text(text + "\n", encoding="utf-8")
            if folder.exists():
                folder.rename(scratch / "old")
            part.replace(folder)
        except OSError as error:
            raise LeptonError(f"{folder} cannot be written ({error.strerror or error})", "free some space") from error
    return folder


def _adapter(file: Path, loaded: Mapping[str, Any] | None) -> Adapter:
    """REQUIRES and FORMATS of a runtime file, read without importing it."""
    facts: dict[str, Any] = {}
    try:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name = node.targets[0].id
                if name in ("REQUIRES", "FORMATS"):
                    facts[name] = ast.literal_eval(node.value)
        formats, requires = tuple(facts["FORMATS"]), tuple(facts.get("REQUIRES", ()))
    except (OSError, SyntaxError, ValueError, KeyError) as error:
        raise LeptonError(f"{file} is not a runtime adapter ({error})", "it has to set REQUIRES and FORMATS") from error
    pinned = [
        _pin(requirement, (loaded or {}).get("version") if i == 0 else None) for i, requirement in enumerate(requires)
    ]
    package, _, version = (pinned[0] if pinned else "").partition("==")
    return Adapter(file.stem, package, version or None, formats, tuple(pinned))


def _pin(requirement: str, version: str | None) -> str:
    """``name==version`` for the version given, else the installed one, else the requirement as it is."""
    from importlib import metadata

    from packaging.requirements import Requirement

    name = Requirement(requirement).name
    try:
        return f"{name}=={version or metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return requirement


def _model_files(artifact: Path, adapter: Adapter) -> tuple[str, list[Path]]:
    """The model's format and every file that belongs to it; a plug-in's own format is one file."""
    from lepton_edge.artifact import open_artifact
    from lepton_edge.registry import formats

    if set(adapter.formats) & set(formats()):
        art = open_artifact(artifact)
        if art.format not in adapter.formats:
            raise LeptonError(
                f"{artifact} is {art.format}, which the runtime '{adapter.name}' does not run",
                f"it runs {', '.join(adapter.formats)}",
            )
        return art.format, [Path(file) for file in art.files]
    if not artifact.is_file():
        raise LeptonError(f"{artifact}: there is no such model file", "check the path")
    return adapter.formats[0], [artifact]


def _copy_model(artifact: Path, files: Sequence[Path], part: Path) -> str:
    """Copy the model under its own names, by which its files refer to each other; returns the main one."""
    base = artifact if artifact.is_dir() else artifact.parent
    name = artifact.name if artifact.name and artifact.name not in OURS else "model" + artifact.suffix
    for file in files:
        inner = file.resolve().relative_to(base.resolve())
        target = part / name / inner if artifact.is_dir() else part / (name if file == artifact else inner)
        if not artifact.is_dir() and file != artifact and inner.as_posix() in OURS:
            raise LeptonError(f"{file}: a model file cannot have this name in a bundle", "rename it")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return name


def _resolved(preprocess: Preprocess, specs: Sequence[Mapping[str, Any]]) -> tuple[str, Preprocess]:
    """Which input the preprocessing is for, and the preprocessing with everything filled from that input."""
    images = [spec for spec in specs if image_layout(spec["shape"][1:]) in ("NHWC", "NCHW")]
    if len(specs) != 1 and (len(images) != 1 or not preprocess.declared):
        return "", Preprocess()
    spec = specs[0] if len(specs) == 1 else images[0]
    takes_images = bool(images) or (preprocess.layout is not None and len(spec["shape"]) in (3, 4))
    return spec["name"], preprocess.resolve(spec["shape"][1:], spec["dtype"], images=takes_images)


def _image_sha256(preprocess: Preprocess) -> str | None:
    """The fingerprint of the image preparation; None where images cannot be an input at all."""
    if preprocess.layout is None or preprocess.color is None:
        return None
    try:
        return core.fingerprint(preprocess.to_dict())
    except core.PreprocessError:
        return None


def _check_ports(ports: Mapping[str, Sequence[Mapping[str, Any]]], specs: Sequence[Mapping[str, Any]]) -> None:
    known = [spec["name"] for spec in specs]
    for port in ports["inputs"]:
        if port["source"] not in known:
            raise LeptonError(
                f"input '{port['name']}' comes from '{port['source']}', which the source model does not have",
                f"it has {', '.join(known)}",
            )


def _port(port: Mapping[str, Any]) -> dict[str, Any]:
    perm = port.get("perm")
    return {
        "name": port["name"],
        "source": port["source"],
        "perm": [int(axis) for axis in perm] if perm else None,
    }


def _golden(
    golden: tuple[Path, Path] | None,
    ports: Mapping[str, Sequence[Mapping[str, Any]]],
    specs: Sequence[Mapping[str, Any]],
    part: Path,
) -> tuple[dict[str, Any] | None, list[np.ndarray]]:
    """Both .npz files as one, under numbered keys (names may hold slashes); its entry, and the outputs."""
    if golden is None:
        return None, []
    sides = []
    for path in golden:
        try:
            with np.load(path, allow_pickle=False) as stored:
                sides.append({name: stored[name] for name in stored.files})
        except (OSError, ValueError) as error:
            raise LeptonError(f"{path}: the golden samples cannot be read ({error})", "write them again") from error
    inputs, outputs = sides
    for wanted, given in (
        ([spec["name"] for spec in specs], inputs),
        ([port["source"] for port in ports["outputs"]], outputs),
    ):
        if set(wanted) != set(given):
            raise LeptonError(f"golden samples are for {sorted(given)}, and the model has {sorted(wanted)}", "")
    counts = {len(array) for array in (*inputs.values(), *outputs.values())}
    if len(counts) != 1:
        raise LeptonError(f"golden inputs and outputs hold different numbers of samples {sorted(counts)}", "")
    stored = {f"in{i}": array for i, array in enumerate(inputs.values())}
    stored |= {f"out{i}": array for i, array in enumerate(outputs.values())}
    np.savez_compressed(part / "golden.npz", **stored)  # type: ignore[arg-type]
    told = {"file": "golden.npz", "count": counts.pop(), "inputs": list(inputs), "outputs": list(outputs)}
    return told, list(outputs.values())


def _write_labels(labels: Sequence[str], part: Path) -> None:
    lines = [re.sub(r"\s+", " ", str(label)) for label in labels]
    (part / "labels.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _requirements(adapter: Adapter) -> str:
    lines = [requirement for requirement in adapter.requires if not requirement.startswith("numpy")]
    lines.append("numpy<2" if adapter.package == "tflite-runtime" else "numpy")
    return "\n".join([*lines, "# pillow is needed for JPEG and the like only", ""])


def _hashes(part: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted(path for path in part.rglob("*") if path.is_file()):
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        found[path.relative_to(part).as_posix()] = {
            "sha256": digest.hexdigest(),
            "size_bytes": path.stat().st_size,
        }
    return found


def _readme(manifest: Mapping[str, Any]) -> str:
    """How to run this very bundle."""
    runtime, takes = manifest["runtime"], manifest["preprocess"]["layout"] and manifest["preprocess"]["color"]
    sample = "photo.jpg" if takes else "samples.npy"
    inputs = "\n".join(f"- `{spec['name']}`: {spec['dtype']} {core.show(spec['shape'])}" for spec in manifest["inputs"])
    steps = {k: v for k, v in manifest["preprocess"].items() if v not in (None, 1.0, [0.0], [1.0])}
    done = ", ".join(f"{k} {_short(v)}" for k, v in steps.items()) if manifest["prepared"] else "none"
    version = f" {runtime['version']}" if runtime["version"] else ""
    camera = "\npython predict.py --camera 0" if takes else ""
    return f"""# {manifest["model"]["file"]}

Format {manifest["model"]["format"]}, for {runtime["package"] or runtime["name"]}{version}; bundled by \
{manifest["tool"]["name"]} {manifest["tool"]["version"]}.

```sh
python -m pip install -r requirements.txt
python predict.py --self-test
python predict.py {sample} --top 5
python predict.py --stream < file_names.txt    # a JSON line each{camera}
```

In a program, with this folder on the path:

```python
from predict import Model

outputs = Model(threads=1).predict("{sample}")   # a file, an array, or a dict of arrays by input name
```

Inputs of the model it was made from, which `predict` takes:

{inputs}

Preprocessing, applied by `predict`: {done}.

`--self-test` runs the samples in `golden.npz` and compares with the outputs recorded when the bundle was
made. Before anything is loaded, every file is checked against its SHA-256 in `manifest.json`.
"""


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_short(item) for item in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) and math.isfinite(value) else str(value)
