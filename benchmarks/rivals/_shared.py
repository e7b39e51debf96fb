"""What the rivals' scripts share. Standard library and numpy only: each script runs in its rival's environment.

A script is called as

    <environment>/bin/python benchmarks/rivals/<name>.py --method M --model model.onnx --calib calib.npz --out DIR

and prints one JSON line: {"artefacts": {runtime: file}, "seconds", "peak_mb", "versions", "notes"}.
Its METHODS and ENVIRONMENT are read by the driver, which imports it, so frameworks are imported in functions only.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np


class Samples:
    """The samples of an .npz, read one by one from the file, so that no tool is charged for holding them all."""

    def __init__(self, path: str, inputs: list[str] | None = None, limit: int | None = None) -> None:
        self._path = path
        with zipfile.ZipFile(path) as archive:
            present = [name.removesuffix(".npy") for name in archive.namelist()]
            self._inputs = inputs = inputs or [name for name in present if name != "y"]
            if absent := [name for name in inputs if name not in present]:
                raise SystemExit(f"{path}: lacks {', '.join(absent)} (it has {', '.join(sorted(present))})")
            with archive.open(f"{inputs[0]}.npy") as stream:
                self.count = _header(stream)[0][0]
        self.chosen = set(range(self.count))
        if limit is not None and limit < self.count:
            self.chosen = set(np.linspace(0, self.count - 1, limit).round().astype(int).tolist())

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Each sample as {input: array [1, ...]}."""
        with zipfile.ZipFile(self._path) as archive:
            streams = {name: archive.open(f"{name}.npy") for name in self._inputs}
            headers = {name: _header(stream) for name, stream in streams.items()}
            for i in range(self.count):
                sample = {}
                for name, (shape, dtype) in headers.items():
                    size = int(np.prod(shape[1:])) * dtype.itemsize
                    sample[name] = np.frombuffer(streams[name].read(size), dtype).reshape(1, *shape[1:])
                if i in self.chosen:
                    yield sample


def _header(stream) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype


def onnx_inputs(model: str) -> list[str]:
    """The names of the inputs of an ONNX file."""
    import onnx

    graph = onnx.load(model, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    return [entry.name for entry in graph.input if entry.name not in constants]


def main(methods: dict[str, str], packages: tuple[str, ...], run: Callable[[argparse.Namespace], dict]) -> None:
    """Parse the command line, call ``run`` and print its JSON line.

    ``run`` returns {"artefacts": {runtime: file}, "notes": [...]}; seconds are those of ``run``, imports included.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--method", choices=list(methods), default=next(iter(methods)))
    parser.add_argument("--model", required=True, help="the float model: .onnx, or .tflite where the rival wants that")
    parser.add_argument("--calib", required=True, help=".npz of calibration samples")
    parser.add_argument("--out", required=True, help="folder for the artefacts")
    parser.add_argument("--samples", type=int, help="take so many of the calibration samples, evenly spread")
    parser.add_argument("--transformer", action="store_true", help="the model is a transformer")
    parser.add_argument("--source", help="the model that the ONNX file was converted from (Keras, SavedModel)")
    args = parser.parse_args()
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # frameworks print to stdout
    start = time.monotonic()
    made = run(args)
    line = {
        "artefacts": {k: str(Path(v).resolve()) for k, v in made["artefacts"].items()},
        "seconds": round(time.monotonic() - start, 3),
        "peak_mb": peak_mb(),
        "versions": {name: metadata.version(name) for name in packages},
        "notes": made.get("notes", []),
    }
    print(json.dumps(line), file=channel, flush=True)
    sys.stdout.flush()
    os._exit(0)  # some frameworks crash while they unload


def peak_mb() -> float | None:
    """Peak resident memory of this process in MiB, where the kernel tells it."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
    return round(int(found[0]) / 1024, 1) if found else None
