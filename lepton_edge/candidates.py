"""The candidates of a compress run: made by steps, held against the source model, timed, and set down for run.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lepton_edge import bench, registry, stages
from lepton_edge.artifact import copy_artifact, suffix
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import Feed
from lepton_edge.quant import schemes as quant_schemes
from lepton_edge.recipe import CHAIN, Recipe
from lepton_edge.stages import Answers, Model, Road

DONE = {"prune": "pruned", "cluster": "clustered", "qat": "qat"}  # what a model is called after a verb


@dataclass(frozen=True)
class Candidate:
    """One model that could be shipped. ``error`` is why it cannot; then what comes later is missing."""

    format: str
    scheme: str
    verbs: tuple[str, ...]
    model: Model | None = None
    error: LeptonError | None = None
    answers: Answers | None = None
    figures: dict | None = None
    timing: bench.Timing | None = None

    @property
    def name(self) -> str:
        """How it is called in tables and reports."""
        return f"{self.format}-{self.scheme}"


def schemes(recipe: Recipe) -> list[tuple[str, tuple[str, ...]]]:
    """The (scheme, verbs) to make in every format."""
    made = (quant_schemes.label(recipe.quantize), (quant_schemes.verb(recipe.quantize),))
    plain: list[tuple[str, tuple[str, ...]]] = [("float32", ()), made]
    chain = recipe.chain()
    if not chain:
        return plain
    done = "-".join(DONE[verb] for verb in chain)
    return [*plain, *((f"{done}-{name}", (*chain, *verbs)) for name, verbs in plain)]


def make(road: Road, source: Model, formats: Sequence[str], recipe: Recipe, feeds: dict[str, Feed]) -> list[Candidate]:
    """Make every scheme in every format; one that fails keeps its error and stops no other."""
    options = {verb: getattr(recipe, verb) or {} for verb in CHAIN} | {"quantize": recipe.quantize}
    made = []
    for scheme, verbs in schemes(recipe):
        for format_ in formats:
            candidate = Candidate(format_, scheme, verbs)
            try:
                if "quantize" in verbs:
                    quant_schemes.require(recipe.quantize, format_)
                early = tuple(v for v in verbs if v not in stages.LAST)
                model = stages.travel(road, source, format_, early, options, feeds)
                model = stages.finish(road, model, verbs, options)
                made.append(replace(candidate, model=model))
            except LeptonError as e:
                made.append(replace(candidate, error=e))
    return made


def settle(made: Sequence[Candidate], folder: Path, stem: str) -> list[Candidate]:
    """Copy the artefacts from the store to ``folder`` under readable names."""
    settled = []
    for c in made:
        if c.model is not None:
            art = copy_artifact(c.model.art, folder / f"{stem}.{c.scheme}{suffix(c.format)}")
            c = replace(c, model=stages.moved(c.model, art))
        settled.append(c)
    return settled


def judge(road: Road, made: Sequence[Candidate], reference: Answers, feed: Feed, labels: Any | None) -> list[Candidate]:
    """Run every candidate on the evaluation samples in the runtime it ships for, and compare."""
    judged = []
    for c in made:
        if c.model is not None:
            try:
                road.progress.stage(f"verifying {c.name} on {feed.count} samples")
                got = stages.answers(road, c.model, feed, what=f"verifying {c.name}")
                c = replace(c, answers=got, figures=stages.judge(reference, got, labels))
            except LeptonError as e:
                c = replace(c, error=e)
        judged.append(c)
    return judged


def time(road: Road, judged: Sequence[Candidate], recipe: Recipe, threads: int) -> list[Candidate]:
    """Measure the latency of every candidate that answered, interleaved, in fresh workers."""
    entrants = [
        bench.Entrant(c.name, c.model.art.path, registry.runtime_for(c.format), c.answers.feed.folder)
        for c in judged
        if c.model and c.answers and not c.error
    ]
    timings = stages.timed(road, entrants, recipe.bench, threads, "candidates")
    timed = []
    for c in judged:
        if c.name in timings:
            c = replace(c, timing=timings[c.name], error=timings[c.name].error)
        timed.append(c)
    return timed


def require_one(timed: Sequence[Candidate]) -> None:
    """Raise the first candidate's error when all of them failed."""
    errors = [(c.name, c.error) for c in timed if c.error]
    if errors and len(errors) == len(timed):
        name, first = errors[0]
        raise LeptonError(f"none of the {len(timed)} candidates came out; {name}: {first.message}", first.hint)


def rows(timed: Sequence[Candidate], root: Path) -> list[dict]:
    """The candidates as run.json holds them, not yet chosen from; paths relative to ``root``."""
    timings = {c.name: c.timing for c in timed if c.timing}
    against = bench.ratios(timings, {c.name: f"{c.format}-float32" for c in timed if c.verbs})
    return [_row(c, root, against.get(c.name)) for c in timed]


def _row(c: Candidate, root: Path, ratio: dict | None) -> dict:
    art = c.model.art if c.model else None
    figures = c.figures or {"parity": None, "accuracy": None, "drop_points": None, "drop_ci95": None}
    info = (c.timing.info if c.timing else None) or (c.answers.info if c.answers else None)
    return {
        "name": c.name,
        "format": c.format,
        "scheme": c.scheme,
        "path": str(art.path.relative_to(root)) if art else None,
        "sha256": art.sha256 if art else None,
        "size_bytes": art.size_bytes if art else None,
        "zip_bytes": art.zip_bytes() if art else None,
        "steps": list(c.model.steps) if c.model else [],
        "status": "failed" if c.error else "ok",
        "error": {"message": c.error.message, "hint": c.error.hint} if c.error else None,
        "runtime": info,
        **figures,
        "latency": c.timing.latency if c.timing else None,
        "ratio": ratio,
        "picked": False,
        "pareto": False,
        "reason": "",
    }
