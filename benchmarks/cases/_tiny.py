"""What the MLPerf Tiny cases share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import cli, shared

CALIBRATION = 300  # what `lepton-edge` takes of more; given as exactly so many, every tool sees the same


def from_keras(source: str, data: str, folder: Path) -> dict:
    """Convert ``source`` to ONNX and write its data under the name of the model's input.

    Parity is that of the conversion, over the evaluation samples.
    """
    made = cli(
        "convert", shared(source), "--to", "onnx", "-o", folder / "model.onnx", "--data", shared(f"{data}/eval.npz")
    )
    name = input_name(folder / "model.onnx")
    counts = {}
    for part in ("calib", "eval"):
        with np.load(shared(f"{data}/{part}.npz")) as arrays:
            x, y = arrays["x"], arrays["y"].astype(np.int64)
        if part == "calib":
            chosen = np.linspace(0, len(x) - 1, CALIBRATION).round().astype(int)
            x, y = x[chosen], y[chosen]
        np.savez(folder / f"{part}.npz", **{name: x.astype(np.float32), "y": y})
        counts[part] = len(x)
    return {**counts, "conversion_max_abs": made["parity"]["max_abs"]}


def input_name(model: Path) -> str:
    """The name of the only input of an ONNX file."""
    import onnx

    (entry,) = onnx.load(str(model)).graph.input
    return entry.name
