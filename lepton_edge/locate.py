"""Where a model first goes wrong: bisection over its tensors, for a conversion and for a device.

The model is cut at a tensor and what comes out is compared, about log2(tensors) times. A tensor that differs only
behind others that do is found exactly where errors do not cancel out again, which they seldom do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lepton_edge import registry, stages, verify
from lepton_edge.artifact import open_artifact, suffix
from lepton_edge.errors import LeptonError, PlaceLost, WorkerError
from lepton_edge.feeds import Feed
from lepton_edge.launch import python_path
from lepton_edge.place import Place
from lepton_edge.ports import Port
from lepton_edge.registry import Runtime, Step
from lepton_edge.stages import Answers, Model, Road

MOST = 14  # cuts at most: enough for 16,000 tensors
EQUAL_DB, NONE_DB = 300.0, 0.0  # of outputs that are the same; of some that are not, where the first is zero


def first_difference(road: Road, onnx: Model, step: Step, feed: Feed, limit: float) -> str | None:
    """The first tensor of ``onnx`` that ``step`` gets wrong by more than ``limit`` dB, in words; None if none is found.

    ``feed`` holds samples in the source model's names.
    """

    def figure(cut: Model) -> float | None:
        try:
            reference = stages.answers(road, cut, feed)
        except LeptonError:
            return None
        try:
            made = stages.apply(road, cut, step, {})
            return _db(stages.judge(reference, stages.answers(road, made, feed), None)["parity"])
        except LeptonError as error:
            return float("-inf") if "disagree" in error.message or "NaN" in error.message else None

    return _bisect(road, onnx, figure, limit)


def first_difference_there(road: Road, place: Place, model: Model, runtime: Runtime, feed: Feed, limit: float) -> str:
    """The first tensor of ``model`` that ``place`` computes otherwise than this machine does, in words.

    ``feed`` holds samples under the model's own names. "" where none is found, or its format cannot be cut.
    Raises PlaceLost.
    """
    if not (registry.folder("cuts") / f"{model.art.format}.py").is_file():
        return ""

    def figure(cut: Model) -> float | None:
        try:
            here, there = (_run(road, p, cut, runtime, feed) for p in (None, place))
        except PlaceLost:
            raise
        except LeptonError:
            return None  # not every runtime takes every cut
        return _db(verify.parity(here.outputs, there.outputs, here.wiring))

    return _bisect(road, model, figure, limit) or ""


def _run(road: Road, place: Place | None, cut: Model, runtime: Runtime, feed: Feed) -> Answers:
    return stages.answers(
        road, cut, feed, runtime=runtime, what=f"running the cut model in {runtime.name}", place=place
    )


def _db(parity: dict) -> float:
    if parity["sqnr_db"] is None:
        return EQUAL_DB if parity["max_abs"] == 0 else NONE_DB
    return parity["sqnr_db"]


def _bisect(road: Road, model: Model, figure: Callable[[Model], float | None], limit: float) -> str | None:
    file = registry.folder("cuts") / f"{model.art.format}.py"
    worker = road.workers.get("looking for the tensor that differs")
    try:
        tensors = worker.call("inspect", file=python_path(file), path=python_path(model.art.path))["tensors"]
        low, high, worst = -1, len(tensors) - 1, None
        for _ in range(MOST):
            if high - low <= 1:
                break
            middle = (low + high) // 2
            road.progress.stage(f"bisecting: tensor {middle + 1} of {len(tensors)}")
            found = figure(_cut(road, file, model, tensors[middle][0]))
            if found is not None and found < limit:
                high, worst = middle, found
            else:
                low = middle
    except PlaceLost:
        raise
    except WorkerError:
        return None
    if not tensors:
        return None
    name, operator, node = tensors[high]
    figure_ = f", SQNR {worst:.1f} dB" if worst is not None else ""
    before = f"; '{tensors[low][0]}' before it agrees" if low >= 0 else ""
    made = f"{operator} '{node}'" if node else operator
    return f"the first tensor that differs is '{name}' (made by {made}{figure_}){before}"


def _cut(road: Road, file: Path, model: Model, tensor: str) -> Model:
    worker = road.workers.get("cutting the model")
    path = road.folder("cut") / f"model{suffix(model.art.format)}"
    src = python_path(model.art.path)
    worker.call("step", file=python_path(file), src=src, dst=str(path), options={"tensor": tensor})
    return replace(model, art=open_artifact(path), outputs=(Port(tensor, tensor),))
