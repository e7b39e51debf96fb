"""DS-CNN keyword spotting of MLPerf Tiny on Speech Commands."""

from __future__ import annotations

from pathlib import Path

from _tiny import from_keras

ABOUT = (
    "DS-CNN of MLPerf Tiny (Apache-2.0), 49 x 10 MFCC, converted by `lepton-edge convert`; Speech Commands, 300 / 2000"
)
TRANSFORMER = False
SOURCE = "mlperf_tiny/kws_dscnn_savedmodel"


def prepare(folder: Path) -> dict:
    """Write the model as ONNX, and the features as they are."""
    return from_keras(SOURCE, "speech_commands", folder)
