"""ONNX graphs in PyTorch: every operator against ONNX's own test cases, whole nets against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from nets import model
from slim_nets import Builder, encoder, random_net

from lepton_edge.errors import LeptonError
from lepton_edge.quant.net import from_proto
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.tap import Runner

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from lepton_edge.gradients import agree, ops_layers, ops_moves, ops_values  # noqa: E402
from lepton_edge.gradients.graph import graph_of, stacked, trainable  # noqa: E402

OPERATORS = {**ops_values.table(), **ops_layers.table(), **ops_moves.table()}
PLAIN = {1, 6, 7, 9}  # float32, int32, int64, bool


def cases():
    """ONNX's test cases, by operator that is covered here."""
    import warnings

    from onnx.backend.test.case.node import collect_testcases

    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some are computed with NaN on purpose
        known = collect_testcases(None)
    for case in known:
        graph = case.model.graph
        ops = {n.op_type for n in graph.node} if len(graph.node) == 1 else set()
        kinds = {p.type.tensor_type.elem_type for p in (*graph.input, *graph.output)}
        if "empty_set" in case.name:  # nothing to learn from
            continue
        if ops and ops <= OPERATORS.keys() and kinds <= PLAIN:
            found.setdefault(min(ops), []).append(case)
    return found


CASES = cases()


@pytest.mark.parametrize("op", CASES)
def test_an_operator_gives_what_its_specification_says(op):
    right, refused = 0, []
    for case in CASES[op]:
        graph = graph_of(from_proto(case.model), case.name)
        inputs, outputs = ([p.name for p in ports] for ports in (case.model.graph.input, case.model.graph.output))
        for given, wanted in case.data_sets:
            feeds = {n: torch.from_numpy(np.array(a)) for n, a in zip(inputs, given, strict=True)}
            try:
                got = graph.one(feeds, outputs)
            except LeptonError as error:
                refused.append(error.message)
                continue
            for value, expected in zip(got, wanted, strict=True):
                assert tuple(value.shape) == np.shape(expected), case.name
                np.testing.assert_allclose(value.numpy(), expected, rtol=2e-3, atol=1e-5, err_msg=case.name)
            right += 1
    assert right >= len(refused), refused


@pytest.mark.parametrize("seed", range(6))
def test_nets_agree_with_onnx_runtime_in_batches(tmp_path, seed):
    rng = np.random.default_rng(seed)
    onnx.save(random_net(seed, rng.integers(0, 8, 3)), tmp_path / "net.onnx")
    net = prepare(str(tmp_path / "net.onnx"))
    samples = [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(3)]
    assert agree.check(graph_of(net, "net"), net, samples, "net") > 80


def test_an_encoder_with_a_fixed_batch_runs_on_many_samples_at_once(tmp_path):
    onnx.save(encoder(), tmp_path / "net.onnx")
    net, rng = prepare(str(tmp_path / "net.onnx")), np.random.default_rng(0)
    samples = [{"x": rng.normal(size=(1, 6, 32)).astype(np.float32)} for _ in range(5)]
    (got,) = graph_of(net, "net").batch(stacked(samples), ["y"])
    wanted = np.stack([Runner(net).run(s)[0] for s in samples])
    np.testing.assert_allclose(got.detach().numpy(), wanted, atol=1e-4)


def test_gradients_are_those_of_finite_differences(tmp_path):
    onnx.save(random_net(1, [0, 3]), tmp_path / "net.onnx")
    net = prepare(str(tmp_path / "net.onnx"))
    samples = [{"x": np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)}]
    graph = graph_of(net, "net")
    name = next(n for n in graph.params if graph.params[n].dim() == 4)
    loss = graph.batch(stacked(samples), ["y"])[0].square().sum()
    (grad,) = torch.autograd.grad(loss, graph.params[name])
    step, moved = 1e-2 * grad / grad.norm(), []
    for sign in (1, -1):
        copy = net.copy()
        copy.consts[name] = net.consts[name] + sign * step.numpy()
        moved.append(float((Runner(copy).run(samples[0])[0] ** 2).sum()))
    assert (moved[0] - moved[1]) / 2e-2 == pytest.approx(float(grad.norm()), rel=2e-2)


def test_what_is_written_back_is_what_was_read(tmp_path):
    onnx.save(random_net(2, [1, 6]), tmp_path / "net.onnx")
    net = prepare(str(tmp_path / "net.onnx"))
    same = graph_of(net, "net").written(net)
    for name, array in net.consts.items():
        np.testing.assert_array_equal(same.consts[name], array)
        assert same.consts[name].dtype == array.dtype


def test_what_scales_samples_and_single_numbers_are_not_trained(tmp_path):
    b = Builder(0)
    x = b.op("Div", b.op("Sub", "x", b.normal(1, 3, 1, 1)), b.normal(1, 3, 1, 1))  # c0, c1
    y = b.op("Mul", b.conv(x, 3, 4), b.const(np.float32(0.5)))  # c2, c3; c4
    b.op("Flatten", b.op("Mul", y, b.normal(4, 1, 1)))  # c5
    b.nodes[-1].output[0] = "y"
    net = from_proto(model(b.nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 64]}, b.consts))
    assert trainable(net) == ["c2", "c3", "c5"]


def test_an_unknown_operator_is_named(tmp_path):
    b = Builder(0)
    b.op("Det", "x")
    b.nodes[-1].output[0] = "y"
    net = from_proto(model(b.nodes, {"x": [1, 3, 3]}, {"y": [1]}, b.consts))
    with pytest.raises(LeptonError, match=r"m\.onnx: Det cannot be differentiated"):
        graph_of(net, "m.onnx")


def test_a_difference_is_laid_to_its_operator(tmp_path, monkeypatch):
    onnx.save(random_net(1, [0]), tmp_path / "net.onnx")
    net = prepare(str(tmp_path / "net.onnx"))
    graph = graph_of(net, "net")
    k = next(k for k, call in enumerate(graph.calls) if call[1].op == "Relu")
    graph.calls[k] = (lambda c, x: x, *graph.calls[k][1:])
    with pytest.raises(LeptonError, match=f"Relu '{graph.calls[k][3][0]}' is computed differently"):
        agree.check(graph, net, [{"x": np.ones((1, 3, 8, 8), np.float32)}], "net")


def test_answers_that_are_not_finite_are_refused(tmp_path):
    onnx.save(random_net(1, [0]), tmp_path / "net.onnx")
    net = prepare(str(tmp_path / "net.onnx"))
    with pytest.raises(LeptonError, match="NaN or infinity"):
        agree.check(graph_of(net, "n"), net, [{"x": np.full((1, 3, 8, 8), np.inf, np.float32)}], "n")
