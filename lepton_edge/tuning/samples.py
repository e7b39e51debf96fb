"""Training samples of a feed folder, in batches of any rows, and what is done to them while training.

Samples are mixed in pairs, which the teacher answers like any other: Zhang et al., "mixup" (arXiv:1710.09412), with
the original's answers to mixed inputs as in Beyer et al., "Knowledge distillation: A good teacher is patient and
consistent" (arXiv:2106.05237). Images may also be mirrored and shifted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.feeds import Feed, load_feed
from lepton_edge.quant.tap import Sample

AUGMENT = ("mix", "flip", "shift")
SHIFTED = 8  # an image is moved by up to an eighth of its size


@dataclass(frozen=True)
class Batch:
    """Arrays [rows, *as the model takes one sample] by input, labels int64 [rows] or None; those of the samples that
    were mixed in, and the share of the first."""

    inputs: dict[str, np.ndarray]
    labels: np.ndarray | None = None
    others: np.ndarray | None = None
    share: float = 1.0


class Rows(Sequence[Sample]):
    """All samples of a feed folder, memory-mapped; also one by one, as the model takes them."""

    def __init__(self, folder: str | Path, inputs: Sequence[str], model: str) -> None:
        """Raises LeptonError for a folder without samples, of other inputs than the model's, or with bad labels."""
        self.feed: Feed = load_feed(folder)
        if set(self.feed.inputs) != set(inputs):
            raise LeptonError(
                f"the training data is for the inputs {', '.join(sorted(self.feed.inputs))}, but {model} takes "
                f"{', '.join(sorted(inputs))}",
                "name the arrays of the data as the model's inputs",
            )
        if self.feed.count < 2:
            raise LeptonError(
                f"{model}: {self.feed.count} training samples cannot train a model", "give more with --train or --data"
            )
        self.arrays = self.feed.open()
        labels = self.feed.label_array()
        if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
            raise LeptonError(f"labels must be whole numbers [N], not {labels.dtype} {list(labels.shape)}", "")
        self.labels = None if labels is None else labels.astype(np.int64)

    def __len__(self) -> int:
        return self.feed.count

    def __getitem__(self, position: int) -> Sample:  # type: ignore[override]  # never a slice
        if not -len(self) <= position < len(self):
            raise IndexError(position)
        made = self.batch(np.array([position % len(self)]))
        return {name: np.ascontiguousarray(array[0]) for name, array in made.inputs.items()}

    def __iter__(self) -> Iterator[Sample]:
        return (self[k] for k in range(len(self)))

    def batch(self, rows: np.ndarray) -> Batch:
        """These samples. Raises LeptonError where one holds NaN or infinity."""
        inputs = {}
        for name, array in self.arrays.items():
            taken = np.asarray(array[rows])
            if taken.dtype.kind == "f" and not np.isfinite(taken).all():
                bad = next(int(r) for r, x in zip(rows, taken, strict=True) if not np.isfinite(x).all())
                raise LeptonError(
                    f"training sample {bad} holds NaN or infinity in input '{name}'", "remove it, or check its source"
                )
            inputs[name] = taken if name in self.feed.whole else taken[:, None]
        return Batch(inputs, None if self.labels is None else self.labels[rows])


def ways(text: str) -> tuple[str, ...]:
    """The names in "mix,flip"; "none" and nothing are none. Raises UsageError for an unknown one."""
    names = tuple(n.strip() for n in text.split(",") if n.strip() and n.strip() != "none")
    for name in names:
        if name not in AUGMENT:
            raise UsageError(f"unknown augmentation '{name}'", did_you_mean(name, list(AUGMENT)))
    return names


def check_ways(names: Sequence[str], batch: Batch, model: str) -> None:
    """Raise UsageError for an augmentation that the samples are not made for."""
    if "mix" in names and any(a.dtype.kind != "f" for a in batch.inputs.values()):
        raise UsageError(f"{model} takes whole numbers, which cannot be mixed", "leave mix out of augment")
    if {"flip", "shift"} & set(names) and not any(_image(a) for a in batch.inputs.values()):
        raise UsageError(f"{model} takes no images, which flip and shift are for", "leave them out of augment")


def augmented(batch: Batch, names: Sequence[str], rng: np.random.Generator) -> Batch:
    """A batch with its images mirrored and moved at random, and mixed in pairs."""
    inputs = dict(batch.inputs)
    for name, array in inputs.items():
        where = _image(array)
        if where and {"flip", "shift"} & set(names):
            inputs[name] = _moved(array, where, names, rng)
    if "mix" not in names or len(next(iter(inputs.values()))) < 2:
        return Batch(inputs, batch.labels)
    share, order = float(rng.uniform()), rng.permutation(len(next(iter(inputs.values()))))
    mixed = {n: (share * a + (1 - share) * a[order]).astype(a.dtype) for n, a in inputs.items()}
    return Batch(mixed, batch.labels, None if batch.labels is None else batch.labels[order], share)


def _image(array: np.ndarray) -> tuple[int, int] | None:
    """The axes of height and width in [rows, 1, ...], None where it holds no images."""
    if array.ndim != 5 or array.dtype.kind != "f":
        return None
    shape = array.shape
    if shape[4] in (1, 3, 4) and min(shape[2:4]) > 4:
        return 2, 3
    return (3, 4) if shape[2] in (1, 3, 4) and min(shape[3:]) > 4 else None


def _moved(array: np.ndarray, axes: tuple[int, int], names: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    made = np.empty_like(array)
    for k, image in enumerate(array):
        height, width = (axis - 1 for axis in axes)
        if "flip" in names and rng.random() < 0.5:
            image = np.flip(image, width)
        if "shift" in names:
            for axis in (height, width):
                most = image.shape[axis] // SHIFTED
                step = int(rng.integers(-most, most + 1))
                at = np.clip(np.arange(image.shape[axis]) + step, 0, image.shape[axis] - 1)
                image = np.take(image, at, axis)
        made[k] = image
    return made
