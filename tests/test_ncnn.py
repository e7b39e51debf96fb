"""ncnn, the format that was added to show that adding one is adding files: recognised, converted, run, inspected."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_runtimes import needs, write_dense_onnx

from lepton_edge import api
from lepton_edge.artifact import detect, open_artifact
from lepton_edge.errors import LeptonError
from lepton_edge.recipe import Recipe

pytest.importorskip("pnnx")
pytest.importorskip("ncnn")


def write_cnn(path, batch=1):
    """x [1, 3, 9, 7] -> Conv 4x3x3, ReLU, GlobalAveragePool, Flatten, Gemm -> y [1, 5]; and m [1, 4, 9, 7] before."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors = {"w": (4, 3, 3, 3), "b": (4,), "v": (5, 4), "c": (5,)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["m"]),
        helper.make_node("GlobalAveragePool", ["m"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["y"], transB=1),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [batch, 3, 9, 7]), ("y", [batch, 5]), ("m", [batch, 4, 9, 7]))
    ]
    values = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in tensors.items()]
    graph = helper.make_graph(nodes, "cnn", ports[:1], ports[1:], values)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return Path(path)


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """(the ONNX file, what `convert` told, the .ncnn.param it wrote)."""
    folder = tmp_path_factory.mktemp("ncnn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_EDGE_CACHE", str(folder / "store"))
        source = write_cnn(folder / "cnn.onnx", "n")
        made = api.convert(source, "ncnn", folder / "cnn.ncnn.param", Recipe())
    return source, made, folder / "cnn.ncnn.param"


def test_a_conversion_is_proved_output_by_output(converted):
    _, made, path = converted
    assert [s["step"] for s in made["steps"]] == ["onnx_to_ncnn"]
    assert set(made["parity"]["outputs"]) == {"y", "m"}
    assert all(p["cosine"] >= 0.9999 for p in made["parity"]["outputs"].values())
    assert sorted(p.name for p in path.parent.glob("cnn.ncnn.*")) == ["cnn.ncnn.bin", "cnn.ncnn.param"]
    assert detect(path) == "ncnn" and len(open_artifact(path).files) == 2


def test_the_batch_axis_is_added_and_taken_away(converted):
    source, _, path = converted
    session = needs("ncnn").load(str(path))
    assert session.inputs == [{"name": "in0", "shape": [1, 3, 9, 7], "dtype": "float32"}]
    assert sorted(s["shape"] for s in session.outputs) == [[1, 4, 9, 7], [1, 5]]
    x = np.random.default_rng(1).normal(size=(6, 3, 9, 7)).astype(np.float32)
    want = needs("onnxruntime").load(str(source)).run({"x": x})
    got = {tuple(a.shape): a for a in session.run({"in0": x}).values()}
    for array in want.values():
        np.testing.assert_allclose(got[array.shape], array, rtol=1e-4, atol=1e-5)
    assert session.info["precision"] == "f32" and session.info["device"] == "cpu"


@pytest.mark.parametrize(
    ("feeds", "told"),
    [
        ({"x": np.zeros((1, 3, 9, 7), np.float32)}, "inputs are"),
        ({"in0": np.zeros((1, 3, 9, 7))}, "takes float32"),
        ({"in0": np.zeros((1, 3, 7, 9), np.float32)}, "takes .1, 3, 9, 7"),
    ],
)
def test_odd_inputs_are_refused(converted, feeds, told):
    with pytest.raises(ValueError, match=told):
        needs("ncnn").load(str(converted[2])).run(feeds)


def test_inspecting_counts_as_the_onnx_inspector_does(converted):
    source, _, path = converted
    ours, theirs = api.inspect(path), api.inspect(source)
    assert (ours["parameters"], ours["macs"]) == (theirs["parameters"], theirs["macs"])
    assert ours["operators"]["Convolution"] == 1 and ours["inputs"][0]["shape"] == [1, 3, 9, 7]
    assert ours["weight_bytes"] == path.with_suffix(".bin").stat().st_size


def test_a_quantized_model_is_refused_before_pnnx_sees_it(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    write_dense_onnx(tmp_path / "m.onnx", 1)
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s"], ["q"]))
    model.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "s"], ["d"]))
    model.graph.node[2].input[0] = "d"
    onnx.save(model, tmp_path / "q.onnx")
    with pytest.raises(LeptonError, match=r"q\.onnx: a quantized model \(DequantizeLinear, QuantizeLinear\)"):
        api.convert(tmp_path / "q.onnx", "ncnn", tmp_path / "q.ncnn.param", Recipe())
    assert not list(tmp_path.glob("q.ncnn*"))


def test_integer_inputs_are_refused(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    ports = [helper.make_tensor_value_info(n, TensorProto.INT64, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "ids", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(LeptonError, match="input 'x' is int64, and ncnn is fed float32"):
        api.convert(tmp_path / "m.onnx", "ncnn", tmp_path / "m.ncnn.param", Recipe())


def test_damaged_files_are_one_line(converted, tmp_path):
    module = needs("ncnn")
    text = converted[2].read_text()
    weights = converted[2].with_suffix(".bin").read_bytes()
    path = tmp_path / "m.ncnn.param"
    cases = [text[: len(text) // 2], text.replace("7767517", "1"), "7767517\n", text.replace("Convolution", "Nonsense")]
    for case in cases:
        path.write_text(case)
        path.with_suffix(".bin").write_bytes(weights)
        with pytest.raises(ValueError, match=r"m\.ncnn\.param: ") as caught:
            module.load(str(path))
        assert "\n" not in str(caught.value)
    path.write_text(text)
    path.with_suffix(".bin").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(ValueError, match=r"m\.ncnn\.bin"):
        module.load(str(path))
    path.with_suffix(".bin").unlink()
    with pytest.raises(LeptonError, match=r"its weights m\.ncnn\.bin are missing"):
        open_artifact(path)


def test_a_file_without_sizes_asks_for_a_conversion(converted, tmp_path):
    import re

    path = tmp_path / "m.ncnn.param"
    path.write_text(re.sub(r" -23330=\S+", "", converted[2].read_text()))
    path.with_suffix(".bin").write_bytes(converted[2].with_suffix(".bin").read_bytes())
    assert needs("ncnn").load(str(path)).inputs[0]["shape"] is None
    with pytest.raises(LeptonError, match="does not say the sizes of input 'in0'"):
        api.bench([path], Recipe())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["models/mobilenet_v2.onnx", "mlperf_tiny/ic_resnet8.h5"])
def test_real_models_agree(shared, tmp_path, model):
    made = api.convert(shared / model, "ncnn", tmp_path / "m.ncnn.param", Recipe())
    assert min(p["cosine"] for p in made["parity"]["outputs"].values()) >= 0.9999, json.dumps(made["parity"])
