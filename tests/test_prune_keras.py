"""Pruning of Keras models: sparsity reached exactly, the graph unchanged, bad input refused."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow")
pytest.importorskip("tf_keras")
pytest.importorskip("tensorflow_model_optimization")
keras = pytest.importorskip("keras", minversion="3")

from keras import layers, ops  # noqa: E402,TID253

from lepton_edge.errors import LeptonError, UsageError  # noqa: E402
from lepton_edge.feeds import feed_from_arrays  # noqa: E402
from lepton_edge.passes import prune_keras  # noqa: E402
from lepton_edge.slim import spread  # noqa: E402

Input, Model = keras.Input, keras.Model
SAMPLES = Path(__file__).parents[1] / "samples"


def small(out="softmax", width=3):
    i = Input((8, 8, 2), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, name="conv")(i)))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Dense(16, "relu", name="hidden")(layers.Flatten()(x))
    return Model(i, layers.Dense(width, out, name="head")(x), name="small")


def prune(tmp_path, model, x=None, y=None, count=48, classes=3, **options):
    """Run the pass on a model with random samples; returns its report and the pruned model."""
    rng = np.random.default_rng(0)
    if x is None:
        x = {i.name: rng.standard_normal((count, *i.shape[1:])).astype("float32") for i in model.inputs}
    if y is None:
        y = rng.integers(0, classes, count)
    model.save(tmp_path / "in.keras")
    feed_from_arrays(x, y, tmp_path / "feed", source="test")
    settings = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, **options}
    report = prune_keras.run(
        str(tmp_path / "in.keras"), str(tmp_path / "out.keras"), data=str(tmp_path / "feed"), **settings
    )
    return report, keras.saving.load_model(tmp_path / "out.keras", compile=False)


def zeros(model, name):
    kernel = np.asarray(model.get_layer(name).kernel)
    return np.mean(kernel == 0)


@pytest.mark.parametrize("schedule", ["polynomial", "constant"])
def test_uniform_sparsity_is_exact(tmp_path, schedule):
    told = []
    report, pruned = prune(
        tmp_path,
        small(),
        sparsity=0.75,
        schedule=schedule,
        spread="uniform",
        progress=lambda done, total, what: told.append((done, total, what)),
    )
    for name in ("conv", "hidden", "head"):
        assert zeros(pruned, name) == pytest.approx(0.75, abs=0.02)
        assert report["sparsity"]["layers"][name] == pytest.approx(zeros(pruned, name), abs=1e-6)
    assert zeros(pruned, "depthwise") == 0
    assert report["nonzeros"] == sum(int(np.count_nonzero(np.asarray(w))) for w in pruned.weights)
    assert report["parameters"] == pruned.count_params()
    assert len(report["loss"]) == report["epochs"] == 2
    assert told[-1][0] == told[-1][1] == 4 and "epoch 2/2" in told[-1][2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["feed", "in.keras", "out.keras"]


def test_erk_keeps_small_layers_and_meets_the_total(tmp_path):
    report, pruned = prune(tmp_path, small(), sparsity=0.8)
    assert report["sparsity"]["overall"] == pytest.approx(0.8, abs=0.005)
    assert zeros(pruned, "hidden") > zeros(pruned, "head")


def test_same_seed_same_weights(tmp_path):
    runs = []
    for name in ("a", "b"):
        keras.utils.set_random_seed(7)
        (tmp_path / name).mkdir()
        runs.append(prune(tmp_path / name, small(), epochs=1)[1].get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(*runs, strict=True))


def test_graph_and_names_stay(tmp_path):
    _, pruned = prune(tmp_path, model := small())
    assert [x.name for x in pruned.layers] == [x.name for x in model.layers]
    assert pruned.inputs[0].name == "image" and not getattr(pruned, "optimizer", None)


@pytest.mark.parametrize(
    ("out", "width", "classes", "kind"),
    [("sigmoid", 1, 2, "sigmoid"), (None, 1, 2, "logits"), (None, 3, 3, "logits"), ("sigmoid", 3, 3, "sigmoid")],
)
def test_loss_follows_the_output(tmp_path, out, width, classes, kind):
    report, _ = prune(tmp_path, small(out, width), classes=classes)
    assert f"({kind}, {width} wide)" in report["notes"][0] and np.isfinite(report["loss"]).all()


def test_probabilities_are_known_by_their_sum(tmp_path):
    i = Input((6,))
    e = ops.exp(layers.Dense(4)(i))
    report, _ = prune(tmp_path, Model(i, e / ops.sum(e, axis=-1, keepdims=True)), classes=4)
    assert "(softmax, 4 wide)" in report["notes"][0]


def test_recurrent_masked_and_nested_layers_are_pruned(tmp_path):
    base = keras.Sequential([Input((12, 6)), layers.Conv1D(6, 3, name="inner")], name="base")
    i = Input((12,), dtype="int32", name="words")
    x = base(layers.Embedding(30, 6, name="table", mask_zero=True)(i), training=False)
    x = layers.Bidirectional(layers.GRU(5), name="both")(x)
    model = Model(i, layers.Dense(2, "softmax", name="head")(x))
    words = {"words": np.random.default_rng(0).integers(0, 30, (32, 12)).astype("int32")}
    report, _ = prune(tmp_path, model, x=words, count=32, classes=2, spread="uniform", epochs=1)
    found = report["sparsity"]["layers"]
    assert set(found) == {"table", "base/inner", "both", "head"}
    assert all(v == pytest.approx(0.5, abs=0.02) for v in found.values())


def test_other_outputs_are_held(tmp_path):
    i = Input((6,))
    x = layers.Dense(8, "relu")(i)
    model = Model(i, {"class": layers.Dense(3, "softmax")(x), "box": layers.Dense(4)(x)})
    report, _ = prune(tmp_path, model)
    assert any("unpruned model's answers" in note for note in report["notes"])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_divergence_restores_and_says_so(tmp_path):
    i = Input((6,))
    model = Model(i, [layers.Dense(3)(i), layers.Dense(3)(i)])
    report, pruned = prune(tmp_path, model, learning_rate=1e38)
    assert "NaN or infinite in epoch 1" in " ".join(report["notes"])
    assert all(np.isfinite(w).all() for w in pruned.get_weights()) and report["loss"] == []
    assert report["sparsity"]["overall"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.0}, "sparsity must lie"),
        ({"sparsity": 1.0}, "sparsity must lie"),
        ({"sparsity": float("nan")}, "sparsity must lie"),
        ({"schedule": "cubic"}, "unknown schedule 'cubic'"),
        ({"spread": "even"}, "unknown spread 'even'"),
        ({"epochs": 0}, "at least 1"),
        ({"learning_rate": 0.0}, "learning_rate"),
    ],
)
def test_bad_options(tmp_path, options, message):
    with pytest.raises(UsageError, match=message):
        prune_keras.run("x.keras", str(tmp_path / "out.keras"), data="feed", **options)


def bad_samples():
    x = np.zeros((20, 8, 8, 2), np.float32)
    hole = x.copy()
    hole[3, 0, 0, 0] = np.nan
    y = np.arange(20) % 3
    return {
        "label 5 is out of range": ({"image": x}, y + 3),
        "label -1 is negative": ({"image": x}, y - 1),
        "NaN": ({"image": hole}, y),
        "the model takes \\[8, 8, 2\\]": ({"image": x[:, :4]}, y),
        "hold the inputs": ({"a": x, "b": x}, y),
    }


@pytest.mark.parametrize("message", list(bad_samples()))
def test_bad_samples(tmp_path, message):
    x, y = bad_samples()[message]
    with pytest.raises(LeptonError, match=message):
        prune(tmp_path, small(), x=x, y=y)
    assert not (tmp_path / "out.keras").exists()


def test_patterns_and_depthwise_kernels(tmp_path):
    _, pruned = prune(tmp_path, small(), method="2:4", epochs=1)
    kernel = np.asarray(pruned.get_layer("hidden").kernel)
    assert ((kernel.reshape(-1, 4, kernel.shape[1]) != 0).sum(1) == 2).all()
    assert zeros(pruned, "conv") == 0 and zeros(pruned, "depthwise") == 0
    report, pruned = prune(tmp_path, small(), method="4x1", sparsity=0.6, depthwise=True, spread="uniform", epochs=1)
    assert zeros(pruned, "depthwise") > 0.5 and report["method"] == "4x1"
    blocks = np.asarray(pruned.get_layer("hidden").kernel).reshape(-1, 4, 16) != 0
    assert (blocks.all(1) | ~blocks.any(1)).all()


def test_nothing_to_prune_and_nothing_left(tmp_path):
    i = Input((6,), name="image")
    model = Model(i, layers.Dense(3, "softmax", name="head")(i))
    with pytest.raises(LeptonError, match="leaves nothing of layer 'head'"):
        prune(tmp_path, model, sparsity=0.99, spread="uniform")
    with pytest.raises(LeptonError, match=r"no layer can be pruned as 4:8 .head: fewer than 8 input"):
        prune(tmp_path, model, method="4:8")
    with pytest.raises(LeptonError, match="all of them are kept"):
        prune(tmp_path, model, keep="head")
    assert not (tmp_path / "out.keras").exists()


def test_samples_without_labels(tmp_path):
    small().save(tmp_path / "in.keras")
    feed_from_arrays({"image": np.zeros((4, 8, 8, 2), np.float32)}, None, tmp_path / "feed", source="test")
    with pytest.raises(LeptonError, match="no labels"):
        prune_keras.run(str(tmp_path / "in.keras"), str(tmp_path / "out.keras"), data=str(tmp_path / "feed"))


def test_models_that_cannot_be_pruned(tmp_path):
    i = Input((6,))
    with pytest.raises(LeptonError, match="Lambda"):
        prune(tmp_path, Model(i, layers.Lambda(lambda x: x * 2)(layers.Dense(3)(i))))
    with pytest.raises(LeptonError, match="one label a sample"):
        prune(tmp_path, Model(i, layers.Reshape((3, 2))(i)))
    frozen = Model(i, layers.Dense(3)(i))
    frozen.trainable = False
    with pytest.raises(LeptonError, match="frozen"):
        prune(tmp_path, frozen)
    assert not (tmp_path / "out.keras").exists()


def test_erk_keeps_the_total():
    shapes = [[(3, 3, 1, 16)], [(3, 3, 64, 64)], [(64, 10)], [(128, 512), (128, 512)]]
    sizes = np.array([sum(int(np.prod(s)) for s in layer) for layer in shapes])
    for sparsity in (0.1, 0.5, 0.9, 0.99):
        shares = np.array(spread.erk(shapes, sparsity))
        assert (shares >= 0).all() and (shares < 1).all()
        assert (shares * sizes).sum() / sizes.sum() == pytest.approx(sparsity)
    assert spread.erk([[(4, 4)]], 0.3) == pytest.approx([0.3])


@pytest.mark.slow
def test_the_sample_keeps_its_accuracy(tmp_path):
    with np.load(SAMPLES / "fashion_train.npz", allow_pickle=False) as data:
        x, y = {"image": data["x"][:2000].astype(np.float32) / 255}, data["y"][:2000]
    with np.load(SAMPLES / "fashion_eval.npz", allow_pickle=False) as data:
        test_x, test_y = data["x"].astype(np.float32) / 255, data["y"]
    model = keras.saving.load_model(SAMPLES / "fashion_cnn.keras", compile=False)
    report, pruned = prune(tmp_path, model, x=x, y=y, learning_rate=1e-4, batch_size=32)
    before, after = (np.mean(m.predict(test_x, batch_size=250, verbose=0).argmax(1) == test_y) for m in (model, pruned))
    assert report["sparsity"]["overall"] == pytest.approx(0.5, abs=0.001)
    assert after > before - 0.02
