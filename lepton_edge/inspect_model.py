"""What a model file holds: inputs, outputs, weights, operators, work. The folder `inspectors/` is the registry.

An inspector is one file, `inspectors/<format>.py`, with
    FORMATS = ("onnx",)             the formats it reads
    REQUIRES = ("onnx>=1.17",)      what it imports, PEP 508
    EXTRA = "onnx"                  the extra of this package that brings it
    def detect(path, head) -> str | None      the format, from the file's first bytes; imports nothing heavy
    def inspect(path) -> dict                 the report described under `inspect`
Files whose names start with an underscore are their shared helpers.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from lepton_edge.errors import LeptonError, MissingExtra, UsageError, did_you_mean

HEAD_BYTES = 4096


def inspect(path: str, format: str | None = None) -> dict:
    """Reads one model file (or SavedModel folder) and never runs it.

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
    chosen = format or detect_format(path)
    module = _inspector(chosen)
    try:
        report = module.inspect(path)
    except ImportError as problem:
        raise MissingExtra(
            f"inspecting {chosen} files needs {', '.join(module.REQUIRES)}: {problem}",
            hint=f"pip install 'lepton-edge[{module.EXTRA}]'",
        ) from problem
    return report


def detect_format(path: str) -> str:
    """The format of a model, from its bytes and never from its name alone."""
    target = Path(path)
    head = _head(target)
    for module in _inspectors().values():
        found = module.detect(target, head)
        if found:
            return found
    kind = "folder" if target.is_dir() else "file"
    raise LeptonError(
        f"{path}: this {kind} is none of the known model formats ({', '.join(known_formats())})",
        hint="give a .keras, .h5, .onnx, .tflite, .pt2, OpenVINO .xml or a SavedModel folder",
    )


def known_formats() -> list[str]:
    """The formats that can be inspected, sorted."""
    return sorted(_by_format())


def _head(path: Path) -> bytes:
    if path.is_dir():
        return b""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        raise LeptonError(f"{path}: no such file or folder", hint="check the path") from None
    except OSError as problem:
        raise LeptonError(f"{path}: cannot be read: {problem.strerror}", hint="check its rights") from problem
    if not head:
        raise LeptonError(f"{path}: the file is empty", hint="copy or export the model again")
    return head


def _inspectors() -> dict[str, ModuleType]:
    folder = Path(__file__).parent / "inspectors"
    names = sorted(file.stem for file in folder.glob("*.py") if not file.stem.startswith("_"))
    return {name: import_module(f"lepton_edge.inspectors.{name}") for name in names}


def _by_format() -> dict[str, ModuleType]:
    return {name: module for module in _inspectors().values() for name in module.FORMATS}


def _inspector(format: str) -> ModuleType:
    table = _by_format()
    if format not in table:
        raise UsageError(f"unknown model format '{format}'", hint=did_you_mean(format, sorted(table)))
    return table[format]
