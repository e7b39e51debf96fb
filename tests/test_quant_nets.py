"""The core on small nets: what must not change, what must be the same in three files, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import nets

from lepton_edge.errors import LeptonError
from lepton_edge.quant import core, smooth, streams
from lepton_edge.quant.emit import emit
from lepton_edge.quant.net import to_proto
from lepton_edge.quant.place import place
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.tap import Runner

GOLDEN = Path(__file__).parent / "golden"
SMALL = core.Preset(observed=16, based=8, equalized=8, searched=2, solved=8, positions=32)


def answers(net, samples, names=None):
    runner = Runner(net, names)
    return np.concatenate([runner.run(s)[0].reshape(1, -1) for s in samples])


def sqnr(reference, other):
    return 10 * np.log10((reference**2).sum() / max(((reference - other) ** 2).sum(), 1e-30))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([6.0, float("inf")]))
def test_equalization_and_new_bases_leave_the_float_answers(tmp_path_factory, seed, clip):
    path = tmp_path_factory.mktemp("net") / "m.onnx"
    samples = nets.inverted_residual(path, seed, clip)
    net = prepare(str(path))
    placement = place(net)
    assert [len(s.tensors) for s in streams.find(net, placement)] == [3]
    samples = samples[:8]  # those that the factors come from: another one may reach a Clip that these do not
    made, _ = core.balanced(net, placement, samples, core.Options(SMALL))
    assert any(not np.array_equal(made.consts[k], v) for k, v in net.consts.items() if k in made.consts)
    assert sqnr(answers(net, samples), answers(made, samples)) > 90


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000))
def test_smoothing_leaves_the_float_answers(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("net") / "m.onnx"
    samples = nets.attention(path, seed)
    net = prepare(str(path))
    made = smooth.smoothed(net, place(net), samples)
    assert sqnr(answers(net, samples), answers(made, samples)) > 90
    added = [n for n in made.nodes if n.name.endswith("_balanced_Mul")]
    # n0 is read by products alone: its norm takes the factors. The last product of the GELU takes those of e.
    assert not {n.input[0] for n in added} & {"n0", "e"}
    assert any(not np.array_equal(made.consts[k], v) for k, v in net.consts.items() if k.startswith("n0"))


def test_smoothing_helps_where_channels_stand_out(tmp_path):
    samples = nets.attention(tmp_path / "m.onnx")
    net = prepare(str(tmp_path / "m.onnx"))
    figures = {}
    for rung in ("ranges", "balance"):
        made = core.quantize(str(tmp_path / "m.onnx"), samples, core.Options(SMALL.limited(rung)))
        figures[rung] = sqnr(answers(net, samples), answers(emit(made.net, made.spec), samples, net.outputs))
    assert figures["balance"] > figures["ranges"] + 3


def test_the_same_seed_gives_the_same_numbers(tmp_path):
    samples = nets.inverted_residual(tmp_path / "m.onnx")
    specs = [core.quantize(str(tmp_path / "m.onnx"), samples, core.Options(SMALL)).spec.to_json() for _ in range(2)]
    assert specs[0] == specs[1]


@pytest.mark.parametrize("name", ["inverted_residual", "attention"])
def test_golden_numbers(tmp_path, name):
    """Scales within a per mille and zero points within a step of those kept; a change of them is a decision."""
    samples = getattr(nets, name)(tmp_path / "m.onnx")
    options = core.Options(SMALL.limited("balance"), ranges="mse")
    spec = core.quantize(str(tmp_path / "m.onnx"), samples, options).spec
    got = {
        "activations": {k: [float(g.scale[0]), int(g.zero[0])] for k, g in spec.activations.items()},
        "weights": {k: [float(s) for s in g.scale] for k, (_, g) in spec.weights.items()},
    }
    file = GOLDEN / f"quantspec_{name}.json"
    kept = json.loads(file.read_text())
    assert got["activations"].keys() == kept["activations"].keys()
    for k, (scale, zero) in kept["activations"].items():
        assert got["activations"][k][0] == pytest.approx(scale, rel=1e-3), k
        assert abs(got["activations"][k][1] - zero) <= 1, k
    assert got["weights"].keys() == kept["weights"].keys()
    for k, scales in kept["weights"].items():
        same = np.isclose(got["weights"][k], scales, rtol=1e-3)  # a tie of two scales may fall either way
        assert same.mean() >= 0.75 and np.allclose(got["weights"][k], scales, rtol=0.5), k


def written(tmp_path, samples):
    """The quantized net in three files, and its spec."""
    import onnx

    pytest.importorskip("openvino")
    pytest.importorskip("ai_edge_litert")
    from converters import onnx_to_openvino, onnx_to_tflite

    made = core.quantize(str(tmp_path / "m.onnx"), samples, core.Options(SMALL))
    onnx.save(made.proto(), tmp_path / "q.onnx")
    onnx_to_tflite.run(str(tmp_path / "q.onnx"), str(tmp_path / "q.tflite"))
    onnx_to_openvino.run(str(tmp_path / "q.onnx"), str(tmp_path / "q.xml"))
    return made


def pairs_of_tflite(path):
    from ai_edge_litert.interpreter import Interpreter

    found, integers = [], []
    interpreter = Interpreter(str(path))
    for t in interpreter.get_tensor_details():
        scales, zeros = (t["quantization_parameters"][k] for k in ("scales", "zero_points"))
        if len(scales) == 1 and t["dtype"] == np.int8:
            found.append((float(scales[0]), int(zeros[0]) + 128))
        if len(scales) > 1 and t["dtype"] == np.int8:
            integers.append((sorted(float(s) for s in scales), interpreter.get_tensor(t["index"]).astype(np.int64)))
    return found, integers


def pairs_of_openvino(path):
    import openvino as ov

    found, integers = [], []
    for node in ov.Core().read_model(path).get_ordered_ops():
        if node.get_type_name() == "FakeQuantize":
            low, high = (float(node.input_value(k).get_node().get_data().reshape(-1)[0]) for k in (1, 2))
            scale = (high - low) / 255
            found.append((scale, round(-low / scale)))
        if node.get_type_name() == "Constant" and node.get_element_type() == ov.Type.i8:
            integers.append(node.get_data().astype(np.int64))
    return found, integers


def test_three_files_hold_the_same_scales_and_answer_alike(tmp_path):
    from test_runtimes import needs

    samples = nets.inverted_residual(tmp_path / "m.onnx")
    made = written(tmp_path, samples)
    tflite, tflite_weights = pairs_of_tflite(tmp_path / "q.tflite")
    openvino, openvino_weights = pairs_of_openvino(tmp_path / "q.xml")
    for name, g in made.spec.activations.items():
        scale, zero = float(g.scale[0]), int(g.zero[0])
        for where, pairs in (("tflite", tflite), ("openvino", openvino)):
            assert any(abs(s - scale) <= 1e-6 * scale and z == zero for s, z in pairs), (where, name)
    for name, (integers, g) in made.spec.weights.items():
        flat = np.sort(integers.reshape(-1))
        assert any(np.array_equal(np.sort(w.reshape(-1)), flat) for w in openvino_weights), ("openvino", name)
        same = [
            w for s, w in tflite_weights
            if len(s) == len(g.scale) and np.allclose(s, np.sort(g.scale), rtol=1e-6) and w.size == flat.size
        ]  # fmt: skip
        assert any(np.array_equal(np.sort(w.reshape(-1)), flat) for w in same), ("tflite", name)
    float_ = answers(prepare(str(tmp_path / "m.onnx")), samples)
    got = {}
    for runtime, file in (("onnxruntime", "q.onnx"), ("litert", "q.tflite"), ("openvino", "q.xml")):
        session = needs(runtime).load(str(tmp_path / file))
        port = session.inputs[0]
        outs = []
        for s in samples:
            x = s["x"] if list(port["shape"])[1] == 3 else s["x"].transpose(0, 2, 3, 1)
            outs.append(next(iter(session.run({port["name"]: np.ascontiguousarray(x)}).values())).reshape(1, -1))
        got[runtime] = np.concatenate(outs)
        assert sqnr(float_, got[runtime]) > 20, runtime
    for runtime, values in got.items():
        assert sqnr(got["onnxruntime"], values) > 35, runtime


def test_a_transformer_is_int8_in_three_files(tmp_path):
    """TFLite has no product of int8 activations with a float result: there rows are rounded while it runs."""
    from ai_edge_litert.interpreter import Interpreter
    from test_runtimes import needs

    samples = nets.attention(tmp_path / "m.onnx", width=64)
    written(tmp_path, samples)
    float_ = answers(prepare(str(tmp_path / "m.onnx")), samples)
    for runtime, file in (("onnxruntime", "q.onnx"), ("litert", "q.tflite"), ("openvino", "q.xml")):
        session = needs(runtime).load(str(tmp_path / file))
        name = session.inputs[0]["name"]
        got = [next(iter(session.run({name: s["x"]}).values())).reshape(1, -1) for s in samples]
        assert sqnr(float_, np.concatenate(got)) > 20, runtime
    interpreter = Interpreter(str(tmp_path / "q.tflite"))
    kinds = {t["name"]: t["dtype"] for t in interpreter.get_tensor_details()}
    assert sum(k == np.int8 for k in kinds.values()) == 6  # the weights, and no activation


@pytest.mark.parametrize(
    ("device", "weights", "dtype"),
    [("generic-x86-avx2", 63, np.uint8), ("generic-x86-vnni", 127, np.uint8), ("raspberrypi5", 127, np.int8)],
)
def test_the_device_decides_what_is_multiplied(tmp_path, device, weights, dtype):
    import onnx
    from onnx import numpy_helper

    from lepton_edge.device import get_device
    from lepton_edge.feeds import feed_from_arrays
    from lepton_edge.passes import quantize_onnx

    x = np.concatenate([s["x"] for s in nets.inverted_residual(tmp_path / "m.onnx")])
    feed_from_arrays({"x": x}, None, tmp_path / "feed", source="test")
    options = get_device(device).quantize_options()
    quantize_onnx.run(
        str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), data=str(tmp_path / "feed"), preset="fast", **options
    )
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    peaks = {int(np.abs(v.astype(int)).max()) for k, v in stored.items() if k.endswith("w_quantized")}
    assert peaks == {weights}
    assert stored["x_zero_point"].dtype == dtype


def test_every_layer_is_computed_in_integers_by_onnx_runtime(tmp_path):
    import onnx
    import onnxruntime as ort

    samples = nets.inverted_residual(tmp_path / "m.onnx")
    made = core.quantize(str(tmp_path / "m.onnx"), samples, core.Options(SMALL))
    onnx.save(made.proto(), tmp_path / "q.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(tmp_path / "q.onnx"), options, providers=["CPUExecutionProvider"])
    kinds = [n.op_type for n in onnx.load(tmp_path / "o.onnx").graph.node]
    assert kinds.count("QLinearConv") == 5 and kinds.count("QGemm") == 1 and kinds.count("QLinearAdd") == 1, kinds
    assert not {"Conv", "Gemm", "Add", "Clip", "Relu", "FusedConv"} & set(kinds), kinds


@pytest.mark.parametrize("option", [{"wide": 0.5}, {"kept": 0.5}])
def test_worst_layers_can_be_rescued(tmp_path, option):
    samples = nets.inverted_residual(tmp_path / "m.onnx")
    net = prepare(str(tmp_path / "m.onnx"))
    got = {}
    for name, more in (("plain", {}), ("rescued", option)):
        made = core.quantize(str(tmp_path / "m.onnx"), samples, core.Options(SMALL, **more))
        got[name] = sqnr(answers(net, samples), answers(emit(made.net, made.spec), samples, net.outputs))
        bits = {g.bits for g in made.spec.activations.values()}
        layers = len(made.spec.weights)
    assert got["rescued"] > got["plain"] + (1 if "kept" in option else -1)
    assert bits == ({8, 16} if "wide" in option else {8}) and layers == 6 - ("kept" in option) * (6 - layers)


def test_memory_bounds_what_is_observed_at_once(tmp_path):
    from lepton_edge.quant.tap import groups

    samples = nets.inverted_residual(tmp_path / "m.onnx", size=32)
    net = prepare(str(tmp_path / "m.onnx"))
    names = [t for s in place(net).sites for t in s.tensors]
    sizes = {n: 4 * int(np.prod(net.shapes[n])) for n in names}
    parts = groups(net, names, samples[0], budget=400_000)
    assert [n for p in parts for n in p] == names and len(parts) > 1
    assert all(sum(sizes[n] for n in p) <= 200_000 or len(p) == 1 for p in parts)


def test_free_sizes_and_ragged_samples(tmp_path):
    import onnx

    nets.inverted_residual(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    for k in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[k].ClearField("dim_value")
        model.graph.input[0].type.tensor_type.shape.dim[k].dim_param = f"size{k}"
    onnx.save(model, tmp_path / "free.onnx")
    samples = [s for size in (8, 12, 16) for s in nets.images(6, size, size)]
    made = core.quantize(str(tmp_path / "free.onnx"), samples, core.Options(SMALL))
    float_ = prepare(str(tmp_path / "free.onnx"))
    assert sqnr(answers(float_, samples), answers(emit(made.net, made.spec), samples, float_.outputs)) > 20


def test_external_data_is_read(tmp_path):
    import onnx

    samples = nets.inverted_residual(tmp_path / "m.onnx")
    onnx.save(
        onnx.load(tmp_path / "m.onnx"), tmp_path / "e.onnx", save_as_external_data=True, location="e.data",
        size_threshold=0,
    )  # fmt: skip
    specs = [
        core.quantize(str(tmp_path / f), samples, core.Options(SMALL)).spec.to_json() for f in ("m.onnx", "e.onnx")
    ]
    assert specs[0] == specs[1]


def test_bad_samples_are_refused(tmp_path):
    samples = nets.inverted_residual(tmp_path / "m.onnx")
    path = str(tmp_path / "m.onnx")
    with pytest.raises(LeptonError, match="no calibration samples"):
        core.quantize(path, [], core.Options(SMALL))
    with pytest.raises(LeptonError, match="holds NaN or infinity"):
        core.quantize(path, [{"x": np.full((1, 3, 8, 8), np.nan, np.float32)}], core.Options(SMALL))
    with pytest.raises(LeptonError, match="does not run on a sample"):
        core.quantize(path, [{"x": np.zeros((1, 4, 8, 8), np.float32)}], core.Options(SMALL))
    to_proto(core.quantize(path, samples[:1], core.Options(SMALL)).net)


def test_growth_is_of_the_samples_that_were_observed(tmp_path):
    """A range that the second half doubles has grown by 1; one sample has no halves."""
    nets.inverted_residual(tmp_path / "m.onnx")
    net = prepare(str(tmp_path / "m.onnx"))
    small = nets.images(4)
    wide = [{"x": 2 * s["x"]} for s in small]
    _, growth = core.observed(net, place(net), [*small, *wide], core.Options(), lambda *_: None)
    assert growth["x"] == pytest.approx(1.0)
    assert core.observed(net, place(net), small[:1], core.Options(), lambda *_: None)[1] == {}
    made = core.quantize(str(tmp_path / "m.onnx"), nets.images(40), core.Options(core.PRESETS["fast"]))
    assert made.figures["observed"] == 40
    made = core.quantize(str(tmp_path / "m.onnx"), nets.images(60), core.Options(core.PRESETS["fast"]))
    assert made.figures["observed"] == 48


@pytest.mark.parametrize("scheme", ["w8", "w4"])
def test_weights_alone_from_one_sample_three_times(tmp_path, scheme):
    """One row for the dense layer: about its mean there is nothing but what rounding leaves."""
    from lepton_edge.quant import drive_weights

    samples = nets.inverted_residual(tmp_path / "m.onnx")
    net = prepare(str(tmp_path / "m.onnx"))
    made = drive_weights.quantize(str(tmp_path / "m.onnx"), scheme, samples[:1] * 3, block=16)
    assert sqnr(answers(net, samples), answers(made.net, samples)) > 20
