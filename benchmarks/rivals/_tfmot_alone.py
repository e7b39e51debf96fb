"""tensorflow-model-optimization alone: WHAT FOLDER MODEL OUT OPTIONS(json).

WHAT is prune, cluster, qat or pcqat (prune, cluster keeping zeros, QAT keeping both), as its own guides have it, on a
tf_keras copy of the model; the result is int8 by TFLiteConverter with the calibration samples. "keras3" gives it the
Keras 3 model as it is.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_USE_LEGACY_KERAS"] = "1"


def main() -> None:
    """See the module."""
    what, folder, name, out, options = sys.argv[1:6]
    given = json.loads(options)
    import numpy as np

    arrays = {}
    for part in ("train", "calib"):
        with np.load(Path(folder) / f"{part}.npz") as data:
            arrays[part] = data["x"].astype(np.float32) * np.float32(given["scale"]), data["y"]
    model = made(what, str(Path(folder) / name), arrays["train"], given)
    Path(out).write_bytes(converted(model, arrays["calib"][0]))


def made(what: str, path: str, train: tuple, given: dict):
    """The model as its library leaves it."""
    import keras
    import tensorflow_model_optimization as tfmot
    import tf_keras

    source = keras.saving.load_model(path, compile=False)
    if what == "keras3":
        return tfmot.sparsity.keras.prune_low_magnitude(source)
    from lepton_edge.keras_move import move

    model = move(source).model
    tf_keras.utils.set_random_seed(0)
    if what in ("prune", "pcqat"):
        model = pruned(tfmot, tf_keras, model, train, given)
    if what == "cluster":
        wrapped = tfmot.clustering.keras.cluster_weights(
            model, number_of_clusters=16,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
        )  # fmt: skip
        fitted(tf_keras, wrapped, train, given["cluster"], given["batch"])
        model = tfmot.clustering.keras.strip_clustering(wrapped)
    if what == "pcqat":
        from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster

        wrapped = cluster.cluster_weights(
            model, number_of_clusters=16, preserve_sparsity=True,
            cluster_centroids_init=tfmot.clustering.keras.CentroidInitialization.KMEANS_PLUS_PLUS,
        )  # fmt: skip
        fitted(tf_keras, wrapped, train, given["cluster"], given["batch"])
        model = tfmot.clustering.keras.strip_clustering(wrapped)
        annotated = tfmot.quantization.keras.quantize_annotate_model(model)
        scheme = tfmot.experimental.combine.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=True)
        model = tfmot.quantization.keras.quantize_apply(annotated, scheme)
        fitted(tf_keras, model, train, given["qat"], given["batch"])
    if what == "qat":
        model = tfmot.quantization.keras.quantize_model(model)
        fitted(tf_keras, model, train, given["qat"], given["batch"])
    return model


def pruned(tfmot, tf_keras, model, train: tuple, given: dict):
    """Polynomial decay over the first two thirds, every layer to the same sparsity."""
    steps = len(train[1]) // given["batch"] * given["prune"][0]
    schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, given["sparsity"], 0, steps * 2 // 3, frequency=20)
    wrapped = tfmot.sparsity.keras.prune_low_magnitude(model, pruning_schedule=schedule)
    fitted(tf_keras, wrapped, train, given["prune"], given["batch"], [tfmot.sparsity.keras.UpdatePruningStep()])
    return tfmot.sparsity.keras.strip_pruning(wrapped)


def fitted(tf_keras, model, train: tuple, effort: list, batch: int, callbacks=()) -> None:
    """Adam with the rate falling along the same cosine as ours."""
    epochs, start = effort
    rate = tf_keras.optimizers.schedules.CosineDecay(start, len(train[1]) // batch * epochs, alpha=0.01)
    model.compile(tf_keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(*train, batch_size=batch, epochs=epochs, verbose=0, callbacks=list(callbacks))


def converted(model, samples) -> bytes:
    """Int8 TFLite, float at the ends, as ours."""
    import tensorflow as tf

    shape = [1, *samples.shape[1:]]
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec(shape, tf.float32))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([samples[i : i + 1]] for i in range(min(len(samples), 300)))
    return converter.convert()


if __name__ == "__main__":
    main()
