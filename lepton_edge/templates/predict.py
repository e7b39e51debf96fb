#!/usr/bin/env python3
"""Run the model of this folder.

    python predict.py photo.jpg --top 5        python predict.py samples.npz --json
    python predict.py --camera 0               python predict.py --stdin < photo.jpg
    python predict.py --self-test              python predict.py --stream < file_names

    from predict import Model, frame
    outputs = Model().predict(array)           # {name: array [samples, ...]}; also a file, its bytes, frame("0")

Standard library, numpy and the runtime in requirements.txt; Pillow only for JPEG and the like.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

HERE = Path(__file__).resolve().parent
SCHEMA = "lepton-edge.bundle/1"
CAMERAS = (  # each writes one PNG; sensors on a connector have numbers only
    "rpicam-still -n -t 500 -e png --camera {number} -o -",
    "libcamera-still -n -t 500 -e png --camera {number} -o -",
    "fswebcam -q --no-banner --png 1 -d {device} -",
    "ffmpeg -v error -f v4l2 -i {device} -frames:v 1 -f image2pipe -c:v png -",
)


class BundleError(Exception):
    """The bundle, or what it was given, cannot be used; the message is one line."""


class Model:
    """The bundle's model with its preprocessing; every file is checked before any of them is loaded."""

    def __init__(self, folder: str | Path = HERE, threads: int = 1) -> None:
        self.folder = Path(folder)
        self.manifest = check(self.folder)
        self._core = _module(self.folder / "preprocess_core.py")
        runtime = _module(_inside(self.folder, self.manifest["runtime"]["file"]))
        try:
            self._session = runtime.load(str(_inside(self.folder, self.manifest["model"]["file"])), threads=threads)
        except ImportError as error:
            needed = " ".join(self.manifest["runtime"]["requires"])
            raise BundleError(
                f"the runtime is missing ({error}): pip install -r requirements.txt ({needed})"
            ) from error
        self.inputs, self.ports = self.manifest["inputs"], self.manifest["ports"]
        self.labels = self._labels()

    def predict(self, data) -> dict:
        """Outputs {name: array [samples, ...]} for raw data, preprocessed as the manifest says.

        `data` is a file (image, .npy, .npz) or its bytes, a `frame`, an array (one sample or a batch of them, raw
        pixel values for images), or a dict of arrays by input name. Raises BundleError, or ValueError from the runtime.
        """
        try:
            return self.run(self.prepare(data))
        except self._core.PreprocessError as error:
            raise BundleError(str(error)) from error

    def prepare(self, data) -> dict:
        """Model-ready batches {input name: array [samples, ...]} of raw data."""
        if isinstance(data, bytes):
            with tempfile.NamedTemporaryFile() as file:
                file.write(data)
                file.flush()
                data = self._read(Path(file.name))
        if isinstance(data, (str, Path)):
            data = self._read(Path(data))
        if isinstance(data, _Image):
            config = self.manifest["preprocess"]
            if not config["layout"]:
                raise BundleError("this model does not take images: give a .npy or .npz file")
            return {self.manifest["prepared"]: self._core.images(data.pixels[None], config)}
        if not isinstance(data, dict):
            if len(self.inputs) != 1:
                raise BundleError(f"the model takes {len(self.inputs)} inputs: give a dict of arrays")
            data = {self.inputs[0]["name"]: data}
        missing = [spec["name"] for spec in self.inputs if spec["name"] not in data]
        if missing:
            raise BundleError(f"no array is given for input '{missing[0]}' (there is {', '.join(data)})")
        return {spec["name"]: self._batch(spec, np.asarray(data[spec["name"]])) for spec in self.inputs}

    def run(self, batches: dict) -> dict:
        """Outputs {name: array [samples, ...]} for model-ready batches in the source model's layout."""
        rows = [
            {port["source"]: _unbatched(_undo(answer[port["name"]], port["perm"])) for port in self.ports["outputs"]}
            for answer in self.answers(batches)
        ]
        outputs = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            alike = len({value.shape for value in values}) == 1
            outputs[name] = np.stack(values) if alike else values
        return outputs

    def answers(self, batches: dict):
        """Yield what the runtime itself returns for each sample, under the shipped model's names."""
        counts = {len(batch) for batch in batches.values()}
        if len(counts) != 1 or counts == {0}:
            raise BundleError(f"the inputs hold {sorted(counts)} samples: give as many of each, at least one")
        specs = {spec["name"]: spec for spec in self._session.inputs}
        whole = [spec["name"] for spec in self.inputs if spec.get("whole")]
        for i in range(counts.pop()):
            feeds = {}
            for port in self.ports["inputs"]:
                spec, sample = specs[port["name"]], batches[port["source"]][i : i + 1]
                sample = sample[0, ...] if port["source"] in whole else sample
                sample = sample if not port["perm"] else sample.transpose(port["perm"])
                if any(size not in (None, n) for size, n in zip(spec["shape"], sample.shape)):
                    raise BundleError(
                        f"input '{port['source']}': this model was made for {spec['shape']}, not {list(sample.shape)}"
                    )
                feeds[port["name"]] = np.array(self._stored(sample, spec), order="C")
            yield self._real(self._session.run(feeds))

    def _stored(self, sample, spec: dict):
        """Real numbers as an input stores them."""
        if "quantization" not in spec:
            return self._core.cast(sample, spec["dtype"])
        scale, zero_point = spec["quantization"]
        limits = np.iinfo(spec["dtype"])
        return np.clip(np.round(sample / scale) + zero_point, limits.min, limits.max).astype(spec["dtype"])

    def _real(self, outputs: dict) -> dict:
        """Quantized outputs as the real numbers they stand for."""
        for spec in self._session.outputs:
            if "quantization" in spec:
                scale, zero_point = spec["quantization"]
                stored = outputs[spec["name"]].astype(np.float32)
                outputs[spec["name"]] = (stored - zero_point) * np.float32(scale)
        return outputs

    def top(self, outputs: dict, count: int = 5):
        """The best classes of each sample, [{"index", "label", "score"}], or None where there are none."""
        scores = next((value for value in outputs.values() if getattr(value, "ndim", 0) == 2), None)
        if self.manifest["kind"] != "classification" or scores is None or scores.shape[1] < 2:
            return None
        best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :count]
        return [
            [{"index": int(k), "label": self._label(k), "score": float(row[k])} for k in chosen]
            for row, chosen in ((scores[i], best[i]) for i in range(len(scores)))
        ]

    def self_test(self) -> list:
        """Compare with what the tool saw: [{"what", "difference", "allowed", "ok"}]."""
        golden, results = self.manifest.get("golden"), []
        image = self.manifest.get("image_sha256")
        if image:
            same = self._core.fingerprint(self.manifest["preprocess"]) == image
            results.append({"what": "preprocessing", "difference": 0 if same else 1, "allowed": 0, "ok": same})
        if not golden:
            return results
        with np.load(_inside(self.folder, golden["file"]), allow_pickle=False) as stored:
            batches = {name: stored[f"in{i}"] for i, name in enumerate(golden["inputs"])}
            wanted = {name: stored[f"out{i}"] for i, name in enumerate(golden["outputs"])}
        rows = list(self.answers(batches))
        for port in self.ports["outputs"]:
            if port["source"] in wanted:
                found = np.stack([_unbatched(row[port["name"]]) for row in rows])
                results.append(_compare(port["source"], found, wanted[port["source"]], golden["tolerance"]))
        return results

    def _read(self, path: Path):
        if not path.is_file():
            raise BundleError(f"{path}: there is no such file")
        with path.open("rb") as stream:
            head = stream.read(6)
        if not head.startswith((b"PK", b"\x93NUMPY")):
            return _Image(self._core.decode(path))
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        if len(self.inputs) == 1 and self.inputs[0]["name"] not in arrays and "x" in arrays:
            return {self.inputs[0]["name"]: arrays["x"]}
        return arrays

    def _batch(self, spec: dict, array: np.ndarray) -> np.ndarray:
        """One raw array, a single sample or a batch, as a model-ready batch."""
        shape, config = spec["shape"][1:], self.manifest["preprocess"]
        if spec["name"] != self.manifest["prepared"]:
            config = dict(config, scale=1.0, mean=[0.0], std=[1.0], layout=None, size=None, color=None)
        config = dict(config, dtype=spec["dtype"])
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise BundleError(f"the array for input '{spec['name']}' holds NaN or infinity")
        for batch, chosen in _readings(array, config, len(shape)):
            try:
                self._core.arrangement(batch.shape[1:], chosen, shape)
            except self._core.PreprocessError:
                continue
            return self._core.prepare(batch, chosen, shape)
        raise BundleError(
            f"input '{spec['name']}' takes samples of shape {self._core.show(shape)}, not {list(array.shape)}"
        )

    def _labels(self) -> list:
        name = self.manifest.get("labels")
        return _inside(self.folder, name).read_text(encoding="utf-8").splitlines() if name else []

    def _label(self, index: int) -> str:
        return self.labels[index] if index < len(self.labels) else str(index)


class _Image(NamedTuple):
    """Decoded pixels, uint8 [height, width, channels]."""

    pixels: np.ndarray


def frame(camera: str):
    """One frame of a camera (its number or device file), for `Model.predict`: from OpenCV, or a tool that is there."""
    number, tried = camera if camera.isdigit() else "", []
    if importlib.util.find_spec("cv2"):
        opened = importlib.import_module("cv2").VideoCapture(int(number) if number else camera)
        read, pixels = opened.read()
        if read:
            return _Image(np.ascontiguousarray(pixels[:, :, ::-1]))
        tried.append("OpenCV gets no frame")
    for line in CAMERAS:
        device = f"/dev/video{number}" if number else camera
        command = [word.format(number=number, device=device) for word in line.split()]
        if "" in command or not shutil.which(command[0]):
            continue
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        if done.returncode == 0 and done.stdout:
            return done.stdout
        tried.append(f"{command[0]}: {done.stderr.decode(errors='replace').strip() or 'no frame'}")
    raise BundleError(f"camera {camera}: {'; '.join(tried) or 'no OpenCV, rpicam-still, fswebcam or ffmpeg here'}")


def _readings(array: np.ndarray, config: dict, rank: int):
    """What an array may be, likeliest first: a batch or one sample; only then pictures of another size."""
    exact = dict(config, size=None)
    both = (array, array[None]) if array.ndim > rank else (array[None], array)
    readings = [(batch, exact) for batch in both]
    if array.dtype == np.uint8 and array.ndim == 4:
        readings.append((array, config))
    elif array.dtype == np.uint8 and (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        readings.append((array[None], config))
    return readings


def check(folder: Path) -> dict:
    """The manifest, once every file it lists is there unchanged. Raises BundleError."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / 'manifest.json'} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise BundleError(f"{folder / 'manifest.json'} is not a {SCHEMA} manifest")
    files = manifest["files"]
    for name in (manifest["model"]["file"], manifest["runtime"]["file"], "preprocess_core.py"):
        if not any(listed == name or listed.startswith(f"{name}/") for listed in files):
            raise BundleError(f"the manifest does not list {name}")
    for name, facts in files.items():
        path = _inside(folder, name)
        if not path.is_file():
            raise BundleError(f"{name} is missing from the bundle: copy the folder again")
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        if digest.hexdigest() != facts["sha256"]:
            raise BundleError(f"{name} was changed or damaged (its SHA-256 differs): copy the folder again")
    return manifest


def _inside(folder: Path, name: str) -> Path:
    """A file of the bundle; BundleError for a name that leads out of its folder."""
    path = folder / name
    if Path(name).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
        raise BundleError(f"the manifest names a file outside of the bundle: {name}")
    return path


def _module(path: Path):
    name = f"lepton_bundle_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BundleError(f"{path} cannot be loaded as a module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _undo(array: np.ndarray, perm) -> np.ndarray:
    return array.transpose(np.argsort(perm)) if perm and len(perm) == array.ndim else array


def _unbatched(array: np.ndarray) -> np.ndarray:
    return array[0] if array.ndim and array.shape[0] == 1 else array


def _compare(name: str, found: np.ndarray, wanted: np.ndarray, tolerance: float) -> dict:
    """Largest difference against a share of the largest value; indices and flags have to be equal."""
    if found.size != wanted.size:
        return {"what": name, "difference": None, "allowed": 0, "ok": False}
    wanted, found = wanted.reshape(-1), found.reshape(-1)
    whole = wanted.dtype.kind == "b" or (wanted.dtype.kind in "iu" and wanted.dtype.itemsize > 2)
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    allowed = 0.0 if whole else float(tolerance * np.abs(wanted).max(initial=0.0))
    difference = float(np.abs(found - wanted).max(initial=0.0))
    return {"what": name, "difference": difference, "allowed": allowed, "ok": bool(difference <= allowed)}


def _show(model: Model, outputs: dict, count: int) -> str:
    top, lines = model.top(outputs, count), []
    for i, best in enumerate(top or []):
        head = f"sample {i}: " if len(top) > 1 else ""
        lines += [f"{head}{one['score']:10.4f}  {one['index']:5d}  {one['label']}" for one in best]
    for name, value in () if top else outputs.items():
        flat = np.concatenate([np.asarray(v).reshape(-1) for v in value])
        values = " ".join(f"{v:.5g}" for v in flat[:8])
        lines.append(f"{name}: {list(np.shape(value[0]))} x {len(value)}: {values}{' ...' if flat.size > 8 else ''}")
    return "\n".join(lines)


def _test(model: Model, as_json: bool) -> int:
    results = model.self_test()
    if not results:
        raise BundleError("this bundle carries nothing to compare with")
    ok = all(result["ok"] for result in results)
    if as_json:
        print(json.dumps({"ok": ok, "results": results}))
    else:
        for result in results:
            difference = "another shape" if result["difference"] is None else f"{result['difference']:.3g}"
            verdict = "ok  " if result["ok"] else "FAIL"
            print(f"{verdict} {result['what']}: off by {difference}, allowed {result['allowed']:.3g}")
    return 0 if ok else 1


def _told(model: Model, name: str, outputs: dict, count: int) -> dict:
    values = {name: [np.asarray(v).tolist() for v in value] for name, value in outputs.items()}
    return {"file": name, "top": model.top(outputs, count), "outputs": values}


def _stream(model: Model, count: int) -> int:
    """A JSON line for every file name that comes in; what is wrong with one is a line as well."""
    for name in filter(None, map(str.strip, sys.stdin)):
        try:
            told = _told(model, name, model.predict(name), count)
        except (BundleError, OSError, ValueError, RuntimeError) as error:
            told = {"file": name, "error": " ".join(str(error).split())}
        print(json.dumps(told), flush=True)
    return 0


def main(arguments=None) -> int:
    """The command line; returns the exit code: 0 fine, 1 an error or a failed self-test, 2 wrong usage."""
    parser = argparse.ArgumentParser(description="Run the model of this folder.")
    parser.add_argument("file", nargs="*", help="image, .npy or .npz with raw samples")
    parser.add_argument("--camera", metavar="DEVICE", help="one frame of a camera: 0, or /dev/video0")
    parser.add_argument("--stdin", action="store_true", help="a file's bytes on standard input")
    parser.add_argument("--stream", action="store_true", help="file names on standard input, a JSON line each out")
    parser.add_argument("--top", type=int, default=5, help="classes to show (5)")
    parser.add_argument("--json", action="store_true", help="one JSON object a file")
    parser.add_argument("--threads", type=int, default=1, help="threads of the runtime (1)")
    parser.add_argument("--self-test", action="store_true", help="compare with the outputs this bundle shipped with")
    options = parser.parse_args(arguments)
    ways = [bool(options.file), options.camera is not None, options.stdin, options.stream, options.self_test]
    if sum(ways) != 1 or options.top < 1 or options.threads < 1:
        parser.error("give files, --camera, --stdin, --stream or --self-test; --top and --threads count from 1")
    try:
        model = Model(threads=options.threads)
        if options.self_test:
            return _test(model, options.json)
        if options.stream:
            return _stream(model, options.top)
        given = [(file, file) for file in options.file]
        given += [("stdin", sys.stdin.buffer.read())] if options.stdin else []
        given += [(f"camera {options.camera}", frame(options.camera))] if options.camera is not None else []
        for name, data in given:
            outputs = model.predict(data)
            if options.json:
                print(json.dumps(_told(model, name, outputs, options.top)))
            else:
                print((f"{name}\n" if len(given) > 1 else "") + _show(model, outputs, options.top))
    except (BundleError, OSError, ValueError, RuntimeError, ImportError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
