"""Int8 in three formats: close to float, smaller, and clear errors where it cannot work."""

from __future__ import annotations

import importlib
import re

import numpy as np
import pytest
from test_runtimes import needs, write_dense_onnx, write_dense_tflite

from lepton_edge.errors import LeptonError
from lepton_edge.feeds import feed_from_arrays

RNG = np.random.default_rng(0)


def quantize(kind):
    for module in {"onnx": ["onnxruntime"], "openvino": ["nncf"], "tflite": ["ai_edge_quantizer"]}[kind]:
        pytest.importorskip(module)
    return importlib.import_module(f"lepton_edge.passes.quantize_{kind}")


def feed(folder, arrays):
    feed_from_arrays(arrays, None, folder, source="test")
    return str(folder)


def sqnr(reference, other):
    return 10 * np.log10((reference**2).sum() / ((reference - other) ** 2).sum())


def write_convnet(path, rows="batch"):
    """conv 3x3, ReLU, mean, dense: two inputs, the second added to the scores."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    conv = RNG.normal(size=(16, 3, 3, 3)).astype(np.float32) * np.geomspace(0.1, 2, 16)[:, None, None, None]
    dense = RNG.normal(size=(16, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("GlobalAveragePool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("MatMul", ["d", "dense"], ["e"]),
            helper.make_node("Add", ["e", "offset"], ["y"]),
        ],
        "convnet",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3, 12, 12]),
            helper.make_tensor_value_info("offset", TensorProto.FLOAT, [rows, 10]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 10])],
        [numpy_helper.from_array(conv.astype(np.float32), "conv"), numpy_helper.from_array(dense, "dense")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return {
        "x": RNG.normal(size=(40, 3, 12, 12)).astype(np.float32),
        "offset": RNG.normal(size=(40, 10)).astype(np.float32),
    }


def to_ir(source, target):
    ov = pytest.importorskip("openvino")
    model = ov.Core().read_model(source)
    model.reshape({port: [1, *list(port.get_partial_shape())[1:]] for port in model.inputs})
    ov.save_model(model, target, compress_to_fp16=False)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_two_inputs_in_int8_stay_close_to_float(tmp_path, kind):
    module = quantize(kind)
    arrays = write_convnet(tmp_path / "m.onnx")
    source = tmp_path / "m.onnx"
    if kind == "openvino":
        source = tmp_path / "m.xml"
        to_ir(tmp_path / "m.onnx", source)
    target = tmp_path / f"q{source.suffix}"
    seen = []
    told = module.run(
        str(source),
        str(target),
        data=feed(tmp_path / "feed", arrays),
        samples=30,
        progress=lambda done, total, what: seen.append((done, total)),
    )
    assert told["samples"] == 30 and told["quantized_tensors"] > 0 and (30, 30) in seen
    name = {"onnx": "onnxruntime", "openvino": "openvino"}[kind]
    float_, int8 = needs(name).load(str(source)), needs(name).load(str(target))
    assert [s["name"] for s in int8.inputs] == ["x", "offset"]
    sample = {k: v[:1] for k, v in arrays.items()}
    assert sqnr(float_.run(sample)["y"], int8.run(sample)["y"]) > 20
    left = {p.name for p in tmp_path.iterdir()} - {"m.onnx", "feed", "m.xml", "m.bin"}
    assert left == ({"q.onnx"} if kind == "onnx" else {"q.xml", "q.bin"})


def test_onnx_ranges_cover_every_sample_however_many(tmp_path):
    """The one extreme sample is the last."""
    onnx = pytest.importorskip("onnx")
    module = quantize("onnx")
    write_dense_onnx(tmp_path / "m.onnx")
    x = RNG.uniform(-1, 1, (37, 3)).astype(np.float32)
    x[-1] = 100
    module.run(
        str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), data=feed(tmp_path / "feed", {"x": x}), ranges="minmax"
    )
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(tmp_path / "q.onnx").graph.initializer}
    assert stored["x_scale"] == pytest.approx(101 / 255, rel=0.02)


@pytest.mark.parametrize("mode", ["on", "off"])
def test_onnx_reduce_range_is_seven_bits(tmp_path, mode):
    onnx = pytest.importorskip("onnx")
    module = quantize("onnx")
    write_dense_onnx(tmp_path / "m.onnx")
    folder = feed(tmp_path / "feed", {"x": RNG.normal(size=(8, 3)).astype(np.float32)})
    module.run(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), data=folder, reduce_range=mode)
    weights = [
        onnx.numpy_helper.to_array(t)
        for t in onnx.load(tmp_path / "q.onnx").graph.initializer
        if t.name.startswith("w") and t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 2
    ]
    assert np.abs(weights[0]).max() in ((63, 64) if mode == "on" else (127, 128))


@pytest.mark.parametrize("signature", [True, False])
def test_tflite_int8_has_float_ports_and_the_same_names(tmp_path, signature):
    module = quantize("tflite")
    write_dense_tflite(tmp_path / "m.tflite", signature=signature)
    before = needs("litert").load(str(tmp_path / "m.tflite"))
    name = before.inputs[0]["name"]
    x = RNG.normal(size=(20, 3)).astype(np.float32)
    told = module.run(str(tmp_path / "m.tflite"), str(tmp_path / "q.tflite"), data=feed(tmp_path / "feed", {name: x}))
    after = needs("litert").load(str(tmp_path / "q.tflite"))
    assert after.inputs == before.inputs and after.outputs == before.outputs
    assert told["scheme"] == "w8a8" and told["samples"] == 20
    port = after.outputs[0]["name"]
    assert sqnr(before.run({name: x})[port], after.run({name: x})[port]) > 25


@pytest.mark.parametrize("kind", ["onnx", "openvino", "tflite"])
def test_no_samples_other_inputs_and_int8_sources_are_refused(tmp_path, kind):
    module = quantize(kind)
    source = tmp_path / {"onnx": "m.onnx", "openvino": "m.xml", "tflite": "m.tflite"}[kind]
    name = "x"
    if kind == "tflite":
        write_dense_tflite(source)
        name = "pixels"
    else:
        write_dense_onnx(tmp_path / "m.onnx", 1)
        if kind == "openvino":
            to_ir(tmp_path / "m.onnx", source)
    target = tmp_path / f"q{source.suffix}"
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    good = feed(tmp_path / "good", {name: x})
    with pytest.raises(LeptonError, match="at least one"):
        module.run(str(source), str(target), data=good, samples=0)
    with pytest.raises(LeptonError, match="for the inputs other, but m"):
        module.run(str(source), str(target), data=feed(tmp_path / "bad", {"other": x}))
    with pytest.raises(LeptonError, match="feed folder"):
        module.run(str(source), str(target), data=str(tmp_path / "nowhere"))
    assert not target.exists()
    module.run(str(source), str(target), data=good)
    with pytest.raises(LeptonError, match="quantized already"):
        module.run(str(target), str(tmp_path / f"qq{source.suffix}"), data=good)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_nothing_to_quantize_is_said(tmp_path, kind):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    module = quantize(kind)
    ports = [helper.make_tensor_value_info(n, TensorProto.INT32, [1, 3]) for n in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", ports[:1], ports[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "m.onnx",
    )
    source = tmp_path / "m.onnx"
    if kind == "openvino":
        source = tmp_path / "m.xml"
        to_ir(tmp_path / "m.onnx", source)
    folder = feed(tmp_path / "feed", {"x": np.ones((4, 3), np.int32)})
    with pytest.raises(LeptonError, match=r"m\.(onnx|xml): nothing in it can be quantized"):
        module.run(str(source), str(tmp_path / f"q{source.suffix}"), data=folder)
    assert not (tmp_path / f"q{source.suffix}").exists()


def test_old_opsets_are_raised(tmp_path):
    onnx = pytest.importorskip("onnx")
    module = quantize("onnx")
    arrays = write_convnet(tmp_path / "new.onnx", rows=1)
    model = onnx.load(tmp_path / "new.onnx")
    model.opset_import[0].version = 11  # every operator of it is the same there
    onnx.save(model, tmp_path / "old.onnx")
    module.run(str(tmp_path / "old.onnx"), str(tmp_path / "q.onnx"), data=feed(tmp_path / "feed", arrays))
    sample = {k: v[:1] for k, v in arrays.items()}
    want = needs("onnxruntime").load(str(tmp_path / "old.onnx")).run(sample)["y"]
    assert sqnr(want, needs("onnxruntime").load(str(tmp_path / "q.onnx")).run(sample)["y"]) > 20


@pytest.mark.slow
def test_a_transformer_on_token_ids_in_all_formats(tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("litert_torch")
    from test_converters_torch import Attention, export

    torch.manual_seed(0)
    args = (torch.ones(1, 7, dtype=torch.int64), torch.ones(1, 7))
    path = export(tmp_path / "m.pt2", Attention(), args)
    for name, target in (("pt2_to_onnx", "m.onnx"), ("pt2_to_tflite", "m.tflite")):
        importlib.import_module(f"converters.{name}").run(path, str(tmp_path / target))
    to_ir(tmp_path / "m.onnx", tmp_path / "m.xml")
    ids = RNG.integers(0, 50, (40, 7))
    mask = (RNG.random((40, 7)) < 0.8).astype(np.float32)
    for kind, name, file in (
        ("onnx", "onnxruntime", "m.onnx"),
        ("openvino", "openvino", "m.xml"),
        ("tflite", "litert", "m.tflite"),
    ):
        float_ = needs(name).load(str(tmp_path / file))
        dtypes = {s["name"]: s["dtype"] for s in float_.inputs}
        arrays = {"ids": ids.astype(dtypes["ids"]), "mask": mask.astype(dtypes["mask"])}
        target = str(tmp_path / f"q-{file}")
        told = quantize(kind).run(str(tmp_path / file), target, data=feed(tmp_path / f"feed-{kind}", arrays))
        if kind != "tflite":
            assert any("attention found" in note for note in told["notes"])
        want, got = (next(iter(s.run(arrays).values())) for s in (float_, needs(name).load(target)))
        assert sqnr(want, got) > 15, kind


def test_openvino_auto_keeps_the_ranges_that_answer_nearer(tmp_path):
    step = quantize("openvino").run
    shapes = {name: array.shape for name, array in write_convnet(tmp_path / "m.onnx").items()}
    to_ir(tmp_path / "m.onnx", tmp_path / "m.xml")
    rng = np.random.default_rng(0)  # heavy tails: the two ranges differ
    data = feed(tmp_path / "feed", {k: rng.standard_t(2, s).astype(np.float32) for k, s in shapes.items()})
    made = {}
    for ranges in ("auto", "minmax", "average"):
        figures = step(str(tmp_path / "m.xml"), str(tmp_path / f"{ranges}.xml"), data=data, ranges=ranges)
        made[ranges] = (tmp_path / f"{ranges}.bin").read_bytes(), figures["notes"]
    kept = "minmax" if "ranges: minmax" in made["auto"][1][0] else "average"
    assert made["auto"][0] == made[kept][0] != made["average" if kept == "minmax" else "minmax"][0]
    errors = dict(re.findall(r"(minmax|average) ([0-9.e-]+)", made["auto"][1][1].split("model:")[1]))
    assert float(errors[kept]) == min(map(float, errors.values()))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheme": "w8", "kept": 0.5}, "rung, wide and kept are for scheme w8a8"),
        ({"scheme": "w8a16", "rung": "bias"}, "rung, wide and kept are for scheme w8a8"),
        ({"wide": 0.5, "kept": 0.5}, "wide and kept were both given"),
        ({"wide": 1.5}, "it is a share"),
        ({"rung": "top"}, "unknown rung 'top'"),
        ({"memory": "little"}, "not an amount of memory"),
    ],
)
def test_options_that_contradict_are_refused_not_ignored(tmp_path, options, text):
    module = quantize("onnx")
    write_dense_onnx(tmp_path / "m.onnx")
    data = feed(tmp_path / "feed", {"x": RNG.normal(size=(8, 3)).astype(np.float32)})
    with pytest.raises(LeptonError, match=text):
        module.run(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), data=data, **options)
    assert not (tmp_path / "q.onnx").exists()
