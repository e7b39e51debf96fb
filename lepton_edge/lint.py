"""Do calibration samples look right for the model? Warnings, never errors: what was seen, with its number, and a fix.

- samples that hold one value only, and samples given more than once
- samples that are among the evaluation samples too
- values or axes unlike those of the evaluation samples: other preprocessing, another layout
- values unlike those the first BatchNormalization was trained on, where an ONNX model still has it
- a source model that answers labelled samples no better than chance

Thresholds are wide on purpose: a warning on good data costs more than a silent one on data that accuracy shows anyway.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lepton_edge import registry, verify
from lepton_edge.array_files import spread
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import Feed, let_go
from lepton_edge.launch import python_path
from lepton_edge.run_feeds import Feeds
from lepton_edge.stages import Answers, Road, Source

HASHED = 2000  # samples at most
HASHED_BYTES = 512 << 20  # bytes at most
LOOKED_AT = 128  # samples whose values are compared
REPEATED, BLANK, SHARED = 0.05, 0.05, 0.05  # shares that are worth a warning
WIDER, SHIFTED = 4.0, 2.0  # range ratio; difference of means in deviations
TWISTED = 1.0  # summed |log ratio| of the roughness along the axes
ENOUGH = 50  # labelled samples
CHANCE = 1.5  # times the accuracy of guessing, and at most 10 points above it


def checked(road: Road, source: Source, feeds: Feeds) -> Feeds:
    """The same feeds, with what is doubtful about their calibration samples among the warnings."""
    if feeds.calibration is None:
        return feeds
    found = [*between(feeds.calibration, feeds.evaluation), *normalised(road, source, feeds.calibration)]
    return replace(feeds, warnings=(*feeds.warnings, *found))


def scored(feeds: Feeds, reference: Answers) -> Feeds:
    """The same feeds, with a warning where the source model does no better on their labels than by chance."""
    labels = feeds.labels()
    found = [] if labels is None else guessed(reference.outputs, labels)
    return replace(feeds, warnings=(*feeds.warnings, *found))


def alone(road: Road, source: Source, calibration: Feed) -> list[str]:
    """What is doubtful about calibration samples that no others stand beside."""
    return [*_repeated(_hashes(calibration)), *_blank(calibration), *normalised(road, source, calibration)]


def between(calibration: Feed, evaluation: Feed) -> list[str]:
    """What is doubtful about the calibration samples alone, and beside evaluation samples from another place."""
    hashes = _hashes(calibration)
    found = [*_repeated(hashes), *_blank(calibration)]
    if calibration.sha256 == evaluation.sha256 or calibration.source == evaluation.source:
        return found  # said elsewhere
    others = set(_hashes(evaluation))
    common = sum(h in others for h in hashes)
    if common >= SHARED * min(len(hashes), len(others)) and common > 1:
        found.append(
            f"{common} of {len(hashes)} calibration samples are evaluation samples too: figures are better than on "
            "unseen data; take them out of one of the two"
        )
    for name in calibration.inputs:
        if calibration.array(name).dtype.kind == "f" and name not in calibration.whole:
            found += _unlike(name, _look(calibration, name), _look(evaluation, name))
    return found


def guessed(outputs: dict[str, np.ndarray], labels: np.ndarray) -> list[str]:
    """A warning where top-1 of `outputs` on `labels` is that of guessing; none for few samples."""
    score = verify.score(outputs, labels)
    if score is None or len(labels) < ENOUGH:
        return []
    first = next(a for a in outputs.values() if a.ndim <= 2 or max(a.shape[1:]) == np.prod(a.shape[1:]))
    classes = max(2, int(np.prod(first.shape[1:])))
    top1 = float(score.hits.mean())
    if top1 > min(CHANCE / classes, 1 / classes + 0.1):
        return []
    return [
        f"the source model itself has top-1 {100 * top1:.1f} % on {len(labels)} samples of {classes} classes, which "
        "guessing reaches too: check the preprocessing and the order of the labels before anything else"
    ]


def normalised(road: Road, source: Source, calibration: Feed) -> list[str]:
    """A warning where the samples don't give the first BatchNormalization of an ONNX model what it was trained on."""
    if source.art.format != "onnx":
        return []
    file = python_path(registry.PACKAGE / "analysis" / "first_norm.py")
    options = {"data": python_path(calibration.folder), "seed": road.seed}
    worker = road.workers.get("looking at the calibration samples")
    try:
        got = worker.call("step", file=file, src=python_path(source.art.path), dst="", options=options)
    except LeptonError:
        return []  # what is wrong with the model is told by the step that has to work on it
    return _untrained(got) if got else []


def _untrained(got: dict) -> list[str]:
    shift, ratio = got["shift"], got["ratio"]
    if shift <= SHIFTED and 1 / WIDER <= ratio <= WIDER:
        return []
    seen = f"{ratio:.3g}x the spread" if not 1 / WIDER <= ratio <= WIDER else f"means {shift:.3g} deviations off"
    return [
        f"calibration samples reach the first BatchNormalization ('{got['node']}') with {seen} that it was trained on: "
        "check scaling and preprocessing (0..255 or 0..1? --preprocess)"
    ]


def _hashes(feed: Feed) -> list[bytes]:
    """A hash of each sample over all its inputs; of some, spread evenly, where they are many."""
    arrays = [feed.array(name) for name in feed.inputs]
    size = sum(array[:1].nbytes for array in arrays)
    most = max(1, min(HASHED, HASHED_BYTES // max(size, 1)))
    made = []
    for i in spread(feed.count, most):
        digest = hashlib.blake2b(digest_size=16)
        for array in arrays:
            digest.update(np.ascontiguousarray(array[i]).tobytes())
            let_go(array)
        made.append(digest.digest())
    return made


def _repeated(hashes: Sequence[bytes]) -> list[str]:
    distinct = len(set(hashes))
    extra = len(hashes) - distinct
    if extra <= REPEATED * len(hashes):
        return []
    if distinct == 1:
        return [f"all {len(hashes)} calibration samples are the same: give different ones, 100 to 500 are usual"]
    return [
        f"{extra} of {len(hashes)} calibration samples are copies of others: they weigh twice and tell nothing new; "
        "give different ones"
    ]


def _blank(feed: Feed) -> list[str]:
    arrays = [feed.array(name) for name in feed.inputs if name not in feed.whole]
    arrays = [array for array in arrays if array.dtype.kind == "f" and array[0].size > 1]
    chosen = spread(feed.count, LOOKED_AT)
    blank = [int(i) for i in chosen if arrays and all(a[i].min() == a[i].max() for a in arrays)]
    if len(blank) <= BLANK * len(chosen):
        return []
    return [
        f"{len(blank)} of {len(chosen)} calibration samples hold one value only (sample {blank[0]}: "
        f"{float(arrays[0][blank[0]].min()):g}): no range can be learned from them; check how the samples were read"
    ]


@dataclass(frozen=True)
class _Looks:
    """Mean of the samples' lowest and highest values, moments of all values, roughness along each of three axes."""

    low: float
    high: float
    mean: float
    deviation: float
    shape: tuple[int, ...]
    rough: np.ndarray | None


def _look(feed: Feed, name: str) -> _Looks:
    array = feed.array(name)
    lows, highs, sums, squares, rough = [], [], [], [], []
    for i in spread(feed.count, LOOKED_AT):
        x = np.array(array[i], np.float64)
        let_go(array)
        lows.append(x.min(initial=np.inf))
        highs.append(x.max(initial=-np.inf))
        sums.append(x.mean() if x.size else 0.0)
        squares.append((x**2).mean() if x.size else 0.0)
        if x.ndim == 3 and min(x.shape) > 1:
            rough.append([np.abs(np.diff(x, axis=a)).mean() for a in range(3)])
    mean = float(np.mean(sums))
    deviation = float(np.sqrt(max(np.mean(squares) - mean**2, 0.0)))
    axes = np.mean(rough, axis=0) if rough else None
    return _Looks(float(np.mean(lows)), float(np.mean(highs)), mean, deviation, array.shape[1:], axes)


def _unlike(name: str, ours: _Looks, theirs: _Looks) -> list[str]:
    """Calibration (`ours`) beside evaluation: at most one warning, the most telling."""
    spans = ours.high - ours.low, theirs.high - theirs.low
    if min(spans) <= 0:
        return []
    ratio = max(spans) / min(spans)
    where = f"calibration samples of '{name}' span {_range(ours)}, evaluation samples {_range(theirs)}"
    fix = "are both preprocessed as the model wants it?"
    if ratio > WIDER:
        return [f"{where} ({ratio:.3g}x {'wider' if spans[0] > spans[1] else 'narrower'}): {fix}"]
    shift = abs(ours.mean - theirs.mean) / max(theirs.deviation, 1e-30)
    if shift > SHIFTED:
        return [f"{where} (means {shift:.3g} deviations apart): {fix}"]
    return _twisted(name, ours, theirs)


def _range(looks: _Looks) -> str:
    return f"{looks.low:.3g}..{looks.high:.3g}"


def _twisted(name: str, ours: _Looks, theirs: _Looks) -> list[str]:
    """Axes in another order, which sizes cannot show where they coincide: neighbours along a channel axis differ."""
    if ours.rough is None or theirs.rough is None or min(*ours.rough, *theirs.rough) <= 0:
        return []
    here, there = (np.log(looks.rough / looks.deviation) for looks in (ours, theirs) if looks.rough is not None)
    apart = float(np.abs(here - there).sum())
    orders = [p for p in itertools.permutations(range(3)) if tuple(ours.shape[a] for a in p) == tuple(ours.shape)]
    best = min(orders, key=lambda p: float(np.abs(here[list(p)] - there).sum()))
    if apart < TWISTED or float(np.abs(here[list(best)] - there).sum()) > apart / 2:
        return []
    return [
        f"axes {[*best]} of the calibration samples of '{name}' look like axes [0, 1, 2] of the evaluation samples: "
        "is one of the two channels-first and the other channels-last? Transpose the calibration samples"
    ]
