"""What `convert` can be asked for: sizes, batch, fixed values, half precision; what it proves; what it never runs."""

import json
import sys
import zipfile

import numpy as np
import pytest

from lepton_edge import api, locate, registry, run_feeds, stages
from lepton_edge.conversion import Conversion
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.progress import Silent
from lepton_edge.recipe import Recipe


def _model(nodes, inputs, outputs, held=(), opset=17):
    import onnx
    from onnx import helper, numpy_helper

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    values = [numpy_helper.from_array(v, n) for n, v in dict(held).items()]
    graph = helper.make_graph(nodes, "g", [value(*i) for i in inputs], [value(*o) for o in outputs], values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.fixture
def network(tmp_path):
    """Four layers of float arithmetic with a free batch and free sizes."""
    import onnx
    from onnx import TensorProto, helper

    rng = np.random.default_rng(0)
    held = {n: rng.standard_normal(s).astype(np.float32) for n, s in (("w", (4, 3, 3, 3)), ("v", (4, 4, 1, 1)))}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["a"], ["b"], name="second"),
        helper.make_node("Conv", ["b", "v"], ["c"], name="third"),
        helper.make_node("Tanh", ["c"], ["y"], name="fourth"),
    ]
    shape = ["n", 3, "h", "w"]
    path = tmp_path / "net.onnx"
    ports = [("x", TensorProto.FLOAT, shape)], [("y", TensorProto.FLOAT, ["n", 4, "h", "w"])]
    onnx.save(_model(nodes, *ports, held), path)
    return path


@pytest.fixture
def switched(tmp_path):
    """A model whose `rate` chooses a branch, as voice detectors have it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def branch(name, factor):
        made = helper.make_node("Mul", ["x", f"{name}_k"], [f"{name}_y"])
        out = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, [1, 4])
        return helper.make_graph([made], name, [], [out], [numpy_helper.from_array(np.float32(factor), f"{name}_k")])

    nodes = [
        helper.make_node("Equal", ["rate", "wanted"], ["is"]),
        helper.make_node("If", ["is"], ["z"], then_branch=branch("t", 2.0), else_branch=branch("e", 3.0)),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    ports = [("x", TensorProto.FLOAT, [1, 4]), ("rate", TensorProto.INT64, [])], [("y", TensorProto.FLOAT, [1, 4])]
    path = tmp_path / "switched.onnx"
    onnx.save(_model(nodes, *ports, {"wanted": np.int64(16000)}), path)
    return path


@pytest.mark.parametrize("target", ["tflite", "openvino"])
def test_a_fixed_input_decides_its_branch_and_stays_in_the_signature(switched, target, tmp_path):
    out = tmp_path / ("m.tflite" if target == "tflite" else "m.xml")
    made = api.convert(switched, target, out, Recipe(), ask=Conversion(values="rate=16000"))
    assert made["parity"]["sqnr_db"] is None or made["parity"]["sqnr_db"] > 100
    assert {i["name"] for i in api.inspect(out)["inputs"]} == {"x", "rate"}
    assert "If" not in made["operators"] and "IF" not in made["operators"]


def test_without_the_value_the_error_names_the_if(switched, tmp_path):
    with pytest.raises(LeptonError, match="If"):
        api.convert(switched, "tflite", tmp_path / "m.tflite", Recipe())
    assert not (tmp_path / "m.tflite").exists()


@pytest.mark.parametrize("batch", [1, 2])
def test_sizes_and_batch_are_fixed_as_asked(network, tmp_path, batch):
    out = tmp_path / "m.tflite"
    ask = Conversion(shapes=f"x={batch},3,8,6", batch=batch)
    made = api.convert(network, "tflite", out, Recipe(), ask=ask)
    assert api.inspect(out)["inputs"][0]["shape"] == [batch, 8, 6, 3]
    assert made["transposes"] == 0


def test_free_sizes_without_a_word_name_the_option(network, tmp_path):
    with pytest.raises(LeptonError) as told:
        api.convert(network, "tflite", tmp_path / "m.tflite", Recipe())
    assert "free dimensions" in told.value.message and "--input-shape" in told.value.hint


def test_a_free_batch_is_kept_on_request_but_not_in_tflite(network, tmp_path):
    out = tmp_path / "m.xml"
    api.convert(network, "openvino", out, Recipe(), ask=Conversion(shapes="x=1,3,8,6", batch=0))
    with pytest.raises(UsageError, match="fixed batch"):
        api.convert(network, "tflite", tmp_path / "m.tflite", Recipe(), ask=Conversion(batch=0))


@pytest.mark.parametrize("target", ["tflite", "onnx", "openvino"])
def test_half_precision_halves_the_weights_and_gives_the_same_numbers_everywhere(network, target, tmp_path):
    out = tmp_path / {"tflite": "m.tflite", "onnx": "m.onnx", "openvino": "m.xml"}[target]
    ask = Conversion(shapes="x=1,3,8,6", dtype="float16")
    made = api.convert(network, target, out, Recipe(), ask=ask)
    assert made["scheme"] == "float16"
    assert 40 < made["parity"]["sqnr_db"] < 100


def test_bisection_names_the_first_tensor_that_differs(network, tmp_path, plugins):
    plugins(
        "converters/onnx_to_openvino.py",
        '"""Wrong from the third node on."""\nCOST = 0.1\n'
        "def run(src, dst, *, input_shapes: str = '') -> dict:\n"
        "    import numpy as np, onnx, openvino as ov\n"
        "    from onnx import numpy_helper\n"
        "    m = onnx.load(src)\n"
        "    for t in m.graph.initializer:\n"
        "        if t.name == 'v':\n"
        "            t.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(t), 'v'))\n"
        "    onnx.save(m, dst + '.onnx')\n"
        "    model = ov.Core().read_model(dst + '.onnx')\n"
        "    model.reshape([1, 3, 8, 6])\n"
        "    ov.save_model(model, dst, compress_to_fp16=False)\n"
        "    return {}\n",
    )
    with stages.road(tmp_path, Silent()) as road:
        ask = Conversion(shapes="x=1,3,8,6")
        source = stages.load_source(road, network, ask=ask)
        feeds = run_feeds.open_feeds(road, source, Recipe(), seeded=True, ask=ask)
        step = next(s for s in registry.steps() if s.name == "onnx_to_openvino" and s.cost == 0.1)
        told = locate.first_difference(road, source.model(feeds.evaluation), step, feeds.evaluation, 60.0)
    assert told and "first tensor that differs is 'c' (made by Conv 'third'" in told and "'b' before it agrees" in told


@pytest.fixture
def script(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.trace(model.eval(), torch.zeros(1, 3, 8, 8)), path)
    return path


@pytest.mark.slow
def test_torchscript_converts_for_the_sizes_given(script, tmp_path):
    ask = Conversion(shapes="input=1,3,8,8")
    made = api.convert(script, "openvino", tmp_path / "m.xml", Recipe(), ask=ask)
    assert made["parity"]["cosine"] > 0.99999
    assert [s["step"] for s in made["steps"]] == ["torchscript_to_pt2", "pt2_to_onnx", "onnx_to_openvino"]
    with pytest.raises(LeptonError, match="does not say the sizes"):
        api.convert(script, "openvino", tmp_path / "n.xml", Recipe())


def test_torchscript_that_reaches_beyond_tensors_is_refused(script, tmp_path):
    bad = tmp_path / "bad.pt"
    with zipfile.ZipFile(script) as source, zipfile.ZipFile(bad, "w", zipfile.ZIP_STORED) as target:
        for member in source.infolist():
            data = source.read(member)
            if member.filename.endswith(".py"):
                data += b"\n# ops.image.read_file(path)\n"
            target.writestr(member.filename, data)
    with pytest.raises(LeptonError, match="not one of PyTorch's own operators"):
        api.convert(bad, "onnx", tmp_path / "m.onnx", Recipe(), ask=Conversion(shapes="input=1,3,8,8"))


def test_a_zip_bomb_is_refused_before_anything_is_unpacked(tmp_path):
    bomb = tmp_path / "bomb.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("config.json", "{}")
        z.writestr("metadata.json", "{}")
        z.writestr("model.weights.h5", bytes(300 * 2**20))
    with pytest.raises(LeptonError, match="would unpack to"):
        api.inspect(bomb)


@pytest.mark.slow
def test_lambda_layers_run_only_with_trust(tmp_path):
    keras = pytest.importorskip("keras")
    x = keras.Input((4,), name="x")
    y = keras.layers.Lambda(lambda t: t * 2.0, output_shape=(4,))(keras.layers.Dense(4)(x))
    path = tmp_path / "m.keras"
    keras.Model(x, y).save(path)
    with pytest.raises(LeptonError, match="can carry code"):
        api.convert(path, "onnx", tmp_path / "m.onnx", Recipe())
    made = api.convert(path, "onnx", tmp_path / "m.onnx", Recipe(), ask=Conversion(trust=True))
    assert made["parity"]["cosine"] > 0.99999


@pytest.mark.slow
def test_int8_tflite_stays_int8_with_the_same_numbers(shared, tmp_path):
    source = shared / "mlperf_tiny" / "kws_dscnn_reference_int8.tflite"
    made = api.convert(source, "onnx", tmp_path / "m.onnx", Recipe())
    assert made["parity"]["agreement"] == 1.0
    facts = api.inspect(tmp_path / "m.onnx")
    assert facts["quantized"] and facts["size_bytes"] < 100_000
    assert {i["dtype"] for i in facts["inputs"]} == {"float32"}


def test_the_options_reach_the_command(switched, tmp_path, capsys, monkeypatch):
    from lepton_edge.__main__ import main

    out = tmp_path / "m.tflite"
    monkeypatch.setattr(
        sys,
        "argv",
        ["lepton-edge", "convert", str(switched), "--to", "tflite", "-o", str(out), "--fix", "rate=8000", "--json"],
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and out.exists()
    assert json.loads(capsys.readouterr().out)["steps"][0]["options"]["input_values"] == "rate=8000"
