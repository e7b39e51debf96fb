"""Clustering and training for quantization of Keras models: the weights end where they should, and stay there."""

from __future__ import annotations

import os

import numpy as np
import pytest

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
pytest.importorskip("tensorflow")
pytest.importorskip("tf_keras")
keras = pytest.importorskip("keras", minversion="3")

from keras import layers  # noqa: E402,TID253

from lepton_edge.errors import LeptonError, UsageError  # noqa: E402
from lepton_edge.feeds import feed_from_arrays  # noqa: E402
from lepton_edge.passes import cluster_keras, prune_keras, qat_keras  # noqa: E402
from lepton_edge.quant import held  # noqa: E402

Input, Model = keras.Input, keras.Model


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path / "cache"))


def small():
    i = Input((8, 8, 2), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(12, 3, name="conv")(i)))
    x = layers.DepthwiseConv2D(3, name="depthwise")(x)
    x = layers.Dense(24, "relu", name="hidden")(layers.Flatten()(x))
    return Model(i, layers.Dense(3, "softmax", name="head")(x), name="small")


def blobs(model, count=96, classes=3, seed=0):
    """Samples whose class is written in their mean."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    x = {
        i.name: (rng.standard_normal((count, *i.shape[1:])) + y.reshape(-1, *[1] * (len(i.shape) - 1))).astype("f4")
        for i in model.inputs
    }
    return x, y


def step(tmp_path, run, model, out="out.keras", data=None, labels=True, **options):
    """Run a pass on a model, or on an earlier result by name; returns its report and what it wrote."""
    src = tmp_path / "in.keras"
    if isinstance(model, str):
        src = tmp_path / model
        model = keras.saving.load_model(src, compile=False)
    else:
        model.save(src)
    x, y = data or blobs(model)
    feed_from_arrays(x, y if labels else None, tmp_path / "feed", source="test")
    given = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, **options}
    report = run(str(src), str(tmp_path / out), data=str(tmp_path / "feed"), **given)
    return report, keras.saving.load_model(tmp_path / out, compile=False)


def rows(model, name):
    """A kernel as [channels, weights that share a scale]."""
    kernel = np.asarray(model.get_layer(name).kernel)
    if name == "depthwise":
        return kernel.reshape(-1, kernel.shape[2] * kernel.shape[3]).T
    return kernel.reshape(-1, kernel.shape[-1]).T


def test_clusters_are_shared_integers(tmp_path):
    report, made = step(tmp_path, cluster_keras.run, small(), clusters=8)
    for name in ("conv", "hidden", "head"):
        ints, _ = held.lattice(rows(made, name), 127)
        assert len(np.unique(ints)) <= 8, name
        assert report["clusters"][name] <= 8
    assert held.lattice(rows(made, "depthwise"), 127) is None
    assert any("depthwise (depthwise = true" in n for n in report["notes"])


def test_float_clusters_are_plain_values(tmp_path):
    report, made = step(tmp_path, cluster_keras.run, small(), clusters=8, grid="float", keep="head")
    assert len(np.unique(made.get_layer("hidden").kernel)) == report["clusters"]["hidden"] <= 8
    assert "head" not in report["clusters"]


@pytest.mark.parametrize("bits", [8, 4])
def test_trained_weights_lie_on_the_grid(tmp_path, bits):
    report, made = step(tmp_path, qat_keras.run, small(), bits=bits)
    for name in ("conv", "depthwise", "hidden", "head"):
        ints, _ = held.lattice(rows(made, name), 2 ** (bits - 1) - 1)
        assert np.abs(ints).max() <= 2 ** (bits - 1) - 1
    assert report["bits"] == bits and report["epochs"] >= 1


def test_chains_keep_what_came_before(tmp_path):
    data = blobs(small())
    step(tmp_path, prune_keras.run, small(), "1.keras", data, sparsity=0.6)
    sparse = keras.saving.load_model(tmp_path / "1.keras", compile=False)
    _, clustered = step(tmp_path, cluster_keras.run, "1.keras", "2.keras", data, clusters=8)
    report, made = step(tmp_path, qat_keras.run, "2.keras", "3.keras", data)
    for name in ("conv", "hidden", "head"):
        zero = rows(sparse, name) == 0
        assert (rows(clustered, name)[zero] == 0).all() and (rows(made, name)[zero] == 0).all()
        ints, _ = held.lattice(rows(made, name), 127)
        assert len(np.unique(ints)) <= 8
    assert any("zeros of 2 layers were kept" in n for n in report["notes"]), report["notes"]
    assert any("centroids of 3 layers were kept" in n for n in report["notes"]), report["notes"]
    report, pruned = step(tmp_path, prune_keras.run, "1.keras", "4.keras", data, sparsity=0.7)
    assert (rows(pruned, "hidden")[rows(sparse, "hidden") == 0] == 0).all()


def test_training_helps_at_few_bits(tmp_path):
    """Two bits are three values a weight: rounding alone loses what training wins back."""
    model = small()
    data = blobs(model, 256)
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(data[0]["image"], data[1], epochs=8, verbose=0)
    plain = Model.from_config(model.get_config())
    plain.set_weights(model.get_weights())
    for layer in plain.layers:
        if getattr(layer, "kernel", None) is not None:
            w = np.asarray(layer.kernel)
            s = np.abs(w).max(axis=tuple(range(w.ndim - 1)), keepdims=True)
            layer.kernel.assign(np.rint(w / s) * s)
    _, made = step(tmp_path, qat_keras.run, model, data=data, bits=2, epochs=6)
    test, y = blobs(model, 300, seed=5)
    right = [np.mean(m.predict(test["image"], verbose=0).argmax(1) == y) for m in (model, plain, made)]
    assert right[2] > right[1] and right[2] > right[0] - 0.05


def test_without_labels_the_original_is_the_teacher(tmp_path):
    model = small()
    report, made = step(tmp_path, qat_keras.run, model, labels=False, distil=1.0, bits=4, epochs=3)
    assert "without labels" in report["notes"][0]
    x, _ = blobs(model)
    before, after = (m.predict(x["image"], verbose=0) for m in (model, made))
    assert np.abs(before - after).max() < 0.25
    i = Input((6,))
    regressor = Model(i, layers.Dense(4, name="out")(layers.Dense(8, "relu")(i)))
    report, _ = step(tmp_path, qat_keras.run, regressor, labels=False, distil=1.0)
    assert "all outputs" in report["notes"][0]


def test_half_labels_half_teacher(tmp_path):
    whole = small()
    for model in (whole, keras.Sequential(whole.layers)):
        report, _ = step(tmp_path, qat_keras.run, model, distil=0.5)
        assert "50% of the loss towards the original's answers" in report["notes"][0]


def test_samples_are_varied_while_training(tmp_path):
    runs = [step(tmp_path, qat_keras.run, "in.keras" if k else small(), augment="mix", distil=0.5) for k in (0, 1)]
    assert "varied by mix" in runs[0][0]["notes"][0]
    for a, b in zip(runs[0][1].get_weights(), runs[1][1].get_weights(), strict=True):
        assert np.array_equal(a, b)
    i = Input((6,), name="row")
    flat = Model(i, layers.Dense(3, "softmax")(i))
    with pytest.raises(UsageError, match="takes no images"):
        step(tmp_path, qat_keras.run, flat, augment="flip")


def test_activations_are_rounded_where_the_quantizer_does(tmp_path):
    from lepton_edge.keras_move import graph_of, move
    from lepton_edge.passes import _train_activations as act

    model = small()
    moved = move(model, act.after)
    rounding = act.layers_of(moved.model)
    assert moved.difference < 1e-5  # the identity until it begins
    # image, ReLU, depthwise and hidden: not between conv, BatchNormalization and ReLU, and not the answer
    assert len(rounding) == 4
    x = np.random.default_rng(0).standard_normal((64, 8, 8, 2)).astype("float32")
    plain = np.asarray(moved.model(x, training=False))
    for mode in (act.OBSERVES, act.ROUNDS):
        for layer in rounding:
            layer.mode.assign(mode)
        out = np.asarray(moved.model(x, training=False))
    assert 0 < np.abs(out - plain).max() < 0.1
    assert all(float(layer.high) > 0 for layer in rounding)
    assert act.takes_part(model.layers) and graph_of(model) is not None
    attention = layers.MultiHeadAttention(2, 4)
    assert not act.takes_part([attention])


def test_recurrent_and_attention_layers(tmp_path):
    i = Input((6, 8), name="seq")
    x = layers.LSTM(7, return_sequences=True, name="lstm")(i)
    x = layers.LayerNormalization()(layers.Dense(8, name="wide")(x))
    x = layers.MultiHeadAttention(2, 5, name="mha")(x, x)
    x = layers.Bidirectional(layers.GRU(4), name="both")(x)
    model = Model(i, layers.Dense(3, "softmax", name="head")(x))
    report, made = step(tmp_path, qat_keras.run, model, epochs=1)
    note = next(n for n in report["notes"] if "left as they are" in n)
    assert "lstm: the quantizer leaves it in float" in note and "both" in note
    weights = {w.path.split("/", 1)[-1]: np.asarray(w) for w in made.get_layer("mha").weights}
    query = next(v for k, v in weights.items() if "query/kernel" in k)
    assert held.lattice(query.reshape(query.shape[0], -1).T, 127) is not None
    out = next(v for k, v in weights.items() if "attention_output/kernel" in k)
    assert held.lattice(out.reshape(-1, out.shape[-1]).T, 127) is not None
    _, clustered = step(tmp_path, cluster_keras.run, model, epochs=1, clusters=8)
    assert len(np.unique(clustered.get_layer("lstm").cell.kernel)) <= 8
    only = Model(i, layers.LSTM(3, activation="tanh", name="lstm")(i))
    with pytest.raises(LeptonError, match="lstm: the quantizer leaves it in float"):
        step(tmp_path, qat_keras.run, only)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (cluster_keras.run, {"clusters": 1}, "clusters must be 2 to 64"),
        (cluster_keras.run, {"grid": "int4"}, "unknown grid"),
        (cluster_keras.run, {"distil": 1.5}, "distil"),
        (qat_keras.run, {"bits": 1}, "bits must be"),
        (qat_keras.run, {"bits": 9}, "bits must be"),
        (qat_keras.run, {"temperature": 0.0}, "temperature"),
        (qat_keras.run, {"patience": -1}, "patience"),
        (qat_keras.run, {"augment": "flop"}, "unknown augmentation 'flop'"),
        (prune_keras.run, {"method": "channels"}, "unknown method 'channels' for Keras"),
        (prune_keras.run, {"method": "4:2"}, "unknown method '4:2'"),
    ],
)
def test_bad_options(tmp_path, run, options, message):
    with pytest.raises(UsageError, match=message):
        run("x.keras", str(tmp_path / "out.keras"), data="feed", **options)


def test_names_to_keep(tmp_path):
    with pytest.raises(UsageError, match="keep names 'hiden'") as caught:
        step(tmp_path, qat_keras.run, small(), keep="hiden")
    assert "hidden" in caught.value.hint
    assert not (tmp_path / "out.keras").exists()


def interrupted(monkeypatch, at, error):
    """Let training raise at a batch."""
    from lepton_edge.passes import _train_keras

    learn = _train_keras.Learner.learn

    def failing(self, rows, step):
        if step == at:
            raise error
        return learn(self, rows, step)

    monkeypatch.setattr(_train_keras.Learner, "learn", failing)


@pytest.mark.parametrize("run", [prune_keras.run, cluster_keras.run, qat_keras.run])
def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path, monkeypatch, run):
    data = blobs(small())
    keras.utils.set_random_seed(3)
    model = small()
    options = {"epochs": 3, "held_out": 0.2}
    _, whole = step(tmp_path, run, model, "whole.keras", data, **options)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted(patch, 7, KeyboardInterrupt())  # four batches an epoch: in the middle of the second
        step(tmp_path, run, "in.keras", "resumed.keras", data, **options)
    assert not (tmp_path / "resumed.keras").exists()
    report, resumed = step(tmp_path, run, "in.keras", "resumed.keras", data, **options)
    assert any("went on from a checkpoint at batch 4" in n for n in report["notes"])
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        assert np.array_equal(a, b)
    assert not list((tmp_path / "cache" / "training").iterdir())


def test_out_of_memory_names_a_smaller_batch(tmp_path, monkeypatch):
    import tensorflow as tf

    error = tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[64,112,112,96]")
    interrupted(monkeypatch, 1, error)
    with pytest.raises(LeptonError, match="out of memory while training with batches of 16") as caught:
        step(tmp_path, qat_keras.run, small())
    assert caught.value.hint == "set batch_size to 8"
    assert not (tmp_path / "out.keras").exists()
