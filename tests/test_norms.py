"""Batch norms for the time of training: they change nothing at first, and what they learn is folded into the file."""

from __future__ import annotations

import numpy as np
import pytest
from slim_nets import encoder, random_net

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from lepton_edge.gradients.graph import graph_of, stacked  # noqa: E402
from lepton_edge.gradients.norms import Norms, places  # noqa: E402
from lepton_edge.quant.prepare import prepare  # noqa: E402
from lepton_edge.quant.tap import Runner  # noqa: E402
from lepton_edge.slim.explicit import explicit  # noqa: E402


def net_of(tmp_path, model):
    onnx.save(model, tmp_path / "m.onnx")
    net = prepare(str(tmp_path / "m.onnx"))
    explicit(net)
    return net


def samples(count, seed=0, shape=(1, 3, 8, 8)):
    rng = np.random.default_rng(seed)
    return [{"x": (rng.normal(size=shape) * 2 + 0.5).astype(np.float32)} for _ in range(count)]


def answers(net, rows):
    runner = Runner(net)
    return np.stack([runner.run(row)[0] for row in rows])


@pytest.mark.parametrize("model", [random_net(1, [0, 1, 2, 3]), random_net(2, [4, 5, 6, 7]), encoder()])
def test_operator_by_operator_it_is_the_same(tmp_path, model):
    net = net_of(tmp_path, model)
    shape = (1, 3, 8, 8) if net.shapes["x"][1] == 3 else tuple(net.shapes["x"])
    graph, feeds = graph_of(net, "m"), stacked(samples(5, shape=shape))
    inner = next(n.output[0] for n in net.nodes if n.op_type in ("Conv", "MatMul"))
    with torch.no_grad():
        once = graph.batch(feeds, [inner, *net.outputs])
        again = graph.by_operator(feeds, [inner, *net.outputs], lambda _, value: value)
    for a, b in zip(once, again, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


@pytest.fixture
def normed(tmp_path):
    """A net, its graph, norms that were begun on 64 samples, and what shows the graph those."""
    net = net_of(tmp_path, random_net(1, [0, 1, 4, 5]))
    graph = graph_of(net, "m")
    norms = Norms(net, places(net, graph.params))
    shown = stacked(samples(64))
    assert len(norms.at) == sum(node.op_type == "Conv" for node in net.nodes) > 4

    def run():
        for k in range(0, 64, 16):
            graph.by_operator({"x": shown["x"][k : k + 16]}, net.outputs, norms)

    norms.begin(run)
    return net, graph, norms, run


def given(graph, net, norms, rows):
    with torch.no_grad():
        return graph.by_operator(stacked(rows), net.outputs, norms)[0].numpy()


def test_they_change_nothing_at_first(normed):
    net, graph, norms, _ = normed
    rows = samples(8, seed=3)
    wanted = answers(net, rows)
    assert np.allclose(given(graph, net, norms, rows), wanted, atol=1e-3 * np.abs(wanted).max())
    assert np.allclose(answers(norms.folded(graph.written(net)), rows), wanted, atol=1e-3 * np.abs(wanted).max())


def test_what_they_learn_is_folded(normed):
    net, graph, norms, run = normed
    before = {name: array.copy() for name, array in net.consts.items()}
    with torch.no_grad():
        for name, value in norms.params.items():
            value.mul_(1.3 if name.startswith("scale") else 0.8).add_(0.05)
        for value in graph.params.values():
            value.mul_(0.7)
    norms.settle(run)
    rows = samples(8, seed=4)
    wanted = given(graph, net, norms, rows)
    made = norms.folded(graph.written(net))
    assert np.allclose(answers(made, rows), wanted, atol=1e-3 * np.abs(wanted).max())
    assert all(np.array_equal(net.consts[name], array) for name, array in before.items())


def test_statistics_are_those_of_what_was_shown(normed):
    net, _, norms, run = normed
    norms.settle(run)
    first = next(node for node in net.nodes if node.op_type == "Conv")
    values = Runner(net, [first.output[0]])
    seen = np.concatenate([values.run(row)[0] for row in samples(64)])
    y = first.output[0]
    assert np.allclose(norms.running[f"mean/{y}"].numpy(), seen.mean((0, 2, 3)), atol=1e-3)
    assert np.allclose(norms.running[f"var/{y}"].numpy(), seen.var((0, 2, 3)), rtol=1e-3)


def test_while_learning_a_batch_is_normed_by_itself(normed):
    net, _, norms, _ = normed
    y = next(node.output[0] for node in net.nodes if node.op_type == "Conv")
    norms.learning = True
    value = norms(y, torch.randn(6, 1, len(norms.running[f"mean/{y}"]), 4, 4) * 9 + 5)
    spread = value.std((0, 1, 3, 4), correction=0)
    assert torch.allclose(spread, norms.params[f"scale/{y}"].abs(), rtol=1e-2)
    shift = value.mean((0, 1, 3, 4))
    assert torch.allclose(shift, norms.params[f"shift/{y}"], atol=1e-3)
