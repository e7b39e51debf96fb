"""Conversions that count only once they are proved: run in their runtime, and held against the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lepton_edge import locate, registry, stages, verify
from lepton_edge.errors import LeptonError
from lepton_edge.facts import inspect_model
from lepton_edge.run_feeds import Feeds
from lepton_edge.stages import Answers, Model, Road, Source

# SQNR in dB below which a conversion is a failure. Float arithmetic in another order stays above 60; weights in half
# precision (a relative 2^-11 each) above 30; integer kernels of two runtimes round differently, while a wrong scale,
# zero point or axis is below 5.
FLOAT_DB, HALF_DB, INTEGER_DB = 60.0, 30.0, 12.0
LAST = stages.LAST
LIGHT = ("onnx", "tflite", "openvino")  # formats whose inspector starts in a moment


def proven(
    road: Road,
    source: Source,
    start: Model,
    target: str,
    verbs: Sequence[str],
    options: dict[str, dict],
    feeds: Feeds,
    reference: Answers,
) -> tuple[Model, Answers, dict]:
    """The converted model, its answers and its figures; a conversion that differs too much is no way, others are tried.

    Raises LeptonError for the first way that failed when none is left.
    """
    first: LeptonError | None = None
    limit = _limit(road, source, verbs)
    early = [v for v in verbs if v not in LAST]
    refused: list[tuple[str, str]] = []
    while True:
        try:
            result = stages.travel(road, start, target, early, options, feeds.by_verb(), refused)
        except LeptonError as error:
            raise _located(road, start, target, options, feeds, limit, first or error) from error
        try:
            result = stages.finish(road, result, verbs, options)
            road.progress.stage(f"verifying the {target} model on {feeds.evaluation.count} samples")
            got = stages.answers(road, result, feeds.evaluation)
            figures = stages.judge(reference, got, feeds.labels())
            if limit is not None:
                require(figures["parity"], source, target, limit)
            return result, got, figures
        except LeptonError as error:
            first = first or error
            own = {s.name for s in registry.steps() if s.verb == "convert"}
            steps = [s["step"] for s in result.steps if s["step"] in own]
            if limit is None or not steps:
                raise
            refused.append((steps[-1], error.message))


def _located(
    road: Road, start: Model, target: str, options: dict, feeds: Feeds, limit: float | None, error: LeptonError
) -> LeptonError:
    """The error, with the first tensor that differs where one does and the way leads through ONNX."""
    differs = "disagrees" in error.message or "does not answer as" in error.message
    step = next((s for s in registry.steps() if s.name == f"onnx_to_{target}"), None)
    if limit is None or not differs or step is None or start.art.format == target:
        return error
    try:
        onnx = start if start.art.format == "onnx" else stages.travel(road, start, "onnx", (), options, {})
    except LeptonError:
        return error
    place = locate.first_difference(road, onnx, step, feeds.evaluation, limit)
    return LeptonError(f"{error.message}; {place}", error.hint) if place else error


def _limit(road: Road, source: Source, verbs: Sequence[str]) -> float | None:
    """The SQNR that a conversion has to reach; None where compression is asked for, whose loss is the user's choice."""
    if set(verbs) - set(LAST):
        return None
    if is_quantized(road, source):
        return INTEGER_DB
    return HALF_DB if "halve" in verbs else FLOAT_DB


def is_quantized(road: Road, source: Source) -> bool:
    """Whether the source computes on integers, so that its kernels round in a way of their own."""
    if source.art.format not in LIGHT:
        return False
    found = inspect_model(road, source.art)["quantized"]
    return any(found.get(f"{kind}_tensors") for kind in ("int8", "int4", "uint4"))


def require(parity: dict, source: Source, target: str, limit: float) -> None:
    """Raise LeptonError when a conversion is off by more than its arithmetic explains (SQNR below ``limit`` dB)."""
    sqnr = parity["sqnr_db"]
    if verify.exact(parity) or (sqnr is not None and sqnr >= limit):
        return
    worst = min(parity["outputs"].items(), key=lambda kv: kv[1]["cosine"])[0]
    zeros = f"the source answers zeros, off by {parity['max_abs']:.3g}"
    figure = f"SQNR {sqnr:.1f} dB" if sqnr is not None else zeros
    raise LeptonError(
        f"{source.art.path.name}: the {target} model does not answer as the source does (output '{worst}': "
        f"{figure}, at least {limit:g} dB expected of this conversion)",
        "nothing was written; try another route or report the model",
    )


def transposes(facts: Mapping[str, Any]) -> int:
    """How many operators of an inspected model do nothing but move axes."""
    return sum(n for op, n in facts["operators"].items() if op.lower() == "transpose")
