"""Which positions of padded samples count: sentences are filled up to one length, and their masks say so."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_edge.quant.tap import Sample


def live(samples: Sequence[Sample]) -> list[np.ndarray | None]:
    """By sample the positions that its mask leaves: bool [length]; None where it has no mask.

    A mask is an input [1, length] of zeros and ones whose name says that it is one. What stands behind a sentence's end
    changes no answer, and would be most of what statistics are made of.
    """
    return [next((found for name, value in sample.items() if (found := _mask(name, value)) is not None), None)
            for sample in samples]  # fmt: skip


def _mask(name: str, value: np.ndarray) -> np.ndarray | None:
    if "mask" not in name.lower() or value.ndim != 2 or len(value) != 1:
        return None
    return value[0] == 1 if np.isin(value, (0, 1)).all() and value.any() else None
