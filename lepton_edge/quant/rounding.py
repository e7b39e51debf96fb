"""Weights for the inputs that a quantized model really sees: least squares, then rounding that repays its errors.

A layer's float output y is what its weights should give from the input x^ that the quantized layers before it leave:
- `refit` solves min |y - W x^ - b|^2 with a ridge towards the given weights, which also corrects the bias; noise of
  the activations in directions that carry little signal is thereby filtered out (a Wiener filter). The asymmetric
  objective is that of Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration",
  arXiv:2504.02692;
- `gptq` rounds column by column and spreads each error over the columns to come, by the inverse of E[x^ x^T]
  (Frantar et al., "GPTQ", arXiv:2210.17323), with scales of least weighted error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lepton_edge.quant.grid import Grid, weight_grid

BLOCK = 64
RIDGES = (1e-3, 1e-1)
TRIM = 4.0  # times the median squared error of a position


@dataclass
class Moments:
    """Sums over positions, by group: `xx` [G, F, F], `yx` [G, O, F], of x and y: F features with a last one of 1."""

    xx: np.ndarray
    yx: np.ndarray
    yy: np.ndarray

    @classmethod
    def of(cls, groups: int, outputs: int, features: int) -> Moments:
        """Empty sums; `features` without the constant one."""
        wide = features + 1
        return cls(
            np.zeros((groups, wide, wide), np.float64),
            np.zeros((groups, outputs, wide), np.float64),
            np.zeros((groups, outputs), np.float64),
        )

    def add(self, x: np.ndarray, y: np.ndarray, w: np.ndarray | None = None) -> None:
        """Take x [G, P, F] and y [G, P, O], without the positions that `w` [G, O, F + 1] misses far more than others.

        Where the input's grid clips a rare large value, no weights can give y; few such rows would outweigh all others.
        """
        x = np.concatenate([x, np.ones((*x.shape[:2], 1), x.dtype)], axis=2)
        if w is not None:
            miss = ((y - np.matmul(x, w.transpose(0, 2, 1).astype(x.dtype))) ** 2).sum(2)  # [G, P]
            kept = (miss <= TRIM * np.median(miss, axis=1, keepdims=True) + 1e-12)[:, :, None]
            x, y = x * kept, y * kept
        self.xx += np.matmul(x.transpose(0, 2, 1), x)
        self.yx += np.matmul(y.transpose(0, 2, 1), x)
        self.yy += (y.astype(np.float64) ** 2).sum(1)

    def merged(self, other: Moments) -> Moments:
        """The sums of both."""
        return Moments(self.xx + other.xx, self.yx + other.yx, self.yy + other.yy)

    def error(self, w: np.ndarray) -> np.ndarray:
        """Sum of (y - w x)^2 over positions and outputs, by group [G]; w [G, O, F + 1]."""
        squares = np.einsum("gof,gof->g", np.matmul(w, self.xx), w)
        return self.yy.sum(1) - 2 * np.einsum("gof,gof->g", self.yx, w) + squares


def refit(w: np.ndarray, halves: tuple[Moments, Moments], ridges: Sequence[float] = RIDGES) -> np.ndarray:
    """The weights [G, O, F + 1] (last: bias) of least squared error, as far as unseen samples confirm it.

    Each of `ridges` (relative to the mean square of the features) and "bias only" is solved on one half of the
    samples and judged on the other; the kind of least error is then solved on all of them, group by group.
    """
    fit, check = halves
    total = fit.merged(check)
    kinds = (*ridges, None)
    errors = [check.error(_ridge(w, fit, ridge)) for ridge in kinds]
    errors.append(check.error(w))
    best = np.stack(errors).argmin(0)
    made = w.copy()
    for k, ridge in enumerate(kinds):
        if (best == k).any():
            made[best == k] = _ridge(w, total, ridge)[best == k]
    return made


def _ridge(w: np.ndarray, moments: Moments, ridge: float | None) -> np.ndarray:
    """Least squares with a pull of `ridge` towards w; None: the bias alone."""
    if ridge is None:
        return bias_only(w, moments)
    wide = w.shape[2]
    power = np.trace(moments.xx[:, :-1, :-1], axis1=1, axis2=2) / max(wide - 1, 1)
    eye = np.eye(wide)
    eye[-1, -1] = 0.0  # the bias is free
    penalty = (ridge * power + 1e-12)[:, None, None] * eye
    left = moments.xx + penalty
    left[:, -1, -1] += 1e-9 * np.maximum(moments.xx[:, -1, -1], 1)
    right = moments.yx + np.matmul(w, penalty)
    return np.linalg.solve(left, right.transpose(0, 2, 1)).transpose(0, 2, 1)


def bias_only(w: np.ndarray, moments: Moments) -> np.ndarray:
    """`w` with the bias that makes the mean of every output right (Nagel et al., "Data-Free Quantization Through
    Weight Equalization and Bias Correction", ICCV 2019, section 4.2, with the empirical mean)."""
    made = w.copy()
    count = np.maximum(moments.xx[:, -1, -1:], 1)  # of rows that were kept
    mean_x = moments.xx[:, -1, :-1] / count
    mean_y = moments.yx[:, :, -1] / count
    made[:, :, -1] = mean_y - np.einsum("gof,gf->go", w[:, :, :-1], mean_x)
    return made


def scales(w: np.ndarray, weights: np.ndarray, per_channel: bool = True, bits: int = 8) -> np.ndarray:
    """Largest representable value of each output channel [G, O] with the least error weighted by `weights` [G, F]."""
    last = 2 ** (bits - 1) - 1
    peak = np.abs(w).max(2)
    if not per_channel:
        peak = np.full_like(peak, peak.max())
    best, kept = np.full(peak.shape, np.inf), peak.copy()
    for cut in np.linspace(1.0, 0.7, 16):
        step = np.maximum(peak * cut, 1e-12)[:, :, None] / last
        moved = np.clip(np.rint(w / step), -last, last) * step
        error = ((w - moved) ** 2 * weights[:, None, :]).sum(2)
        if not per_channel:
            error = np.full_like(error, error.sum())
        better = error < best * (1 - 1e-9)
        best, kept = np.where(better, error, best), np.where(better, peak * cut, kept)
    return kept


def gptq(
    w: np.ndarray,
    peak: np.ndarray,
    xx: np.ndarray,
    bits: int = 8,
    damp: float = 0.01,
    live: np.ndarray | None = None,
) -> np.ndarray:
    """Integers [G, O, F] of w [G, O, F] on the grid of `peak`, for features with second moments xx [G, F, F].

    `peak` is [G, O], or [G, O, F] where weights of one output have different scales (blocks). Weights that are not
    `live` (bool [G, O, F]) are zero and stay it.

    Written as LDLQ (Chee et al., "QuIP", arXiv:2307.13304, theorem 6: the same integers without an inverse): with
    xx = U D U^T, U unit upper triangular, column k is rounded after adding the errors of the columns before times U.
    """
    features = w.shape[2]
    last = 2 ** (bits - 1) - 1
    step = steps(peak, bits)
    diagonal = np.einsum("gff->gf", xx)
    order = np.argsort(-diagonal, axis=1, kind="stable")
    back = np.argsort(order, axis=1)
    xx = np.take_along_axis(np.take_along_axis(xx, order[:, :, None], 1), order[:, None, :], 2)
    want = np.take_along_axis(w / step, order[:, None, :], 2)  # in steps
    size = np.take_along_axis(np.broadcast_to(step, w.shape), order[:, None, :], 2) if step.shape[2] > 1 else None
    upper, _ = unit_upper(xx, damp)
    alive = None if live is None else np.take_along_axis(live, order[:, None, :], 2)
    errors = np.zeros_like(want)
    made = np.zeros_like(want)
    for start in range(0, features, BLOCK):
        stop = min(start + BLOCK, features)
        repaid = np.matmul(errors[:, :, :start], upper[:, :start, start:stop])
        left = want[:, :, start:stop] + (repaid if size is None else repaid / size[:, :, start:stop])
        for k in range(stop - start):
            at = start + k
            column = left[:, :, k]
            if k:
                repaid = np.matmul(errors[:, :, start:at], upper[:, start:at, at, None])[:, :, 0]
                column = column + (repaid if size is None else repaid / size[:, :, at])
            made[:, :, at] = np.clip(np.rint(column), -last, last)
            if alive is not None:
                made[:, :, at] *= alive[:, :, at]
            missed = want[:, :, at] - made[:, :, at]
            errors[:, :, at] = missed if size is None else missed * size[:, :, at]
    return np.take_along_axis(made, back[:, None, :], 2).astype(np.int64)


def unit_upper(xx: np.ndarray, damp: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """U [G, F, F], unit upper triangular, and D [G, F] with xx = U D U^T, `damp` of the mean put on the diagonal."""
    mean = np.maximum(np.einsum("gff->g", xx) / xx.shape[1], 1e-12)
    damped = xx + (damp * mean)[:, None, None] * np.eye(xx.shape[1])
    upper = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    diagonal = np.einsum("gff->gf", upper)
    return upper / diagonal[:, None, :], diagonal**2


def covariance(xx: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Second moments [G, F, F] about the mean [G, F], for layers whose bias takes the mean error.

    Few or constant samples leave nothing of them but what rounding does, which may be negative: sums of float32 are
    good to 1e-5 of the power, and that is added to the diagonal.
    """
    features = xx.shape[1]
    power = np.einsum("gff->g", xx) / features
    return xx - mean[:, :, None] * mean[:, None, :] + (1e-5 * power)[:, None, None] * np.eye(features)


def spread(total: Moments, about_mean: bool) -> np.ndarray:
    """Second moments of a layer's inputs [G, F, F], about their mean where a bias takes it."""
    count = np.maximum(total.xx[:, -1, -1], 1)
    xx = total.xx[:, :-1, :-1] / count[:, None, None]
    return covariance(xx, total.xx[:, -1, :-1] / count[:, None]) if about_mean else xx


def learned(
    w: np.ndarray, peak: np.ndarray, xx: np.ndarray, bits: int = 8, live: np.ndarray | None = None
) -> np.ndarray:
    """Integers by gptq(), but to the nearest for each output where that leaves the smaller error on the samples."""
    step = steps(peak, bits)
    both = gptq(w, peak, xx, bits, live=live), nearest(w, peak, bits)
    missed = [w - q * step for q in both]
    losses = [np.einsum("gof,gof->go", np.matmul(e, xx), e) for e in missed]
    return np.where((losses[0] <= losses[1])[:, :, None], *both)


def nearest(w: np.ndarray, peak: np.ndarray, bits: int = 8) -> np.ndarray:
    """Integers [G, O, F] by rounding each weight to the nearest; `peak` as in gptq()."""
    last = 2 ** (bits - 1) - 1
    return np.clip(np.rint(w / steps(peak, bits)), -last, last).astype(np.int64)


def steps(peak: np.ndarray, bits: int = 8) -> np.ndarray:
    """The scale of each weight from its largest value: [G, O, 1] of [G, O], or [G, O, F] of [G, O, F]."""
    step = np.maximum(peak, 1e-12) / (2 ** (bits - 1) - 1)
    return step if peak.ndim == 3 else step[:, :, None]


def grid_of(peak: np.ndarray, axis: int | None, bits: int = 8) -> Grid:
    """The grid of a layer's weights from `peak` [G, O]."""
    return weight_grid(peak.reshape(-1) if axis is not None else peak.max(), axis, bits)
