"""The candidates of a compress run on the device they are made for: their answers there, and their latency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lepton_edge import benching, boards, elsewhere, registry
from lepton_edge.bench import Timing
from lepton_edge.candidates import Candidate
from lepton_edge.device import Device
from lepton_edge.elsewhere import Subject
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import Feed
from lepton_edge.recipe import Recipe
from lepton_edge.stages import Road

MOST = 100  # evaluation samples that a board runs


def time(
    road: Road, judged: Sequence[Candidate], device: Device, recipe: Recipe, feed: Feed
) -> tuple[list[Candidate], dict[str, Any]]:
    """Run and time on ``device`` every candidate that answered here; and the environment there, with "notes".

    A candidate that the device answers differently, or has no runtime for, keeps that as its error. Raises LeptonError
    when the device cannot be reached.
    """
    subjects = []
    for c in judged:
        if c.model and c.answers and not c.error:
            few, here = elsewhere.fewer(road, feed, c.answers, MOST)
            runtime = registry.runtime_for(c.format)
            subjects.append(Subject(c.name, c.model, runtime, few, here, quantized="quantize" in c.verbs))
    (visit,) = boards.visit_all(road, [device], benching.work(subjects, recipe, benching.Ask()))
    if visit.error is not None:
        raise visit.error
    rows, environments = benching.gathered([visit], subjects, benching.Ask())
    by_name = {row["name"]: row for row in rows}
    return [_timed(c, by_name[c.name]) if c.name in by_name else c for c in judged], environments[device.name]


def _timed(c: Candidate, row: dict[str, Any]) -> Candidate:
    error = LeptonError(row["error"]["message"], row["error"]["hint"]) if row["error"] else None
    return replace(c, timing=Timing(row["latency"], row["runtime"], error), error=error)
