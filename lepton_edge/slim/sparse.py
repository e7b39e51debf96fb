"""Weights set to zero, the others changed so that outputs stay: any of a layer, or N of every M in a row.

Frantar & Alistarh, "SparseGPT", arXiv:2301.00774: column by column, in blocks; which weights of a block go is decided
by what each would cost once the columns to come have repaid it, w^2 D for xx = U D U^T (rounding.unit_upper). With the
zeros fixed, what is left is then settled by coordinate descent on the same error (Meng et al., "ALPS",
arXiv:2406.07831, who use conjugate gradients).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant import rounding
from lepton_edge.quant.place import Layer
from lepton_edge.quant.rounding import Moments

BLOCK = 128
SWEEPS = 4
SMALL = 1024  # weights of a layer that keeps them all


@dataclass(frozen=True)
class Pattern:
    """`share` of the weights go; of every `of` along the input channels, where that is not 0."""

    share: float
    of: int = 0

    def keep(self, cost: np.ndarray) -> np.ndarray:
        """Which weights of a block stay, by cost [groups, outputs, features]: bool."""
        if not self.of:
            count = round(self.share * cost.shape[1] * cost.shape[2])
            flat = cost.reshape(len(cost), -1)
            kept = np.ones(flat.shape, bool)
            np.put_along_axis(kept, np.argsort(flat, axis=1, kind="stable")[:, :count], False, axis=1)
            return kept.reshape(cost.shape)
        count = round(self.share * self.of)
        parts = cost.reshape(*cost.shape[:2], -1, self.of)
        kept = np.ones(parts.shape, bool)
        np.put_along_axis(kept, np.argsort(parts, axis=3, kind="stable")[..., :count], False, axis=3)
        return kept.reshape(cost.shape)


def pattern(method: str, sparsity: float) -> Pattern:
    """Of a method by name: "weights" with a share, or "2:4" (two of four stay). Raises LeptonError for others."""
    if method == "weights":
        return Pattern(sparsity)
    found = re.fullmatch(r"(\d+):(\d+)", method)
    if found is None or not 0 < int(found[1]) < int(found[2]) <= BLOCK:
        raise LeptonError(f"unknown method '{method}'", "known: channels, depth, weights, and N:M as in 2:4")
    return Pattern(1 - int(found[1]) / int(found[2]), int(found[2]))


def takes(layer: Layer, weight: np.ndarray, wanted: Pattern) -> str:
    """Why a layer keeps all of its weights; "" where it can lose some."""
    if layer.op == "ConvTranspose":
        return "a transposed convolution"
    if layer.op == "Conv" and weight.shape[1] == 1:
        return "depthwise"
    inputs = weight.shape[1] if layer.op == "Conv" else weight.shape[1 if layer.axis == 0 else 0]
    if wanted.of and inputs % wanted.of:
        return f"{inputs} input channels are no multiple of {wanted.of}"
    return f"only {weight.size} weights" if weight.size < SMALL else ""


def sparsified(
    layer: Layer, full: np.ndarray, halves: tuple[Moments, Moments], taps: int, wanted: Pattern
) -> np.ndarray:
    """Weights [groups, outputs, features + 1] (last: bias) with zeros; `taps` of a kernel run fastest in features."""
    full = rounding.refit(full, halves)
    total = halves[0].merged(halves[1])
    biased = layer.op != "MatMul" or bool(layer.bias)
    xx = rounding.spread(total, biased)
    features = xx.shape[1]
    along = np.arange(features).reshape(-1, taps).T.reshape(-1)  # input channels of one tap after those of another
    back = np.argsort(along)
    w, xx = full[:, :, along], xx[:, along][:, :, along]
    made = settled(w, thinned(w, xx, wanted), xx)
    made = np.concatenate([made[:, :, back], full[:, :, -1:]], axis=2)
    return rounding.bias_only(made, total) if biased else made


def thinned(w: np.ndarray, xx: np.ndarray, wanted: Pattern, damp: float = 0.01) -> np.ndarray:
    """w [groups, outputs, features] with zeros, repaid by later columns; xx [groups, features, features]."""
    upper, price = rounding.unit_upper(xx, damp)
    block = BLOCK if not wanted.of else BLOCK // wanted.of * wanted.of
    made, errors = np.zeros_like(w), np.zeros_like(w)
    for start in range(0, w.shape[2], block):
        stop = min(start + block, w.shape[2])
        left = w[:, :, start:stop] + np.matmul(errors[:, :, :start], upper[:, :start, start:stop])
        kept = wanted.keep(left**2 * price[:, None, start:stop])
        for at in range(start, stop):
            column = left[:, :, at - start] + np.matmul(errors[:, :, start:at], upper[:, start:at, at, None])[:, :, 0]
            made[:, :, at] = np.where(kept[:, :, at - start], column, 0.0)
            errors[:, :, at] = w[:, :, at] - made[:, :, at]
    return made


def settled(w: np.ndarray, made: np.ndarray, xx: np.ndarray, sweeps: int = SWEEPS) -> np.ndarray:
    """`made` with its non-zeros nearer to least squares: each coordinate in turn takes its best value."""
    kept, made = made != 0, made.copy()
    power = np.maximum(np.einsum("gff->gf", xx), 1e-12)
    slope = np.matmul(w - made, xx)
    for _ in range(sweeps):
        for start in range(0, w.shape[2], BLOCK):
            part = slice(start, start + BLOCK)
            near, own, steps = slope[:, :, part].copy(), xx[:, part, part], np.zeros_like(made[:, :, part])
            for k in range(steps.shape[2]):
                steps[:, :, k] = kept[:, :, start + k] * near[:, :, k] / power[:, None, start + k]
                near -= steps[:, :, k, None] * own[:, k, None]
            made[:, :, part] += steps
            slope -= np.matmul(steps, xx[:, part])
    return made
