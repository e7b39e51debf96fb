"""The int8 models of MLPerf Tiny that the benchmarks of edge targets share, made by this checkout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common import cache, cli, shared

DATA = {"ic_resnet8": "cifar10", "kws_dscnn": "speech_commands"}
SOURCES = {"ic_resnet8": "mlperf_tiny/ic_resnet8.h5", "kws_dscnn": "mlperf_tiny/kws_dscnn_savedmodel"}


@dataclass(frozen=True)
class Made:
    """Files of one model by format, MLPerf's own int8 file, and evaluation samples."""

    name: str
    files: dict[str, Path]
    reference: Path
    eval: Path


def make(name: str, formats: tuple[str, ...]) -> Made:
    """Quantize a model to int8 for every format. Raises Missing without the development data."""
    folder = cache("edge")
    files = {}
    for format_ in formats:
        files[format_] = folder / f"{name}.int8.{format_}"
        cli(
            "quantize", shared(SOURCES[name]), "--data", shared(f"{DATA[name]}/calib.npz"), "--to", format_, "--out",
            files[format_],
        )  # fmt: skip
    return Made(
        name, files, shared(f"mlperf_tiny/{name}_reference_int8.tflite"), shared(f"{DATA[name]}/eval.npz")
    )  # fmt: skip
