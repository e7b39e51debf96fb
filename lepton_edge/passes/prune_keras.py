"""Magnitude pruning of a Keras model with fine-tuning (tensorflow-model-optimization).

The Keras 3 model is moved to tf_keras (lepton_edge.keras_move), pruned while it trains (_train_keras; _prune_masks says
what is pruned when), and its weights are written back into the original graph: the same .keras model with zeros in its
kernels, all that were there before among them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.passes._prune_masks import (
    Pattern,
    Schedule,
    check_left,
    make_schedule,
    mask,
    pattern,
    unfit,
)
from lepton_edge.passes._train_keras import Session, Tuning, begin, end, tune
from lepton_edge.passes._train_kernels import Kernel, chosen, left_notes
from lepton_edge.passes._train_shaped import Shaped
from lepton_edge.slim.spread import erk
from lepton_edge.training import checkpoint

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "tf-keras>=2.19", "tensorflow-model-optimization>=0.8")
ENVIRON = {"TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow", "LEPTON_EDGE_GPU": "1"}


def run(
    src: str,
    dst: str,
    *,
    data: str,
    method: str = "weights",
    sparsity: float = 0.5,
    schedule: str = "polynomial",
    spread: str = "erk",
    depthwise: bool = False,
    keep: str = "",
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    held_out: float = 0.1,
    patience: int = 0,
    distil: float = 0.0,
    temperature: float = 2.0,
    augment: str = "",
    seed: int = 0,
    progress: Callable | None = None,
) -> dict:
    """Prune the kernels of the .keras model `src` to `sparsity`, fine-tuning on the feed `data`.

    `method`: "weights", "N:M" (N of every M along the input channels stay) or "HxW" (blocks of inputs x outputs).
    `schedule`: "polynomial" (gradual) or "constant" (at once). `spread`: "erk" (small layers keep more weights, the
    whole model's kernels come to `sparsity`) or "uniform" (every layer the same). `depthwise`: depthwise kernels too.
    `keep`: layers left alone, by name, with commas. The training options are those of _train_keras.Tuning.
    Returns measured sparsity (overall, model, layers), nonzeros, parameters, epochs done, losses, notes.
    Errors: LeptonError for a model, samples or labels that do not fit; `dst` is written once all went well.
    """
    options = {k: v for k, v in locals().items() if k not in ("src", "dst", "data", "progress")}
    wanted = pattern(method)
    check_options(sparsity, schedule, spread, wanted)
    tuning = Tuning(epochs, batch_size, learning_rate, held_out, patience, distil, temperature, augment, seed)
    session = begin(src, data, tuning, "pruned")
    taken, left = choose(session, wanted, keep, depthwise)
    shares = shares_of(taken, wanted, sparsity, spread)
    plans = [make_schedule("constant" if wanted.of else schedule, share, session.steps) for share in shares]
    shaped = [shape(k, plan, wanted) for k, share, plan in zip(taken, shares, plans, strict=True) if share > 0]
    if not shaped:
        raise LeptonError("no layer is left to prune", "choose a larger sparsity, or keep fewer layers")
    settled = max(plan.settled for plan in plans) + 1
    key = checkpoint.key(__file__, src, {"data": session.samples.sha256, **options})
    outcome, notes = tune(session, shaped, tuning, replace(session.plan, settled=settled), key, progress)
    enforce(shaped, [s for s in shares if s > 0], wanted)
    told = end(session, taken, dst)
    return {**told, "method": wanted.name, **outcome.facts(), "notes": [*session.notes, *notes, *describe(
        session, [item.kernel for item in shaped], left)]}  # fmt: skip


def check_options(sparsity: float, schedule: str, spread: str, wanted: Pattern) -> None:
    """Refuse options that make no sense, naming the one that is off."""
    if not 0 < sparsity < 1:
        raise UsageError(f"sparsity must lie between 0 and 1, not {sparsity}", hint="0.5 zeroes half the weights")
    if schedule not in ("polynomial", "constant"):
        raise UsageError(f"unknown schedule '{schedule}'", hint="known: polynomial, constant")
    if spread not in ("erk", "uniform"):
        raise UsageError(f"unknown spread '{spread}'", hint="known: erk (small layers keep more), uniform")


def choose(session: Session, wanted: Pattern, keep: str, depthwise: bool) -> tuple[list[Kernel], dict[str, str]]:
    """The kernels to prune, and why others are left, by layer. Raises LeptonError where none is left."""
    taken, left = [], {}
    for kernel in chosen(session.kernels, keep):
        if kernel.depthwise and (not depthwise or wanted.of):
            left[kernel.path] = "depthwise" + ("" if wanted.of else " (depthwise = true prunes it)")
        elif wanted.of and kernel.name == "embeddings":
            left[kernel.path] = "a look-up table"
        elif reason := unfit(kernel.shape, kernel.inputs, wanted):
            left[kernel.path] = reason
        else:
            taken.append(kernel)
    if not taken:
        why = "; ".join(f"{path}: {reason}" for path, reason in list(left.items())[:3])
        raise LeptonError(f"no layer can be pruned as {wanted.name} ({why or 'all of them are kept'})")
    return taken, left


def shares_of(taken: list[Kernel], wanted: Pattern, sparsity: float, spread: str) -> list[float]:
    """The share of zeros of each kernel. Raises LeptonError where it leaves nothing of one."""
    if wanted.of:
        return [1 - wanted.keep / wanted.of] * len(taken)
    if spread == "uniform":
        shares = [sparsity] * len(taken)
    else:
        layers: dict[str, list[Kernel]] = {}
        for kernel in taken:
            layers.setdefault(kernel.path, []).append(kernel)
        found = erk([[k.shape for k in kernels] for kernels in layers.values()], sparsity)
        by_path = dict(zip(layers, found, strict=True))
        shares = [by_path[kernel.path] for kernel in taken]
    for kernel, share in zip(taken, shares, strict=True):
        check_left(kernel.path, kernel.shape, share, wanted)
    return shares


def shape(kernel: Kernel, plan: Schedule, wanted: Pattern) -> Shaped:
    """A kernel whose mask follows the schedule; what is zero stays zero."""
    live = kernel.variable.numpy() != 0

    def refresh(twin: Callable[[], np.ndarray], step: int) -> np.ndarray | None:
        share = plan.share(step)
        return None if share is None else mask(twin(), share, wanted, kernel.inputs) & live

    return Shaped(kernel, mask=live, refresh=refresh)


def enforce(shaped: list[Shaped], shares: list[float], wanted: Pattern) -> None:
    """Zero what the pattern asks for; a no-op where the schedule has got there (a training that broke off has not)."""
    for item, share in zip(shaped, shares, strict=True):
        array = item.kernel.variable.numpy()
        item.kernel.variable.assign(array * mask(array, share, wanted, item.kernel.inputs))


def describe(session: Session, taken: list[Kernel], left: dict[str, str]) -> list[str]:
    """What the reader of a report should know."""
    frozen = {id(w) for w in session.moved.model.non_trainable_weights}
    still = sorted({k.path for k in taken if id(k.variable) in frozen})
    notes = left_notes(left)
    if still:
        notes.append(f"{len(still)} pruned layers are frozen (trainable=False) and were not fine-tuned")
    if len(session.moved.model.outputs) > 1:
        notes.append("the other outputs were trained towards the unpruned model's answers")
    return notes
