"""Training pruned nets towards the original: what is learned, what stays, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from nets import model
from slim_nets import Builder, encoder, pictures, random_net
from typer.testing import CliRunner

from lepton_edge.cli import app
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import feed_from_arrays
from lepton_edge.passes import finetune_onnx, prune_onnx
from lepton_edge.quant.core import decibels, distance_of
from lepton_edge.quant.prepare import prepare
from lepton_edge.slim import core as slim
from lepton_edge.slim.fold import put as give

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from lepton_edge.tuning import core, rounds  # noqa: E402
from lepton_edge.tuning.goals import before, goals  # noqa: E402
from lepton_edge.tuning.losses import distance  # noqa: E402
from lepton_edge.tuning.samples import Batch, Rows, augmented, check_ways, ways  # noqa: E402

FEW = core.Options(epochs=30, batch_size=16, learning_rate=0.003, held_out=0.2)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    path = tmp_path_factory.mktemp("tuning") / "cnn.onnx"
    onnx.save(random_net(1, [1, 2, 3, 0]), path)
    return str(path)


@pytest.fixture(scope="module")
def feed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("feed") / "feed"
    return str(feed_from_arrays({"x": pictures(96)}, None, folder, source="pictures").folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pruned(cnn):
    samples = [{"x": x[None]} for x in pictures(48)]
    found = slim.study(cnn, samples, slim.Options(round_to=4))
    return found, slim.apply(found, samples, slim.Options(macs=0.5, round_to=4)).net


def unseen():
    return [{"x": x[None]} for x in pictures(32, 1)]


def noise(net, other):
    return decibels(distance_of(net, other, unseen()))


def test_training_brings_a_pruned_net_nearer_to_the_original(pruned, feed):
    found, small = pruned
    made = core.tune(small, found.trace.net, Rows(feed, ["x"], "m"), FEW, name="m")
    assert noise(found.trace.net, made.net) > noise(found.trace.net, small) + 0.5
    assert min(made.facts["held_out_loss"]) < made.facts["start_loss"]
    assert made.facts["labelled"] is False and made.facts["compared"]
    assert {n: a.shape for n, a in made.net.consts.items()} == {n: a.shape for n, a in small.consts.items()}


def test_a_seed_decides_it_all(pruned, feed):
    found, small = pruned
    once, again, other = (
        core.tune(
            small, found.trace.net, Rows(feed, ["x"], "m"), replace(FEW, epochs=1, held_out=0.0, seed=s), name="m"
        ).net
        for s in (0, 0, 1)
    )
    assert all(np.array_equal(once.consts[n], again.consts[n]) for n in once.consts)
    assert any(not np.array_equal(once.consts[n], other.consts[n]) for n in once.consts)


def test_zeros_of_weights_stay_and_other_weights_move(cnn, feed):
    dense = prepare(cnn)
    sparse = dense.copy()
    node = next(n for n in sparse.nodes if n.op_type == "Conv" and sparse.consts[n.input[1]].shape[2:] == (3, 3))
    weight = sparse.consts[node.input[1]]
    give(sparse, node, 1, np.where(np.abs(weight) < np.median(np.abs(weight)), 0, weight).astype(np.float32))
    made = core.tune(sparse, dense, Rows(feed, ["x"], "m"), FEW, name="m")
    old, new = sparse.consts[node.input[1]], made.net.consts[node.input[1]]
    assert ((old == 0) == (new == 0)).all() and not np.array_equal(old, new)
    assert made.facts["zeros_kept"] == (old == 0).sum() > 0
    assert noise(dense, made.net) > noise(dense, sparse)


@pytest.fixture
def normed(monkeypatch):
    """Batch norms whatever the number of samples; the learners that were made."""
    made = []

    class Kept(core.Student):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            made.append(self)

    monkeypatch.setattr(core, "LEAST_ROWS", 2)
    monkeypatch.setattr(core, "Student", Kept)
    return made


def two_heads():
    """A net whose second output has a convolution of its own, behind all that the first needs."""
    b = Builder(4)
    x = b.op("Relu", b.conv("x", 3, 8, 3))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.normal(5, 8), b.normal(5), transB=1)
    b.nodes[-1].output[0] = "y"
    b.op("Flatten", b.op("GlobalAveragePool", b.op("Relu", b.conv(x, 8, 6, 3))))
    b.nodes[-1].output[0] = "z"
    return model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5], "z": [1, 6]}, b.consts, opset=20)


def test_behind_norms_the_file_answers_as_what_was_trained(tmp_path, feed, normed):
    from lepton_edge.quant.tap import Runner

    onnx.save(two_heads(), tmp_path / "m.onnx")
    dense = prepare(str(tmp_path / "m.onnx"))
    student = dense.copy()
    for name, value in student.consts.items():
        if value.dtype == np.float32 and value.ndim > 1:
            student.consts[name] = (value * 0.6).astype(np.float32)
    made = core.tune(student, dense, Rows(feed, ["x"], "m"), replace(FEW, learning_rate=0.02), name="m")
    (learner,) = normed
    assert made.facts["norms"] == 2 == len(learner.norms.at)
    assert all(not torch.allclose(v, torch.ones_like(v)) for n, v in learner.norms.running.items() if "var/" in n)
    assert noise(dense, made.net) > noise(dense, student) + 3
    rows = learner.rows.batch(np.arange(16)).inputs["x"]
    got = learner._answers({"x": torch.from_numpy(rows)}, ["y", "z"])
    runner = Runner(made.net, ["y", "z"])
    for k, row in enumerate(rows):
        for mine, theirs in zip(runner.run({"x": row}), got, strict=True):
            assert np.allclose(mine, theirs[k].detach().numpy(), atol=1e-4)
    before, state = learner.loss(np.arange(16)), learner.state()
    with torch.no_grad():
        for value in (*learner.learned.values(), *learner.norms.running.values()):
            value.mul_(1.5)
    assert learner.loss(np.arange(16)) != pytest.approx(before)
    learner.restore(state)
    assert learner.loss(np.arange(16)) == pytest.approx(before)


def test_a_step_that_ruins_everything_is_undone(pruned, feed):
    found, small = pruned
    wild = replace(FEW, learning_rate=0.99, epochs=3)
    made = core.tune(small, found.trace.net, Rows(feed, ["x"], "m"), wild, name="m")
    assert noise(found.trace.net, made.net) >= noise(found.trace.net, small) - 1e-6
    assert any("original weights" in note for note in made.notes)


def test_labels_teach_what_the_original_does_not_know(tmp_path, pruned, feed):
    found, small = pruned
    x = pictures(96)
    labels = (x.mean((1, 2, 3)) > 0).astype(np.int64)
    folder = feed_from_arrays({"x": x}, labels, tmp_path / "f", source="s").folder
    made = core.tune(small, found.trace.net, Rows(folder, ["x"], "m"), replace(FEW, distil=0.0, epochs=20), name="m")
    from lepton_edge.quant.tap import Runner

    def right(net):
        new = pictures(64, 5)
        runner = Runner(net)
        got = [int(runner.run({"x": a[None]})[0].argmax()) for a in new]
        return np.mean(np.array(got) == (new.mean((1, 2, 3)) > 0))

    assert made.facts["labelled"] and right(made.net) > max(right(small) + 0.1, 0.65)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(96) % 7, "label 6 is out of range: m knows the classes 0 to 4"),
        (np.arange(96) - 1, "label -1 is out"),
    ],
)
def test_labels_of_another_model_are_refused(tmp_path, pruned, labels, message):
    found, small = pruned
    folder = feed_from_arrays({"x": pictures(96)}, labels, tmp_path / "f", source="s").folder
    with pytest.raises(LeptonError, match=message):
        core.tune(small, found.trace.net, Rows(folder, ["x"], "m"), FEW, name="m")


def test_an_encoder_learns_on_sentences_of_several_lengths(tmp_path):
    b, wide = Builder(0), 16
    mask = b.op("Unsqueeze", b.op("Cast", "attention_mask", to=1), b.const(np.array([1], np.int64)))
    x = b.op("Gather", b.normal(40, wide), "ids")
    q, k, v = (b.dense(x, wide, wide) for _ in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    scores = b.op("Add", scores, b.op("Mul", b.op("Sub", mask, b.const(np.float32(1))), b.const(np.float32(1e9))))
    y = b.op("Add", b.dense(b.op("MatMul", b.op("Softmax", scores, axis=-1), v), wide, wide), x)
    y = b.op("Add", b.dense(b.op("Gelu", b.dense(y, wide, 48)), 48, wide), y)
    y = b.op("Mul", y, b.op("Transpose", mask, perm=[0, 2, 1]))
    y = b.op("ReduceSum", y, b.const(np.array([1], np.int64)), keepdims=0)
    b.op("LpNormalization", y, axis=-1, p=2)
    b.nodes[-1].output[0] = "y"
    proto = model(b.nodes, {"ids": [1, 8], "attention_mask": [1, 8]}, {"y": [1, wide]}, b.consts, opset=20)
    for port in proto.graph.input:
        port.type.tensor_type.elem_type = onnx.TensorProto.INT64
    path = str(tmp_path / "encoder.onnx")
    onnx.save(proto, path)
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 9, 120)
    words = np.where(np.arange(8) < lengths[:, None], rng.integers(1, 40, (120, 8)), 0)
    told = {"ids": words.astype(np.int64), "attention_mask": (words > 0).astype(np.int64)}
    folder = feed_from_arrays(told, None, tmp_path / "f", source="s").folder
    rows = Rows(folder, list(told), "m")
    samples = [rows[k] for k in range(60)]
    found = slim.study(path, samples, slim.Options(round_to=4))
    small = slim.apply(found, samples, slim.Options(macs=0.8, round_to=4)).net
    kinds = {g.kind for g in goals(small, found.trace.net, samples, samples, "m", False)}
    assert kinds == {"direction"}
    made = core.tune(small, found.trace.net, rows, FEW, name="m")
    assert made.facts["best_epoch"] > 0 and made.facts["held_out_loss"][-1] < made.facts["start_loss"]
    with pytest.raises(LeptonError, match="whole numbers, which cannot be mixed"):
        check_ways(("mix",), rows.batch(np.array([0])), "m")


def test_what_stands_before_a_softmax_is_compared(tmp_path):
    b = Builder(0)
    b.op("Softmax", b.op("Flatten", b.op("GlobalAveragePool", b.conv("x", 3, 6))), axis=-1)
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 6]}, b.consts), tmp_path / "m.onnx")
    net = prepare(str(tmp_path / "m.onnx"))
    assert before(net, "y")[1:] == ("classes", -1) and before(net, "y")[0] != "y"


@pytest.mark.parametrize("kind", ["classes", "switches", "direction", "values"])
def test_distances_are_zero_at_the_teacher_and_positive_elsewhere(kind):
    from lepton_edge.tuning.goals import Goal

    goal, rng = Goal("a", "a", kind), torch.Generator().manual_seed(0)
    a, b = (torch.randn(4, 1, 5, generator=rng) for _ in range(2))
    assert float(distance(goal, a, a, 3.0)) == pytest.approx(0, abs=1e-6)
    assert float(distance(goal, a, b, 3.0)) > 0.01


def test_positions_behind_the_end_of_a_sentence_do_not_count():
    from lepton_edge.tuning.goals import Goal

    a, b = torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 4, 3)
    b[:, :, 2:] = 9.0
    live = torch.tensor([[True, True, False, False]] * 2)
    assert float(distance(Goal("a", "a", "values"), a, b, 1.0, live)) == 0
    assert float(distance(Goal("a", "a", "values"), a, b, 1.0)) > 1


def test_images_are_moved_and_samples_mixed():
    rng = np.random.default_rng(0)
    batch = Batch({"x": rng.normal(size=(6, 1, 8, 8, 3)).astype(np.float32)}, np.arange(6))
    flipped = augmented(batch, ("flip",), rng).inputs["x"]
    assert {bool(np.array_equal(a, b)) for a, b in zip(flipped, batch.inputs["x"], strict=True)} == {True, False}
    mixed = augmented(batch, ("mix",), rng)
    assert 0 < mixed.share < 1 and mixed.inputs["x"].dtype == np.float32
    at = [int(k) for k in mixed.others]
    np.testing.assert_allclose(
        mixed.inputs["x"], mixed.share * batch.inputs["x"] + (1 - mixed.share) * batch.inputs["x"][at], atol=1e-6
    )
    with pytest.raises(LeptonError, match="unknown augmentation 'flop'"):
        ways("flop")
    with pytest.raises(LeptonError, match="takes no images"):
        check_ways(("flip",), Batch({"x": np.zeros((2, 1, 9), np.float32)}), "m")


def test_taylor_finds_the_channels_that_nothing_depends_on(tmp_path):
    b = Builder(0)
    x = b.op("Relu", b.conv("x", 3, 16, 3))
    w = b.normal(5, 16, 1, 1)
    b.consts[w][:, 4:8] = 0  # read by nobody
    b.op("Flatten", b.op("GlobalAveragePool", b.op("Conv", x, w)))
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, b.consts), tmp_path / "m.onnx")
    samples = [{"x": x[None]} for x in pictures(40)]
    options = slim.Options(importance="taylor", round_to=4, repair=False)
    for labels in (None, np.arange(40) % 5):
        found = slim.study(str(tmp_path / "m.onnx"), samples, options, labels=labels)
        (family,), (curve,) = found.families, found.curves
        assert set(curve.order[:4].tolist()) == set(family.members[4:8].tolist())


def test_taylor_scores_are_what_leaving_a_channel_out_costs(cnn):
    """The score is the second-order cost of one member's absence: its order is that of the measured costs."""
    from lepton_edge.quant.tap import Runner
    from lepton_edge.slim.remove import gone, removed
    from lepton_edge.slim.taylor import scored

    samples = [{"x": x[None]} for x in pictures(40)]
    found = slim.study(cnn, samples, slim.Options(round_to=4))
    t, k = found.trace, int(np.argmax([len(f.members) for f in found.families]))
    scores = scored(t, found.families, samples, None, "m", 0)[k]
    whole = [Runner(t.net).run(s)[0] for s in samples]
    costs = []
    for member in found.families[k].members:
        runner = Runner(removed(t, gone(t, [member])))
        costs.append(sum(float(((runner.run(s)[0] - y) ** 2).sum()) for s, y in zip(samples, whole, strict=True)))
    ranks = [np.argsort(np.argsort(v)) for v in (scores, costs)]
    assert np.corrcoef(*ranks)[0, 1] > 0.6


def run_prune(cnn, feed, out, **options):
    return prune_onnx.run(cnn, str(out), data=feed, macs=0.5, round_to=4, **options)


def test_the_pass_prunes_in_rounds_and_trains(cnn, feed, tmp_path):
    told = []
    made = run_prune(
        cnn, feed, tmp_path / "out.onnx", epochs=4, rounds=2, batch_size=16,
        progress=lambda done, total, what: told.append(what),
    )  # fmt: skip
    assert made["macs"]["after"] <= 0.5 * made["macs"]["before"]
    assert [t["epochs"] for t in made["training"]] == [2, 2]
    assert all(width <= whole for width, whole in made["widths"].values())
    assert any(what.startswith("round 2 of 2, ") for what in told)
    assert prepare(str(tmp_path / "out.onnx")).outputs == ["y"]
    assert made["calibration_sqnr_db"] > 10


def test_rounds_share_the_epochs():
    assert rounds.shares(30, 1) == [30]
    assert rounds.shares(30, 3) == [7, 7, 16]
    assert rounds.shares(2, 4) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": -1}, "epochs is -1"),
        ({"rounds": 2}, "2 rounds need epochs"),
        ({"epochs": 1, "learning_rate": 0.0}, "learning_rate must lie between 0 and 1"),
        ({"epochs": 1, "temperature": 0.0}, "temperature must lie between"),
        ({"epochs": 1, "distil": 2.0}, "distil is a share"),
        ({"epochs": 1, "augment": "blur"}, "unknown augmentation 'blur'"),
        ({"epochs": 1, "held_out": 1.0}, "held_out is a share"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_options_of_training_that_make_no_sense(cnn, feed, tmp_path, options, message):
    with pytest.raises(LeptonError, match=message):
        run_prune(cnn, feed, tmp_path / "out.onnx", **options)
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.parametrize(
    ("change", "sizes", "message"),
    [
        (lambda b, y: b.op("Flatten", y), [1, 6], r"its output 'y' is \[1, 5\], the teacher's 'y' \[1, 6\]"),
        (lambda b, y: b.op("Identity", y), [1, 6, 1, 1], r"the teacher's 'y' \[1, 6, 1, 1\]"),
    ],
)
def test_a_teacher_that_does_not_fit(cnn, feed, tmp_path, change, sizes, message):
    b = Builder(0)
    change(b, b.op("GlobalAveragePool", b.conv("x", 3, 6, 3)))
    b.nodes[-1].output[0] = "y"
    proto = model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": sizes}, b.consts)
    onnx.save(proto, tmp_path / "teacher.onnx")
    with pytest.raises(LeptonError, match=message):
        finetune_onnx.run(cnn, str(tmp_path / "o.onnx"), data=feed, teacher=str(tmp_path / "teacher.onnx"), epochs=1)
    assert not (tmp_path / "o.onnx").exists()


def test_a_teacher_of_other_inputs(cnn, feed, tmp_path):
    onnx.save(encoder(), tmp_path / "teacher.onnx")
    with pytest.raises(LeptonError, match=r"its input 'x' is \[1, 3, 8, 8\], the teacher's 'x' \[1, 6, 32\]"):
        finetune_onnx.run(cnn, str(tmp_path / "o.onnx"), data=feed, teacher=str(tmp_path / "teacher.onnx"), epochs=1)


def test_samples_that_cannot_be_learned_from(cnn, tmp_path):
    x = pictures(20)
    x[7, 0, 0, 0] = np.nan
    folder = feed_from_arrays({"x": x}, None, tmp_path / "f", source="s").folder
    with pytest.raises(LeptonError, match="training sample 7 holds NaN"):
        finetune_onnx.run(cnn, str(tmp_path / "o.onnx"), data=str(folder), teacher=cnn, epochs=1, batch_size=4)
    one = feed_from_arrays({"x": pictures(1)}, None, tmp_path / "g", source="s").folder
    with pytest.raises(LeptonError, match="1 training samples cannot train"):
        finetune_onnx.run(cnn, str(tmp_path / "o.onnx"), data=str(one), teacher=cnn, epochs=1)
    other = feed_from_arrays({"z": pictures(8)}, None, tmp_path / "h", source="s").folder
    with pytest.raises(LeptonError, match="the training data is for the inputs z"):
        finetune_onnx.run(cnn, str(tmp_path / "o.onnx"), data=str(other), teacher=cnn, epochs=1)
    with pytest.raises(LeptonError, match="finetune needs a teacher"):
        finetune_onnx.run(cnn, str(tmp_path / "o.onnx"), data=str(other), epochs=1)


def test_an_operator_without_a_derivative_is_named(tmp_path):
    b = Builder(0)
    y = b.op("Flatten", b.op("GlobalAveragePool", b.conv("x", 3, 5)))
    b.op("Hardmax", y, axis=-1)
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, b.consts), tmp_path / "m.onnx")
    folder = feed_from_arrays({"x": pictures(20)}, None, tmp_path / "f", source="s").folder
    with pytest.raises(LeptonError, match="Hardmax cannot be differentiated"):
        finetune_onnx.run(
            str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), data=str(folder), teacher=str(tmp_path / "m.onnx")
        )


def test_a_killed_training_goes_on_where_it_was(cnn, feed, tmp_path):
    """kill -9 in the middle, then the same command: not one epoch is done twice, and the result is the same."""
    code = (
        "import sys; from lepton_edge.training import checkpoint; checkpoint.EVERY_S = 0.0\n"
        "from lepton_edge.passes import finetune_onnx as f\n"
        "made = f.run(sys.argv[1], sys.argv[2], data=sys.argv[3], teacher=sys.argv[1], epochs=6, batch_size=16,\n"
        "             seed=3, progress=lambda d, t, w: print(w, flush=True))\n"
        "import json; print(json.dumps({'facts': made['epochs'], 'notes': made['notes']}))"
    )
    environ = {**os.environ, "PYTHONPATH": str(Path(core.__file__).parents[2])}
    out = tmp_path / "killed.onnx"
    command = [sys.executable, "-c", code, cnn, str(out), feed]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ)
    folder, start = tmp_path / "cache" / "training", time.monotonic()
    while not list(folder.glob("*/state.npz")) and process.poll() is None and time.monotonic() - start < 120:
        time.sleep(0.01)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not out.exists(), "it was too fast to be killed"
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["facts"] == 6 and any("went on from a checkpoint" in note for note in told["notes"])
    assert not list(folder.glob("*/state.npz"))


def test_the_command_trains_and_tells_before_and_after(cnn, tmp_path):
    np.savez(tmp_path / "train.npz", x=pictures(96))
    np.savez(tmp_path / "eval.npz", x=pictures(32, 1))
    small, out = tmp_path / "small.onnx", tmp_path / "tuned.onnx"
    run_prune(cnn, str(feed_from_arrays({"x": pictures(48)}, None, tmp_path / "f", source="s").folder), small)
    data = ["--data", str(tmp_path / "train.npz"), "--eval", str(tmp_path / "eval.npz")]
    command = ["finetune", str(small), "--teacher", cnn, *data, "--epochs", "30", "--batch-size", "16"]
    command += ["--learning-rate", "0.003", "-o", str(out)]
    result = CliRunner().invoke(app, [*command, "--json"])
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["scheme"] == "finetuned" and out.exists()
    assert made["parity"]["sqnr_db"] > made["before"]["parity"]["sqnr_db"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval", "DATA"], "finetune needs samples to train on"),
        ([], "no samples were given"),
        (["--data", "DATA", "-o", "MODEL"], "would overwrite a model"),
    ],
)
def test_calls_of_the_command_that_lack_something(cnn, tmp_path, arguments, message):
    np.savez(tmp_path / "x.npz", x=pictures(24))
    given = [str(tmp_path / "x.npz") if a == "DATA" else cnn if a == "MODEL" else a for a in arguments]
    result = CliRunner().invoke(app, ["finetune", cnn, "--teacher", cnn, *given])
    assert result.exit_code in (1, 2) and message in result.output


def test_prune_and_train_in_one_command(cnn, tmp_path):
    np.savez(tmp_path / "train.npz", x=pictures(96), y=np.arange(96) % 5)
    np.savez(tmp_path / "eval.npz", x=pictures(32, 1))
    out = tmp_path / "out.onnx"
    command = ["prune", cnn, "--train", str(tmp_path / "train.npz"), "--eval", str(tmp_path / "eval.npz")]
    command += ["--macs", "0.6", "--round-to", "4", "--epochs", "2", "-o", str(out), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    step = next(s for s in json.loads(result.stdout)["steps"] if s["step"] == "prune_onnx")
    assert step["result"]["training"][0]["samples"] == 96 and step["result"]["training"][0]["labelled"]


@pytest.mark.slow
def test_channels_of_a_keras_model_go_on_its_onnx_form(tmp_path):
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    layers = keras.layers
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(16, 3, padding="same", activation="relu"),
            layers.Conv2D(24, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    net.save(tmp_path / "m.keras")
    x = np.ascontiguousarray(pictures(96).transpose(0, 2, 3, 1))
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(96) % 5)
    out = tmp_path / "out.onnx"
    command = ["prune", str(tmp_path / "m.keras"), "--train", str(tmp_path / "train.npz"), "--macs", "0.6"]
    result = CliRunner().invoke(app, [*command, "--epochs", "2", "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    step = json.loads(result.stdout)["steps"][-1]
    assert step["step"] == "prune_onnx" and step["result"]["training"][0]["labelled"]
    assert step["result"]["macs"]["after"] <= 0.6 * step["result"]["macs"]["before"]
