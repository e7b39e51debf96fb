"""What a model file holds: inputs, outputs, weights, operators, work. `inspectors/` is the registry.

An inspector is one file, `inspectors/<format>.py`, with
    REQUIRES = ("onnx>=1.17",)      what it imports, PEP 508
    EXTRA = "onnx"                  the extra of this package that brings it
    def inspect(path) -> dict       the report described under `inspect`; it reads the model and never runs it
Files whose names start with an underscore are their shared helpers. Plug-in folders may hold `inspectors/` too.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

from lepton_edge.artifact import detect
from lepton_edge.errors import MissingExtra, UsageError, did_you_mean
from lepton_edge.registry import folder


def inspect(path: str, format: str | None = None) -> dict:
    """Reads one model file (or SavedModel folder); meant for a worker, which may import its library.

    Returns plain data:
      "format", "producer": str
      "inputs", "outputs": [{"name": as the runtime wants it, "shape": [int | None for a free dim], "dtype"}]
      "parameters": int, elements of all weights and biases, without the running statistics of normalization
          layers (those are "statistics"), quantization scales and shape constants
      "nonzeros": int | None, how many of the parameters are not zero (not at the zero point, if quantized)
      "macs": int | None, multiply-accumulates of convolutions, dense layers, matrix products and recurrent
          layers for a batch of one; everything else counts as 0; None, and a note, if one cannot be known
      "operators": {op: count}, "layers": [{"name","op","output_shape","parameters","bytes","macs"}]
      "weight_bytes": int, "versions": dict, "quantized": dict, "notes": [str]
    Raises LeptonError for a damaged file, MissingExtra when the format's library is not installed.
    """
    chosen = format or detect(Path(path))
    module = _inspector(chosen)
    try:
        return module.inspect(path)
    except ImportError as problem:
        raise MissingExtra(
            f"inspecting {chosen} files needs {', '.join(module.REQUIRES)}: {problem}",
            hint=f"pip install 'lepton-edge[{module.EXTRA}]'",
        ) from problem


def inspector_files() -> dict[str, Path]:
    """{format: file} of the package's own inspectors and of those in plug-in folders, which win."""
    plugins = [Path(p) / "inspectors" for p in os.environ.get("LEPTON_EDGE_PLUGINS", "").split(os.pathsep) if p]
    files: dict[str, Path] = {}
    for place in (folder("inspectors"), *plugins):
        files.update({file.stem: file for file in sorted(place.glob("*.py")) if not file.stem.startswith("_")})
    return files


def _inspector(format: str) -> ModuleType:
    files = inspector_files()
    if format not in files:
        raise UsageError(f"there is no inspector for '{format}' models", did_you_mean(format, sorted(files)))
    spec = importlib.util.spec_from_file_location(f"lepton_inspector_{format}", files[format])
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
