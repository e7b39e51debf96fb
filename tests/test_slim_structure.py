"""Channels followed through nets and removed: the answers are those of the net whose channels are masked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slim_nets import BLOCKS, Builder, encoder, random_net

from lepton_edge.quant.net import from_proto, to_proto
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.tap import Runner
from lepton_edge.slim.cost import Meter
from lepton_edge.slim.explicit import explicit
from lepton_edge.slim.families import families
from lepton_edge.slim.remove import gone, removed, renewed
from lepton_edge.slim.trace import trace

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def traced(proto, round_to=1):
    net = from_proto(proto)
    explicit(net)
    t = trace(net)
    return t, *families(t, round_to)


def masked(t, lost):
    """The whole net with zeros in place of the lost channels of everything that layers and products read."""
    from onnx import helper

    net, nodes = t.net.copy(), []
    for node in net.nodes:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            for port, name in enumerate(node.input[:2]):
                for axis, channels in t.of(name).items():
                    shape = [1] * t.rank(name)
                    shape[axis] = -1
                    mask, out = net.fresh(f"{name}_mask"), f"{name}_masked_{len(nodes)}_{port}_{axis}"
                    net.consts[mask] = (~lost[channels]).astype(np.float32).reshape(shape)
                    nodes.append(helper.make_node("Mul", [node.input[port], mask], [out]))
                    node.input[port] = out
        nodes.append(node)
    net.nodes = nodes
    net.link()
    return net


def halved(found, rng, unit_share=0.5):
    """Some members of each family, at least one step of it left."""
    widths = [max(f.unit, int(len(f.members) * unit_share) // f.unit * f.unit) for f in found]
    return widths, [m for f, w in zip(found, widths, strict=True) for m in rng.permutation(f.members)[w:]]


def check(proto, round_to=1, seed=0):
    """Remove half of every family; returns the families and what was left out."""
    t, found, left = traced(proto, round_to)
    rng = np.random.default_rng(seed)
    widths, members = halved(found, rng)
    lost = gone(t, members)
    made = removed(t, lost)
    feed = {name: rng.normal(size=t.net.shapes[name]).astype(np.float32) for name in t.net.inputs}
    for small, whole in zip(Runner(made).run(feed), Runner(masked(t, lost)).run(feed), strict=True):
        assert small.shape == whole.shape
        np.testing.assert_allclose(small, whole, atol=2e-5 * max(1.0, np.abs(whole).max()))
    assert Meter(t, found).macs(widths) == Meter(trace(renewed(made)), []).total
    return found, left


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(0, len(BLOCKS) - 1), min_size=1, max_size=4), st.sampled_from([1, 4]))
def test_removing_channels_is_masking_them(seed, blocks, round_to):
    check(random_net(seed, blocks), round_to, seed)


@pytest.mark.parametrize("block", range(len(BLOCKS)), ids=[b.__name__ for b in BLOCKS])
def test_every_structure_can_be_pruned(block):
    found, left = check(random_net(1, [block]))
    assert found and set(left) <= {"y"}, left


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_whole_heads_and_neurons_go(packed):
    found, _ = check(encoder(packed=packed))
    assert sorted((len(f.members), f.each) for f in found) == [(4, 24 if packed else 8), (128, 1)]


def test_channels_without_weights_are_removed_without_a_change():
    proto = random_net(3, [1, 2, 3])
    t, found, _ = traced(proto)
    lost = gone(t, [m for f in found for m in f.members[::3]])
    dead = masked(t, lost)
    for cut in t.cuts:  # readers' weights of what goes are zero, so that it can't matter
        node = dead.nodes[[n.output[0] for n in dead.nodes].index(t.net.nodes[cut.node].output[0])]
        if (cut.node, cut.axis) in {(c.node, c.weight_axis) for c in t.consumers} and cut.port == 1:
            value = np.moveaxis(dead.consts[node.input[1]].copy(), cut.axis, 0)
            value[lost[cut.channels]] = 0
            dead.consts[node.input[1]] = np.moveaxis(value, 0, cut.axis)
    feed = {"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    np.testing.assert_allclose(Runner(dead).run(feed)[0], Runner(removed(t, lost)).run(feed)[0], atol=1e-5)


def test_widths_are_multiples_and_what_is_left_is_named():
    _, found, left = traced(random_net(1, [0, 3]), round_to=8)
    assert all(f.unit == 8 and len(f.members) > 8 for f in found)
    assert left["y"] == "output 'y'"
    squeezed = [why for why in left.values() if "no more than one step of 8" in why]
    assert len(squeezed) == 1  # the 8 channels between squeeze and excitation


def test_normalized_axes_and_unknown_operators_stop_channels():
    b = Builder()
    x = b.conv("x", 3, 16)
    y = b.op("LayerNormalization", x, b.normal(16, 8, 8), b.normal(16, 8, 8), axis=1)
    z = b.op("DepthToSpace", b.conv(y, 16, 16), blocksize=2)
    b.op("Identity", z)
    b.nodes[-1].output[0] = "y"
    from nets import model

    _, found, left = traced(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 16, 16]}, b.consts, opset=20))
    assert not found
    assert sorted(left.values()) == ["LayerNormalization over them", "read by DepthToSpace"]


def test_constants_that_layers_share_lose_only_what_each_loses():
    b = Builder()
    w = b.normal(16, 16, 1, 1)
    x = b.op("Relu", b.op("Conv", b.conv("x", 3, 16), w))
    y = b.op("Conv", x, w)
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", y)), b.normal(16, 5))
    b.nodes[-1].output[0] = "y"
    from nets import model

    found, _ = check(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, b.consts, opset=20))
    assert len(found) == 3


def test_a_pruned_net_is_valid_onnx():
    import onnx

    t, found, _ = traced(random_net(5, [4, 5, 6]))
    _, members = halved(found, np.random.default_rng(0))
    onnx.checker.check_model(to_proto(removed(t, gone(t, members))), full_check=True)


def lighted(name, path):
    """A published graph that the onnx package carries without its weights, with random ones."""
    from onnx import load, numpy_helper, save

    proto = load(str(Path(onnx.__file__).parent / f"backend/test/data/light/light_{name}.onnx"))
    sizes = {item.name: numpy_helper.to_array(item).tolist() for item in proto.graph.initializer}
    norms = {n for node in proto.graph.node if node.op_type == "BatchNormalization" for n in node.input[1:]}
    rng = np.random.default_rng(0)
    for node in [n for n in proto.graph.node if n.op_type == "ConstantOfShape"]:
        shape = sizes[node.input[0]]
        value = np.abs(rng.normal(size=shape)) + 0.5 if node.output[0] in norms else rng.normal(size=shape)
        value = value * np.sqrt(2 / max(np.prod(shape[1:]), 1)) if len(shape) > 1 else value * 0.5
        proto.graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), node.output[0]))
        proto.graph.node.remove(node)
    proto.ir_version = 8
    save(proto, path)
    return prepare(str(path))


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("squeezenet", 25),
        pytest.param("shufflenet", 10, marks=pytest.mark.slow),  # grouped convolutions and shuffles
        pytest.param("resnet50", 37, marks=pytest.mark.slow),
        pytest.param("densenet121", 119, marks=pytest.mark.slow),
    ],
)
def test_published_graphs(name, least, tmp_path):
    found, left = check(to_proto(lighted(name, tmp_path / "net.onnx")), 8)
    assert len(found) >= least
    assert all("Softmax" in why or "output" in why or "step" in why for why in left.values()), left


def test_mobilenet_v2():
    path = Path(__file__).resolve().parent.parent.parent / "shared/data/models/mobilenet_v2.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    found, left = check(to_proto(prepare(str(path))), 8)
    assert len(found) == 25 and set(left) == {"output"}
