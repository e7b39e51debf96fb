"""What a net leaves implicit written out, so that it can be edited: sizes of the parts of a Split, biases of zero."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_edge.quant.net import Net, attribute


def explicit(net: Net) -> None:
    """Give every Split the sizes of its parts as a constant, where they are known, and every layer a bias."""
    for node in net.nodes:
        outputs = _outputs(net, node)
        if outputs and (len(node.input) < 3 or not node.input[2]):
            name = net.fresh(f"{node.output[0]}_bias")
            net.consts[name] = np.zeros(outputs, net.consts[node.input[1]].dtype)
            del node.input[2:]
            node.input.append(name)
    for node in net.nodes:
        if node.op_type != "Split" or (len(node.input) > 1 and node.input[1]):
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        parts = [net.shapes.get(name) for name in node.output]
        if any(part is None or part[axis] is None for part in parts):
            continue
        name = net.fresh(f"{node.output[0]}_sizes")
        net.consts[name] = np.array([part[axis] for part in parts if part], np.int64)
        del node.input[1:]
        node.input.append(name)
        for extra in [a for a in node.attribute if a.name == "num_outputs"]:
            node.attribute.remove(extra)
    net.link()


def _outputs(net: Net, node: Any) -> int:
    """Output channels of a layer that takes a bias, 0 for other nodes."""
    weight = net.consts.get(node.input[1]) if len(node.input) > 1 else None
    if weight is None or node.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return 0
    if node.op_type == "ConvTranspose":
        return weight.shape[1] * int(attribute(node, "group", 1))
    return weight.shape[0 if node.op_type == "Conv" or attribute(node, "transB", 0) else 1]
