"""Low-rank factorisation: the nearest weights on real inputs, ranks by a budget, only where products are faster."""

from __future__ import annotations

import json

import numpy as np
import pytest
from slim_nets import Builder, encoder, random_net
from typer.testing import CliRunner

from lepton_edge.cli import app
from lepton_edge.errors import LeptonError
from lepton_edge.quant.core import decibels, distance_of
from lepton_edge.quant.prepare import prepare
from lepton_edge.slim import drive_lowrank, lowrank, lowrank_time
from lepton_edge.slim.lowrank import Spectrum

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def any_rank(rows, inputs, outputs, ranks):
    return ranks[-1]


def spread(rng, size):
    """Inputs of which a few directions carry most of the power."""
    basis = np.linalg.qr(rng.normal(size=(size, size)))[0]
    return (basis * np.geomspace(1, 1e-3, size)) @ basis.T


def test_no_weights_of_the_rank_are_nearer_on_the_inputs():
    rng = np.random.default_rng(0)
    weight, second = rng.normal(size=(12, 20)), spread(rng, 20)

    def error(other):
        return np.einsum("oi,ij,oj->", weight - other, second, weight - other)

    best = lowrank.cut(weight, second, 4)
    assert np.linalg.matrix_rank(best) == 4
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    assert error(best) < 0.5 * error((u[:, :4] * s[:4]) @ vt[:4])
    for _ in range(20):
        moved = lowrank.cut(best + 0.02 * rng.normal(size=best.shape), np.eye(20), 4)
        assert error(best) <= error(moved)
    left = lowrank.missing(lowrank.decomposed(weight, second)[0])
    power = np.einsum("oi,ij,oj->", weight, second, weight)
    assert left[4] == pytest.approx(error(best) / power) and left[0] == pytest.approx(1) and left[12] == 0


def test_factors_of_a_matrix_of_that_rank_are_exact_and_alike_in_size():
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(12, 3)) @ rng.normal(size=(3, 20))
    outer, inner = lowrank.factors(weight, 3)
    assert np.allclose(outer @ inner, weight)
    assert np.linalg.norm(outer) == pytest.approx(np.linalg.norm(inner))


def layer(name, fall, ranks=(8, 16, 24)):
    return Spectrum(name, np.minimum(1.0, np.exp(-fall * np.arange(65))), 64 * 64, 128, ranks)


def test_ranks_meet_the_budget_where_least_is_missing():
    layers, total = [layer("steep", 0.5), layer("flat", 0.02)], 2 * 64 * 64
    chosen = lowrank.allocate(layers, total, 0.7, "m")
    assert lowrank.summed(layers, chosen, total) <= 0.7 * total
    assert "flat" not in chosen and chosen["steep"] <= 24
    deep = lowrank.allocate(layers, total, 0.5, "m")
    assert 0.4 * total < lowrank.summed(layers, deep, total) <= 0.5 * total and deep["steep"] < deep["flat"]
    with pytest.raises(LeptonError, match=r"leave 25\.0% of the multiply-accumulates, 10\.0% was asked for") as e:
        lowrank.allocate(layers, total, 0.1, "m")
    assert "0.25" in e.value.hint


def test_only_ranks_that_take_fewer_multiply_accumulates_are_worth_it():
    assert lowrank.worth(64, 64, 8) == (8, 16, 24)
    assert lowrank.worth(8, 8, 8) == ()


@pytest.mark.parametrize(("border", "wanted"), [(0, 0), (8, 8), (20, 16), (100, 40)])
def test_the_largest_rank_that_is_faster_is_halved_in_on(border, wanted):
    asked = []

    def ratio(rows, inputs, outputs, rank):
        asked.append(rank)
        return 0.9 if rank <= border else 1.1

    assert lowrank_time.fastest(1, 96, 96, (8, 16, 24, 32, 40), ratio) == wanted
    assert len(asked) <= 3


def test_products_are_timed_against_each_other():
    assert lowrank_time.measured(64, 512, 512, 8) < 1 < lowrank_time.measured(64, 64, 64, 64)


def net_of_low_rank(path, wide=64, rank=8):
    """Two dense layers whose weights have rank 8 already, and a Gemm that is too small."""
    from nets import model

    b = Builder(3)
    x = "x"
    for _ in range(2):
        thin = b.rng.normal(size=(wide, rank)) @ b.rng.normal(size=(rank, wide)) / wide
        x = b.op("Relu", b.op("Add", b.op("MatMul", x, b.const(thin.astype(np.float32))), b.normal(wide, scale=0.1)))
    b.op("Gemm", x, b.normal(4, wide), b.normal(4), transB=1)
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, wide]}, {"y": [1, 4]}, b.consts), path)
    return str(path)


def rows(count, wide=64, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, wide)).astype(np.float32)} for _ in range(count)]


def test_layers_of_low_rank_lose_nothing(tmp_path):
    path = net_of_low_rank(tmp_path / "m.onnx")
    made = drive_lowrank.factorized(path, rows(128), 0.4, 8, any_rank)
    assert made.figures["macs"]["after"] <= 0.4 * made.figures["macs"]["before"]
    assert len(made.figures["ranks"]) == 2 and all(rank < 64 for rank, _ in made.figures["ranks"].values())
    assert max(made.figures["missing"].values()) < 1e-3
    assert decibels(distance_of(prepare(path), made.net, rows(16, seed=1))) > 50
    assert "too small" in next(iter(made.figures["left"].values()))


def test_the_dense_layers_of_a_transformer_keep_its_answers(tmp_path):
    onnx.save(encoder(), tmp_path / "e.onnx")
    rng = np.random.default_rng(0)
    mixing = spread(rng, 32)
    samples = [{"x": (rng.normal(size=(1, 6, 32)) @ mixing).astype(np.float32)} for _ in range(64)]
    made = drive_lowrank.factorized(str(tmp_path / "e.onnx"), samples[:48], 0.8, 4, any_rank)
    assert made.figures["macs"]["after"] <= 0.8 * made.figures["macs"]["before"]
    net = prepare(str(tmp_path / "e.onnx"))
    assert decibels(distance_of(net, made.net, samples[48:])) > 20
    assert len(made.net.nodes) == len(net.nodes) + len(made.figures["ranks"])


def test_a_layer_stays_where_no_rank_is_faster_or_by_request(tmp_path):
    path = net_of_low_rank(tmp_path / "m.onnx")
    with pytest.raises(LeptonError, match=r"no layer to factorise .*no rank was measured faster"):
        drive_lowrank.factorized(path, rows(8), 0.5, 8, lambda *_: 0)
    first = next(y.y for y in drive_lowrank.layers_of(prepare(path)))
    made = drive_lowrank.factorized(path, rows(32), 0.7, 8, any_rank, kept=(first,))
    assert first not in made.figures["ranks"] and made.figures["left"][first] == "kept by request"
    with pytest.raises(LeptonError, match="no dense layer makes 'z', which was to be kept"):
        drive_lowrank.factorized(path, rows(8), 0.5, 8, any_rank, kept=("z",))


def test_the_command_factorises_and_proves(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path / "cache"))
    path, data, out = net_of_low_rank(tmp_path / "m.onnx", 512), tmp_path / "x.npz", tmp_path / "thin.onnx"
    np.savez(data, x=np.concatenate([row["x"] for row in rows(64, 512)]))
    command = ["factorize", path, "--data", str(data), "--macs", "0.5", "-o", str(out), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    figures = next(step["result"] for step in made["steps"] if step["step"] == "factorize_onnx")
    assert figures["macs"]["after"] <= 0.5 * figures["macs"]["before"]
    assert figures["parameters"]["after"] < 0.5 * figures["parameters"]["before"]
    assert out.exists() and made["scheme"] == "lowrank"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no samples were given"),
        (["--eval", "DATA"], "factorize needs calibration samples"),
        (["--data", "DATA", "--macs", "0"], "macs must lie between 0 and 1"),
        (["--data", "DATA"], "no layer to factorise"),
    ],
)
def test_calls_that_are_off(tmp_path, arguments, message):
    onnx.save(random_net(1, [0]), tmp_path / "cnn.onnx")
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    given = [str(tmp_path / "x.npz") if a == "DATA" else a for a in arguments]
    result = CliRunner().invoke(app, ["factorize", str(tmp_path / "cnn.onnx"), *given])
    assert result.exit_code in (1, 2) and message in result.output
    assert [f.name for f in tmp_path.iterdir()].count("cnn.lowrank.onnx") == 0
