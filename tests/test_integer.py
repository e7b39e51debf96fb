"""Nothing in float: what NPUs and microcontrollers want, from softmax to the model's own inputs and outputs."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")

import nets

from converters import onnx_to_tflite
from lepton_edge.device import get_device
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import feed_from_arrays
from lepton_edge.passes import quantize_onnx


def made(tmp_path, *tail, out="z", integer=True, **options):
    """The TFLite file of a small quantized net with ``tail`` nodes after its "y"; its samples and float answers."""
    import onnx
    import onnxruntime

    x = np.concatenate([s["x"] for s in nets.inverted_residual(tmp_path / "m.onnx")])
    model = onnx.load(tmp_path / "m.onnx")
    for node in tail:
        model.graph.node.append(onnx.helper.make_node(*node[:3], **node[3] if len(node) > 3 else {}))
    if tail:
        model.graph.output[0].name = out
    onnx.save(model, tmp_path / "m.onnx")
    feed_from_arrays({"x": x}, None, tmp_path / "feed", source="test")
    quantize_onnx.run(
        str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), data=str(tmp_path / "feed"), preset="fast",
        reduce_range="off", integer=integer, **options,
    )  # fmt: skip
    told = onnx_to_tflite.run(str(tmp_path / "q.onnx"), str(tmp_path / "q.tflite"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    return x, np.concatenate([session.run(None, {"x": row[None]})[0] for row in x]), told


def tensors(path):
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(str(path)).get_tensor_details()


@pytest.mark.parametrize(
    "tail",
    [
        (),
        (("Softmax", ["y"], ["z"], {"axis": 1}),),
        (("Sigmoid", ["y"], ["z"]),),
        (("Tanh", ["y"], ["t"]), ("Mul", ["t", "t"], ["z"])),
    ],
    ids=["logits", "softmax", "sigmoid", "tanh"],
)
def test_every_tensor_is_an_integer_and_the_answers_stay(tmp_path, tail):
    from test_runtimes import needs

    x, wanted, told = made(tmp_path, *tail)
    assert {t["dtype"] for t in tensors(tmp_path / "q.tflite")} <= {np.int8, np.int32}
    assert not any("not integer" in note for note in told["notes"])
    session = needs("litert").load(str(tmp_path / "q.tflite"))
    port, answer = session.inputs[0], session.outputs[0]
    assert port["dtype"] == answer["dtype"] == "int8" and port["quantization"] and answer["quantization"]
    scale, zero = port["quantization"]
    rows = np.clip(np.rint(x.transpose(0, 2, 3, 1) / scale) + zero, -128, 127).astype(np.int8)
    stored = np.concatenate([next(iter(session.run({port["name"]: row[None]}).values())) for row in rows])
    got = (stored.astype(np.float32) - answer["quantization"][1]) * answer["quantization"][0]
    assert got.shape == wanted.shape
    noise = np.sqrt(((got - wanted) ** 2).mean())
    assert noise < 0.06 * wanted.std() + 1 / 256
    assert (got.argmax(1) == wanted.argmax(1)).mean() > 0.8


def test_sixteen_bits(tmp_path):
    made(tmp_path, ("Softmax", ["y"], ["z"], {"axis": 1}), scheme="w8a16")
    kinds = {t["dtype"] for t in tensors(tmp_path / "q.tflite")}
    assert np.int16 in kinds and kinds <= {np.int8, np.int16, np.int32, np.int64}


def test_without_it_ports_and_softmax_stay_float(tmp_path):
    made(tmp_path, ("Softmax", ["y"], ["z"], {"axis": 1}), integer=False)
    ports = [t for t in tensors(tmp_path / "q.tflite") if t["name"] in ("x", "z")]
    assert [t["dtype"] for t in ports] == [np.float32] * 2


def test_what_has_no_integer_form_is_named(tmp_path):
    _, _, told = made(tmp_path, ("Erf", ["y"], ["z"]))
    assert any("not integer: z" in note for note in told["notes"])
    ports = {t["name"]: t["dtype"] for t in tensors(tmp_path / "q.tflite")}
    assert ports["x"] == np.int8 and ports["z"] == np.float32


def test_the_devices_that_need_it_ask_for_it():
    for name in ("cortex-m55-ethos-u55", "coral-dev-board", "imx93"):
        assert get_device(name).quantize_options()["integer"]
    assert "integer" not in get_device("raspberrypi5").quantize_options()


def test_schemes_that_compute_in_float_have_no_integers(tmp_path):
    nets.inverted_residual(tmp_path / "m.onnx")
    with pytest.raises(LeptonError, match="dynamic computes in float"):
        quantize_onnx.run(str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), scheme="dynamic", integer=True)


@pytest.mark.parametrize(("kernel", "kind"), [(2, "AVERAGE_POOL_2D"), (8, "MEAN")])
@pytest.mark.parametrize("pad", ["NOTSET", "VALID"])
def test_average_pooling_is_an_integer_operator(tmp_path, kernel, kind, pad):
    """TFLite's kernel for windows does not rescale: a requantization has to follow it."""
    import onnx
    from onnx import helper

    from lepton_edge.inspectors import tflite

    rng = np.random.default_rng(1)
    weights = rng.normal(size=(4, 3, 1, 1)).astype(np.float32)
    size = 8 // kernel
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[1, 1]),
        helper.make_node(
            "AveragePool", ["c"], ["y"], kernel_shape=[kernel, kernel], strides=[kernel, kernel], auto_pad=pad
        ),
    ]
    onnx.save(nets.model(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, size, size]}, {"w": weights}), tmp_path / "m.onnx")
    x = np.concatenate([s["x"] for s in nets.images(20)])
    feed_from_arrays({"x": x}, None, tmp_path / "feed", source="test")
    quantize_onnx.run(
        str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), data=str(tmp_path / "feed"), preset="fast", integer=True
    )
    told = onnx_to_tflite.run(str(tmp_path / "q.onnx"), str(tmp_path / "q.tflite"))
    assert told["parity"]["sqnr_db"] > 20
    assert kind in tflite.inspect(str(tmp_path / "q.tflite"))["operators"]
    assert {t["dtype"] for t in tensors(tmp_path / "q.tflite")} <= {np.int8, np.int32}
