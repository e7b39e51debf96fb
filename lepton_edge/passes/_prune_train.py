"""What a model under pruning is trained on: its labelled samples, the output they belong to, losses and batches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.feeds import load_feed
from lepton_edge.keras_move import Moved, graph_of, is_model

PASS_THROUGH = frozenset({"Dropout", "Reshape", "Flatten", "Identity", "Cast"})


@dataclass(frozen=True)
class Samples:
    """Labelled samples on disk: an array [N, ...] for each model input, in order, and labels int64 [N]."""

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray


@dataclass(frozen=True)
class Target:
    """What is trained: the output's index and width, and what its values are (softmax, sigmoid, logits)."""

    index: int
    width: int
    kind: str


def open_samples(folder: str | Path, model: Any) -> Samples:
    """The labelled samples of a feed folder for a Keras 3 model, memory-mapped.

    Errors: LeptonError for a missing or mismatched file, missing labels, and values that are not finite.
    """
    feed = load_feed(folder)
    labels = feed.label_array()
    if labels is None:
        raise LeptonError(
            "pruning fine-tunes the model, and these samples have no labels",
            hint="give training data with labels (an .npz with x and y)",
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise LeptonError(f"labels must be whole numbers [N], not {labels.dtype} {list(labels.shape)}")
    wanted = graph_of(model).inputs
    order = [x.name for x in wanted]
    if sorted(feed.inputs) != sorted(order) and not len(feed.inputs) == len(order) == 1:
        raise LeptonError(f"the samples hold the inputs {list(feed.inputs)}, but the model takes {order}")
    files = order if set(order) == set(feed.inputs) else list(feed.inputs)
    arrays = tuple(check_array(feed.array(n), tensor) for n, tensor in zip(files, wanted, strict=True))
    return Samples(arrays, np.asarray(labels, np.int64))


def check_array(array: np.ndarray, tensor: Any) -> np.ndarray:
    """One input's samples, checked against the model's input for shape, dtype and finite values."""
    shape = tuple(tensor.shape[1:])
    fits = array.ndim == len(shape) + 1 and all(
        want in (None, got) for want, got in zip(shape, array.shape[1:], strict=True)
    )
    what = f"samples for input '{tensor.name}'"
    if not fits:
        raise LeptonError(f"{what} have shape {list(array.shape[1:])}, the model takes {list(shape)}")
    if not np.can_cast(array.dtype, tensor.dtype, "same_kind"):
        raise LeptonError(f"{what} are {array.dtype}, the model takes {tensor.dtype}")
    for i in range(0, len(array) if array.dtype.kind == "f" else 0, 256):
        if not np.isfinite(array[i : i + 256]).all():
            raise LeptonError(f"{what} hold NaN or infinity (in rows {i} to {i + 255})")
    return array


def output_kind(tensor: Any) -> str:
    """What the activation behind a Keras 3 output tensor says: softmax, sigmoid, or "" for anything else."""
    history = tensor._keras_history
    operation = history.operation
    if is_model(operation):
        return output_kind(graph_of(operation).outputs[history.tensor_index])
    name = type(operation).__name__
    if name == "Activation" or hasattr(operation, "activation"):
        name = getattr(operation.activation, "__name__", "")
    if name in PASS_THROUGH or (name == "linear" and type(operation).__name__ == "Activation"):
        before = operation._inbound_nodes[history.node_index].input_tensors
        return output_kind(before[0]) if before else ""
    return name.lower() if name.lower() in ("softmax", "sigmoid") else ""


def sums_to_one(model: Any, index: int, samples: Samples, count: int = 32) -> bool:
    """Whether an output holds probabilities on the first samples: in 0..1, and every row adds up to 1."""
    import keras

    graph = graph_of(model)
    probe = keras.Model(graph.inputs, graph.outputs[index])
    batch = [np.asarray(a[:count]) for a in samples.inputs]
    out = np.asarray(probe(batch, training=False), np.float64)
    return bool((out >= 0).all() and (out <= 1).all() and np.allclose(out.sum(-1), 1, atol=1e-3))


def find_target(model: Any, samples: Samples) -> Target:
    """The output the labels belong to: the first one [n, width] that is wide enough for them.

    Errors: LeptonError for labels below 0, above every output's width, or for a model that does not classify.
    """
    low, high = int(samples.labels.min()), int(samples.labels.max())
    if low < 0:
        raise LeptonError(f"label {low} is negative; classes count from 0")
    widths = []
    for index, tensor in enumerate(graph_of(model).outputs):
        if len(tensor.shape) != 2 or tensor.shape[1] is None:
            continue
        width = int(tensor.shape[1])
        widths.append(width)
        if high < max(width, 2):
            kind = output_kind(tensor)
            if kind == "softmax" and width == 1:
                raise LeptonError("the model's output is a softmax over one value, which is always 1")
            if not kind:
                kind = "softmax" if width > 1 and sums_to_one(model, index, samples) else "logits"
            return Target(index, width, kind)
    if not widths:
        shapes = [list(x.shape) for x in graph_of(model).outputs]
        raise LeptonError(
            f"one label a sample cannot train outputs of shape {shapes}",
            hint="prune a model that has an output [n, classes]",
        )
    top = max(max(widths) - 1, 1)
    raise LeptonError(
        f"label {high} is out of range: the model's widest output knows the classes 0 to {top}",
        hint="check that the labels belong to this model",
    )


def make_losses(moved: Moved, target: Target) -> list[Any]:
    """One loss an output: classification for the target, distance to the unpruned model for the others."""
    import tf_keras

    if target.width == 1:
        loss = tf_keras.losses.BinaryCrossentropy(from_logits=target.kind == "logits")
    elif target.kind == "sigmoid":
        loss = tf_keras.losses.BinaryCrossentropy()
    else:
        loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=target.kind == "logits")
    count = len(moved.model.outputs)
    return [loss if i == target.index else tf_keras.losses.MeanSquaredError() for i in range(count)]


def make_batches(moved: Moved, samples: Samples, target: Target, batch_size: int, seed: int) -> Any:
    """Shuffled batches for tf_keras's fit, read from disk one at a time; incomplete ones are left out."""
    import tf_keras

    size = min(batch_size, len(samples.labels))
    rng = np.random.default_rng(seed)
    dtypes = [str(x.dtype) for x in graph_of(moved.source).inputs]
    several = len(moved.model.outputs) > 1

    class Batches(tf_keras.utils.Sequence):
        """Yields (inputs, targets); targets of other outputs are what the unpruned model answers."""

        def __init__(self) -> None:
            self.order = rng.permutation(len(samples.labels))

        def __len__(self) -> int:
            return len(samples.labels) // size

        def __getitem__(self, i: int) -> tuple[Any, Any]:
            rows = np.sort(self.order[i * size : (i + 1) * size])
            x = [np.asarray(a[rows]).astype(d) for a, d in zip(samples.inputs, dtypes, strict=True)]
            y = _encode(samples.labels[rows], target)
            wanted = _with_teacher(moved.source, x, y, target.index) if several else y
            return (x if len(x) > 1 else x[0]), wanted

        def on_epoch_end(self) -> None:
            self.order = rng.permutation(len(samples.labels))

    return Batches()


def _encode(labels: np.ndarray, target: Target) -> np.ndarray:
    """Labels as the loss wants them: [n,1] floats for one output, one-hot for sigmoids, else the numbers."""
    if target.width == 1:
        return labels[:, None].astype(np.float32)
    if target.kind == "sigmoid":
        return np.eye(target.width, dtype=np.float32)[labels]
    return labels


def _with_teacher(source: Any, x: list[np.ndarray], y: np.ndarray, index: int) -> list[np.ndarray]:
    import keras

    answers = keras.tree.flatten(source(keras.tree.pack_sequence_as(source._inputs_struct, x), training=False))
    return [y if i == index else np.asarray(a) for i, a in enumerate(answers)]
