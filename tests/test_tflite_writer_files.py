"""The files that the ONNX to TFLite writer makes: axes, patterns, names, types, integers, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from onnx import helper  # noqa: TID253
from writer_graphs import RNG, model, one, rand, written

from lepton_edge.errors import LeptonError
from lepton_edge.tflite_writer.convert import convert


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
        scale = (0.01 + 0.01 * RNG.random(shape[axis])).astype(np.float32)
        self.consts |= {f"{name}_q": RNG.integers(-127, 128, shape).astype(np.int8), f"{name}_s": scale}
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
