"""The int8 models of MLPerf Tiny that the benchmarks of edge targets share, made by this checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import cache, cli, shared

#: What is made: the format, and the options of `lepton-edge quantize`.
FILES = {
    "tflite": ("tflite", ()),
    "tflite all integer": ("tflite", ("--integer",)),
    "onnx": ("onnx", ()),
    "onnx for AVX2": ("onnx", ("--device", "generic-x86-avx2")),
}
DATA = {"ic_resnet8": "cifar10", "kws_dscnn": "speech_commands"}
SOURCES = {"ic_resnet8": "mlperf_tiny/ic_resnet8.h5", "kws_dscnn": "mlperf_tiny/kws_dscnn_savedmodel"}


@dataclass(frozen=True)
class Made:
    """Files of one model by their names in FILES, MLPerf's own int8 file, and evaluation samples."""

    name: str
    files: dict[str, Path]
    reference: Path
    eval: Path


def make(name: str, wanted: tuple[str, ...] = tuple(FILES)) -> Made:
    """Quantize a model to int8. Raises Missing without the development data."""
    files = {}
    for kind in wanted:
        format_, options = FILES[kind]
        files[kind] = cache("edge") / f"{name}.{kind.replace(' ', '-')}.int8.{format_}"
        data = shared(f"{DATA[name]}/calib.npz")
        cli("quantize", shared(SOURCES[name]), "--data", data, "--to", format_, "--out", files[kind], *options)
    return Made(name, files, shared(f"mlperf_tiny/{name}_reference_int8.tflite"), shared(f"{DATA[name]}/eval.npz"))
