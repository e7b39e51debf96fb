"""The rescue ladder of `quantize --max-drop`: more is done to a model, rung by rung, until its accuracy holds.

Each rung is a pass with other options, kept in the store; each is held against the source in the runtime it ships for.
What it costs in size and latency is measured for all rungs tried, beside the float model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lepton_edge import bench, registry, stages
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import Feed
from lepton_edge.recipe import Recipe
from lepton_edge.stages import Answers, Model, Road

Proven = tuple[Model, Answers, dict]


@dataclass(frozen=True)
class Rung:
    """One way to quantize, by the options of the pass that it needs; `what` it adds to the rung before."""

    name: str
    what: str
    options: dict = field(default_factory=dict)


RUNGS = (
    Rung("minmax", "ranges from the extremes, weights rounded to the nearest", {"rung": "minmax"}),
    Rung("ranges", "ranges by the error they cause", {"rung": "ranges"}),
    Rung("balance", "channels equalized or smoothed", {"rung": "balance"}),
    Rung("bias", "biases corrected", {"rung": "bias"}),
    Rung("rounding", "weights refitted, with learned rounding", {"rung": "rounding"}),
    Rung("wide", "16-bit activations for the layers with half of the noise", {"rung": "rounding", "wide": 0.5}),
    Rung("float", "float for the layers with half of the noise", {"rung": "rounding", "kept": 0.5}),
    Rung("more float", "float for the layers with nine tenths of it", {"rung": "rounding", "kept": 0.9}),
)


@dataclass(frozen=True)
class Tried:
    """What came of one rung: the model with its answers and figures, or why it cannot be had."""

    rung: Rung
    model: Model | None = None
    answers: Answers | None = None
    figures: dict | None = None
    error: LeptonError | None = None

    @property
    def drop(self) -> float:
        """Points of top-1 lost; infinity where there is no model."""
        return float("inf") if self.figures is None else self.figures["drop_points"]


def climb(
    road: Road, prove: Callable[[dict[str, dict]], Proven], options: dict[str, dict], max_drop: float
) -> list[Tried]:
    """The rungs up to the first whose drop is at most ``max_drop`` points; ``prove`` makes and judges one.

    ``options`` are those of each verb, a rung's own come on top. Raises LeptonError where not even the first, which
    does least, can be had: what stops it stops the others.
    """
    tried: list[Tried] = []
    for rung in RUNGS:
        road.progress.stage(f"rung '{rung.name}': {rung.what}")
        more = {**options, "quantize": {**options.get("quantize", {}), **rung.options}}
        try:
            tried.append(Tried(rung, *prove(more)))
        except LeptonError as error:
            if not tried:
                raise
            tried.append(Tried(rung, error=error))
        if tried[-1].drop <= max_drop:
            break
    return tried


def best(tried: Sequence[Tried], max_drop: float) -> Proven:
    """The model of the rung that met the limit, or of the one that loses least, with its answers and figures."""
    made = [(t.model, t.answers, t.figures) for t in tried if t.model and t.answers and t.figures]
    met = (m for m in made if m[2]["drop_points"] <= max_drop)
    return next(met, min(made, key=lambda m: m[2]["drop_points"]))


def costs(road: Road, tried: Sequence[Tried], plain: Model, feed: Feed, recipe: Recipe, threads: int) -> list[dict]:
    """A row for each rung: its figures, size and latency, and its time as a ratio of the float model ``plain``.

    ``feed`` holds samples in the source model's names.
    """
    runtime = registry.runtime_for(plain.art.format)
    own = stages.feed_for(road, plain, feed).folder
    entrants = [bench.Entrant("float32", plain.art.path, runtime, own)]
    entrants += [
        bench.Entrant(t.rung.name, t.model.art.path, runtime, t.answers.feed.folder)
        for t in tried
        if t.model and t.answers
    ]
    timings = stages.timed(road, entrants, recipe.bench, threads, "rungs")
    ratios = bench.ratios(timings, {t.rung.name: "float32" for t in tried if t.rung.name in timings})
    return [_row(t, timings.get(t.rung.name), ratios.get(t.rung.name)) for t in tried]


def _row(t: Tried, timing: bench.Timing | None, ratio: dict | None) -> dict:
    figures = t.figures or {"drop_points": None, "parity": {"sqnr_db": None}}
    return {
        "rung": t.rung.name,
        "what": t.rung.what,
        "drop_points": figures["drop_points"],
        "sqnr_db": figures["parity"]["sqnr_db"],
        "size_bytes": t.model.art.size_bytes if t.model else None,
        "latency": timing.latency if timing else None,
        "ratio": ratio,
        "error": t.error.message if t.error else None,
    }
