"""Pruning without training: what is left takes over, budgets are kept, bad calls are told in one line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nets import model
from slim_nets import Builder, encoder, random_net
from typer.testing import CliRunner

from lepton_edge.cli import app
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import open_data, write_feed
from lepton_edge.passes import prune_onnx
from lepton_edge.quant.core import decibels, distance_of
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.rounding import unit_upper
from lepton_edge.slim import core, drive_sparse, sparse
from lepton_edge.slim.live import live

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def images(count, seed=0):
    """Smooth pictures: neighbouring positions are alike, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(count, 1, 3, 3, 3)).astype(np.float32)
    fine = np.repeat(np.repeat(coarse, 3, 3), 3, 4)[..., :8, :8] + rng.normal(size=(count, 1, 3, 8, 8)) * 0.1
    return [{"x": image.astype(np.float32)} for image in fine]


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    path = tmp_path_factory.mktemp("slim") / "cnn.onnx"
    onnx.save(random_net(1, [1, 2, 3, 0]), path)
    return str(path)


@pytest.fixture(scope="module")
def studied(cnn):
    samples = images(48)
    return core.study(cnn, samples, core.Options(round_to=4)), samples


def loss(path, made, samples):
    return decibels(distance_of(prepare(path), made.net, samples))


def test_the_budget_is_kept_and_repair_pays_on_unseen_samples(cnn, studied):
    found, samples = studied
    unseen = images(24, 1)
    made = {repair: core.apply(found, samples, core.Options(macs=0.7, repair=repair)) for repair in (False, True)}
    macs = made[True].figures["macs"]
    assert 0.6 < macs["after"] / macs["before"] <= 0.7
    assert all(width % 4 == 0 for width, whole in made[True].figures["widths"].values() if width != whole)
    assert loss(cnn, made[True], unseen) > loss(cnn, made[False], unseen)


def test_channels_that_others_can_replace_go_first(tmp_path):
    b = Builder(0)
    x = b.conv("x", 3, 16, 3)
    twins = b.consts["c0"]
    twins[12:] = twins[:4] * 3  # large, and nothing but copies
    b.consts["c1"][:] = 0
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", x))), b.normal(16, 5), b.normal(5))
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, b.consts, opset=20), tmp_path / "twins.onnx")
    path, samples = str(tmp_path / "twins.onnx"), images(200)
    by = {name: core.Options(0.76, 4, name, repair=False) for name in ("reconstruction", "magnitude")}
    made = {name: core.prune(path, samples, options) for name, options in by.items()}
    assert made["reconstruction"].figures["widths"]["t0_0"] == [12, 16]
    unseen = images(24, 1)
    assert loss(path, made["reconstruction"], unseen) > 40 > loss(path, made["magnitude"], unseen) + 10


def test_less_is_worse_and_too_little_is_refused(studied):
    found, samples = studied
    noise = [
        core.apply(found, samples, core.Options(macs=share)).figures["calibration_sqnr_db"] for share in (0.9, 0.5)
    ]
    assert noise[0] > noise[1]
    with pytest.raises(LeptonError, match="at the narrowest widths it takes 0"):
        core.apply(found, samples, core.Options(macs=0.01))


def test_heads_of_a_transformer_are_removed(tmp_path):
    path = str(tmp_path / "encoder.onnx")
    onnx.save(encoder(heads=8, size=4), path)
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(32, 32)) * (0.7 ** np.arange(32))  # few directions carry most
    samples = [{"x": (rng.normal(size=(1, 6, 32)) @ mix).astype(np.float32)} for _ in range(60)]
    neurons = max(core.study(path, samples[:8], core.Options()).families, key=lambda family: len(family.members))
    made = core.prune(path, samples[:40], core.Options(macs=0.85, kept=(neurons.name,)))
    (heads,) = made.figures["widths"].values()
    assert heads[0] < heads[1] == 32 and heads[0] % 8 == 0
    assert loss(path, made, samples[40:]) > 10


def test_a_layer_applied_by_head_survives_the_loss_of_heads(tmp_path):
    b, shape = Builder(0), [1, 6, 8, 4]
    x = b.op("Reshape", b.dense("x", 32, 32), b.const(np.array(shape, np.int64)))
    x = b.dense(b.op("Relu", b.dense(b.op("Transpose", x, perm=[0, 2, 1, 3]), 4, 8)), 8, 4)
    x = b.op("Reshape", b.op("Transpose", x, perm=[0, 2, 1, 3]), b.const(np.array([1, 6, 32], np.int64)))
    b.dense(x, 32, 32)
    b.nodes[-1].output[0] = "y"
    path = str(tmp_path / "by_head.onnx")
    onnx.save(model(b.nodes, {"x": [1, 6, 32]}, {"y": [1, 6, 32]}, b.consts, opset=20), path)
    rng = np.random.default_rng(0)
    samples = [{"x": rng.normal(size=(1, 6, 32)).astype(np.float32)} for _ in range(60)]
    made = core.prune(path, samples[:40], core.Options(macs=0.8, round_to=4))
    assert any(width < whole == 32 for width, whole in made.figures["widths"].values())
    assert loss(path, made, samples[40:]) > 3


@pytest.mark.parametrize("method", ["weights", "2:4"])
def test_weights_are_zero_where_they_should_be(cnn, method):
    samples = images(40)
    wanted = sparse.pattern(method, 0.5 if method == "weights" else 0.0)
    made = drive_sparse.prune(cnn, samples, wanted)
    assert made.figures["layers"] and all(abs(s - 0.5) < 0.01 for s in made.figures["layers"].values())
    if method == "2:4":
        weight = next(
            a for a in made.net.consts.values() if a.ndim == 4 and a.shape[1] % 4 == 0 and (a == 0).mean() > 0.4
        )
        rows = np.moveaxis(weight, 1, -1).reshape(-1, 4)
        assert ((rows != 0).sum(1) <= 2).all()
    assert loss(cnn, made, images(24, 1)) > 12


def test_large_layers_lose_more_by_erk(cnn):
    made = drive_sparse.prune(cnn, images(24), sparse.pattern("weights", 0.6), spread="erk")
    net = prepare(cnn)
    sizes = {y.y: net.consts[y.weight].size for y in drive_sparse.layers_of(net)}
    shares = made.figures["layers"]
    zeros = sum(shares[y] * sizes[y] for y in shares)
    assert zeros == pytest.approx(0.6 * sum(sizes[y] for y in shares), rel=0.01)
    largest, smallest = (pick(shares, key=sizes.get) for pick in (max, min))
    assert shares[largest] > shares[smallest]


def test_repaid_zeros_cost_less_than_plain_ones():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 32)) @ rng.normal(size=(32, 32)) * (0.8 ** np.arange(32))
    xx, w = (x.T @ x / len(x))[None], rng.normal(size=(1, 16, 32))

    def cost(made):
        return float(np.einsum("gof,gfh,goh->", w - made, xx, w - made))

    half = sparse.Pattern(0.5)
    plain = np.where(half.keep(np.abs(w)), w, 0)
    repaid = sparse.thinned(w, xx, half)
    assert (repaid == 0).mean() == (plain == 0).mean() == 0.5
    settled = sparse.settled(w, repaid, xx)
    assert cost(settled) < cost(repaid) < 0.5 * cost(plain)
    assert ((settled == 0) == (repaid == 0)).all()
    upper, diagonal = unit_upper(xx, 0.0)
    np.testing.assert_allclose(upper[0] * diagonal[0] @ upper[0].T, xx[0], atol=1e-9)


@pytest.fixture
def data(tmp_path):
    np.savez(tmp_path / "calib.npz", x=np.concatenate([s["x"] for s in images(24)]))
    return tmp_path / "calib.npz"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "filters"}, "unknown method 'filters'"),
        ({"method": "4:2"}, "unknown method '4:2'"),
        ({"macs": 1.5}, "macs must lie between 0 and 1, not 1.5"),
        ({"method": "channels", "sparsity": 0.5}, "sparsity is for method weights"),
        ({"method": "weights"}, "method weights needs a sparsity"),
        ({"method": "2:4", "macs": 0.5}, "macs is for methods channels and depth"),
        ({"round_to": 0}, "round_to must be at least 1"),
        ({"importance": "hessian"}, "unknown importance 'hessian'"),
        ({"keep": "nowhere"}, "no layer makes 'nowhere'"),
        ({"round_to": 512}, "none of its channels can be removed"),
        ({"macs": 0.001}, "at the narrowest widths"),
        ({"sparsity": 0.5, "spread": "even"}, "unknown spread 'even'"),
        ({"macs": 0.5, "spread": "erk"}, "spread is for method weights"),
        ({"method": "depth", "keep": "t0_0"}, "keep is for method channels"),
    ],
)
def test_bad_options_are_told_before_a_file_is_written(cnn, data, tmp_path, options, message):
    specs = [{"name": "x", "shape": [1, 3, 8, 8], "dtype": "float32"}]
    from lepton_edge.preprocess import from_dict

    feed = write_feed(open_data(data, specs, from_dict({})), tmp_path / "feed")
    with pytest.raises(LeptonError, match=message) as e:
        prune_onnx.run(cnn, str(tmp_path / "out.onnx"), data=str(feed.folder), **options)
    assert e.value.hint and not (tmp_path / "out.onnx").exists()


def test_the_command_prunes_proves_and_converts(cnn, data, tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "small.onnx"
    command = ["prune", cnn, "--data", str(data), "--macs", "0.75", "--round-to", "4", "-o", str(out), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    figures = next(step["result"] for step in made["steps"] if step["step"] == "prune_onnx")
    assert figures["macs"]["after"] <= 0.75 * figures["macs"]["before"]
    assert figures["parameters"]["after"] < figures["parameters"]["before"]
    assert figures["zip_bytes"]["after"] < figures["zip_bytes"]["before"]
    assert out.exists() and made["scheme"] == "pruned"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no samples were given"),
        (["--eval", "DATA"], "prune needs calibration samples"),
        (["--data", "DATA", "--rounds", "2"], "2 rounds need epochs"),
    ],
)
def test_calls_that_lack_or_mix_something(cnn, data, arguments, message):
    result = CliRunner().invoke(app, ["prune", cnn, *[str(data) if a == "DATA" else a for a in arguments]])
    assert result.exit_code in (1, 2) and message in result.output


def test_padding_is_no_sample():
    sample = {"ids": np.array([[5, 6, 0, 0]]), "attention_mask": np.array([[1, 1, 0, 0]])}
    (mask,) = live([sample])
    assert mask.tolist() == [True, True, False, False]
    assert live([{"ids": sample["ids"]}, {"mask": np.array([[3, 1]])}]) == [None, None]
