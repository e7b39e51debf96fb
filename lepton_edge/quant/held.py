"""Weights that training has already brought to a form that rounding must not undo: whole steps of a grid, or zeros.

A model from `qat` or `cluster` holds, in each output channel, whole multiples of one step; a pruned one zeros. The file
need not say so: weights that nothing has rounded are not whole multiples of anything. So a fold of BatchNormalization,
a conversion or another tool between does no harm.
"""

from __future__ import annotations

import numpy as np

TOLERANCE = 5e-3  # of a step: float32 and a folded BatchNormalization leave less than 1e-4
PROBED = 24  # weights of a channel that tell most others from a grid
LEAST = 8  # weights of a channel: fewer may be whole steps by chance, or by the hand that wrote them
SPARSE = 0.2  # share of zeros from which on they are meant


def lattice(rows: np.ndarray, last: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Integers int64 [channels, features] and the step [channels] of rows on grids of at most `last` steps a side.

    None where a row is on none. Where several grids hold a row, the one that adds the fewest new integers to the layer
    is taken, so that centroids shared by all channels stay shared.
    """
    rows = np.asarray(rows, np.float64)
    peak = np.abs(rows).max(axis=1, initial=0.0)
    live = np.flatnonzero(peak > 0)
    steps, ints = np.ones(len(rows)), np.zeros(rows.shape, np.int64)
    if not len(live):
        return ints, steps
    ends = np.arange(last, 0, -1)
    # Few columns first: on a grid of another end the largest weights are as unlikely as any to be whole.
    columns = np.unique(np.linspace(0, rows.shape[1] - 1, min(PROBED, rows.shape[1])).astype(int))
    unit = rows[live] / peak[live, None]
    fits = np.stack([_whole(unit[:, columns] * end) for end in ends], axis=1)  # [live, ends]
    if not fits.any(axis=1).all():
        return None
    for k, end in enumerate(ends):
        some = np.flatnonzero(fits[:, k])
        if len(some):
            fits[some, k] = _whole(unit[some] * end)
    if not fits.any(axis=1).all():
        return None
    used: set[int] = set()
    for row in np.lexsort((np.arange(len(live)), fits.sum(axis=1))):  # those without a choice come first
        found = None
        for end in ends[fits[row]]:
            made = np.rint(unit[row] * end).astype(np.int64)
            new = len(set(made.tolist()) - used)
            if found is None or new < found[0]:
                found = new, made, end
            if not new:
                break
        assert found is not None
        used |= set(found[1].tolist())
        ints[live[row]], steps[live[row]] = found[1], peak[live[row]] / found[2]
    return ints, steps


def _whole(x: np.ndarray) -> np.ndarray:
    """Which rows hold whole numbers only: bool [rows]."""
    return np.abs(x - np.rint(x)).max(axis=1) < TOLERANCE


def zeros(weight: np.ndarray) -> np.ndarray | None:
    """Which weights live, bool, where so many are exactly zero that pruning must have made them; else None."""
    live = weight != 0
    return live if live.size and 1 - live.mean() >= SPARSE else None
