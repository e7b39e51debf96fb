"""Magnitude pruning of a Keras model with fine-tuning (tensorflow-model-optimization).

The Keras 3 model is moved to tf_keras (lepton_edge.keras_move), pruned while it trains on labelled samples
(_prune_train says what on, _prune_masks what is pruned when), and its weights are written back into the
original graph: the same .keras model with zeros in its kernels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.keras_move import Moved, copy_back, move
from lepton_edge.passes._prune_masks import Pruned, enforce, make_callback, wrap
from lepton_edge.passes._prune_train import Target, find_target, make_batches, make_losses, open_samples
from lepton_edge.tf_export.load import load_keras

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "tf-keras>=2.19", "tensorflow-model-optimization>=0.8")
ENVIRON = {"TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow"}


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


def save(model: Any, dst: str | Path) -> None:
    """Write a Keras 3 model as .keras: aside first, then in place."""
    part = Path(dst).with_name(f".{Path(dst).name}.part.keras")
    try:
        model.save(part)
        part.replace(dst)
    finally:
        part.unlink(missing_ok=True)
