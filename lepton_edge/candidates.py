"""The candidates of a compress run: made by steps, held against the source model, timed, and set down for run.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lepton_edge import bench, facts, registry, stages
from lepton_edge.artifact import copy_artifact, suffix
from lepton_edge.chains import Chain
from lepton_edge.choose import too_much
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import Feed
from lepton_edge.quant import schemes as quant_schemes
from lepton_edge.recipe import Recipe
from lepton_edge.stages import Answers, Model, Road


@dataclass(frozen=True)
class Candidate:
    """One model that could be shipped. ``error`` is why it cannot; then what comes later is missing.

    ``counts`` are those of the file: parameters, nonzeros and macs (see facts.py).
    """

    format: str
    chain: Chain
    model: Model | None = None
    error: LeptonError | None = None
    answers: Answers | None = None
    figures: dict | None = None
    timing: bench.Timing | None = None
    counts: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How it is called in tables and reports."""
        return f"{self.format}-{self.scheme}"

    @property
    def scheme(self) -> str:
        """The word for what was done."""
        return self.chain.scheme

    @property
    def verbs(self) -> tuple[str, ...]:
        """What was done, by verb."""
        return self.chain.verbs


def explore(
    road: Road,
    source: Model,
    formats: Sequence[str],
    found: Sequence[Chain],
    recipe: Recipe,
    feeds: dict[str, Feed],
    reference: Answers,
    evaluation: Feed,
    place: tuple[Path, str],
) -> tuple[list[Candidate], list[dict[str, str]]]:
    """Make and judge the chains one by one; and what was left out on the way, as scheme and reason.

    ``place`` is the folder of the artefacts and the stem of their names.
    """
    done: list[Candidate] = []
    left: list[dict[str, str]] = []
    for k, chain in enumerate(found):
        gentler = [c for c in done if chain.after and c.scheme == chain.after]
        if gentler and all(_lost(c, recipe.compress.max_drop) for c in gentler):
            why = f"{chain.after} already {_lost(gentler[0], recipe.compress.max_drop)}"
            left.append({"scheme": chain.scheme, "reason": why})
            continue
        road.progress.stage(f"chain {k + 1} of {len(found)}: {chain.scheme}")
        made = make(road, source, formats, chain, feeds)
        if not chain.needed and (errors := [c.error for c in made if c.error]) and len(errors) == len(made):
            left.append({"scheme": chain.scheme, "reason": errors[0].message})
            continue
        placed = counted(road, settle(made, *place))
        done += judge(road, placed, reference, evaluation, evaluation.label_array())
    return done, left


def _lost(c: Candidate, most: float) -> str:
    """What a candidate loses, where that is more than the limit or there is no candidate."""
    if c.error or c.figures is None:
        return "cannot be had"
    loss = too_much(c.figures, most)
    return loss and f"is over the limit in {c.format}: {loss}"


def make(road: Road, source: Model, formats: Sequence[str], chain: Chain, feeds: dict[str, Feed]) -> list[Candidate]:
    """Make a chain in every format; one that fails keeps its error and stops no other."""
    made = []
    if chain.learns and "training" in feeds:
        feeds = {**feeds, "prune_onnx": feeds["training"]}
    for format_ in formats:
        candidate = Candidate(format_, chain)
        try:
            if "quantize" in chain.verbs:
                quant_schemes.require(chain.options["quantize"], format_)
            early = tuple(step for step in chain.steps if step not in stages.LAST)
            model = stages.travel(road, source, format_, early, dict(chain.options), feeds)
            model = stages.finish(road, model, chain.steps, dict(chain.options))
            made.append(replace(candidate, model=model))
        except LeptonError as e:
            made.append(replace(candidate, error=e))
    return made


def counted(road: Road, made: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with what is counted in their files."""
    return [replace(c, counts=facts.counts(road, c.model.art)) if c.model else c for c in made]


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


def rows(timed: Sequence[Candidate], root: Path, labels: Any | None = None) -> list[dict]:
    """The candidates as run.json holds them, not yet chosen from; paths relative to ``root``."""
    from lepton_edge.gains import gains

    timings = {c.name: c.timing for c in timed if c.timing}
    against = bench.ratios(timings, {c.name: f"{c.format}-float32" for c in timed if c.verbs})
    sizes = {c.name: c.model.art.zip_bytes() for c in timed if c.model}
    brought = gains(timed, sizes, labels)
    return [_row(c, root, against.get(c.name), sizes.get(c.name), brought[c.name]) for c in timed]


def _row(c: Candidate, root: Path, ratio: dict | None, zip_bytes: int | None, gained: list[dict]) -> dict:
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
        "zip_bytes": zip_bytes,
        **{key: c.counts.get(key) for key in (*facts.KEYS, "uncounted")},
        "steps": list(c.model.steps) if c.model else [],
        "status": "failed" if c.error else "ok",
        "error": {"message": c.error.message, "hint": c.error.hint} if c.error else None,
        "runtime": info,
        **figures,
        "latency": c.timing.latency if c.timing else None,
        "ratio": ratio,
        "gains": gained,
        "picked": False,
        "pareto": False,
        "reason": "",
    }
