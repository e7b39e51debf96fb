"""TFLite operators: their options table, and the lowest version that knows what is asked of them.

Versions follow tensorflow/compiler/mlir/lite/tools/versioning/op_version.cc; the file's
`min_runtime_version` follows runtime_version.cc beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_SAME_NAME = {
    "Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Div": "DIV", "Pow": "POW", "Exp": "EXP", "Cos": "COS",
    "Abs": "ABS", "Neg": "NEG", "Sign": "SIGN", "Square": "SQUARE", "Softmax": "SOFTMAX",
    "LogSoftmax": "LOG_SOFTMAX", "LeakyRelu": "LEAKY_RELU", "HardSwish": "HARD_SWISH", "Gelu": "GELU",
    "Equal": "EQUAL", "NotEqual": "NOT_EQUAL", "Less": "LESS", "LessEqual": "LESS_EQUAL",
    "Greater": "GREATER", "GreaterEqual": "GREATER_EQUAL", "LogicalAnd": "LOGICAL_AND",
    "LogicalOr": "LOGICAL_OR", "LogicalNot": "LOGICAL_NOT", "SelectV2": "SELECT_V2", "Cast": "CAST",
    "Concatenation": "CONCATENATION", "Reshape": "RESHAPE", "Transpose": "TRANSPOSE", "Slice": "SLICE",
    "StridedSlice": "STRIDED_SLICE", "Split": "SPLIT", "SplitV": "SPLIT_V", "Gather": "GATHER",
    "GatherNd": "GATHER_ND", "ScatterNd": "SCATTER_ND", "Pad": "PAD", "PadV2": "PADV2",
    "MirrorPad": "MIRROR_PAD", "Tile": "TILE", "BroadcastTo": "BROADCAST_TO", "Cumsum": "CUMSUM",
    "TopKV2": "TOPK_V2", "ArgMax": "ARG_MAX", "ArgMin": "ARG_MIN", "OneHot": "ONE_HOT",
    "DepthToSpace": "DEPTH_TO_SPACE", "SpaceToDepth": "SPACE_TO_DEPTH", "ReverseV2": "REVERSE_V2",
    "ResizeBilinear": "RESIZE_BILINEAR", "ResizeNearestNeighbor": "RESIZE_NEAREST_NEIGHBOR",
    "Conv2D": "CONV_2D", "DepthwiseConv2D": "DEPTHWISE_CONV_2D", "Conv3D": "CONV_3D",
    "TransposeConv": "TRANSPOSE_CONV", "FullyConnected": "FULLY_CONNECTED", "BatchMatMul": "BATCH_MATMUL",
    "Quantize": "QUANTIZE", "Dequantize": "DEQUANTIZE", "FloorMod": "FLOOR_MOD", "FloorDiv": "FLOOR_DIV",
    "LocalResponseNormalization": "LOCAL_RESPONSE_NORMALIZATION", "BitwiseXor": "BITWISE_XOR", "ATan2": "ATAN2",
    "ReverseSequence": "REVERSE_SEQUENCE",
    "SquaredDifference": "SQUARED_DIFFERENCE",
}  # fmt: skip
OPTIONS = {code: f"{name}Options" for name, code in _SAME_NAME.items()} | {
    "AVERAGE_POOL_2D": "Pool2DOptions",
    "MAX_POOL_2D": "Pool2DOptions",
    "L2_POOL_2D": "Pool2DOptions",
    "MAXIMUM": "MaximumMinimumOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MEAN": "ReducerOptions",
    "SUM": "ReducerOptions",
    "REDUCE_MAX": "ReducerOptions",
    "REDUCE_MIN": "ReducerOptions",
    "REDUCE_PROD": "ReducerOptions",
    "REDUCE_ANY": "ReducerOptions",
    "REDUCE_ALL": "ReducerOptions",
}

Tensors = Sequence[Any]  # flatbuffer.Tensor: .shape, .dtype (numpy name), .quant
Rule = Callable[[Tensors, Tensors, dict[str, Any]], int]


def _rank(ts: Tensors) -> int:
    return max((len(t.shape) for t in ts if t is not None), default=0)


def _is(t: Any, *names: str) -> bool:
    return t is not None and str(t.dtype) in names


def _by_type(int8: int = 2, int16: int = 1, high_rank: int = 1, **others: int) -> Rule:
    """Version by the first input's type; `high_rank` is what more than four axes ask for."""

    def rule(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
        version = high_rank if _rank(ins) > 4 else 1
        if _is(ins[0], "int8"):
            version = max(version, int8)
        elif _is(ins[0], "int16"):
            version = max(version, int16)
        return max(version, others.get(str(ins[0].dtype), 1))

    return rule


def _conv(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    if ins[0].shape[-1] != ins[1].shape[-1]:
        return 6  # grouped
    if _is(ins[0], "float32") and _is(ins[1], "int8"):
        return 5 if len(ins[1].quant.scale) > 1 else 2  # rounds its input while it runs
    return 4 if _is(ins[0], "int16") else 3 if _is(ins[0], "int8") else 1


def _depthwise(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    if _is(ins[0], "int8", "int16"):
        return 5 if _is(ins[0], "int16") else 3
    return 2 if max(options.get("dilationHFactor", 1), options.get("dilationWFactor", 1)) > 1 else 1


def _fully_connected(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    if _is(ins[0], "float32") and _is(ins[1], "int8", "int4"):
        return 13 if ins[1].quant.block else 12 if len(ins[1].quant.scale) > 1 else 9  # rounds its input row by row
    if _is(ins[0], "int16"):
        return 7
    if len(ins) < 3 or ins[2] is None:
        return 6
    if options.get("keepNumDims"):
        return 5
    return 4 if _is(ins[0], "int8") else 1


def _transpose_conv(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    if options.get("fusedActivationFunction"):
        return 4
    if len(ins) > 3:
        return 3
    return 2 if _is(ins[1], "int8") else 1


def _resize(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    if options.get("halfPixelCenters") or options.get("alignCorners"):
        return 3
    return 2 if _is(ins[0], "int8") else 1


def _transpose(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    if len(ins[0].shape) > 4:
        return 6 if len(ins[0].shape) > 5 else 4
    return 3 if _is(ins[0], "bool") else 2 if _is(ins[0], "int8") else 1


def _dequantize(ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    if _is(ins[0], "int8"):
        return 5 if ins[0].quant is not None and len(ins[0].quant.scale) > 1 else 2
    return 3 if _is(ins[0], "float16", "int16") else 1


VERSIONS: dict[str, Rule] = {
    "ADD": _by_type(int16=5, int64=4),
    "SUB": _by_type(int16=5, high_rank=3, int64=4),
    "MUL": _by_type(int16=4, int64=5, uint32=7),
    "DIV": _by_type(int8=1, high_rank=2),
    "MAXIMUM": _by_type(int16=4, high_rank=3),
    "MINIMUM": _by_type(int16=4, high_rank=3),
    "AVERAGE_POOL_2D": _by_type(int16=3),
    "MAX_POOL_2D": _by_type(int16=3),
    "SOFTMAX": _by_type(int16=3),
    "LOG_SOFTMAX": _by_type(),
    "LOGISTIC": _by_type(int16=3),
    "TANH": _by_type(int16=3),
    "RELU": _by_type(),
    "RELU6": _by_type(),
    "CONCATENATION": _by_type(int16=3),
    "GATHER": lambda i, o, p: 5 if p.get("batchDims") else _by_type(int16=4, bool=3)(i, o, p),
    "GATHER_ND": _by_type(int16=3),
    "PAD": _by_type(int16=2, high_rank=3),
    "PADV2": _by_type(int16=2, high_rank=3),
    "MIRROR_PAD": _by_type(int16=3),
    "STRIDED_SLICE": _by_type(high_rank=4, bool=3),
    "SLICE": _by_type(int16=4, high_rank=5),
    "SPLIT": lambda i, o, p: {"int8": 2, "int32": 3, "int16": 4}.get(str(i[1].dtype), 1),
    "SPLIT_V": _by_type(int16=2),
    "MEAN": _by_type(int16=3),
    "SUM": _by_type(),
    "REDUCE_MAX": _by_type(int16=3),
    "REDUCE_MIN": _by_type(int16=3),
    "REDUCE_PROD": _by_type(int16=2),
    "BATCH_MATMUL": _by_type(int16=3),
    "ARG_MAX": _by_type(bool=3),
    "ARG_MIN": _by_type(bool=3),
    "TOPK_V2": _by_type(int16=3),
    "EQUAL": _by_type(int16=4),
    "NOT_EQUAL": _by_type(int16=4),
    "GREATER": _by_type(),
    "GREATER_EQUAL": _by_type(),
    "LESS": _by_type(),
    "LESS_EQUAL": _by_type(),
    "LEAKY_RELU": _by_type(int16=2),
    "DEPTH_TO_SPACE": _by_type(),
    "SPACE_TO_DEPTH": _by_type(),
    "TILE": _by_type(int8=3, int16=3),
    "REVERSE_V2": _by_type(int8=3, int16=3, bool=2),
    "BROADCAST_TO": lambda i, o, p: 3 if _is(i[0], "int8", "int16") else 2,
    "EXP": _by_type(int16=2),
    "LOG": _by_type(),
    "RSQRT": _by_type(),
    "ABS": _by_type(int16=3),
    "QUANTIZE": lambda i, o, p: 2 if _is(i[0], "int8", "int16", "int32", "uint8") else 1,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "TRANSPOSE_CONV": _transpose_conv,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "TRANSPOSE": _transpose,
    "DEQUANTIZE": _dequantize,
}

# The first TFLite release that registered (operator, version); everything absent here is older than 2.3.
_SINCE: dict[tuple[str, int], str] = {
    ("ADD", 4): "2.7.0", ("ADD", 5): "2.13.0", ("SUB", 3): "2.3.0", ("SUB", 4): "2.7.0", ("SUB", 5): "2.4.0",
    ("MUL", 5): "2.7.0", ("MUL", 7): "2.13.0", ("DIV", 2): "2.3.0", ("CONV_2D", 6): "2.9.0",
    ("TRANSPOSE_CONV", 3): "2.3.0", ("TRANSPOSE_CONV", 4): "2.13.0", ("BATCH_MATMUL", 1): "2.3.0",
    ("BATCH_MATMUL", 2): "2.3.0", ("CUMSUM", 1): "2.4.0", ("BROADCAST_TO", 2): "2.5.0",
    ("BROADCAST_TO", 3): "2.5.0", ("GELU", 1): "2.9.0", ("SIGN", 1): "2.12.0", ("GATHER", 5): "2.7.0",
    ("TRANSPOSE", 6): "2.12.0", ("TRANSPOSE", 4): "2.2.0", ("PAD", 3): "2.4.0", ("PADV2", 3): "2.4.0",
    ("SLICE", 5): "2.5.0", ("DEQUANTIZE", 5): "2.7.0", ("EXP", 2): "2.12.0", ("RELU_0_TO_1", 1): "2.10.0",
    ("CONV_3D", 1): "2.5.0", ("RESIZE_BILINEAR", 3): "2.2.0", ("RESIZE_NEAREST_NEIGHBOR", 3): "2.3.0",
    ("ARG_MAX", 3): "2.9.0", ("ARG_MIN", 3): "2.9.0", ("LOG", 2): "2.12.0", ("RSQRT", 2): "2.5.0",
    ("STRIDED_SLICE", 4): "2.1.0", ("FULLY_CONNECTED", 6): "2.1.0", ("REDUCE_ALL", 1): "2.6.0",
    ("BITWISE_XOR", 1): "2.14.0", ("ATAN2", 1): "2.10.0", ("CONV_2D", 4): "2.3.0", ("CONV_2D", 5): "2.4.0",
    ("DEPTHWISE_CONV_2D", 5): "2.3.0", ("FULLY_CONNECTED", 7): "2.3.0", ("FULLY_CONNECTED", 9): "2.3.0",
    ("FULLY_CONNECTED", 12): "2.17.0", ("FULLY_CONNECTED", 13): "2.18.0",
}  # fmt: skip


def version(code: str, ins: Tensors, outs: Tensors, options: dict[str, Any]) -> int:
    """The lowest version of operator `code` that covers these tensors and options."""
    rule = VERSIONS.get(code)
    return rule(ins, outs, options) if rule else 1


def min_runtime(used: Sequence[tuple[str, int]]) -> str:
    """The oldest TFLite release that knows every (operator, version) in `used`."""
    releases = [_SINCE.get(pair, "2.2.0") for pair in used] or ["2.2.0"]
    return max(releases, key=lambda r: tuple(int(x) for x in r.split(".")))
