"""ResNet-8 of MLPerf Tiny on CIFAR-10."""

from __future__ import annotations

from pathlib import Path

from _tiny import from_keras

ABOUT = "ResNet-8 of MLPerf Tiny (Apache-2.0), 32 x 32, converted by `lepton-edge convert`; CIFAR-10, 300 / 600"
TRANSFORMER = False
SOURCE = "mlperf_tiny/ic_resnet8.h5"


def prepare(folder: Path) -> dict:
    """Write the model as ONNX, and the images as float32 0..255 NHWC, as it was trained."""
    return from_keras(SOURCE, "cifar10", folder)
