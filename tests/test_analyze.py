"""Sensitivity to int8: noise adds up, the worst layer is found, and advice follows the numbers."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from test_runtimes import write_dense_onnx
from typer.testing import CliRunner

from lepton_edge.analysis.advice import sentences, worst
from lepton_edge.cli import app
from lepton_edge.feeds import feed_from_arrays

RNG = np.random.default_rng(0)


def write_chain(path, spoiled=1, layers=4, channels=8):
    """Convolutions with Relus and a residual sum, then dense; `spoiled` has two huge weights a row that cancel."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    nodes, consts, x = [], [], "x"
    for k in range(layers):
        w = rng.normal(size=(channels, 3 if k == 0 else channels, 3, 3)).astype(np.float32) * 0.2
        if k + 1 == spoiled:
            w[1] = w[0]
        if k == spoiled:  # the others are lost on the grid of these
            w[:, 0, 0, 0], w[:, 1, 0, 0] = 12, -12
        consts.append(numpy_helper.from_array(w, f"layer{k}.weight"))
        nodes.append(helper.make_node("Conv", [x, f"layer{k}.weight"], [f"c{k}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{k}"], [f"r{k}"]))
        x = f"r{k}"
        if k == 2:
            nodes.append(helper.make_node("Add", ["r1", "r2"], ["sum"]))
            x = "sum"
    consts.append(numpy_helper.from_array(rng.normal(size=(channels, 5)).astype(np.float32), "head.weight"))
    nodes += [
        helper.make_node("GlobalAveragePool", [x], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head.weight"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 10, 10]), ("y", [1, 5]))]
    graph = helper.make_graph(nodes, "chain", ports[:1], ports[1:], consts)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return rng.normal(size=(24, 3, 10, 10)).astype(np.float32)


def measured(path, x, told=None):
    from lepton_edge.analysis.measure import ready
    from lepton_edge.quant import core
    from lepton_edge.quant.grid import activation_grid
    from lepton_edge.quant.sensitivity import measure

    samples = [{"x": x[i : i + 1]} for i in range(8)]
    net, placement = ready(str(path))
    seen, _ = core.observed(net, placement, samples, core.Options(), lambda *_: None)
    grids = {name: activation_grid(o.low, o.high) for name, o in seen.items()}
    return net, placement, grids, samples, measure(net, placement, grids, samples, told=told)


def write_attention(path):
    """One head of attention with a residual sum: only its products with weights are quantized."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(2)
    weights = [numpy_helper.from_array(rng.normal(size=(8, 8)).astype(np.float32) / 3, f"{n}.weight") for n in "qkvo"]
    nodes = [
        *(helper.make_node("MatMul", ["x", f"{n}.weight"], [n]) for n in "qkv"),
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q", "kt"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v"], ["mixed"]),
        helper.make_node("MatMul", ["mixed", "o.weight"], ["out"]),
        helper.make_node("Add", ["out", "x"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8]) for n in "xy"]
    graph = helper.make_graph(nodes, "attention", ports[:1], ports[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return rng.normal(size=(8, 4, 8)).astype(np.float32)


def write_two_outputs(path):
    """An early output beside the last one, and two layers that share a weight."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    consts = [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32) / 3, name)
        for name, shape in (("a.weight", (4, 3, 3, 3)), ("b.weight", (4, 4, 3, 3)), ("c.weight", (4, 4)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a.weight"], ["early"], pads=[1] * 4),
        helper.make_node("Relu", ["early"], ["r0"]),
        *(
            node
            for k in range(4)
            for node in (
                helper.make_node("Conv", [f"r{k}", "b.weight"], [f"c{k}"], pads=[1] * 4),
                helper.make_node("Relu", [f"c{k}"], [f"r{k + 1}"]),
            )
        ),
        helper.make_node("GlobalAveragePool", ["r4"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "c.weight"], ["y"]),
    ]
    shapes = {"x": [1, 3, 6, 6], "early": [1, 4, 6, 6], "y": [1, 4]}
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(nodes, "two", ports[:1], ports[1:], consts)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return rng.normal(size=(8, 3, 6, 6)).astype(np.float32)


def test_the_spoiled_layer_is_the_worst_and_its_weights_are_why(tmp_path):
    x = write_chain(tmp_path / "m.onnx")
    *_, got = measured(tmp_path / "m.onnx", x)
    bad = got.ranked()[0]
    assert bad.weight == "layer1.weight" and len(got.layers) == 5
    item = next(i for i in got.layers if i.layer == bad)
    assert item.weights > 2 * item.activations
    assert max(got.shares(), key=got.shares().get) == bad.y


def test_noise_adds_up_and_ends_at_that_of_the_whole(tmp_path):
    x = write_chain(tmp_path / "m.onnx", spoiled=None)
    ticks = []
    *_, got = measured(tmp_path / "m.onnx", x, lambda done, total: ticks.append((done, total)))
    parts = sum(i.weights for i in got.layers) + sum(s.noise for s in got.sites)
    assert 0.2 < got.total / parts < 5  # few outputs and layers: errors may cancel
    assert got.layers[-1].accumulated == pytest.approx(got.total)
    assert sum(got.shares().values()) == pytest.approx(1)
    assert ticks[-1][0] == ticks[-1][1] == len(ticks)
    for item in got.layers:
        assert 0.2 < item.alone / (item.weights + item.activations) < 5


@pytest.mark.parametrize("write", [write_chain, write_attention, write_two_outputs])
def test_the_whole_is_what_the_quantized_model_does(tmp_path, write):
    """The simulation against the emitted QDQ graph with the same numbers, run without any fusion."""
    from lepton_edge.quant.emit import emit
    from lepton_edge.quant.grid import quantize, weight_grid
    from lepton_edge.quant.search import distance
    from lepton_edge.quant.spec import QuantSpec
    from lepton_edge.quant.tap import Runner

    x = write(tmp_path / "m.onnx")
    net, placement, grids, samples, got = measured(tmp_path / "m.onnx", x)
    weights = {}
    for layer in placement.layers:
        w = net.consts[layer.weight]
        peak = np.abs(w).max(axis=tuple(k for k in range(w.ndim) if k != layer.axis))
        grid = weight_grid(peak, layer.axis)
        weights[layer.y] = quantize(w, grid), grid
    made = Runner(emit(net, QuantSpec(placement, grids, weights)), net.outputs, plain=True)
    real = Runner(net)
    assert placement.local == (write is write_attention)
    noise = distance([real.run(s) for s in samples], [made.run(s) for s in samples])
    assert got.total == pytest.approx(noise, rel=0.05)


def layer(name, share, weights=0.5, spread=1.0, kind="conv"):
    return {
        "name": name, "kind": kind, "share": share, "weights_share": share * weights, "writes": f"{name}_out",
        "activations_share": share * (1 - weights), "channel_spread": spread,
    }  # fmt: skip


def told(layers, sites=(), total=15.0, ranges="auto"):
    return {"total_db": total, "layers": layers, "sites": list(sites), "ranges": ranges}


def site(name, share, layer, ratio):
    return {
        "name": name,
        "share": share,
        "layer": layer,
        "peak_over_rms": ratio,
        "noise_db": 20.0,
        "input": layer == "c",
    }


def test_advice_names_the_few_layers_that_make_the_noise():
    rest = [layer(f"l{k}", 0.01) for k in range(15)]
    said = sentences(told([layer("a", 0.5, 0.1), layer("b", 0.35, 0.1), *rest]))
    assert "less than the 30 dB" in said[0]
    assert "2 of 17 layers make 85.0 % of the noise: a, b; most of it is that of activations" in said[1]
    assert "without that noise: 23.2 dB" in said[1]
    said = sentences(told([layer("a", 0.85, 0.9), *rest]))
    assert "most of it is that of weights" in said[1]
    spread = sentences(told([layer(f"l{k}", 0.1, 0.7) for k in range(10)]))
    assert spread[1].startswith("the noise is spread over the layers") and "weights make 70.0 % of it" in spread[1]


def test_advice_on_activations_with_outliers_and_on_unlike_channels():
    layers = [layer("a", 0.2, 0.05), layer("b", 0.3, 0.8, spread=44.0, kind="depthwise conv"), layer("c", 0.5)]
    text = "\n".join(sentences(told(layers, [site("t", 0.19, "a", 40.2)])))
    assert "activations 't' alone make 19.0 % of the noise, 19.0x that of the weights of a" in text
    assert "the largest value is 40x the typical one" in text and "give more samples" in text
    assert "depthwise conv b: its largest channel is 44x the median one" in text
    text = "\n".join(sentences(told([*layers[:2], layer("c", 0.5, 0.01)], [site("x", 0.49, "c", 5.0)])))
    assert "the input 'x' alone makes 49.0 % of the noise" in text and "no outliers" in text
    text = "\n".join(sentences(told(layers, [site("t", 0.19, "a", 40.2)], ranges="minmax")))
    assert 'set ranges = "auto"' in text


def test_advice_where_nothing_stands_out():
    even = [layer(f"l{k}", 0.1, spread=99.0) for k in range(10)]
    said = sentences(told(even, [site("t", 0.5, "l0", 99.0)], total=41.0))
    assert said[0].startswith("nothing stands out") and len(said) == 2
    assert sentences(told([], total=None))[0].startswith("nothing stands out")
    assert [item["name"] for item in worst(even, 0.25)] == ["l0", "l1", "l2"]


def test_the_command_writes_a_table_a_plot_json_and_csv(tmp_path):
    x = write_chain(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", x)
    out = tmp_path / "out"
    call = ["analyze", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "x.npy"), "--samples", "4", "--out", str(out)]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found == json.loads((out / "analyze.json").read_text())
    assert found["samples"] == 4 and len(found["layers"]) == 5 and found["advice"] and found["kind"] == "measured"
    assert min(found["layers"], key=lambda item: item["rank"])["name"] == "layer1"
    rows = list(csv.DictReader((out / "analyze.csv").open(encoding="utf-8")))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5"] and rows[0]["name"] == "layer1"
    assert (out / "analyze.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (out / "analyze.svg").read_text()
    shown = CliRunner().invoke(app, call)  # an earlier analysis may be replaced
    assert shown.exit_code == 0 and "layer1" in shown.stdout and "- " in shown.stdout and "analyze.png" in shown.stdout


def test_what_cannot_be_analyzed_is_said_in_one_line(tmp_path):
    write_dense_onnx(tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones((4, 3), np.float32))
    model, data = str(tmp_path / "m.onnx"), ["--data", str(tmp_path / "x.npy")]
    done = CliRunner().invoke(app, ["analyze", model])
    assert done.exit_code == 1 and "no samples were given" in done.output
    from lepton_edge.passes import quantize_onnx

    feed = feed_from_arrays({"x": np.ones((4, 3), np.float32)}, None, tmp_path / "feed", source="test")
    quantize_onnx.run(model, str(tmp_path / "q.onnx"), data=str(feed.folder), preset="fast")
    done = CliRunner().invoke(app, ["analyze", str(tmp_path / "q.onnx"), *data, "--out", str(tmp_path / "no")])
    assert done.exit_code == 1 and "q.onnx is quantized already" in done.output
    assert not (tmp_path / "no").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    done = CliRunner().invoke(app, ["analyze", model, *data, "--out", str(tmp_path / "full")])
    assert done.exit_code == 2 and "not empty" in done.output
