"""MobileNetV2 on ImageNet photographs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from common import shared

ABOUT = "MobileNetV2, torchvision v1 weights (BSD-3), 224 x 224; ImageNet sample photographs, 200 / 300"
TRANSFORMER = False
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare(folder: Path) -> dict:
    """Write the model as it is, and the photographs as float32 NCHW; the file name is the class."""
    model = shared("models/mobilenet_v2.onnx")
    shutil.copyfile(model, folder / "model.onnx")
    counts = {}
    for part in ("calib", "eval"):
        files = sorted(shared(f"imagenet_sample/{part}").glob("*.jpg"))
        labels = np.array([int(f.stem) for f in files], np.int64)
        np.savez(folder / f"{part}.npz", input=np.stack([read(f) for f in files]), y=labels)
        counts[part] = len(files)
    return counts


def read(file: Path) -> np.ndarray:
    """A photograph as float32 [3, 224, 224], normalised as the model was trained."""
    from PIL import Image

    with Image.open(file) as image:
        pixels = np.asarray(image.convert("RGB"), np.float32) / 255
    return ((pixels - np.float32(_MEAN)) / np.float32(_STD)).transpose(2, 0, 1).astype(np.float32)
