"""Calibration samples, streamed from a feed folder one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.feeds import let_go, load_feed, spread


class Samples(Sequence[dict[str, np.ndarray]]):
    """Up to `limit` samples, spread evenly over the folder: each is {input name: array as the model takes it}.

    It can be iterated again and again; arrays are memory-mapped, so memory holds one sample.
    """

    def __init__(self, folder: str, inputs: Sequence[str], limit: int, seed: int, model: str) -> None:
        """Raises LeptonError for a folder without samples, or with other inputs than the model's."""
        if limit < 1:
            raise LeptonError(f"samples is {limit}: calibration needs at least one", hint="set samples to 300")
        feed = load_feed(folder)
        if feed.count < 1:
            raise LeptonError(
                f"no calibration samples for {Path(model).name}: the data is empty",
                hint="give at least one sample; 100 to 500 are usual",
            )
        if set(feed.inputs) != set(inputs):
            raise LeptonError(
                f"the calibration data is for the inputs {', '.join(sorted(feed.inputs))}, but "
                f"{Path(model).name} takes {', '.join(sorted(inputs))}",
                hint="name the arrays of the data as the model's inputs",
            )
        self._arrays, self._whole = feed.open(), feed.whole
        self._indices = spread(feed.count, limit, seed)
        labels = feed.label_array()
        self.labels = None if labels is None or labels.ndim != 1 else labels[self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, position: int) -> dict[str, np.ndarray]:  # type: ignore[override]  # never a slice
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        i = int(self._indices[position])
        sample = {
            name: np.array(array[i, ...] if name in self._whole else array[i : i + 1], order="C")
            for name, array in self._arrays.items()
        }
        for array in self._arrays.values():
            let_go(array)
        return sample

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(len(self)))


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, cut at 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def silent(done: int, total: int, what: str) -> None:
    """The progress callback of whoever gives none."""


Progress = Callable[[int, int, str], None]
