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
    assert session.inputs[0]["shape"] == [1, 3, 8, 6] and told["notes"] == ["fixed to image [1, 3, 8, 6]"]
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


# ---- free sizes, and programs of odd shapes ----------------------------------------------------------------


class Lookup(torch.nn.Module):
    """A dict and keywords in; an input, a number and tensors out; 3-D attention and an in-place operator."""

    def __init__(self):
        super().__init__()
        self.embed, self.dense = torch.nn.Embedding(50, 8), torch.nn.Linear(8, 24)

    def forward(self, feats, *, scale):
        x = torch.nn.functional.pad(self.embed(feats["ids"]), (0, 0, 0, -feats["ids"].shape[1] % 4))
        q, k, v = self.dense(x).chunk(3, -1)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return {"y": y * scale.relu_(), "ids": feats["ids"], "rows": y.shape[1]}


def test_free_sizes_load_run_and_convert(tmp_path):
    batch, length = torch.export.Dim("batch", max=8), torch.export.Dim("length", min=2, max=64)
    args = {"feats": {"ids": torch.ones(2, 6, dtype=torch.int64)}, "scale": torch.ones(2, 1, 1)}
    shapes = {"feats": {"ids": {0: batch, 1: length}}, "scale": {0: batch}}
    module = Lookup()
    path = export(tmp_path / "lookup.pt2", module, (), kwargs=args, dynamic_shapes=shapes)
    session = needs("torch").load(path)
    assert [(s["name"], s["shape"]) for s in session.inputs] == [
        ("feats_ids", [None, None]),
        ("scale", [None, 1, 1]),
    ]
    step("pt2_to_onnx").run(path, str(tmp_path / "m.onnx"))
    converted = needs("onnxruntime").load(str(tmp_path / "m.onnx"))
    check_names({"inputs": session.inputs, "outputs": session.outputs}, converted)
    for count in (5, 9):
        ids, scale = np.arange(count)[None], np.full((1, 1, 1), -2, np.float32)
        feeds = {"feats_ids": ids, "scale": -scale}
        want = module({"ids": torch.from_numpy(ids)}, scale=torch.full((1, 1, 1), 2.0))["y"].detach().numpy()
        for runner in (session, converted):
            got = list(runner.run(feeds).values())
            np.testing.assert_allclose(got[0], want, atol=1e-5)
            np.testing.assert_array_equal(got[1], ids)
        session.run({"feats_ids": ids, "scale": scale})
        assert scale[0, 0, 0] == -2  # the in-place operator worked on a copy


def test_sizes_that_are_multiples_load_and_convert(tmp_path):
    half = torch.export.Dim("half", min=2, max=30)
    shapes = ({0: torch.export.Dim("batch"), 2: 2 * half},)
    path = export(tmp_path / "m.pt2", torch.nn.Conv1d(3, 4, 3, 2, 1), (torch.ones(2, 3, 8),), dynamic_shapes=shapes)
    x = np.ones((1, 3, 10), np.float32)
    want = next(iter(needs("torch").load(path).run({"input": x}).values()))
    step("pt2_to_onnx").run(path, str(tmp_path / "m.onnx"))
    got = next(iter(needs("onnxruntime").load(str(tmp_path / "m.onnx")).run({"input": x}).values()))
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_only_sizes_are_evaluated():
    check = needs("torch")._check_expression
    for text in (
        "Symbol('s40', positive=True, integer=True)",
        "Max(Integer(1), Add(FloorDiv(Add(Symbol('s0'), Integer(-1)), Integer(2)), Integer(1)))",
        "FloatPow(ToFloat(Symbol('s27', integer=True)), Float('0.5', precision=53))",
        "StrictGreaterThan(Symbol('u0', integer=True), Integer(1))",
        "Pow(Symbol('s0'), Rational(1, 2))",
        "2*s77 + 1",
        "-int_oo",
    ):
        check(text)
    for text in (
        *("__import__('os')", "s0.x", "s0[0]", "[s0]", "lambda: 1", "(s0:=1)", "s0 in s1", "f'{s0}'", "'s0'"),
        *("Symbol('os.system')", "Symbol('s0', foo=True)", "Symbol(f's0')", "Symbol('s0')('x')", "Symbol"),
        *("Add(*[1])", "Add('s0')", "Add(s0, evaluate=False)", "Integer('9'*9)", "Float('nan')", "sympify(s0)"),
        *("9**9999", "Pow(Integer(9), Add(Integer(99), Integer(99)))", "1<<999", "2**1j", "Float('1e9999')"),
        *("Float('1', precision=99999999)", "(" * 5000 + "1" + ")" * 5000, "", 5, None),
    ):
        with pytest.raises((ValueError, RecursionError), match=r"odd size expression|recursion"):
            check(text)


@pytest.mark.parametrize("kind", ["batch norm", "dropout", "counter"])
def test_programs_that_are_not_for_inference_are_refused(tmp_path, kind):
    class Counter(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("runs", torch.zeros(1))

        def forward(self, x):
            self.runs.add_(1)
            return x + self.runs

    module, why = {
        "batch norm": (torch.nn.BatchNorm1d(3).train(), "training mode"),
        "dropout": (torch.nn.Dropout(0.5).train(), "training mode"),
        "counter": (Counter().eval(), "its own buffer 'runs'"),
    }[kind]
    torch.export.save(torch.export.export(module, (torch.ones(2, 3),)), tmp_path / "m.pt2")
    with pytest.raises(LeptonError, match=rf"m\.pt2: .*{why}"):
        step("pt2_to_onnx").run(str(tmp_path / "m.pt2"), str(tmp_path / "m.onnx"))
    assert files(tmp_path) == ["m.pt2"]


def test_types_numpy_lacks_and_numbers_as_inputs_are_named(tmp_path):
    class Tall(torch.nn.Module):
        def forward(self, x, n):
            return x.repeat(n, 1)

    odd = export(tmp_path / "odd.pt2", torch.nn.ReLU(), (torch.ones(1, 3, dtype=torch.bfloat16),))
    free = torch.export.Dim.DYNAMIC
    tall = export(tmp_path / "tall.pt2", Tall(), (torch.ones(2, 3), 4), dynamic_shapes=(None, free))
    for path, why in ((odd, "bfloat16"), (tall, "'n' is a SymInt")):
        with pytest.raises(ValueError, match=why):
            needs("torch").load(path)


@pytest.mark.slow
def test_nearest_resizes_by_any_factor_are_exact_in_tflite(tmp_path):
    pytest.importorskip("litert_torch")

    class Resize(torch.nn.Module):
        def forward(self, image):
            return torch.nn.functional.interpolate(image, size=(4, 9))

    path = export(tmp_path / "m.pt2", Resize(), (torch.ones(1, 3, 8, 6),))
    told = step("pt2_to_tflite").run(path, str(tmp_path / "m.tflite"))
    want = next(iter(needs("torch").load(path).run({"image": image(1)}).values()))
    feed = image(1).transpose(told["inputs"][0]["perm"]) if told["inputs"][0]["perm"] else image(1)
    got = next(iter(needs("litert").load(str(tmp_path / "m.tflite")).run({"image": feed.copy()}).values()))
    want = want.transpose(told["outputs"][0]["perm"]) if told["outputs"][0]["perm"] else want
    np.testing.assert_array_equal(got, want)
