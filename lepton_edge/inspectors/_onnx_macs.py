"""Multiply-accumulates of ONNX operators."""

from __future__ import annotations

from typing import Any

from lepton_edge.inspectors._common import Shape, einsum_macs, size_of, times
from lepton_edge.inspectors._onnx_graph import attribute_of, key_of, nodes_of

# Where the weight, or second factor, of an operator is among its inputs; the default is 1.
SECOND = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv", "DeformConv", "NhwcConv", "NhwcFusedConv")
PRODUCTS = (
    "MatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "FusedMatMul",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "TransposeMatMul",
)
GEMMS = ("Gemm", "FusedGemm", "QGemm")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
UNCOUNTED = ("Attention", "Loop", "Scan", "SequenceMap")  # standard, but not a fixed amount of work
FREE_CONTRIB = frozenset((
    "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "QLinearConcat", "QLinearSoftmax", "QLinearWhere", "QLinearReduceMean",
    "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "QuantizeLinear", "DequantizeLinear",
    "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "GroupNorm", "BiasSplitGelu",
    "NhwcMaxPool", "BiasAdd", "BiasSoftmax", "Inverse", "Pad", "Unique", "ExpandDims", "Trilu",
    "RotaryEmbedding",
))  # fmt: skip


def macs_of(node: Any, shapes: dict[str, Shape], standard: bool) -> int | None:
    """MACs of one node from its tensors' shapes; 0 for what does not multiply, None where it cannot be known."""
    op = node.op_type
    args = [shapes.get(name) for name in node.input]
    output = shapes.get(key_of(node))
    second = args[SECOND.get(op, 1)] if len(args) > SECOND.get(op, 1) else None
    if op in CONVOLUTIONS:
        return _convolution(output, second, op.startswith("Nhwc"))
    if op == "ConvTranspose":
        return times(size_of(args[0]), size_of(second[1:]) if second else None)
    if op in PRODUCTS:
        return _product(node, args[0], output)
    if op in GEMMS:
        columns = second[0 if attribute_of(node, "transB", 0) else -1] if second else None
        return times(size_of(args[0]), columns)
    if op == "MatMulNBits":
        return times(size_of(output), attribute_of(node, "K", None))
    if op in GATES:
        return _recurrent(node, args[0], GATES[op])
    if op == "Einsum":
        return einsum_macs(attribute_of(node, "equation", b"...").decode(), args)
    if op in UNCOUNTED:
        return None if op not in ("Loop", "Scan") or _works(node) else 0
    return 0 if standard or op in FREE_CONTRIB else None


def _convolution(output: Shape | None, weight: Shape | None, channels_last: bool) -> int | None:
    if weight is None or not weight[0]:
        return None
    each = size_of(weight[1:])
    return times(size_of(output), each)


def _product(node: Any, first: Shape | None, output: Shape | None) -> int | None:
    if not first:
        return None
    transposed = attribute_of(node, "transA", 0) and len(first) > 1
    return times(size_of(output), first[-2] if transposed else first[-1])


def _recurrent(node: Any, data: Shape | None, gates: int) -> int | None:
    """Each step multiplies the input (I) and the state (H) by gates x H rows, in each direction."""
    hidden = attribute_of(node, "hidden_size", None)
    if data is None or len(data) != 3 or hidden is None:
        return None
    directions = 2 if attribute_of(node, "direction", b"forward") == b"bidirectional" else 1
    width = None if data[2] is None else data[2] + hidden
    return times(data[0], data[1], directions * gates * hidden, width)


def _works(node: Any) -> bool:
    """Whether the body of a loop holds anything that costs MACs."""
    heavy = {*CONVOLUTIONS, *PRODUCTS, *GEMMS, *GATES, "ConvTranspose", "Einsum", "Attention", "MatMulNBits"}
    bodies = [a.g for a in node.attribute if a.HasField("g")]
    return any(inner.op_type in heavy for body in bodies for inner in nodes_of(body))
