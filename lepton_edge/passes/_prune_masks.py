"""Which weights are pruned, how many of each layer, and when.

The schedules are those of tensorflow-model-optimization, and so is what they remove: the smallest weights, the smallest
of every M in a row, or the blocks of the least mean magnitude (its own code takes blocks of matrices only; here a
convolution counts as the matrix [height x width x inputs, outputs]). Zhu & Gupta, "To prune, or not to prune",
arXiv:1710.01878; Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lepton_edge.errors import LeptonError, UsageError


@dataclass(frozen=True)
class Pattern:
    """What may go: single weights; of every `of` along the inputs all but `keep`; blocks [inputs, outputs]."""

    of: int = 0
    keep: int = 0
    block: tuple[int, int] = (1, 1)

    @property
    def name(self) -> str:
        """As the option says it."""
        if self.of:
            return f"{self.keep}:{self.of}"
        return "weights" if self.block == (1, 1) else f"{self.block[0]}x{self.block[1]}"


def pattern(method: str) -> Pattern:
    """Of a method by name: "weights", "N:M" (N of M stay) or "HxW" (blocks). Raises UsageError for others."""
    if method in ("", "weights"):
        return Pattern()
    if (found := re.fullmatch(r"(\d+):(\d+)", method)) and 0 < int(found[1]) < int(found[2]) <= 64:
        return Pattern(of=int(found[2]), keep=int(found[1]))
    if (found := re.fullmatch(r"(\d+)x(\d+)", method)) and 1 < int(found[1]) * int(found[2]) <= 4096:
        return Pattern(block=(int(found[1]), int(found[2])))
    raise UsageError(
        f"unknown method '{method}' for Keras models",
        "known: weights, N:M as in 2:4, blocks HxW as in 4x1; to remove channels convert the model to ONNX first",
    )


def unfit(shape: tuple[int, ...], inputs: int | None, wanted: Pattern) -> str:
    """Why a kernel cannot be pruned in a pattern; "" where it can."""
    if wanted.of and (inputs is None or shape[inputs] < wanted.of):
        return f"fewer than {wanted.of} input channels" if inputs is not None else "no single axis of input channels"
    high, wide = wanted.block
    if high * wide > 1 and (math.prod(shape[:-1]) < high or shape[-1] < wide):
        return f"smaller than a block of {wanted.name}"
    return ""


def mask(weight: np.ndarray, share: float, wanted: Pattern, inputs: int | None = None) -> np.ndarray:
    """Which weights stay, bool: all but the `share` of least magnitude; for N:M the share is that of the pattern."""
    size = np.abs(weight)
    if wanted.of:
        return _n_of_m(size, inputs if inputs is not None else -2, wanted)
    high, wide = wanted.block
    if high * wide == 1:
        return _largest(size, share)
    matrix = size.reshape(-1, size.shape[-1])
    rows, columns = (-(-n // k) for n, k in zip(matrix.shape, (high, wide), strict=True))
    padded = np.zeros((rows * high, columns * wide))
    counts = np.zeros_like(padded)
    padded[: matrix.shape[0], : matrix.shape[1]], counts[: matrix.shape[0], : matrix.shape[1]] = matrix, 1
    parts = [a.reshape(rows, high, columns, wide).sum((1, 3)) for a in (padded, counts)]
    kept = _largest(parts[0] / parts[1], share)
    whole = np.repeat(np.repeat(kept, high, axis=0), wide, axis=1)
    return whole[: matrix.shape[0], : matrix.shape[1]].reshape(weight.shape)


def _largest(size: np.ndarray, share: float) -> np.ndarray:
    flat = size.reshape(-1)
    kept = np.ones(flat.size, bool)
    kept[np.argsort(flat, kind="stable")[: flat.size - max(round(flat.size * (1 - share)), 1)]] = False
    return kept.reshape(size.shape)


def _n_of_m(size: np.ndarray, axis: int, wanted: Pattern) -> np.ndarray:
    last = np.moveaxis(size, axis, -1)
    short = -last.shape[-1] % wanted.of
    parts = np.pad(last, [(0, 0)] * (last.ndim - 1) + [(0, short)], constant_values=-1.0)
    parts = parts.reshape(*last.shape[:-1], -1, wanted.of)
    kept = np.ones(parts.shape, bool)
    np.put_along_axis(kept, np.argsort(parts, axis=-1, kind="stable")[..., : wanted.of - wanted.keep], False, axis=-1)
    kept = kept.reshape(*last.shape[:-1], -1)[..., : last.shape[-1]]
    return np.moveaxis(kept, -1, axis)


@dataclass(frozen=True)
class Schedule:
    """tfmot's schedule over some batches: `share(step)` is None where the masks stay. `settled` is the first batch
    that trains at the final share."""

    share: Callable[[int], float | None]
    settled: int


def make_schedule(kind: str, sparsity: float, steps: int) -> Schedule:
    """ "constant" at once, "polynomial" over the first two thirds of `steps` batches.

    Masks change about 20 times; the last third trains at the final sparsity.
    """
    import tensorflow_model_optimization as tfmot

    if kind == "constant":
        every = max(1, steps // 20)
        plan = tfmot.sparsity.keras.ConstantSparsity(sparsity, begin_step=0, end_step=-1, frequency=every)
        settled = 0
    else:
        end = max(1, steps * 2 // 3)
        every = max(1, end // 20)
        end -= end % every  # tfmot updates on multiples of the frequency only, and must hit the end
        plan = tfmot.sparsity.keras.PolynomialDecay(0.0, sparsity, begin_step=0, end_step=end, frequency=every)
        settled = end

    def share(step: int) -> float | None:
        import tensorflow as tf

        if step % every or (step > settled and kind != "constant"):
            return None  # what tfmot says as well, without asking it before every batch
        due, value = plan(tf.constant(step, tf.int64))
        return float(value) if bool(due) else None

    return Schedule(share, settled)


def check_left(path: str, shape: tuple[int, ...], share: float, wanted: Pattern) -> None:
    """Raise LeptonError where a share would leave nothing of a kernel."""
    units = math.prod(shape) / math.prod(wanted.block)
    if round(units * (1 - share)) < 1:
        raise LeptonError(
            f"sparsity {share:g} leaves nothing of layer '{path}' ({math.prod(shape)} weights)",
            "choose a smaller sparsity, spread erk, or name the layer in keep",
        )
