"""Write integer weights into a graph that stays float: DequantizeLinear before products, a row's scale after look-ups.

ONNX Runtime makes MatMulNBits of DequantizeLinear and MatMul when it loads the file, for one scale a channel as for
blocks, which is why a Gemm in blocks is written as MatMul and Add; OpenVINO keeps the integers, 4 bits as 4 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_edge.quant.emit import add, sort
from lepton_edge.quant.net import Net, attribute
from lepton_edge.quant.place import Layer
from lepton_edge.quant.weight_only import Stored

OPSET_INT4 = 21


def write(net: Net, layers: Sequence[Layer], weights: Mapping[str, Stored], tables: Mapping[str, Stored]) -> Net:
    """A copy of `net` with the weights of `layers` (by output) and the look-up `tables` (by name) as integers."""
    made = net.copy()
    for layer in layers:
        stored = weights[layer.y]
        node = next(n for n in made.nodes if n.name == layer.node)
        if stored.kind.block and node.op_type == "Gemm":
            _split_gemm(made, node, layer)
            stored = _turned(stored) if layer.axis == 0 else stored
            _dequantized(made, node, stored, 1)
        else:
            _dequantized(made, node, stored, layer.axis)
    for name, stored in tables.items():
        _look_up(made, name, stored)
    sort(made)
    return made


def integers(stored: Stored) -> np.ndarray:
    """The values in the type they are stored in: int8, or int4."""
    if stored.kind.bits > 4:
        return stored.values
    import ml_dtypes

    return stored.values.astype(ml_dtypes.int4)


def _turned(stored: Stored) -> Stored:
    """Weights [outputs, inputs] as [inputs, outputs]."""
    return Stored(np.ascontiguousarray(stored.values.T), stored.scale, stored.kind)


def _dequantized(made: Net, node: Any, stored: Stored, axis: int | None) -> None:
    """Let `node` read its weight (input 1) from a DequantizeLinear."""
    name = node.input[1]
    held, scale, back = (made.fresh(f"{name}_{what}") for what in ("quantized", "scale", "dequantized"))
    made.consts[held] = integers(stored)
    made.consts[scale] = stored.scale.reshape(()) if axis is None else stored.scale
    options = {"axis": 1 - (axis or 0), "block_size": stored.kind.block} if stored.kind.block else {"axis": axis}
    add(made, "DequantizeLinear", [held, scale], back, **{k: v for k, v in options.items() if v is not None})
    node.input[1] = back
    made.link()


def _split_gemm(made: Net, node: Any, layer: Layer) -> None:
    """Gemm as MatMul, with an Add where it has a bias; `node` becomes the MatMul."""
    node.op_type = "MatMul"
    del node.attribute[:]
    if not layer.bias:
        return
    product = made.fresh(f"{layer.y}_product")
    node.output[0] = product
    add(made, "Add", [product, node.input[2]], layer.y)
    del node.input[2:]
    made.link()


def _look_up(made: Net, name: str, stored: Stored) -> None:
    """Gather integers and the scales of their rows, and multiply."""
    held, scale = made.fresh(f"{name}_quantized"), made.fresh(f"{name}_scale")
    made.consts[held], made.consts[scale] = stored.values, stored.scale[:, None]
    for node in list(made.users[name]):
        out, indices = node.output[0], node.input[1]
        rows, factors, wide = (made.fresh(f"{out}_{what}") for what in ("rows", "factors", "wide"))
        node.input[0], node.output[0] = held, rows
        add(made, "Gather", [scale, indices], factors, axis=attribute(node, "axis", 0))
        add(made, "Cast", [rows], wide, to=1)
        add(made, "Mul", [wide, factors], out)
        made.link()
