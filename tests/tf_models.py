"""What the tests of the converters from Keras, SavedModel and TFLite share: models, and how outputs are compared."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

keras = pytest.importorskip("keras")
pytest.importorskip("tensorflow")
for needed in ("onnx", "tf2onnx", "onnxruntime", "ai_edge_litert"):
    pytest.importorskip(needed)

ROOT = Path(__file__).parent.parent
QUIET = pytest.mark.filterwarnings("ignore")  # TensorFlow, tf2onnx and flatbuffers warn about themselves


def module(path: Path):
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def convert(step: str, src, dst, **options) -> dict:
    return module(ROOT / "converters" / f"{step}.py").run(str(src), str(dst), **options)


def execute(runtime: str, path, feeds: dict) -> dict:
    return module(ROOT / "lepton_edge" / "runtimes" / f"{runtime}.py").load(str(path)).run(feeds)


def sqnr(want: np.ndarray, got: np.ndarray) -> float:
    assert want.shape == got.shape
    noise = float(np.sum((want.astype(np.float64) - got) ** 2))
    return np.inf if noise == 0 else 10 * np.log10(float(np.sum(want.astype(np.float64) ** 2)) / noise)


def assert_same(reference: dict, got: dict, result: dict, decibels: float = 100.0) -> None:
    """Every output of the source has its counterpart, at float noise."""
    assert [entry["source"] for entry in result["outputs"]] != []
    assert {entry["source"] for entry in result["outputs"]} == set(reference)
    for entry in result["outputs"]:
        assert sqnr(reference[entry["source"]], got[entry["name"]]) > decibels, entry


def fed(feeds: dict, result: dict) -> dict:
    return {entry["name"]: feeds[entry["source"]] for entry in result["inputs"]}


def randomised(model, seed: int = 11):
    """The model with every weight drawn at random: a fresh one's zero biases would hide that one is lost."""
    random = np.random.default_rng(seed)
    drawn = []
    for weight, value in zip(model.weights, model.get_weights(), strict=True):
        spread = random.standard_normal(value.shape) / np.sqrt(max(1, np.prod(value.shape[:-1])))
        positive = "variance" in getattr(weight, "path", weight.name)
        drawn.append((np.abs(spread) + 0.5 if positive else spread + 0.1).astype(value.dtype))
        assert np.all(drawn[-1] != 0)
    model.set_weights(drawn)
    return model


def cnn():
    layers = keras.layers
    x = image = layers.Input((12, 12, 3), name="image")
    x = layers.Conv2D(8, 3, padding="same")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = skip = layers.ReLU(6.0)(x)
    x = layers.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    x = layers.Add()([layers.Conv2D(8, 1)(x), skip])
    x = layers.MaxPooling2D()(keras.ops.relu(x))
    return keras.Model(image, layers.Dense(4, activation="softmax", name="probabilities")(layers.Flatten()(x)))


def pooled():  # TFLite drops the Flatten: FULLY_CONNECTED takes the pooled image as it is
    layers = keras.layers
    x = layers.Conv2D(6, 3, activation="relu")(image := layers.Input((10, 10, 2), name="image"))
    return keras.Model(image, layers.Dense(4)(layers.Flatten()(layers.AveragePooling2D((8, 8))(x))))


def separable():  # a Sequential without a named input, squeeze-and-excite gate with a scalar add
    layers = keras.layers
    image = layers.Input((8, 8, 4))
    x = layers.SeparableConv2D(8, 3, padding="same", activation="silu")(image)
    gate = layers.Conv2D(8, 1, activation="hard_sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    inner = keras.Model(image, layers.Multiply()([x, gate]), name="inner")
    return keras.Sequential([layers.Input((8, 8, 4)), inner, layers.GlobalAveragePooling2D(), layers.Dense(3)])


def mlp():
    layers = keras.layers
    normal = layers.Normalization(mean=[0.5] * 6, variance=[2.0] * 6)
    return keras.Sequential([layers.Input((6,)), normal, layers.Dense(8, activation="gelu"), layers.Dense(2)])


def lstm():
    layers = keras.layers
    hidden = layers.LSTM(6, return_sequences=True)(sequence := layers.Input((10, 4), name="sequence"))
    return keras.Model(sequence, layers.Dense(2)(layers.Bidirectional(layers.LSTM(5))(hidden)))


def gru():
    layers = keras.layers
    return keras.Sequential([layers.Input((10, 4)), layers.GRU(6), layers.Dense(2)])


def transformer():
    layers = keras.layers
    tokens = layers.Input((12,), dtype="int32", name="tokens")
    x = layers.Embedding(20, 16)(tokens) + layers.Embedding(12, 16)(keras.ops.arange(12)[None])
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    x = layers.LayerNormalization()(x + layers.Dense(16)(layers.Dense(24, activation="gelu")(x)))
    return keras.Model(tokens, layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling1D()(x)))


def several():  # names in an order that is not alphabetical, outputs of one shape
    layers = keras.layers
    first, second = layers.Input((4,), name="zeta"), layers.Input((4,), name="alpha")
    x = layers.Concatenate()([layers.Dense(5, activation="tanh")(first), layers.Dense(5)(second)])
    return keras.Model([first, second], [layers.Dense(3, name="yy")(x), layers.Dense(3, name="aa")(x)])


def dictionary():
    layers = keras.layers
    first, second = layers.Input((4,), name="q"), layers.Input((4,), name="p")
    return keras.Model({"q": first, "p": second}, {"z": layers.Dense(3)(first), "b": layers.Dense(3)(second)})


def states():  # one layer, three outputs
    sequence = keras.layers.Input((6, 4), name="in put:1")
    return keras.Model(sequence, keras.layers.LSTM(5, return_sequences=True, return_state=True, name="rnn")(sequence))


MODELS = [cnn, pooled, separable, mlp, lstm, gru, transformer, several, dictionary, states]


def saver(folder: Path):
    """A function: a model of MODELS -> (its .keras file in ``folder``, feeds, reference outputs), each made once."""
    made: dict = {}

    def get(build):
        if build.__name__ not in made:
            keras.utils.set_random_seed(7)
            path = folder / f"{build.__name__}.keras"
            randomised(build()).save(path)
            session = module(ROOT / "lepton_edge/runtimes/keras.py").load(str(path))
            random, feeds = np.random.default_rng(1), {}
            for port in session.inputs:
                shape = [dim or 1 for dim in port["shape"]]
                whole = port["dtype"].startswith("int")
                values = random.integers(0, 10, shape) if whole else random.standard_normal(shape)
                feeds[port["name"]] = values.astype(port["dtype"])
            made[build.__name__] = (path, feeds, session.run(feeds))
        return made[build.__name__]

    return get
