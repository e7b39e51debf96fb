"""Pairs of files of which one is about 5 % slower: an empty loop, and a real network with more layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

LOOPS = 50_000  # about a millisecond
LAYERS = (4, 6, 8, 10, 12, 14)  # identity convolutions that are tried, each under 1 % of MobileNetV2


def spins(folder: Path) -> tuple[Path, Path]:
    """Two loops, the second goes round 5 % more often."""
    files = []
    for name, times in (("spin", LOOPS), ("spin-slower", round(1.05 * LOOPS))):
        file = folder / f"{name}.spin"
        file.write_text(json.dumps({"spin": times}))
        files.append(file)
    return files[0], files[1]


def deeper(model: Path, count: int, out: Path) -> Path:
    """The same network with ``count`` 1x1 identity convolutions after a linear bottleneck of the middle."""
    import onnx
    from onnx import helper, numpy_helper, shape_inference

    net = onnx.load(model)
    graph = shape_inference.infer_shapes(net).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    # The output of a convolution with 96 channels at 14 x 14 that no activation follows directly.
    follow = {name: n.op_type for n in net.graph.node for name in n.input}
    place = next(
        k
        for k, n in enumerate(net.graph.node)
        if n.op_type == "Conv" and shapes.get(n.output[0], [])[1:] == [96, 14, 14] and follow[n.output[0]] != "Clip"
    )
    name = net.graph.node[place].output[0]
    last = f"{name}_deeper_{count - 1}"
    for n in net.graph.node:
        n.input[:] = [last if i == name else i for i in n.input]
    eye = np.eye(96, dtype=np.float32).reshape(96, 96, 1, 1)
    before = name
    for k in range(count):
        weight, after = f"{name}_identity_{k}", f"{name}_deeper_{k}"
        net.graph.initializer.append(numpy_helper.from_array(eye, weight))
        net.graph.node.insert(place + 1 + k, helper.make_node("Conv", [before, weight], [after], name=after))
        before = after
    onnx.checker.check_model(net)
    onnx.save(net, out)
    return out
