"""PyTorch programs into ONNX, TFLite and OpenVINO: same outputs, names kept, layouts told, clear errors."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
from test_runtimes import needs, write_dense_onnx

from lepton_edge.errors import LeptonError

torch = pytest.importorskip("torch")
torch.set_num_threads(2)


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def step(name):
    return importlib.import_module(f"converters.{name}")


class Pixels(torch.nn.Module):
    """An image in, class scores and a feature map out."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.head = torch.nn.Linear(4, 5)

    def forward(self, image):
        features = torch.relu(self.conv(image))
        return self.head(features.mean((2, 3))), features * 2


class Attention(torch.nn.Module):
    """Token ids and a mask in, an embedding out."""

    def __init__(self, width=32):
        super().__init__()
        self.embed = torch.nn.Embedding(50, width)
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.norm, self.ff = torch.nn.LayerNorm(width), torch.nn.Linear(width, width)

    def forward(self, ids, mask):
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / 5.0 + (1.0 - mask[:, None, :]) * -100.0
        x = self.norm(x + self.out(torch.softmax(scores, -1) @ v))
        return (x + torch.nn.functional.gelu(self.ff(x))).mean(1)


def export(path, module, args, **kwargs):
    torch.manual_seed(0)
    program = torch.export.export(module.eval(), args, **kwargs)
    torch.export.save(program, path)
    return str(path)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=64)
    path = tmp_path_factory.mktemp("pt2") / "pixels.pt2"
    return export(path, Pixels(), (torch.randn(2, 3, 8, 6),), dynamic_shapes=({0: batch},))


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    torch.manual_seed(0)
    args = (torch.ones(1, 7, dtype=torch.int64), torch.ones(1, 7))
    return export(tmp_path_factory.mktemp("pt2") / "attention.pt2", Attention(), args)


def image(count=3):
    return np.random.default_rng(0).normal(size=(count, 3, 8, 6)).astype(np.float32)


def tokens(count=3):
    rng = np.random.default_rng(0)
    return rng.integers(0, 50, (count, 7)), (rng.random((count, 7)) < 0.8).astype(np.float32)


def check_names(told, session):
    assert [t["name"] for t in told["inputs"]] == [s["name"] for s in session.inputs]
    assert [t["name"] for t in told["outputs"]] == [s["name"] for s in session.outputs]


def test_pt2_to_onnx_and_on_to_openvino(pixels, tmp_path):
    want = needs("torch").load(pixels).run({"image": image()})
    told = step("pt2_to_onnx").run(pixels, str(tmp_path / "m.onnx"))
    session = needs("onnxruntime").load(str(tmp_path / "m.onnx"))
    check_names(told, session)
    assert session.inputs[0]["shape"] == [1, 3, 8, 6] and told["notes"] == ["batch fixed to 1"]
    assert files(tmp_path) == ["m.onnx"]  # no external data, nothing left behind
    for name, value in session.run({"image": image()}).items():
        np.testing.assert_allclose(value, want[name], atol=1e-5)

    told = step("onnx_to_openvino").run(str(tmp_path / "m.onnx"), str(tmp_path / "m.xml"))
    session = needs("openvino").load(str(tmp_path / "m.xml"))
    check_names(told, session)
    assert files(tmp_path) == ["m.bin", "m.onnx", "m.xml"]
    for name, value in session.run({"image": image()}).items():
        np.testing.assert_allclose(value, want[name], atol=1e-5)


def test_pt2_to_onnx_keeps_a_free_batch_when_asked(pixels, tmp_path):
    step("pt2_to_onnx").run(pixels, str(tmp_path / "m.onnx"), fixed_batch=0)
    session = needs("onnxruntime").load(str(tmp_path / "m.onnx"))
    assert session.inputs[0]["shape"] == [None, 3, 8, 6]
    assert session.run({"image": image(4)})[session.outputs[0]["name"]].shape == (4, 5)


@pytest.mark.slow
def test_pt2_to_tflite_is_channel_last_with_names_kept(pixels, tmp_path):
    pytest.importorskip("litert_torch")
    want = needs("torch").load(pixels).run({"image": image()})
    told = step("pt2_to_tflite").run(pixels, str(tmp_path / "m.tflite"))
    session = needs("litert").load(str(tmp_path / "m.tflite"))
    assert session.inputs == [{"name": "image", "shape": [1, 8, 6, 3], "dtype": "float32"}]
    assert told["inputs"] == [{"name": "image", "source": "image", "perm": [0, 2, 3, 1]}]
    assert [t["perm"] for t in told["outputs"]] == [None, [0, 2, 3, 1]]
    got = session.run({"image": image().transpose(0, 2, 3, 1).copy()})
    for port in told["outputs"]:
        value = want[port["source"]]
        value = value.transpose(port["perm"]) if port["perm"] else value
        np.testing.assert_allclose(got[port["name"]], value, atol=1e-5)


@pytest.mark.slow
def test_token_models_convert_everywhere(attention, tmp_path):
    pytest.importorskip("litert_torch")
    ids, mask = tokens()
    feeds = {"ids": ids, "mask": mask}
    want = next(iter(needs("torch").load(attention).run(feeds).values()))
    step("pt2_to_onnx").run(attention, str(tmp_path / "m.onnx"))
    step("onnx_to_openvino").run(str(tmp_path / "m.onnx"), str(tmp_path / "m.xml"))
    told = step("pt2_to_tflite").run(attention, str(tmp_path / "m.tflite"))
    assert [t["perm"] for t in told["inputs"]] == [None, None]
    for name, file in (("onnxruntime", "m.onnx"), ("openvino", "m.xml"), ("litert", "m.tflite")):
        session = needs(name).load(str(tmp_path / file))
        cast = {s["name"]: feeds[s["name"]].astype(s["dtype"]) for s in session.inputs}
        np.testing.assert_allclose(next(iter(session.run(cast).values())), want, atol=1e-5)


def test_onnx_to_openvino_fixes_the_batch_or_leaves_it(tmp_path):
    pytest.importorskip("openvino")
    weights = write_dense_onnx(tmp_path / "m.onnx")
    for batch, shape in ((1, [1, 3]), (4, [4, 3]), (0, [None, 3])):
        step("onnx_to_openvino").run(str(tmp_path / "m.onnx"), str(tmp_path / "m.xml"), fixed_batch=batch)
        session = needs("openvino").load(str(tmp_path / "m.xml"))
        assert session.inputs[0]["shape"] == shape
        x = np.ones((batch or 2, 3), np.float32)
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ weights, rtol=1e-6)


def test_onnx_to_openvino_keeps_qdq_weights_in_int8(tmp_path):
    pytest.importorskip("openvino")
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (64, 32)).astype(np.int8)
    scales = (np.float32(0.05), np.float32(0.01))
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xf"]),
            helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wf"]),
            helper.make_node("MatMul", ["xf", "wf"], ["y"]),
        ],
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32])],
        [
            numpy_helper.from_array(np.asarray(scales[0]), "sx"),
            numpy_helper.from_array(np.asarray(128, np.uint8), "zx"),
            numpy_helper.from_array(np.asarray(scales[1]), "sw"),
            numpy_helper.from_array(np.asarray(0, np.int8), "zw"),
            numpy_helper.from_array(weights, "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, tmp_path / "q.onnx")
    step("onnx_to_openvino").run(str(tmp_path / "q.onnx"), str(tmp_path / "q.xml"))
    assert (tmp_path / "q.bin").stat().st_size < weights.nbytes * 1.5
    x = rng.normal(size=(1, 64)).astype(np.float32)
    got = needs("openvino").load(str(tmp_path / "q.xml")).run({"x": x})["y"]
    want = needs("onnxruntime").load(str(tmp_path / "q.onnx")).run({"x": x})["y"]
    np.testing.assert_allclose(got, want, atol=0.05)


@pytest.mark.parametrize("name", ["pt2_to_onnx", "pt2_to_tflite", "onnx_to_openvino"])
def test_damaged_sources_leave_nothing_behind(tmp_path, name):
    if name == "onnx_to_openvino":
        pytest.importorskip("openvino")
    (tmp_path / "bad").write_bytes(b"junk" * 40)
    with pytest.raises(LeptonError, match=r"^bad: ") as caught:
        step(name).run(str(tmp_path / "bad"), str(tmp_path / "out.xml"))
    assert "\n" not in caught.value.message and files(tmp_path) == ["bad"]


def test_an_operator_without_an_onnx_form_is_named(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            return torch.ops.aten.special_bessel_j0(x)

    path = export(tmp_path / "odd.pt2", Odd(), (torch.ones(1, 3),))
    with pytest.raises(LeptonError, match="bessel"):
        step("pt2_to_onnx").run(path, str(tmp_path / "odd.onnx"))
    assert files(tmp_path) == ["odd.pt2"]


def test_free_sizes_are_refused_for_tflite(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean(1)

    length = torch.export.Dim("length", min=2, max=64)
    path = export(tmp_path / "m.pt2", Mean(), (torch.ones(1, 5, 3),), dynamic_shapes=({1: length},))
    with pytest.raises(LeptonError, match="'x' has free sizes"):
        step("pt2_to_tflite").run(path, str(tmp_path / "m.tflite"))
