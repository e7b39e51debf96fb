"""Where a conversion first goes wrong: bisection over the tensors of the ONNX model that the last step was given.

The model is cut at a tensor, converted by the same step and compared; about log2(tensors) times. A tensor that differs
only behind others that do is found exactly where errors do not cancel out again, which they seldom do.
"""

from __future__ import annotations

from dataclasses import replace

from lepton_edge import registry, stages
from lepton_edge.artifact import open_artifact
from lepton_edge.errors import LeptonError, WorkerError
from lepton_edge.feeds import Feed
from lepton_edge.launch import python_path
from lepton_edge.ports import Port
from lepton_edge.registry import Step
from lepton_edge.stages import Model, Road

CUT = registry.PACKAGE / "onnx_cut.py"
MOST = 14  # conversions at most: enough for 16,000 tensors


def first_difference(road: Road, onnx: Model, step: Step, feed: Feed, limit: float) -> str | None:
    """The first tensor of ``onnx`` that ``step`` gets wrong by more than ``limit`` dB, in words; None if none is found.

    ``feed`` holds samples in the source model's names.
    """
    worker = road.workers.get("looking for the tensor that differs")
    try:
        tensors = worker.call("inspect", file=python_path(CUT), path=python_path(onnx.art.path))["tensors"]
        low, high, worst = -1, len(tensors) - 1, None
        for _ in range(MOST):
            if high - low <= 1:
                break
            middle = (low + high) // 2
            road.progress.stage(f"bisecting: tensor {middle + 1} of {len(tensors)}")
            found = _figure(road, onnx, step, feed, tensors[middle][0])
            if found is not None and found < limit:
                high, worst = middle, found
            else:
                low = middle
    except WorkerError:
        return None
    if not tensors:
        return None
    name, operator, node = tensors[high]
    figure = f", SQNR {worst:.1f} dB" if worst is not None else ""
    before = f"; '{tensors[low][0]}' before it agrees" if low >= 0 else ""
    return f"the first tensor that differs is '{name}' (made by {operator} '{node}'{figure}){before}"


def _figure(road: Road, onnx: Model, step: Step, feed: Feed, tensor: str) -> float | None:
    """SQNR of one tensor in dB; -inf where the step itself refuses its result, None where it cannot be told."""
    folder = road.folder("cut")
    worker = road.workers.get("cutting the model")
    path = folder / "model.onnx"
    worker.call(
        "step", file=python_path(CUT), src=python_path(onnx.art.path), dst=str(path), options={"tensor": tensor}
    )
    cut = replace(onnx, art=open_artifact(path), outputs=(Port(tensor, tensor),))
    try:
        reference = stages.answers(road, cut, feed)
    except LeptonError:
        return None
    try:
        made = stages.apply(road, cut, step, {})
        figures = stages.judge(reference, stages.answers(road, made, feed), None)["parity"]
    except LeptonError as error:
        return float("-inf") if "disagree" in error.message or "NaN" in error.message else None
    if figures["sqnr_db"] is None:
        return 300.0 if figures["max_abs"] == 0 else 0.0
    return figures["sqnr_db"]
