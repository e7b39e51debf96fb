"""The ONNX to TFLite writer: every case is a small ONNX graph, converted, run in LiteRT and compared."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("ai_edge_litert")
pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402, TID253

from lepton_edge.errors import LeptonError  # noqa: E402
from lepton_edge.tflite_writer import layout  # noqa: E402
from lepton_edge.tflite_writer.convert import convert  # noqa: E402

_KINDS = {
    "float32": TensorProto.FLOAT,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}
_RNG = np.random.default_rng(7)


def rand(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def model(nodes, inputs: dict, outputs=("y",), consts: dict | None = None, opset: int = 17):
    """A ModelProto; `inputs` maps names to shapes, or to (shape, dtype)."""
    infos = []
    for name, spec in inputs.items():
        shape, kind = spec if isinstance(spec, tuple) and isinstance(spec[-1], str) else (spec, "float32")
        infos.append(helper.make_tensor_value_info(name, _KINDS[kind], list(shape)))
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


@pytest.mark.parametrize("name", SINGLE)
def test_one_operator_agrees_with_onnxruntime(name: str, tmp_path: Path) -> None:
    result, _ = written(tmp_path, SINGLE[name])
    assert result["parity"]["sqnr_db"] >= 60 or result["parity"]["max_abs"] < 1e-5


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)), stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 3)] * 4), size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    dilation=st.integers(1, 2), op=st.sampled_from(["Conv", "Depthwise", "MaxPool", "AveragePool", "AverageAll"]),
    ceil=st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_windows_of_any_shape(tmp_path, kernel, stride, pads, size, dilation, op, ceil) -> None:
    pads = [min(p, k - 1) for p, k in zip(pads, kernel * 2, strict=True)]
    attrs = {"kernel_shape": list(kernel), "strides": list(stride), "pads": pads}
    reach = [(k - 1) * dilation + 1 for k in kernel]
    if op in ("Conv", "Depthwise") and all(size[i] + pads[i] + pads[i + 2] >= reach[i] for i in (0, 1)):
        weights = rand(4, 2, *kernel) if op == "Conv" else rand(4, 1, *kernel)
        group = 1 if op == "Conv" else 2
        proto = one("Conv", [(1, 2, *size)], {"w": weights}, dilations=[dilation] * 2, group=group, **attrs)
    elif op == "MaxPool":
        proto = one("MaxPool", [(1, 2, *size)], ceil_mode=int(ceil), **attrs)
    else:
        proto = one(
            "AveragePool",
            [(1, 2, *size)],
            count_include_pad=int(op == "AverageAll"),
            ceil_mode=int(ceil),
            opset=19,
            **attrs,
        )
    written(tmp_path, proto)


@given(
    kernel=st.integers(1, 5), stride=st.integers(1, 3), pad=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    extra=st.integers(0, 2), size=st.integers(2, 6),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
def test_transposed_windows_of_any_shape(tmp_path, kernel, stride, pad, extra, size) -> None:
    extra, pad = min(extra, stride - 1), [min(p, (kernel - 1) // 2) for p in pad]
    written(tmp_path, one(
        "ConvTranspose", [(1, 3, size, size + 1)], {"w": rand(3, 2, kernel, kernel)}, strides=[stride] * 2,
        pads=[pad[0], pad[1], pad[1], pad[0]], output_padding=[extra, extra],
    ))  # fmt: skip


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("where", ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"])
@pytest.mark.parametrize("size", [(16, 20), (4, 5), (13, 7)])
def test_resize(tmp_path: Path, mode: str, where: str, size: tuple[int, int]) -> None:
    proto = one(
        "Resize", [(1, 3, 8, 10)], {"sizes": I64([1, 3, *size])}, order=["x0", "", "", "sizes"], mode=mode,
        coordinate_transformation_mode=where,
    )  # fmt: skip
    _, ops = written(tmp_path, proto)
    if mode == "linear" and where in ("half_pixel", "align_corners"):
        assert ops == ["RESIZE_BILINEAR"]


@given(st.lists(st.sampled_from([1, 1, 2, 3, 4]), min_size=1, max_size=4), st.data())
@settings(max_examples=150, deadline=None)
def test_reshape_without_moving_is_right(shape: list[int], data) -> None:
    before = tuple(shape)
    perm = tuple(data.draw(st.permutations(range(len(before)))))
    total, after = math.prod(before), []
    while total > 1:
        after.append(data.draw(st.sampled_from([d for d in range(2, total + 1) if total % d == 0])))
        total //= after[-1]
    for _ in range(data.draw(st.integers(0, 2))):
        after.insert(data.draw(st.integers(0, len(after))), 1)
    after = tuple(after) or (1,)
    value = np.arange(math.prod(before)).reshape(before)
    target = layout.reshape(before, perm, after)
    if target is not None:
        stored = layout.store(value, perm).reshape(layout.stored_shape(after, target))
        np.testing.assert_array_equal(stored, layout.store(value.reshape(after), target))
    nearest = layout.gather_blocks(before, perm, after)
    assert layout.reshape(before, nearest, after) is not None


def test_images_become_nhwc_without_transposes(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Add", ["r", "x"], ["a"]), helper.make_node("GlobalAveragePool", ["a"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]), helper.make_node("Gemm", ["f", "v"], ["y"]),
    ]  # fmt: skip
    proto = model(nodes, {"x": ["n", 3, 8, 8]}, ("y", "a"), {"w": rand(3, 3, 3, 3), "b": rand(3), "v": rand(3, 5)})
    result, ops = written(tmp_path, proto)
    assert ops == ["CONV_2D", "ADD", "MEAN", "RESHAPE", "FULLY_CONNECTED"]
    assert result["inputs"] == [{"name": "x", "source": "x", "perm": [0, 2, 3, 1]}]
    assert result["outputs"][1] == {"name": "a", "source": "a", "perm": [0, 2, 3, 1]}
    kept, ops = written(tmp_path, proto, keep_nchw_inputs=True)
    assert kept["inputs"][0]["perm"] is None and ops.count("TRANSPOSE") == 1


def test_transposes_at_the_ends_cancel(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]), helper.make_node("Conv", ["t", "w"], ["c"]),
        helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
    ]  # fmt: skip
    result, ops = written(tmp_path, model(nodes, {"x": (1, 8, 8, 3)}, consts={"w": rand(4, 3, 3, 3)}))
    assert ops == ["CONV_2D"] and result["inputs"][0]["perm"] is None and result["outputs"][0]["perm"] is None


def test_weights_follow_a_flattened_image(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "b"], ["y"], transB=1),
    ]  # fmt: skip
    proto = model(nodes, {"x": (1, 3, 6, 6)}, consts={"w": rand(4, 3, 3, 3), "v": rand(5, 64), "b": rand(5)})
    assert written(tmp_path, proto)[1] == ["CONV_2D", "RESHAPE", "FULLY_CONNECTED"]


def test_patterns_become_one_operator(tmp_path: Path) -> None:
    n = helper.make_node
    gelu = [
        n("Div", ["x", "r"], ["a"]), n("Erf", ["a"], ["b"]), n("Add", ["b", "one"], ["c"]), n("Mul", ["x", "c"], ["d"]),
        n("Mul", ["d", "half"], ["y"]),
    ]  # fmt: skip
    consts = {"r": np.float32(math.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5)}
    assert written(tmp_path, model(gelu, {"x": (2, 5)}, consts=consts))[1] == ["GELU"]
    swish = [n("HardSigmoid", ["x"], ["s"], alpha=1 / 6, beta=0.5), n("Mul", ["x", "s"], ["y"])]
    assert written(tmp_path, model(swish, {"x": (2, 5)}))[1] == ["HARD_SWISH"]
    dense = [n("MatMul", ["x", "w"], ["m"]), n("Add", ["m", "b"], ["a"]), n("Relu", ["a"], ["y"])]
    proto = model(dense, {"x": (2, 3, 5)}, consts={"w": rand(5, 4), "b": rand(4)})
    assert written(tmp_path, proto)[1] == ["FULLY_CONNECTED"]


def test_float16_weights_halve_the_file(tmp_path: Path) -> None:
    proto = one("Gemm", [(1, 256)], {"w": rand(256, 256), "b": rand(256)})
    whole = written(tmp_path, proto)
    full = (tmp_path / "m.tflite").stat().st_size
    assert "DEQUANTIZE" in written(tmp_path, proto, float16=True)[1] and whole
    assert (tmp_path / "m.tflite").stat().st_size < 0.6 * full


def test_file_layout_names_and_metadata(tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    written(tmp_path, one("Gemm", [(1, 5)], {"w": rand(5, 3)}))
    data = (tmp_path / "m.tflite").read_bytes()
    assert data[4:8] == b"TFL3"
    file = schema.Model.GetRootAs(data, 0)
    for k in range(file.BuffersLength()):
        if not file.Buffers(k).DataIsNone():
            assert file.Buffers(k).DataAsNumpy().__array_interface__["data"][0] % 16 == (
                np.frombuffer(data, np.uint8).__array_interface__["data"][0] % 16
            )
    signature = Interpreter(model_content=data).get_signature_list()["serving_default"]
    assert signature == {"inputs": ["x0"], "outputs": ["y"]}
    names = [file.Metadata(k).Name() for k in range(file.MetadataLength())]
    assert names == [b"min_runtime_version"]


def test_an_output_that_is_an_input_and_one_given_twice(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])]
    result, _ = written(tmp_path, model(nodes, {"x": (2, 3)}, ("y", "z")))
    assert [o["name"] for o in result["outputs"]] == ["y", "z"]


def test_free_axes(tmp_path: Path) -> None:
    proto = one("Relu", [["batch", 3, "h", "w"]])
    with pytest.raises(LeptonError, match=r"x0: axis 2 \(h\)"):
        written(tmp_path, proto)
    written(tmp_path, proto, input_shapes="x0=1,3,8,9")
    with pytest.raises(LeptonError, match="which is no input"):
        written(tmp_path, proto, input_shapes="q=1,3,8,9")


def test_all_missing_operators_are_named_at_once(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["a"], name="first"),
        helper.make_node("Det", ["x"], ["y"], name="second"),
    ]
    with pytest.raises(LeptonError, match=r"NonZero.*first") as caught:
        written(tmp_path, model(nodes, {"x": (3, 3)}, ("a", "y")))
    assert "Det" in caught.value.message and "NonZero" in caught.value.message and caught.value.hint
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize("content", [b"", b"not a model at all", None])
def test_a_bad_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    source = tmp_path / "bad.onnx"
    whole = one("Gemm", [(1, 64)], {"w": rand(64, 64)}).SerializeToString()
    source.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(LeptonError, match=r"bad\.onnx"):
        convert(str(source), str(tmp_path / "out.tflite"))
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


def test_a_wrong_result_is_never_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lepton_edge.tflite_writer import ops_math

    monkeypatch.setitem(ops_math.OPS, "Sin", ops_math.unary("COS"))
    with pytest.raises(LeptonError, match="disagrees with ONNX Runtime at output 'y'"):
        written(tmp_path, one("Sin", [(2, 3)]))
    assert not (tmp_path / "m.tflite").exists()


class Qdq:
    """Builds a QDQ graph step by step."""

    def __init__(self, kind: type) -> None:
        self.kind, self.nodes, self.consts = kind, [], {}

    def around(self, name: str, scale: float, zero: int) -> str:
        """Q and DQ of a float tensor."""
        tag = f"{name}_{len(self.nodes)}"
        self.consts |= {f"{tag}_s": np.float32(scale), f"{tag}_z": self.kind(zero)}
        self.nodes.append(helper.make_node("QuantizeLinear", [name, f"{tag}_s", f"{tag}_z"], [f"{tag}_q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{tag}_q", f"{tag}_s", f"{tag}_z"], [f"{tag}_dq"]))
        return f"{tag}_dq"

    def weights(self, name: str, shape: tuple, axis: int) -> tuple[str, np.ndarray]:
        """DQ of symmetric int8 weights with a scale per channel."""
        scale = (0.01 + 0.01 * _RNG.random(shape[axis])).astype(np.float32)
        self.consts |= {f"{name}_q": _RNG.integers(-127, 128, shape).astype(np.int8), f"{name}_s": scale}
        self.consts[f"{name}_z"] = np.zeros(shape[axis], np.int8)
        reads = [f"{name}_q", f"{name}_s", f"{name}_z"]
        self.nodes.append(helper.make_node("DequantizeLinear", reads, [name], axis=axis))
        return name, scale

    def add(self, op: str, inputs: list[str], out: str, **attrs) -> str:
        self.nodes.append(helper.make_node(op, inputs, [out], **attrs))
        return out

    def built(self, inputs: dict, out: str):
        self.nodes.append(helper.make_node("Identity", [out], ["y"]))
        return model(self.nodes, inputs, ("y",), self.consts)


def quantization(path: Path) -> list[tuple[list[float], list[int]]]:
    from ai_edge_litert.interpreter import Interpreter

    made = Interpreter(model_path=str(path), experimental_preserve_all_tensors=True)
    found = [t["quantization_parameters"] for t in made.get_tensor_details()]
    return [([float(s) for s in q["scales"]], [int(z) for z in q["zero_points"]]) for q in found if len(q["scales"])]


@pytest.mark.parametrize(("kind", "shift"), [(np.uint8, 128), (np.int8, 0)])
def test_qdq_convolution_is_an_integer_one_with_the_same_scales(tmp_path: Path, kind: type, shift: int) -> None:
    g = Qdq(kind)
    x = g.around("x", 0.02, 3 + shift)
    w, scale = g.weights("w", (4, 3, 3, 3), 0)
    g.consts["b"] = rand(4)
    g.add("Relu", [g.add("Conv", [x, w, "b"], "c", pads=[1, 1, 1, 1])], "r")
    result, ops = written(tmp_path, g.built({"x": (1, 3, 8, 8)}, g.around("r", 0.05, shift - 128)))
    assert ops == ["QUANTIZE", "CONV_2D", "DEQUANTIZE"] and result["parity"]["sqnr_db"] > 30
    found = quantization(tmp_path / "m.tflite")
    assert ([float(np.float32(0.02))], [3]) in found and ([float(np.float32(0.05))], [-128]) in found
    assert ([float(s) for s in scale], [0] * 4) in found


def test_qdq_requantizes_where_tflite_fixes_a_scale(tmp_path: Path) -> None:
    g = Qdq(np.int8)
    a, b = g.around("x", 0.02, 0), g.around("z", 0.03, 5)
    both = g.around(g.add("Concat", [a, b], "both", axis=1), 0.03, 5)
    pooled = g.around(g.add("MaxPool", [both], "pooled", kernel_shape=[2, 2]), 0.03, 5)
    soft = g.around(g.add("Softmax", [pooled], "soft", axis=1), 0.008, -120)
    _, ops = written(tmp_path, g.built({"x": (1, 2, 4, 4), "z": (1, 2, 4, 4)}, soft))
    assert ops.count("QUANTIZE") == 4 and "TRANSPOSE" not in ops  # two inputs, one operand, the softmax


def test_qdq_leaves_other_operators_in_float(tmp_path: Path) -> None:
    g = Qdq(np.uint8)
    dense, _ = g.weights("w", (6, 4), 1)
    first = g.around(g.add("MatMul", [g.around("x", 0.03, 120), dense], "m"), 0.05, 128)
    last = g.around(g.add("Erf", [first], "e"), 0.01, 128)
    _, ops = written(tmp_path, g.built({"x": (2, 6)}, last))
    assert ops[:3] == ["QUANTIZE", "FULLY_CONNECTED", "DEQUANTIZE"] and ops[-2:] == ["QUANTIZE", "DEQUANTIZE"]
