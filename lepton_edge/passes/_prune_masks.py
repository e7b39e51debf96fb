"""Which weights are pruned, how many of each layer, and when.

tfmot decides which weights are pruned and when their masks change (`prune_low_magnitude`, its schedules). Its
wrappers hold the masks but are not put into the graph: PruneLowMagnitude.call passes no mask on to the layer,
and does not update in a nested model called with training=False. The masks are updated before each batch
instead, which is when the wrappers would do it; so there is nothing to strip afterwards.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.keras_move import Moved

PRUNABLE_NAMES = frozenset({"kernel", "recurrent_kernel", "pointwise_kernel", "embeddings"})


@dataclass(frozen=True)
class Pruned:
    """A layer under pruning: its path in the model, tfmot's wrapper with the masks, its final sparsity."""

    path: str
    wrapper: Any
    sparsity: float


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
