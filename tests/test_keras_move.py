"""Keras 3 models carried to tf_keras: every kind of layer and graph computes the same, and weights come back."""

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

from keras import layers, ops  # noqa: E402,TID253

from lepton_edge import keras_move, keras_move_layers  # noqa: E402
from lepton_edge.errors import LeptonError  # noqa: E402

Input, Model = keras.Input, keras.Model


def stirred(model):
    """The model with weights that no default could pass for: batch statistics and biases too."""
    rng = np.random.default_rng(1)
    for w in model.weights:
        array = np.asarray(w)
        if w.name in ("moving_variance", "variance"):
            w.assign(rng.uniform(0.5, 1.5, array.shape))
        elif w.name in ("gamma", "beta", "bias", "moving_mean", "mean"):
            w.assign(array + 0.1 * rng.standard_normal(array.shape))
    for layer in keras_move.leaf_layers(model):
        keras_move_layers.finalize(layer)
    return model


def mlp():
    return keras.Sequential(
        [Input((20,)), layers.Dense(16, "relu"), layers.LeakyReLU(negative_slope=0.1), layers.Dense(5, "softmax")]
    )


def cnn():
    x = i = Input((16, 16, 3))
    x = layers.Conv2D(8, 3, use_bias=False, kernel_regularizer="l2")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D(3, activation="relu6")(x)
    x = layers.SeparableConv2D(12, 3, activation="hard_silu", pointwise_constraint="max_norm")(x)
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2DTranspose(6, 3, strides=2)(x))
    x = layers.UpSampling2D(interpolation="bilinear")(x)
    return Model(i, layers.Dense(4)(layers.GlobalAveragePooling2D()(x)))


def residual_se():
    i = Input((12, 12, 8))
    x = layers.Conv2D(8, 3, padding="same")(i)
    s = layers.Dense(2, "relu")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = ops.multiply(x, layers.Dense(8, "hard_sigmoid")(s)) + i
    x = 2.0 - ops.relu(x * 0.5 + 1.0 - 0.1 * x)
    return Model(i, ops.softmax(layers.Dense(3)(ops.mean(x, axis=(1, 2)))))


def recurrent():
    i = Input((None, 6))
    x = layers.LSTM(4, return_sequences=True)(i)
    x = layers.Bidirectional(layers.GRU(3, return_sequences=True))(x)
    x = layers.TimeDistributed(layers.Dense(4, "tanh"))(x)
    x = layers.RNN([layers.LSTMCell(3), layers.GRUCell(4)], return_sequences=True)(x)
    return Model(i, layers.Dense(1, "sigmoid")(layers.SimpleRNN(5)(x)))


def transformer():
    i = Input((12, 16))
    x = layers.LayerNormalization()(i + layers.MultiHeadAttention(2, 8)(i, i, use_causal_mask=True))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, layers.Dense(16)(layers.Dense(32, "gelu")(x))]))
    x = layers.EinsumDense("abc,cd->abd", (12, 8))(x)
    return Model(i, layers.Dense(3)(layers.Flatten()(x)))


def masked_text():
    i = Input((14,), dtype="int64")
    x = layers.Embedding(50, 8, mask_zero=True)(i)
    x = layers.Bidirectional(layers.GRU(4, return_sequences=True))(x)
    return Model(i, layers.Dense(2, "softmax")(layers.LSTM(4)(layers.MultiHeadAttention(2, 4)(x, x))))


def text_conv():
    i = Input((None,), dtype="int32")
    x = layers.Conv1D(8, 3, padding="causal", activation="relu")(layers.Embedding(50, 8)(i))
    return Model(i, layers.Dense(2)(layers.GlobalMaxPooling1D()(layers.Dropout(0.2)(x))))


def nested():
    base = keras.Sequential(
        [Input((8, 8, 3)), layers.Conv2D(4, 3), layers.BatchNormalization(), layers.Flatten()], name="base"
    )
    a, b, h = Input((8, 8, 3), name="a"), Input((8, 8, 3), name="b"), Input((288,))
    y = layers.Dense(6)(h)
    head = Model(h, {"y": y, "z": layers.Dense(2)(y)}, name="head")
    out = head(layers.Concatenate()([base(a, training=False), base(b, training=False)]))
    return Model({"a": a, "b": b}, {"p": layers.Activation("softmax")(out["z"]), "q": out["y"]})


def shared():
    dense, i = layers.Dense(7, "relu"), Input((7,))
    x = layers.Dense(7)(dense(dense(i)))
    return Model(i, [x, dense(x)])


def preprocessing():
    i = Input((16, 16, 3))
    normal = layers.Normalization()
    normal.adapt(np.random.default_rng(0).normal(3, 2, (20, 16, 16, 3)))
    x = layers.Resizing(12, 12)(layers.RandomRotation(0.1)(layers.RandomFlip()(normal(i))))
    x = layers.GroupNormalization(2)(layers.Conv2D(4, 3)(layers.Rescaling(0.5, 1.0)(x)))
    return Model(i, layers.Dense(3)(layers.Flatten()(x)))


def operators():
    i = Input((8,))
    a, b = ops.split(layers.Dense(8)(i), 2, axis=-1)
    x = ops.concatenate([a * ops.sigmoid(b), ops.where(a > 0, a, b)], axis=-1)
    return Model(i, layers.Dense(3)(ops.einsum("ab,ac->abc", x, x)[:, :, 0]))


GRAPHS = [
    mlp,
    cnn,
    residual_se,
    recurrent,
    transformer,
    masked_text,
    text_conv,
    nested,
    shared,
    preprocessing,
    operators,
]


@pytest.mark.parametrize("make", GRAPHS, ids=lambda f: f.__name__)
def test_same_outputs_and_weights_come_back(make):
    model = stirred(make())
    moved = keras_move.move(model)
    assert moved.difference < 1e-5
    carried = sum(len(p.source.weights) for p in moved.pairs)
    assert carried == len(model.weights)
    for pair in moved.pairs:
        pair.target.set_weights([w + 1 if w.dtype.kind == "f" else w for w in pair.target.get_weights()])
    before = [np.array(w) for w in model.weights]
    keras_move.copy_back(moved)
    for a, w in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(w), a + 1 if a.dtype.kind == "f" else a)


def test_layers_tf_keras_lacks_are_carried():
    newer = ("RMSNormalization", "GroupQueryAttention")
    if not all(hasattr(layers, name) for name in newer):
        pytest.skip("this Keras is older than these layers")
    i = Input((12, 16))
    x = layers.GroupQueryAttention(4, 4, 2)(*[layers.RMSNormalization()(i)] * 2)
    moved = keras_move.move(Model(i, layers.Dense(3)(x)))
    assert moved.difference == 0 and len(moved.carried) == 2 and len(moved.pairs) == 3


@pytest.mark.parametrize("make", [cnn, recurrent, nested, preprocessing], ids=lambda f: f.__name__)
def test_a_whole_model_can_be_carried(make):
    model = stirred(make())
    state = keras_move._State(forced=frozenset({"*"}))
    target = keras_move._replay(model, "", state)
    assert keras_move.difference(model, target) < 1e-6
    assert all(p.target.__class__.__name__ == "Carried" for p in state.pairs)


def test_carried_layers_train_without_touching_the_original():
    i = Input((6,))
    x = layers.BatchNormalization()(layers.Dense(5, use_bias=False)(i))
    model = stirred(Model(i, layers.Dense(2)(x)))
    before = [np.array(w) for w in model.weights]
    state = keras_move._State(forced=frozenset({"*"}))
    target = keras_move._replay(model, "", state)
    target.compile("sgd", "mse")
    rng = np.random.default_rng(0)
    target.fit(rng.standard_normal((32, 6)), rng.standard_normal((32, 2)), verbose=0)
    assert all(np.array_equal(a, np.asarray(w)) for a, w in zip(before, model.weights, strict=True))
    keras_move.copy_back(keras_move.Moved(model, target, tuple(state.pairs), (), 0.0))
    changed = [not np.array_equal(a, np.asarray(w)) for a, w in zip(before, model.weights, strict=True)]
    assert all(changed)  # the batch statistics too


def test_a_layer_that_differs_is_found_and_carried(monkeypatch):
    def wrong(layer):
        native = keras_move_layers.native_layer(layer)
        if type(layer).__name__ == "ELU":
            native.alpha = 0.5
        return native

    monkeypatch.setattr(keras_move, "native_layer", wrong)
    i = Input((6,))
    model = Model(i, layers.Dense(2)(layers.ELU(name="culprit")(layers.Dense(5)(i))))
    moved = keras_move.move(model)
    assert moved.carried == ("culprit",) and moved.difference < 1e-6


def test_refusals_name_the_culprit():
    class Own(keras.Model):
        def call(self, x):
            return x

    own = Own(name="mine")
    own(np.zeros((1, 2), "float32"))
    with pytest.raises(LeptonError, match=r"'mine'.*subclassed"):
        keras_move.move(own)
    with pytest.raises(LeptonError, match="no input shape"):
        keras_move.move(keras.Sequential([layers.Dense(2)]))
    text = Input((1,), dtype="string", name="words")
    with pytest.raises(LeptonError, match="'words' takes text"):
        keras_move.probe(Model(text, layers.TextVectorization(vocabulary=["a"])(text)), 0, 1.0)


def test_quantized_layers_are_refused():
    model = mlp()
    model.quantize("int8")
    with pytest.raises(LeptonError, match="already quantized"):
        keras_move.move(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["MobileNetV2", "MobileNetV3Small"])
def test_applications(name):
    model = stirred(getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=10))
    assert keras_move.move(model).difference < 1e-5
