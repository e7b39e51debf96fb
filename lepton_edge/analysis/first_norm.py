"""What reaches the first BatchNormalization of an ONNX model, against the statistics it was trained with; in a worker.

A model that still carries its running mean and variance tells what its inputs looked like in training: other scaling
or other preprocessing of the samples shows there, channel by channel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 32  # each of many values a channel: enough for a mean and a spread
LARGE = 256 << 20  # a larger file costs more to read than a hint is worth


def run(src: str, dst: str, *, data: str, seed: int = 0) -> dict:
    """{} where there is nothing to compare, else the node's name, `channels`, `shift` and `ratio`.

    `shift` is the median over channels of |mean - running mean| / running deviation, `ratio` that of deviation over
    running deviation; `data` is a feed folder. Statistics that were never trained (0 and 1 throughout) don't count.
    """
    from lepton_edge.passes._samples import Samples
    from lepton_edge.quant.net import attribute, from_proto
    from lepton_edge.quant.segments import Segment, sub_net
    from lepton_edge.quant.tap import Runner
    from lepton_edge.tflite_writer.load import inputs, read

    if Path(src).stat().st_size > LARGE:
        return {}
    model = read(src)
    if all(node.op_type != "BatchNormalization" for node in model.graph.node):
        return {}
    net = from_proto(model)
    k, node = next((k, n) for k, n in enumerate(net.nodes) if n.op_type == "BatchNormalization")
    tensor = node.input[0]
    if attribute(node, "training_mode", 0) or not all(name in net.consts for name in node.input[3:5]):
        return {}
    mean, variance = (net.consts[name].astype(np.float64) for name in node.input[3:5])
    if not mean.any() and (variance == 1).all():
        return {}
    samples = Samples(data, inputs(src), SAMPLES, seed, src)
    runner = Runner(sub_net(net, Segment(0, k, tuple(net.inputs), (tensor,), ())), [tensor])
    seen = _moments(runner.run(sample)[0] for sample in samples)
    deviation = np.sqrt(variance + attribute(node, "epsilon", 1e-5))
    return {
        "node": node.name or node.output[0],
        "channels": len(mean),
        "shift": float(np.median(np.abs(seen[0] - mean) / deviation)),
        "ratio": float(np.median(seen[1] / deviation)),
    }


def _moments(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel (axis 1), over all samples."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for value in values:
        rows = np.moveaxis(value, 1, 0).reshape(value.shape[1], -1).astype(np.float64)
        count, total, squares = count + rows.shape[1], total + rows.sum(1), squares + (rows**2).sum(1)
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
