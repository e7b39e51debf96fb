"""Writes one Keras 3 model as .keras, .h5 and SavedModel: `python make_keras.py NAME FOLDER`.

Weights are seeded; batch statistics are drawn too, so that a wrong normalisation shows.
"""

import os
import sys
from pathlib import Path


def written(keras, name):
    layers = keras.layers
    if name == "lstm":
        x = keras.Input((40, 16), name="sequence")
        y = layers.LSTM(32, return_sequences=True)(x)
        y = layers.Bidirectional(layers.LSTM(24))(y)
        return keras.Model(x, layers.Dense(10)(y), name="lstm")
    if name == "gru":
        x = keras.Input((40, 16), name="sequence")
        y = layers.GRU(32, return_sequences=True)(x)
        y = layers.GRU(24)(y)
        return keras.Model(x, layers.Dense(10)(y), name="gru")
    if name == "transformer":
        x = keras.Input((32,), dtype="int32", name="tokens")
        y = layers.Embedding(100, 64)(x)
        for _ in range(2):
            a = layers.MultiHeadAttention(4, 16)(y, y)
            y = layers.LayerNormalization()(y + a)
            f = layers.Dense(64)(layers.Dense(128, activation="gelu")(y))
            y = layers.LayerNormalization()(y + f)
        return keras.Model(x, layers.Dense(10)(layers.GlobalAveragePooling1D()(y)), name="transformer")
    return unet(keras)


def unet(keras):
    layers = keras.layers

    def block(y, n):
        for _ in range(2):
            y = layers.Conv2D(n, 3, padding="same", use_bias=False)(y)
            y = layers.ReLU()(layers.BatchNormalization()(y))
        return y

    x = keras.Input((64, 64, 3), name="image")
    skips, y = [], x
    for n in (8, 16, 32):
        y = block(y, n)
        skips.append(y)
        y = layers.MaxPooling2D()(y)
    y = block(y, 64)
    for n, skip in zip((32, 16, 8), reversed(skips), strict=True):
        up = layers.Conv2DTranspose(n, 2, strides=2)(y) if n > 8 else layers.UpSampling2D(interpolation="bilinear")(y)
        y = block(layers.Concatenate()([up, skip]), n)
    return keras.Model(x, layers.Conv2D(4, 1)(y), name="unet")


def main() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import keras
    import numpy as np

    name, folder = sys.argv[1], Path(sys.argv[2])
    keras.utils.set_random_seed(1)
    if hasattr(keras.applications, name):
        model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    else:
        model = written(keras, name)
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for w in layer.weights:
                v = (
                    rng.uniform(0.5, 1.5, w.shape)
                    if "var" in w.name or "gamma" in w.name
                    else rng.normal(0, 0.1, w.shape)
                )
                w.assign(v.astype("float32"))
    model.save(folder / f"keras_{name}.keras")
    model.save(folder / f"keras_{name}.h5")
    model.export(folder / f"keras_{name}_savedmodel")


if __name__ == "__main__":
    main()
