"""TensorFlow Lite flatbuffer."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.errors import LeptonError

SUFFIX = ".tflite"


def recognise(path: Path, head: bytes) -> bool:
    """The file identifier "TFL3" after the root offset (TensorFlow Lite schema)."""
    if head[4:8] != b"TFL3":
        return False
    if int.from_bytes(head[:4], "little") >= path.stat().st_size:
        raise LeptonError(f"{path}: a TFLite model that is cut short or damaged", "export or download the model again")
    return True
