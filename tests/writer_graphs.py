"""Small ONNX graphs for the tests of the ONNX to TFLite writer, and a table of one for every operator."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402, TID253

from lepton_edge.tflite_writer.convert import convert  # noqa: E402

KINDS = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
RNG = np.random.default_rng(7)


def rand(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def model(nodes, inputs: dict, outputs=("y",), consts: dict | None = None, opset: int = 17):
    """A ModelProto; `inputs` maps names to shapes, or to (shape, dtype)."""
    infos = []
    for name, spec in inputs.items():
        shape, kind = spec if isinstance(spec, tuple) and isinstance(spec[-1], str) else (spec, "float32")
        infos.append(helper.make_tensor_value_info(name, KINDS[kind], list(shape)))
    outs = [helper.make_empty_tensor_value_info(n) for n in outputs]
    inits = [numpy_helper.from_array(np.asarray(v), k) for k, v in (consts or {}).items()]
    graph = helper.make_graph(list(nodes), "g", infos, outs, inits)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made)


def written(tmp_path: Path, proto, **options) -> tuple[dict, list[str]]:
    """Converts (which compares with ONNX Runtime itself); returns the step's dictionary and the operators used."""
    source, target = tmp_path / "m.onnx", tmp_path / "m.tflite"
    onnx.save(proto, str(source))
    result = convert(str(source), str(target), **options)
    return result, codes(target)


def codes(path: Path) -> list[str]:
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    file = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    return [names[file.operatorCodes[o.opcodeIndex].builtinCode] for o in file.subgraphs[0].operators]


def one(op: str, shapes, consts: dict | None = None, opset: int = 17, outputs=("y",), order=None, **attrs):
    """A graph of a single node reading inputs x0, x1 ... of the given shapes, then the constants."""
    inputs = {f"x{k}": s for k, s in enumerate(shapes)}
    names = order or [*inputs, *(consts or {})]
    return model([helper.make_node(op, names, list(outputs), **attrs)], inputs, outputs, consts, opset)


X4, X3, X2 = (1, 6, 8, 10), (2, 5, 7), (3, 6)
I64 = np.int64
SINGLE = {
    **{
        op: one(op, [X4])
        for op in (
            "Relu",
            "Sigmoid",
            "Tanh",
            "Exp",
            "Abs",
            "Neg",
            "Floor",
            "Ceil",
            "Round",
            "Sin",
            "Cos",
            "Erf",
            "Softplus",
            "Softsign",
            "HardSwish",
            "HardSigmoid",
            "Elu",
            "Selu",
            "LeakyRelu",
            "Celu",
            "ThresholdedRelu",
            "Reciprocal",
            "Sign",
            "Identity",
            "Flatten",
            "GlobalAveragePool",
            "GlobalMaxPool",
            "Softmax",
            "LogSoftmax",
            "Shrink",
            "Tan",
            "Log",
            "Sqrt",
            "Asin",
            "Atan",
            "Sinh",
            "ReduceMean",
            "ReduceMax",
            "Transpose",
            "IsNaN",
        )
    },
    **{
        f"{op}_broadcast": one(op, [X4, (6, 1, 10)])
        for op in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Less", "Equal")
    },
    **{
        f"{op}_int64": one(op, [((2, 3), "int64"), ((3,), "int64")]) for op in ("Add", "Sub", "Mul", "Greater", "Equal")
    },
    "Mish": one("Mish", [X3], opset=18),
    "Gelu": one("Gelu", [X3], opset=20),
    "Gelu_tanh": one("Gelu", [X3], opset=20, approximate="tanh"),
    "Pow_2": one("Pow", [X3], {"p": np.float32(2)}),
    "Pow_3": one("Pow", [X3], {"p": np.float32(3)}),
    "Pow_half": one("Pow", [X3], {"p": np.float32(0.5)}),
    "Pow_two_thirds": one("Pow", [X3], {"p": np.float32(2 / 3)}),
    "Clip_06": one("Clip", [X4], {"a": np.float32(0), "b": np.float32(6)}),
    "Clip_odd": one("Clip", [X4], {"a": np.float32(-0.3), "b": np.float32(0.7)}),
    "PRelu": one("PRelu", [X4], {"s": rand(6, 1, 1)}),
    "PRelu_rows": one("PRelu", [X3], {"s": rand(5, 1)}),
    "PRelu_one": one("PRelu", [X4], {"s": rand(1)}),
    "Elu_alpha": one("Elu", [X4], alpha=0.7),
    "Sum3": one("Sum", [X3, X3, (7,)]),
    "Mean3": one("Mean", [X3, X3, (7,)]),
    "Mod": one("Mod", [((4, 3), "int32")], {"m": np.int32([3, -2, 5])}),
    "Fmod": one("Mod", [(4, 3)], {"m": np.float32([3, -2, 5])}, fmod=1),
    "Where": one("Where", [((6, 1, 10), "bool"), X4, (1,)]),
    "And": one("And", [((3, 4), "bool"), ((4,), "bool")]),
    "Not": one("Not", [((3, 4), "bool")]),
    "Xor": one("Xor", [((3, 4), "bool"), ((4,), "bool")]),
    "Cast": one("Cast", [X3], to=TensorProto.INT32),
    "Cast_bool": one("Cast", [((3, 4), "int64")], to=TensorProto.BOOL),
    "Softmax_axis1": one("Softmax", [X3], axis=1),
    "Softmax_old": one("Softmax", [X3], opset=11, axis=1),
    "ReduceSum_axes": one("ReduceSum", [X4], {"a": I64([2, 3])}, keepdims=0),
    "ReduceMin_channel": one("ReduceMin", [X4], axes=[1], keepdims=1),
    "ReduceProd": one("ReduceProd", [X2], axes=[-1]),
    "ReduceL1": one("ReduceL1", [X3], axes=[1]),
    "ReduceL2": one("ReduceL2", [X3], axes=[-1], keepdims=0),
    "ReduceSumSquare": one("ReduceSumSquare", [X3], axes=[1]),
    "ReduceLogSumExp": one("ReduceLogSumExp", [X3], axes=[1]),
    "LayerNormalization": one("LayerNormalization", [X3], {"s": rand(7), "b": rand(7)}),
    "LayerNormalization_axis1": one("LayerNormalization", [X3], {"s": rand(5, 7)}, axis=1),
    "InstanceNormalization": one("InstanceNormalization", [X4], {"s": rand(6), "b": rand(6)}),
    "GroupNormalization": one("GroupNormalization", [X4], {"s": rand(6), "b": rand(6)}, opset=21, num_groups=3),
    "BatchNormalization": one(
        "BatchNormalization", [X4], {"s": rand(6), "b": rand(6), "m": rand(6), "v": np.abs(rand(6)) + 0.1}
    ),
    "LpNormalization": one("LpNormalization", [X3], axis=1, p=1),
    "LRN": one("LRN", [X4], size=5),
    "Reshape": one("Reshape", [X4], {"s": I64([0, 2, -1])}),
    "Squeeze": one("Squeeze", [(1, 5, 1, 3)], {"a": I64([0, 2])}),
    "Unsqueeze": one("Unsqueeze", [X2], {"a": I64([0, -1])}),
    "Concat": one("Concat", [X4, (1, 2, 8, 10)], axis=1),
    "Split": one("Split", [X4], outputs=("y", "z"), axis=1),
    "Expand": one("Expand", [(5, 1)], {"s": I64([2, 5, 4])}),
    "Split_uneven": one("Split", [X4], {"s": I64([1, 5])}, outputs=("y", "z"), axis=1),
    "Slice": one("Slice", [X4], {"s": I64([1, -6]), "e": I64([5, 99]), "a": I64([1, 3]), "t": I64([2, 3])}),
    "Slice_down": one("Slice", [X3], {"s": I64([-1]), "e": I64([-99]), "a": I64([2]), "t": I64([-2])}),
    "Tile": one("Tile", [X3], {"r": I64([1, 2, 3])}),
    "Pad": one("Pad", [X4], {"p": I64([0, 0, 1, 2, 0, 0, 3, 0])}),
    "Pad_value": one("Pad", [X3], {"p": I64([0, 1, 0, 0, 0, 2]), "v": np.float32(1.5)}),
    "Pad_reflect": one("Pad", [X4], {"p": I64([0, 0, 1, 2, 0, 0, 3, 0])}, mode="reflect"),
    "Pad_edge": one("Pad", [X4], {"p": I64([0, 0, 1, 2, 0, 0, 3, 0])}, mode="edge"),
    "Pad_crop": one("Pad", [X3], {"p": I64([0, -1, 2, 0, 0, -3])}),
    "Gather": one("Gather", [X4], {"i": I64([3, 0, -1])}, axis=1),
    "Gather_run": one("Gather", [X4], {"i": I64([2, 3])}, axis=1),
    "Gather_scalar": one("Gather", [X3], {"i": I64(-2)}, axis=2),
    "Gather_rank2": one("Gather", [X3], {"i": I64([[0, 1], [4, 2]])}, axis=1),
    "Embedding": one("Gather", [((2, 9), "int64")], {"w": rand(100, 4)}, order=["w", "x0"]),
    "GatherElements": one("GatherElements", [X2], {"i": I64([[0, 5], [1, 1], [-1, 2]])}, axis=1),
    "GatherND": one("GatherND", [X3], {"i": I64([[0, 1], [1, 4]])}),
    "ScatterND": one("ScatterND", [X2, (2, 6)], {"i": I64([[2], [0]])}, order=["x0", "i", "x1"]),
    "ScatterElements": one("ScatterElements", [X2, (1, 2)], {"i": I64([[1, 3]])}, order=["x0", "i", "x1"], axis=1),
    "ArgMax": one("ArgMax", [X4], axis=1),
    "ArgMin_flat": one("ArgMin", [X3], axis=-1, keepdims=0),
    "ArgMax_last": one("ArgMax", [((4, 6), "int32")], axis=1, select_last_index=1),
    "TopK": one("TopK", [X3], {"k": I64([3])}, outputs=("y", "z"), axis=1),
    "TopK_smallest": one("TopK", [X3], {"k": I64([2])}, outputs=("y", "z"), largest=0),
    "CumSum": one("CumSum", [X3], {"a": I64(1)}, reverse=1),
    "OneHot": one("OneHot", [((5,), "int64")], {"d": I64(7), "v": np.float32([-1, 2])}),
    "Trilu": one("Trilu", [(2, 5, 5)], upper=0),
    "DepthToSpace": one("DepthToSpace", [(1, 8, 4, 4)], blocksize=2),
    "DepthToSpace_crd": one("DepthToSpace", [(1, 8, 4, 4)], blocksize=2, mode="CRD"),
    "SpaceToDepth": one("SpaceToDepth", [(1, 2, 4, 6)], blocksize=2),
    "Gemm": one("Gemm", [X2], {"w": rand(6, 4), "b": rand(4)}, alpha=0.5, beta=2.0),
    "Gemm_turned": one("Gemm", [(6, 3)], {"w": rand(4, 6), "b": rand(3, 1)}, transA=1, transB=1),
    "Gemm_computed": one("Gemm", [X2, (4, 6), (4,)], transB=1, alpha=0.3),
    "MatMul": one("MatMul", [X3], {"w": rand(7, 4)}),
    "MatMul_computed": one("MatMul", [(2, 3, 4, 5), (2, 3, 5, 6)]),
    "MatMul_left": one("MatMul", [(7, 4)], {"w": rand(5, 7)}, order=["w", "x0"]),
    "MatMul_vector": one("MatMul", [(7,)], {"w": rand(7, 4)}),
    "MatMul_two_vectors": one("MatMul", [(7,), (7,)]),
    "MatMul_batched_constant": one("MatMul", [X3], {"w": rand(2, 7, 4)}),
    "Einsum": one("Einsum", [(2, 3, 4, 5), (2, 6, 4, 5)], equation="bqhd,bkhd->bhqk"),
    "Conv": one("Conv", [X4], {"w": rand(4, 6, 3, 3), "b": rand(4)}, pads=[1, 1, 1, 1]),
    "Conv_no_bias": one("Conv", [X4], {"w": rand(4, 6, 1, 1)}),
    "Conv_1d": one("Conv", [X3], {"w": rand(4, 5, 3)}, dilations=[2]),
    "Conv_depthwise": one("Conv", [X4], {"w": rand(12, 1, 3, 3)}, group=6, strides=[2, 2], pads=[0, 0, 1, 1]),
    "Conv_grouped": one("Conv", [X4], {"w": rand(4, 3, 3, 3)}, group=2),
    "Conv_3d": one("Conv", [(1, 2, 4, 5, 6)], {"w": rand(3, 2, 2, 3, 3)}),
    "Conv_computed": one("Conv", [X4, (4, 6, 3, 3)]),
    "Conv_same": one("Conv", [X4], {"w": rand(4, 6, 4, 4)}, auto_pad="SAME_LOWER"),
    "ConvTranspose": one(
        "ConvTranspose", [X4], {"w": rand(6, 4, 3, 3), "b": rand(4)}, strides=[2, 2], pads=[1, 1, 1, 1]
    ),
    "ConvTranspose_extra": one(
        "ConvTranspose", [X4], {"w": rand(6, 4, 3, 3)}, strides=[2, 2], pads=[1, 1, 1, 1], output_padding=[1, 1]
    ),
    "ConvTranspose_groups": one(
        "ConvTranspose", [X4], {"w": rand(6, 2, 3, 3)}, strides=[2, 3], group=3, pads=[0, 1, 1, 0]
    ),
    "ConvTranspose_depthwise": one(
        "ConvTranspose", [X4], {"w": rand(6, 1, 4, 4)}, strides=[2, 2], group=6, pads=[1, 1, 1, 1]
    ),
    "ConvTranspose_dilated": one("ConvTranspose", [X4], {"w": rand(6, 2, 2, 2)}, dilations=[2, 2]),
    "ConvTranspose_1d": one("ConvTranspose", [X3], {"w": rand(5, 4, 4)}, strides=[2], pads=[1, 1]),
    "MaxPool_1d": one("MaxPool", [X3], kernel_shape=[3], strides=[2], pads=[1, 1]),
    "MaxPool_dilated": one("MaxPool", [X4], kernel_shape=[2, 3], dilations=[2, 2], pads=[1, 1, 1, 1]),
    "LSTM": one(
        "LSTM",
        [(4, 2, 3)],
        {"w": rand(2, 20, 3), "r": rand(2, 20, 5), "b": rand(2, 40)},
        outputs=("y", "h", "c"),
        hidden_size=5,
        direction="bidirectional",
    ),
    "GRU": one(
        "GRU",
        [(4, 2, 3)],
        {"w": rand(1, 15, 3), "r": rand(1, 15, 5), "b": rand(1, 30)},
        outputs=("y", "h"),
        hidden_size=5,
    ),
    "GRU_late_reset": one(
        "GRU",
        [(4, 2, 3)],
        {"w": rand(1, 15, 3), "r": rand(1, 15, 5), "b": rand(1, 30)},
        outputs=("y", "h"),
        hidden_size=5,
        linear_before_reset=1,
    ),
    "RNN_reverse": one(
        "RNN",
        [(4, 2, 3)],
        {"w": rand(1, 5, 3), "r": rand(1, 5, 5)},
        outputs=("y", "h"),
        hidden_size=5,
        direction="reverse",
    ),
}
