"""What a Keras model is fine-tuned on: its samples, their labels, and the output that those belong to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.feeds import load_feed
from lepton_edge.keras_move import graph_of, is_model

PASS_THROUGH = frozenset({"Dropout", "Reshape", "Flatten", "Identity", "Cast"})


@dataclass(frozen=True)
class Samples:
    """Samples on disk: an array [N, ...] for each model input, in order, and labels int64 [N] where there are any.

    ``sha256`` is that of the feed folder.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    sha256: str = ""

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.inputs[0])


@dataclass(frozen=True)
class Target:
    """What is trained: the output's index and width, and what its values are.

    kind: "softmax", "sigmoid" or "logits" of a classifier; "" for an output that no labels belong to.
    """

    index: int
    width: int
    kind: str


def open_samples(folder: str | Path, model: Any, *, unlabelled: bool = False) -> Samples:
    """The samples of a feed folder for a Keras 3 model, memory-mapped.

    Errors: LeptonError for a missing or mismatched file, missing labels (unless ``unlabelled``: then they are left
    out), and values that are not finite.
    """
    feed = load_feed(folder)
    labels = None if unlabelled else feed.label_array()
    if labels is None and not unlabelled:
        raise LeptonError(
            "fine-tuning learns from labels, and these samples have no labels",
            hint="give training data with labels (an .npz with x and y), or distil = 1.0 to learn from the model's own"
            " answers",
        )
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise LeptonError(f"labels must be whole numbers [N], not {labels.dtype} {list(labels.shape)}")
    wanted = graph_of(model).inputs
    order = [x.name for x in wanted]
    if sorted(feed.inputs) != sorted(order) and not len(feed.inputs) == len(order) == 1:
        raise LeptonError(f"the samples hold the inputs {list(feed.inputs)}, but the model takes {order}")
    files = order if set(order) == set(feed.inputs) else list(feed.inputs)
    arrays = tuple(check_array(feed.array(n), tensor) for n, tensor in zip(files, wanted, strict=True))
    return Samples(arrays, None if labels is None else np.asarray(labels, np.int64), feed.sha256)


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

    Without labels: the first [n, width] that holds classes, else the first output, of kind "".
    Errors: LeptonError for labels below 0, above every output's width, or for a model that does not classify.
    """
    if samples.labels is None:
        return _answered(model, samples)
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


def _answered(model: Any, samples: Samples) -> Target:
    for index, tensor in enumerate(graph_of(model).outputs):
        if len(tensor.shape) == 2 and tensor.shape[1] is not None:
            kind = output_kind(tensor)
            if not kind and tensor.shape[1] > 1 and sums_to_one(model, index, samples):
                kind = "softmax"
            if kind and not (kind == "softmax" and tensor.shape[1] == 1):
                return Target(index, int(tensor.shape[1]), kind)
    return Target(0, 0, "")
