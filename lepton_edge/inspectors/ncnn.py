"""ncnn models: layers from the .param, shapes from one run on zeros, where the file says the sizes of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.inspectors._common import Weights, assemble, damaged, layer, size_of, times
from lepton_edge.runtimes.ncnn import MAGIC, Session, load, read_param

REQUIRES = ("ncnn>=1.0.20240820",)
EXTRA = "ncnn"


def inspect(path: str) -> dict[str, Any]:
    """Reads the layers and counts. The .bin holds bare numbers in the layers' order: nonzeros are not counted."""
    try:
        layers = read_param(path)
        session = load(path)
    except ValueError as problem:
        raise damaged(path, "ncnn", problem) from problem
    shapes = _shapes(session)
    weights = Weights()
    rows = []
    for item in layers:
        if item["type"] == "Input":
            continue
        count, biases, outputs = _weights(item)
        weights.add(count + biases, 0, None)
        shape = shapes.get(item["tops"][0]) if item["tops"] else None
        macs = _macs(item["type"], count, outputs, shape)
        rows.append(layer(item["name"], item["type"], shape, macs, count + biases, None))
    weights.bytes = Path(path).with_suffix(".bin").stat().st_size
    return assemble(
        format="ncnn",
        producer="unknown",
        inputs=session.inputs,
        outputs=session.outputs,
        layers=rows,
        weights=weights,
        versions={"param": MAGIC},
        notes=["parameters are counted from what the layers say, and zeros among them are not"],
    )


# Where each layer says how many weights it has, how many outputs share them, and whether it has a bias.
# Source: ncnn's docs/developer-guide/operators.
WEIGHTS = {
    **dict.fromkeys(
        ("Convolution", "Convolution1D", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise"),
        ("6", "0", "5"),
    ),
    "InnerProduct": ("2", "0", "1"),
    "Embed": ("3", "0", "2"),
}
# Layers that multiply and are not in that table.
UNKNOWN = {"MatMul", "Gemm", "LSTM", "GRU", "RNN", "MultiHeadAttention", "Einsum", "SDPA", "Convolution3D"}


def _weights(item: dict[str, Any]) -> tuple[int, int, int]:
    """(weights, biases, outputs) of a layer; zeros for one that has none, or tells nothing of them."""
    if item["type"] not in WEIGHTS:
        return 0, 0, 0
    count, outputs, bias = (int(item["values"].get(key, 0)) for key in WEIGHTS[item["type"]])
    return count, outputs if bias else 0, outputs


def _macs(kind: str, count: int, outputs: int, shape: list[int] | None) -> int | None:
    """Multiply-accumulates of one sample: each weight is used once for each place of the outputs that share it."""
    if kind in UNKNOWN:
        return None
    if not count or kind == "Embed":
        return 0
    return times(count // max(outputs, 1), size_of(shape))


def _shapes(session: Session) -> dict[str, list[int]]:
    """The shape of every blob with its batch of 1, from one run on zeros; {} where an input's size is not known."""
    import ncnn

    if any(spec["shape"] is None for spec in session.inputs):
        return {}
    extractor = session.net.create_extractor()
    extractor.set_light_mode(False)  # keeps what lies between
    for spec in session.inputs:
        extractor.input(spec["name"], ncnn.Mat(np.zeros(spec["shape"][1:], np.float32)).clone())
    found = {}
    for blob in session.net.blobs():
        code, mat = extractor.extract(blob.name)
        if code == 0:
            found[blob.name] = [1, *np.array(mat).shape]
    return found
