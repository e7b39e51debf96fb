"""The self-check of an export: how near its outputs are to the source's."""

from __future__ import annotations

import numpy as np

LOW_DB = 80.0  # float noise is above 100 dB; below this the self-check's figure is told (a lost bias can be 34 dB)
LOW_INT8_DB = 20.0  # one step of an int8 output more or less
LOW = "on one random input the result is only {:.0f} dB close to the source: check its parity"
FUSED_DB = 80.0  # the fused LSTM rounds differently, at float noise (about 130 dB); a wrong one is below 40


def distance_db(reference: list[np.ndarray], got: list[np.ndarray]) -> float:
    """The lowest SQNR in dB over the outputs (inf: equal), -inf where a shape differs or a value is not finite."""
    worst = float("inf")
    for want, have in zip(reference, got, strict=True):
        if want.shape != have.shape:
            return float("-inf")
        want64, have64 = want.astype(np.float64), have.astype(np.float64)
        noise, signal = float(np.sum((want64 - have64) ** 2)), float(np.sum(want64**2))
        if not np.isfinite(noise):
            if np.array_equal(want64, have64, equal_nan=True):
                continue
            return float("-inf")
        if noise > 0:
            worst = min(worst, 10 * float(np.log10(max(signal, 1e-30) / noise)))
    return worst
