"""Training for quantization on ONNX models: it starts from what calibration found, and ends on the same grids."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from nets import model
from slim_nets import Builder, encoder, pictures, random_net
from typer.testing import CliRunner

from lepton_edge import run_feeds
from lepton_edge.cli import app
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import feed_from_arrays
from lepton_edge.quant import core as quantizer
from lepton_edge.quant import held
from lepton_edge.quant.core import decibels, distance_of, written
from lepton_edge.quant.grid import dequantize, nearest
from lepton_edge.quant.prepare import prepare
from lepton_edge.recipe import Data, Recipe

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from lepton_edge.passes import qat_onnx  # noqa: E402
from lepton_edge.tuning import core  # noqa: E402
from lepton_edge.tuning.rounded import Rounded, twins  # noqa: E402
from lepton_edge.tuning.samples import Rows  # noqa: E402

FEW = core.Options(epochs=10, batch_size=16, learning_rate=0.002, inner=0.0, held_out=0.2)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    path = tmp_path_factory.mktemp("rounded") / "cnn.onnx"
    onnx.save(random_net(1, [1, 2, 3, 0]), path)
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Two convolutions and a classifier, and a feed for it."""
    folder, b = tmp_path_factory.mktemp("plain"), Builder(4)
    x = b.op("Relu", b.conv(b.op("Relu", b.conv("x", 3, 16, 3)), 16, 16, 3))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.normal(10, 16), b.normal(10), transB=1)
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 10]}, b.consts, opset=20), folder / "m.onnx")
    feed = feed_from_arrays({"x": pictures(320)}, None, folder / "feed", source="pictures")
    return str(folder / "m.onnx"), str(feed.folder)


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed") / "feed"
    return str(feed_from_arrays({"x": pictures(128)}, None, folder, source="pictures").folder)


def unseen():
    return [{"x": x[None]} for x in pictures(48, 1)]


def calibrated(cnn, feed, bits):
    rows = Rows(feed, ["x"], "m")
    return quantizer.quantize(cnn, list(rows), quantizer.Options(weight_bits=bits)), rows


def params_of(net):
    return {n: torch.from_numpy(np.array(a)).requires_grad_() for n, a in net.consts.items() if a.dtype == np.float32}


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_training_starts_from_the_very_integers_of_calibration(cnn, feed, bits):
    start, _ = calibrated(cnn, feed, bits)
    rounded = Rounded(start.spec, start.net)
    near = twins(start.net, start.spec)
    values = rounded.values(params_of(near))
    assert len(values) == len(start.spec.placement.layers) > 3
    for layer in start.spec.placement.layers:
        wanted = dequantize(*start.spec.weights[layer.y])
        assert np.allclose(values[layer.weight].detach().numpy(), wanted, atol=1e-6)
        full, twin = start.net.consts[layer.weight], near.consts[layer.weight]
        assert np.abs(twin - full).mean() <= np.abs(wanted - full).mean() + 1e-7


def test_it_computes_as_the_quantized_file_does(cnn, feed):
    from lepton_edge.gradients.graph import graph_of
    from lepton_edge.quant.tap import Runner

    start, rows = calibrated(cnn, feed, 8)  # fewer bits have so coarse a grid of biases that it shows
    near = twins(start.net, start.spec)
    graph, rounded = graph_of(near, "m", "cpu"), Rounded(start.spec, start.net)
    x = {"x": torch.from_numpy(rows.batch(np.arange(8)).inputs["x"])}
    feeds = {n: rounded(n, v) for n, v in x.items()}
    got = graph.by_operator(feeds, graph.gives, rounded, rounded.values(graph.params))
    runner, steps = Runner(written(start.net, start.spec), graph.gives), []
    for k in range(8):
        for mine, theirs in zip(runner.run({"x": x["x"][k].numpy()}), got, strict=True):
            steps.append(np.abs(mine - theirs[k].detach().numpy()).max() / np.abs(mine).max())
    # Biases, which it leaves float, and halves fall on another step here and there.
    assert np.median(steps) < 0.03 and max(steps) < 0.1


def test_gradients_pass_the_rounding_and_stop_at_the_end_of_a_grid(cnn, feed):
    start, _ = calibrated(cnn, feed, 4)
    layer = start.spec.placement.layers[0]
    rounded = Rounded(start.spec, start.net)
    params = params_of(twins(start.net, start.spec))
    with torch.no_grad():
        params[layer.weight].view(-1)[0] = 1e3
    value = rounded.values(params)[layer.weight]
    (slope,) = torch.autograd.grad(value.sum(), params[layer.weight])
    assert slope.view(-1)[0] == 0 and (slope.view(-1)[1:] == 1).float().mean() > 0.9
    inside = start.spec.placement.sites[0].name
    x = torch.tensor([0.1, 1e6], requires_grad=True)
    (slope,) = torch.autograd.grad(rounded(inside, x).sum(), x)
    assert slope[0] == pytest.approx(1.0) and slope[1] == 0
    other = torch.ones(3)
    assert rounded("no such tensor", other) is other


@pytest.mark.parametrize("bits", [3, 8])
def test_training_gains_on_calibration_and_quantize_keeps_its_integers(plain, tmp_path, bits):
    path, data = plain
    start, rows = calibrated(path, data, bits)
    before = decibels(distance_of(prepare(path), written(start.net, start.spec), unseen()))
    out = str(tmp_path / "out.onnx")
    told = qat_onnx.run(path, out, data=data, bits=bits)
    assert min(told["held_out_loss"]) < told["start_loss"] and told["best_epoch"] > 0 and told["bits"] == bits
    again = quantizer.quantize(out, list(rows), quantizer.Options(weight_bits=bits))
    assert again.figures["whole"] == again.figures["layers"]
    after = decibels(distance_of(prepare(path), written(again.net, again.spec), unseen()))
    assert after > before - 1.0  # calibration alone leaves little to gain on a net this small
    most = 2 ** (bits - 1) - 1
    for integers, _ in again.spec.weights.values():
        assert np.abs(integers).max() <= most
    assert any("weight_bits" in note for note in told["notes"]) == (bits < 8)


def test_training_finds_much_of_what_rounding_to_nearest_loses(plain):
    path, data = plain
    start, rows = calibrated(path, data, 3)
    near = {y.y: nearest(start.net.consts[y.weight], y.axis, 3) for y in start.spec.placement.layers}
    spec, net = replace(start.spec, weights=near), prepare(path)
    made = core.tune(start.net, net, rows, replace(FEW, epochs=20, learning_rate=0.005), name="m", spec=spec)
    assert min(made.facts["held_out_loss"]) < 0.7 * made.facts["start_loss"]
    after = replace(spec, weights={y: quantized(made.net, spec, y) for y in near})
    gained = [decibels(distance_of(net, written(*pair), unseen())) for pair in ((made.net, after), (start.net, spec))]
    assert gained[0] > gained[1] + 1.0


def quantized(net, spec, y):
    """A layer's trained weights as integers, and their grid."""
    layer = next(item for item in spec.placement.layers if item.y == y)
    weight = net.consts[layer.weight]
    rows = np.moveaxis(weight, layer.axis, 0).reshape(weight.shape[layer.axis], -1)
    integers, steps = held.lattice(rows, 3)
    shape = (weight.shape[layer.axis], *[s for k, s in enumerate(weight.shape) if k != layer.axis])
    grid = replace(spec.weights[y][1], scale=steps.astype(np.float32))
    return np.moveaxis(integers.reshape(shape), 0, layer.axis), grid


def test_what_is_no_better_on_held_out_samples_is_not_kept(cnn, feed):
    start, rows = calibrated(cnn, feed, 4)
    wild = replace(FEW, epochs=1, learning_rate=0.9)
    made = core.tune(start.net, prepare(cnn), rows, wild, name="m", spec=start.spec)
    assert made.facts["best_epoch"] == 0
    for layer in start.spec.placement.layers:
        wanted = dequantize(*start.spec.weights[layer.y])
        assert np.allclose(made.net.consts[layer.weight], wanted, atol=1e-6)


def test_zeros_of_a_pruned_model_stay(cnn, feed, tmp_path):
    from lepton_edge.passes import prune_onnx

    sparse, out = str(tmp_path / "sparse.onnx"), str(tmp_path / "out.onnx")
    prune_onnx.run(cnn, sparse, data=feed, sparsity=0.5, samples=32)
    told = qat_onnx.run(sparse, out, data=feed, bits=4, epochs=2, batch_size=16)
    before, after = (prepare(path).consts for path in (sparse, out))
    zeros = {n: a == 0 for n, a in before.items() if a.ndim > 1 and (a == 0).mean() > 0.3}
    assert zeros and told["zeros_kept"] >= sum(z.sum() for z in zeros.values())
    assert all((after[n][z] == 0).all() for n, z in zeros.items())


def test_a_state_brings_everything_back(cnn, feed, monkeypatch):
    made = []

    class Kept(core.Student):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            made.append(self)

    monkeypatch.setattr(core, "Student", Kept)
    start, rows = calibrated(cnn, feed, 3)
    core.tune(start.net, prepare(cnn), rows, replace(FEW, epochs=2), name="m", spec=start.spec)
    (learner,) = made
    before, state = learner.loss(np.arange(16)), learner.state()
    with torch.no_grad():
        for value in learner.learned.values():
            value.add_(0.3)
    assert learner.loss(np.arange(16)) != pytest.approx(before)
    learner.restore(state)
    assert learner.loss(np.arange(16)) == pytest.approx(before)


def test_beside_attention_activations_stay_float(tmp_path):
    path = str(tmp_path / "encoder.onnx")
    onnx.save(encoder(), path)
    net = prepare(path)
    rng = np.random.default_rng(0)

    def drawn(name):
        shape = [d or 1 for d in net.shapes[name]]
        return rng.integers(0, 2, shape) if net.dtypes[name] == 7 else rng.normal(size=shape).astype(np.float32)

    samples = [{n: drawn(n) for n in net.inputs} for _ in range(8)]
    start = quantizer.quantize(path, samples, quantizer.Options(weight_bits=4))
    assert start.spec.placement.local and not Rounded(start.spec, start.net).sites


def test_pruning_without_training_stays_with_calibration_samples_beside_qat():
    data = Data(calibration="calib.npz", training="train.npz")
    for prune, trained in (({"macs": 0.8}, False), ({"macs": 0.8, "epochs": 2}, True)):
        needs = run_feeds._needs(Recipe(data, prune=prune), ("prune_onnx", "qat", "quantize"), "onnx", "m.onnx")
        assert (needs.calibrating, needs.learned) == ("calib.npz", "train.npz")
        assert needs.tunes is trained and needs.learns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 8"),
        ({"bits": 9}, "bits must be 2 to 8"),
        ({"learning_rate": 2.0}, "learning_rate must lie between 0 and 1"),
        ({"distil": 1.5}, "distil is a share"),
        ({"augment": "flop"}, "unknown augmentation 'flop'"),
        ({"epochs": 0}, "epochs and batch_size must be at least 1"),
    ],
)
def test_options_that_make_no_sense(cnn, feed, tmp_path, options, message):
    with pytest.raises(LeptonError, match=message):
        qat_onnx.run(cnn, str(tmp_path / "out.onnx"), data=feed, **options)
    assert not (tmp_path / "out.onnx").exists()


def test_the_command_trains_and_what_it_makes_quantizes_to_the_same_integers(cnn, tmp_path):
    np.savez(tmp_path / "data.npz", x=pictures(96))
    (tmp_path / "r.toml").write_text("[qat]\nbits = 4\nbatch_size = 16\n[quantize]\nweight_bits = 4\n")
    out, recipe = tmp_path / "q.onnx", ["--recipe", str(tmp_path / "r.toml"), "--data", str(tmp_path / "data.npz")]
    done = CliRunner().invoke(app, ["qat", cnn, *recipe, "--epochs", "3", "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    (step,) = [s for s in told["steps"] if s["step"] == "qat_onnx"]
    assert step["result"]["bits"] == 4 and step["result"]["labelled"] is False
    done = CliRunner().invoke(app, ["quantize", str(out), *recipe, "-o", str(tmp_path / "8.onnx"), "--json"])
    assert done.exit_code == 0, done.output
    (step,) = [s for s in json.loads(done.stdout)["steps"] if s["step"] == "quantize_onnx"]
    assert any("lay on such a grid already" in note for note in step["notes"])
    (tmp_path / "keep.toml").write_text('[qat]\nkeep = "a"\n')
    keep = ["--recipe", str(tmp_path / "keep.toml"), "--data", str(tmp_path / "data.npz")]
    done = CliRunner().invoke(app, ["qat", cnn, *keep, "-o", str(tmp_path / "no.onnx")])
    assert done.exit_code == 2 and "'keep' is no option of qat_onnx" in done.output
    none = ["--eval", str(tmp_path / "data.npz"), "-o", str(tmp_path / "no.onnx")]
    done = CliRunner().invoke(app, ["qat", cnn, *none])
    assert done.exit_code == 1 and "qat needs samples to train on" in done.output
    assert not (tmp_path / "no.onnx").exists()
