"""How many weights each layer loses when a share of all of them goes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SPREADS = ("uniform", "erk")


def erk(shapes: Sequence[Sequence[tuple[int, ...]]], sparsity: float) -> list[float]:
    """Sparsity of each layer (a list of kernel shapes) so that `sparsity` of all kernels' weights are zero.

    Small and narrow layers keep more: density goes with sum(shape) / product(shape), at most 1. This is the
    Erdos-Renyi-Kernel rule of Evci et al., "Rigging the Lottery" (2020), section 3.2.
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
