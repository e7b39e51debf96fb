"""Does an artefact still answer as the source model does? Numbers from the outputs of both, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.ports import Ports, without_batch
from lepton_edge.stats import proportion_interval

CHUNK = 64


def open_outputs(folder: Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The outputs a worker wrote: name to array [count, ...], memory-mapped."""
    return {n: np.load(folder / f"{k}.npy", mmap_mode="r", allow_pickle=False) for k, n in enumerate(names)}


def parity(reference: dict[str, np.ndarray], outputs: dict[str, np.ndarray], ports: Ports) -> dict:
    """Compare each output with the source model's.

    Per output and over all: ``max_abs``; ``cosine`` (mean over samples; of a single number a sample, that of all
    samples as one vector, for alone it would only tell the sign); ``sqnr_db`` = 10 log10(sum ref^2 /
    sum (ref - out)^2), None when they are equal; ``agreement`` = share of samples with the same top-1 (for
    vectors of two or more; None for other outputs). Arrays [count, ...], any real dtype.
    Raises LeptonError when shapes cannot be matched or an output is not finite.
    """
    each = {}
    for port in ports:
        each[port.source] = _compare(reference[port.source], outputs[port.name], without_batch(port.perm), port.source)
    power, noise = (
        math.fsum(e.pop("_power") for e in each.values()),
        math.fsum(e.pop("_noise") for e in each.values()),
    )
    agreements = [e["agreement"] for e in each.values() if e["agreement"] is not None]
    return {
        "kind": "measured",
        "count": len(next(iter(reference.values()))),
        "max_abs": max(e["max_abs"] for e in each.values()),
        "cosine": min(e["cosine"] for e in each.values()),
        "sqnr_db": _db(power, noise),
        "agreement": min(agreements) if agreements else None,
        "outputs": each,
    }


def check_reference(outputs: dict[str, np.ndarray], labels: np.ndarray | None) -> None:
    """Raise LeptonError, before any work, when a reference output is not finite or a label lies outside the classes."""
    for name, array in outputs.items():
        for at in range(0, len(array), CHUNK):
            if not np.isfinite(np.asarray(array[at : at + CHUNK], np.float64)).all():
                raise LeptonError(
                    f"the source model's own output '{name}' holds NaN or infinity on this data",
                    "check the samples and the preprocessing",
                )
    if labels is not None:
        score(outputs, labels)


def _compare(ref: np.ndarray, out: np.ndarray, perm: tuple[int, ...] | None, name: str) -> dict:
    power = noise = cosines = 0.0
    biggest, same = 0.0, 0
    count = len(ref)
    vector = ref.ndim == 2 and ref.shape[1] > 1
    gathered: list[tuple[np.ndarray, np.ndarray]] | None = [] if count and ref[0].size == 1 else None
    for at in range(0, count, CHUNK):
        r = np.asarray(ref[at : at + CHUNK], np.float64)
        o = np.asarray(out[at : at + CHUNK], np.float64)
        if perm is not None and o.ndim - len(perm) in (1, 2):  # 2: whole tensors, with a batch axis of their own
            lead = o.ndim - len(perm)
            o = np.transpose(o, (*range(lead), *(int(i) + lead for i in np.argsort(perm))))
        if o.size != r.size:
            raise LeptonError(
                f"output '{name}' has shape {list(o.shape[1:])} a sample, the source model's has {list(r.shape[1:])}"
            )
        if not np.isfinite(o).all():
            raise (
                LeptonError(f"output '{name}' holds NaN or infinity where the source model's is finite")
                if np.isfinite(r).all()
                else LeptonError(f"the source model's own output '{name}' holds NaN or infinity on this data")
            )
        r, o = r.reshape(len(r), -1), o.reshape(len(r), -1)
        diff = r - o
        power += float((r * r).sum())
        noise += float((diff * diff).sum())
        biggest = max(biggest, float(np.abs(diff).max(initial=0.0)))
        if gathered is None:
            cosines += float(_cosines(r, o).sum())
        else:
            gathered.append((r, o))
        if vector:
            same += int((r.argmax(1) == o.argmax(1)).sum())
    if gathered is not None:
        r, o = (np.concatenate(side).reshape(1, -1) for side in zip(*gathered, strict=True))
        cosines = count * float(_cosines(r, o)[0])
    return {
        "max_abs": biggest,
        "cosine": cosines / count,
        "sqnr_db": _db(power, noise),
        "agreement": same / count if vector else None,
        "_power": power,
        "_noise": noise,
    }


def _cosines(r: np.ndarray, o: np.ndarray) -> np.ndarray:
    dot, norms = (r * o).sum(1), np.sqrt((r * r).sum(1) * (o * o).sum(1))
    both_zero = ~r.any(1) & ~o.any(1)
    return np.where(both_zero, 1.0, np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0))


def _db(power: float, noise: float) -> float | None:
    if noise == 0:
        return None
    return 10 * math.log10(power / noise) if power > 0 else None


def exact(figures: dict) -> bool:
    """Whether outputs are equal; an ``sqnr_db`` of None alone may also stand for a source that answers only zeros."""
    return figures["sqnr_db"] is None and figures["max_abs"] == 0


@dataclass(frozen=True)
class Score:
    """Which samples were answered right: ``hits`` bool [count], ``top5`` a share or None."""

    hits: np.ndarray
    top5: float | None

    def to_json(self) -> dict:
        """Top-1 and top-5 with the 95 % Wilson interval of top-1."""
        right, count = int(self.hits.sum()), len(self.hits)
        return {
            "top1": right / count,
            "top5": self.top5,
            "count": count,
            "ci95": list(proportion_interval(right, count)),
        }


def score(outputs: dict[str, np.ndarray], labels: np.ndarray) -> Score | None:
    """Hold the first output that can be scores of classes against ``labels`` int64 [count]; None if no output can.

    A vector of C >= 2 is read as scores of C classes, a single number as the score of class 1 (threshold 0.5 for
    probabilities, 0 for logits). Raises LeptonError when a label lies outside the classes.
    """
    for name, array in outputs.items():
        if array.ndim > 2 and max(array.shape[1:]) != np.prod(array.shape[1:]):
            continue
        values = np.asarray(array).reshape(len(array), -1)
        if not values.shape[1]:
            continue
        classes = max(2, values.shape[1])
        worst = int(labels.max(initial=0))
        if worst >= classes:
            raise LeptonError(
                f"label {worst} does not fit output '{name}', which has {classes} classes (0..{classes - 1})",
                "labels count from 0; a model with a background class needs labels moved by one",
            )
        if values.shape[1] == 1:
            scores = values[:, 0].astype(np.float64)
            threshold = 0.5 if scores.min() >= 0 and scores.max() <= 1 else 0.0
            return Score((scores > threshold) == (labels == 1), None)
        return Score(values.argmax(1) == labels, _top5(values, labels) if classes > 5 else None)
    return None


def _top5(values: np.ndarray, labels: np.ndarray) -> float:
    best = np.argpartition(values, -5, axis=1)[:, -5:]
    return float((best == labels[:, None]).any(1).mean())


def drop(reference: Score, candidate: Score) -> dict:
    """Points of top-1 lost, and their 95 % interval for paired samples.

    Only samples that one model gets right and the other wrong tell the two apart: with b and c of them,
    the drop is (b - c) / n with the adjusted Wald interval of Agresti & Min, Statistics in Medicine 24, 2005.
    """
    lost = int((reference.hits & ~candidate.hits).sum())
    won = int((~reference.hits & candidate.hits).sum())
    n = len(reference.hits)
    b, c, m = lost + 0.5, won + 0.5, n + 2.0
    centre, half = (b - c) / m, 1.96 * math.sqrt(b + c - (b - c) ** 2 / m) / m
    return {"drop_points": 100 * (lost - won) / n, "drop_ci95": [100 * (centre - half), 100 * (centre + half)]}
