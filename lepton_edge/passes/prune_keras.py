"""Magnitude pruning of a Keras model with fine-tuning (tensorflow-model-optimization).

The Keras 3 model is moved to tf_keras (lepton_edge.keras_move), pruned while it trains on labelled samples,
and its weights are written back into the original graph: the same .keras model with zeros in its kernels.

tfmot decides which weights are pruned and when their masks change (`prune_low_magnitude`, its schedules). Its
wrappers hold the masks but are not put into the graph: PruneLowMagnitude.call passes no mask on to the layer,
and does not update in a nested model called with training=False. The masks are updated before each batch
instead, which is when the wrappers would do it; so there is nothing to strip afterwards.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.feeds import load_feed
from lepton_edge.keras_move import Moved, copy_back, graph_of, is_model, move
from lepton_edge.keras_safe import load_keras

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "tf-keras>=2.19", "tensorflow-model-optimization>=0.8")
ENVIRON = {"TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow"}

PRUNABLE_NAMES = frozenset({"kernel", "recurrent_kernel", "pointwise_kernel", "embeddings"})
PASS_THROUGH = frozenset({"Dropout", "Reshape", "Flatten", "Identity", "Cast"})


@dataclass(frozen=True)
class Samples:
    """Labelled samples on disk: an array [N, ...] for each model input, in order, and labels int64 [N]."""

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray


@dataclass(frozen=True)
class Pruned:
    """A layer under pruning: its path in the model, tfmot's wrapper with the masks, its final sparsity."""

    path: str
    wrapper: Any
    sparsity: float


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


def make_schedule(kind: str, sparsity: float, steps: int) -> Any:
    """tfmot's schedule over `steps` batches: "constant" at once, "polynomial" over the first two thirds.

    Masks change about 20 times; the last third trains at the final sparsity.
    """
    import tensorflow_model_optimization as tfmot

    if kind == "constant":
        every = max(1, steps // 20)
        return tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, end_step=-1, frequency=every)
    end = max(1, steps * 2 // 3)
    every = max(1, end // 20)
    end -= end % every  # tfmot updates on multiples of the frequency only, and must hit the end
    return tfmot.sparsity.keras.PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end, frequency=every)


def prunable_weights(layer: Any) -> list[Any]:
    """Kernels of a layer tfmot has no entry for (Bidirectional, EinsumDense, carried ones): tf.Variables."""
    names = getattr(layer, "names_of_inner", None)
    variables = layer.weights if names is None else layer.variables_of_inner
    short = names or [v.name.split("/")[-1].split(":")[0] for v in variables]
    return [v for v, n in zip(variables, short, strict=True) if n in PRUNABLE_NAMES and len(v.shape) >= 2]


def allocate(shapes: list[list[tuple[int, ...]]], sparsity: float) -> list[float]:
    """Sparsity of each layer (a list of kernel shapes) so that `sparsity` of all kernels' weights are zero.

    Small and narrow layers keep more: density goes with sum(shape) / product(shape), at most 1. This is the
    Erdos-Renyi-Kernel rule of Evci et al., "Rigging the Lottery" (2020), section 3.
    """
    sizes = np.array([sum(math.prod(s) for s in layer) for layer in shapes], np.float64)
    raw = np.array([sum(sum(s) for s in layer) for layer in shapes], np.float64) / sizes
    density = np.ones(len(sizes))
    free = np.ones(len(sizes), bool)
    left = (1 - sparsity) * sizes.sum()
    while free.any():
        density[free] = raw[free] * left / (raw * sizes)[free].sum()
        full = free & (density >= 1)
        if not full.any():
            break
        density[full] = 1
        free &= ~full
        left = (1 - sparsity) * sizes.sum() - sizes[~free].sum()
    return [float(1 - d) for d in density]


def wrap(moved: Moved, schedule: str, sparsity: float, spread: str, steps: int) -> list[Pruned]:
    """tfmot's wrapper of every layer that has kernels; depthwise kernels are left alone."""
    import tensorflow_model_optimization as tfmot
    from tensorflow_model_optimization.python.core.sparsity.keras.prune_registry import PruneRegistry

    found = []
    for pair in moved.pairs:
        layer = pair.target
        if PruneRegistry.supports(layer):
            PruneRegistry.make_prunable(layer)
        else:
            layer.get_prunable_weights = lambda layer=layer: prunable_weights(layer)
        shapes = [tuple(w.shape) for w in layer.get_prunable_weights()]
        if shapes:
            found.append((pair.path, layer, shapes))
    if not found:
        raise LeptonError("the model has no layer with weights to prune (dense, convolution, recurrent ...)")
    shares = [sparsity] * len(found)
    if spread == "erk":
        shares = allocate([shapes for _, _, shapes in found], sparsity)
    wrapped = []
    for (path, layer, _), share in zip(found, shares, strict=True):
        if share > 0:
            plan = make_schedule(schedule, share, steps)
            wrapper = tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=plan)
            wrapper.build(None)
            wrapped.append(Pruned(path, wrapper, share))
    return wrapped


def make_callback(wrapped: list[Pruned], steps: int, epochs: int, progress: Callable | None) -> Any:
    """The tf_keras callback that keeps the masks, reports progress, and stops at a loss that is no number."""
    import tensorflow as tf
    import tf_keras

    @tf.function
    def update(step: Any) -> None:
        for item in wrapped:
            item.wrapper.pruning_step.assign(step)
            item.wrapper.pruning_obj.conditional_mask_update()
            item.wrapper.pruning_obj.weight_mask_op()

    @tf.function
    def apply() -> None:
        for item in wrapped:
            item.wrapper.pruning_obj.weight_mask_op()

    class Pruning(tf_keras.callbacks.Callback):
        """`losses` of the finished epochs, the epoch that `diverged` (from 1; or 0), the `kept` weights."""

        def __init__(self) -> None:
            super().__init__()
            self.losses: list[float] = []
            self.diverged = 0
            self.kept: list[np.ndarray] = []
            self.step, self.told = 0, 0.0

        def on_train_begin(self, logs: Any = None) -> None:
            self.kept = self.model.get_weights()

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            update(tf.constant(self.step, tf.int64))
            self.step += 1

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if not math.isfinite((logs or {}).get("loss", 0.0)):
                self.diverged = len(self.losses) + 1
                self.model.stop_training = True
            elif progress and time.monotonic() - self.told > 1:
                self.told = time.monotonic()
                what = f"epoch {len(self.losses) + 1}/{epochs}, loss {logs['loss']:.4f}"
                progress(self.step, steps * epochs, what)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            apply()
            weights = self.model.get_weights()
            if self.diverged or not all(np.isfinite(w).all() for w in weights):
                self.diverged = epoch + 1
                self.model.stop_training = True
                return
            self.losses.append(float(logs["loss"]))
            self.kept = weights
            if progress:
                progress(self.step, steps * epochs, f"epoch {epoch + 1}/{epochs}, loss {logs['loss']:.4f}")

    return Pruning()


def enforce(wrapped: list[Pruned]) -> None:
    """Zero the smallest weights of each kernel up to its sparsity; a no-op where the schedule has got there."""
    for item in wrapped:
        for weight, _, _ in item.wrapper.pruning_vars:
            array = weight.numpy()
            kept = max(round(array.size * (1 - item.sparsity)), 1)
            if np.count_nonzero(array) > kept:
                flat = array.reshape(-1)
                flat[np.argsort(np.abs(flat), kind="stable")[: array.size - kept]] = 0
                weight.assign(array)


def measure(moved: Moved) -> dict[str, Any]:
    """Shares of zeros (over all kernels, over the model, by layer) and counts of the Keras 3 model."""
    import tensorflow as tf

    layers, zeros, total = {}, 0, 0
    for pair in moved.pairs:
        find = getattr(pair.target, "get_prunable_weights", None)
        arrays = [np.asarray(tf.convert_to_tensor(w)) for w in (find() if find else [])]
        if arrays:
            size = sum(a.size for a in arrays)
            empty = size - sum(int(np.count_nonzero(a)) for a in arrays)
            layers[pair.path] = round(empty / size, 6)
            zeros, total = zeros + empty, total + size
    everything = [np.asarray(w) for w in moved.source.weights]
    parameters = sum(a.size for a in everything)
    nonzeros = sum(int(np.count_nonzero(a)) for a in everything)
    return {
        "sparsity": {
            "overall": round(zeros / total, 6),
            "model": round(1 - nonzeros / parameters, 6),
            "layers": layers,
        },
        "nonzeros": nonzeros,
        "parameters": parameters,
    }


def save(model: Any, dst: str | Path) -> None:
    """Write a Keras 3 model as .keras: aside first, then in place."""
    part = Path(dst).with_name(f".{Path(dst).name}.part.keras")
    try:
        model.save(part)
        part.replace(dst)
    finally:
        part.unlink(missing_ok=True)


def check_options(
    sparsity: float, schedule: str, spread: str, epochs: int, batch_size: int, learning_rate: float
) -> None:
    """Refuse options that make no sense, naming the one that is off."""
    if not 0 < sparsity < 1:
        raise UsageError(f"sparsity must lie between 0 and 1, not {sparsity}", hint="0.5 zeroes half the weights")
    if schedule not in ("polynomial", "constant"):
        raise UsageError(f"unknown schedule '{schedule}'", hint="known: polynomial, constant")
    if spread not in ("erk", "uniform"):
        raise UsageError(f"unknown spread '{spread}'", hint="known: erk (small layers keep more), uniform")
    if epochs < 1 or batch_size < 1:
        raise UsageError(f"epochs and batch_size must be at least 1, not {epochs} and {batch_size}")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise UsageError(f"learning_rate must be above 0, not {learning_rate}")


def describe(moved: Moved, wrapped: list[Pruned], target: Target, callback: Any, epochs: int) -> list[str]:
    """Notes for the report: what was trained how, and what the reader should know."""
    known = {item.path for item in wrapped}
    left = [p.path for p in moved.pairs if p.path not in known and "depthwise" in type(p.target).__name__.lower()]
    frozen = [p.path for p in moved.pairs if p.path in known and not p.target.trainable_weights]
    done = len(callback.losses)
    notes = [f"fine-tuned on output {target.index} ({target.kind}, {target.width} wide), {done} of {epochs} epochs"]
    if callback.diverged:
        kept = f"the weights of epoch {done}" if done else "the original weights"
        notes.append(
            f"the loss became NaN or infinite in epoch {callback.diverged}: training stopped, {kept} were"
            " restored and pruned to the target; try a smaller learning_rate"
        )
    if left:
        notes.append(f"depthwise kernels are not pruned ({len(left)} layers)")
    if frozen:
        notes.append(f"{len(frozen)} pruned layers are frozen (trainable=False) and were not fine-tuned")
    if len(moved.model.outputs) > 1:
        notes.append("the other outputs were trained towards the unpruned model's answers")
    return notes


def run(
    src: str,
    dst: str,
    *,
    data: str,
    sparsity: float = 0.5,
    schedule: str = "polynomial",
    spread: str = "erk",
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    seed: int = 0,
    progress: Callable | None = None,
) -> dict:
    """Prune the kernels of the .keras model `src` to `sparsity`, fine-tuning on the labelled feed `data`.

    `schedule`: "polynomial" (gradual) or "constant" (at once). `spread`: "erk" (small layers keep more weights,
    the whole model's kernels come to `sparsity`) or "uniform" (every layer the same).
    Returns measured sparsity (overall, model, layers), nonzeros, parameters, epochs done, losses, notes.
    Errors: LeptonError for a model, samples or labels that do not fit; `dst` is written once all went well.
    """
    check_options(sparsity, schedule, spread, epochs, batch_size, learning_rate)
    for key, value in ENVIRON.items():
        os.environ.setdefault(key, value)
    import keras

    if keras.backend.backend() != "tensorflow":
        raise LeptonError(
            f"Keras runs on {keras.backend.backend()}, and pruning needs TensorFlow",
            hint="set KERAS_BACKEND=tensorflow",
        )
    model, notes = load_keras(src)
    if type(model).__module__.split(".")[0] != "keras":
        raise LeptonError("Keras 3 cannot read this Keras 2 file", hint="save the model with Keras 3")
    samples = open_samples(data, model)
    target = find_target(model, samples)

    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    moved = move(model)
    if not moved.model.trainable_weights:
        raise LeptonError("every layer is frozen, so nothing can be fine-tuned", hint="set trainable=True and save")
    batches = make_batches(moved, samples, target, batch_size, seed)
    steps = len(batches)
    wrapped = wrap(moved, schedule, sparsity, spread, steps * epochs)
    callback = make_callback(wrapped, steps, epochs, progress)
    moved.model.compile(
        tf_keras.optimizers.Adam(learning_rate),
        make_losses(moved, target),
    )
    moved.model.fit(batches, epochs=epochs, callbacks=[callback], shuffle=False, verbose=0)
    if callback.diverged:
        moved.model.set_weights(callback.kept)
    enforce(wrapped)
    copy_back(moved)
    save(model, dst)
    return {
        **measure(moved),
        "epochs": len(callback.losses),
        "loss": callback.losses,
        "notes": notes + describe(moved, wrapped, target, callback, epochs),
    }
