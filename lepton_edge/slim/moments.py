"""Second moments of the channels that layers sum over, taken from calibration samples in the dense net.

Weights are seen as [channels, outputs]: what one channel brings to all outputs, at all taps of a kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_edge.quant.net import Net
from lepton_edge.quant.rounding import Moments
from lepton_edge.quant.tap import BUDGET, Sample, each, finite
from lepton_edge.slim.live import live
from lepton_edge.slim.trace import Consumer

WIDEST = 4096  # channels of a tensor whose moments are taken
POSITIONS = 128  # rows of a sample

DAMPS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)

Place = tuple[str, int]  # tensor and axis


@dataclass(frozen=True)
class Stats:
    """Of the channels of one axis: E[x x^T] `second` and `covariance`, both damped, float64 [channels, channels], and
    the `mean` [channels]."""

    second: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray


def moments(
    net: Net,
    consumers: Sequence[Consumer],
    samples: Sequence[Sample],
    *,
    memory: int = BUDGET,
    seed: int = 0,
    told: Callable[[int], None] | None = None,
) -> dict[Place, Stats]:
    """Statistics of what each consumer reads, by tensor and axis; tensors wider than WIDEST are left out.

    Raises LeptonError where a value is not finite.
    """
    wide = {(c.x, c.axis): len(c.channels) for c in consumers if len(c.channels) <= WIDEST}
    sums = {place: (Moments.of(1, 0, channels), Moments.of(1, 0, channels)) for place, channels in wide.items()}
    seen, counted = dict.fromkeys(wide, 0), live(samples)
    places: dict[str, list[int]] = {}
    for tensor, axis in wide:
        places.setdefault(tensor, []).append(axis)
    rng = np.random.default_rng(seed)

    def take(tensor: str, value: np.ndarray) -> None:
        for axis in places[tensor]:
            rows = np.moveaxis(finite(tensor, value), axis, -1).reshape(-1, value.shape[axis])
            mask = counted[seen[tensor, axis]]
            if mask is not None and len(mask) == len(rows):
                rows = rows[mask]
            if len(rows) > POSITIONS:
                rows = rows[rng.choice(len(rows), POSITIONS, replace=False)]
            sums[tensor, axis][seen[tensor, axis] % 2].add(rows[None], rows[None, :, :0])
            seen[tensor, axis] += 1

    each(net, list(places), samples, take, budget=memory, told=told)
    return {place: _stats(*halves) for place, halves in sums.items()}


def _stats(first: Moments, second: Moments) -> Stats:
    """Damped by what lets the covariance of one half of the samples predict the channels of the other half, each from
    all others, best: few samples (after a global pool there is one row each) say little of many channels."""
    one, two = (_centred(half.xx[0]) for half in (first, second))
    errors = [_predicted(one[0], two[0], damp) + _predicted(two[0], one[0], damp) for damp in DAMPS]
    damp = DAMPS[int(np.argmin(errors))]
    covariance, mean, xx = _centred(first.xx[0] + second.xx[0])
    return Stats(_damped(xx, damp), _damped(covariance, damp), mean)


def _centred(xx: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Covariance, mean and second moments of sums over rows with a last feature of 1."""
    moments_ = xx / max(float(xx[-1, -1]), 1.0)
    mean = moments_[:-1, -1]
    return moments_[:-1, :-1] - np.outer(mean, mean), mean, moments_[:-1, :-1]


def _damped(spread: np.ndarray, damp: float) -> np.ndarray:
    power = np.maximum(np.diag(spread), 0)
    return spread + np.diag(damp * power + 1e-6 * power.mean() + 1e-12)


def _predicted(spread: np.ndarray, other: np.ndarray, damp: float) -> float:
    """Mean share of each channel's variance in `other` that is left when all others predict it as in `spread`."""
    inverse = np.linalg.inv(_damped(spread, damp))
    weights = inverse / np.diag(inverse)[:, None]
    power = np.diag(other)
    left = np.einsum("ij,ij->i", weights @ other, weights)
    live = power > 1e-6 * max(float(power.max()), 1e-30)
    return float((left[live] / power[live]).mean()) if live.any() else 0.0


def by_channel(weight: np.ndarray, axis: int) -> np.ndarray:
    """A weight as [channels, all else], float64."""
    return np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
