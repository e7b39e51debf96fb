"""Structured pruning on one screen: an ONNX file and samples in, a smaller net out, nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant.core import TYPICAL, Picked, decibels, distance_of, rebased, take
from lepton_edge.quant.core import Options as Quantizing
from lepton_edge.quant.net import Net
from lepton_edge.quant.place import place
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.streams import principal
from lepton_edge.quant.tap import BUDGET, Sample
from lepton_edge.slim.budget import allocate
from lepton_edge.slim.cost import Meter
from lepton_edge.slim.explicit import explicit
from lepton_edge.slim.families import Family, families
from lepton_edge.slim.fold import folded
from lepton_edge.slim.moments import moments
from lepton_edge.slim.order import order, ranked
from lepton_edge.slim.remove import gone, removed, renewed
from lepton_edge.slim.repair import layers_of, repaired
from lepton_edge.slim.sensitivity import Curve, measure
from lepton_edge.slim.trace import Trace, trace

Told = Callable[[int, int, str], None]
BASED = 48  # samples that bases of streams are found on
REPAIRED = 160  # samples that weights are fitted on, for a model of TYPICAL multiply-accumulates
JUDGED = 12  # samples that sensitivities are measured on, likewise


@dataclass(frozen=True)
class Options:
    """`macs`: share of the multiply-accumulates that stay; `round_to`: channels of layers come in multiples of it;
    `kept`: layers (first outputs of nodes) left alone; `repair`: fit what is left by least squares."""

    macs: float = 0.8
    round_to: int = 8
    importance: str = "reconstruction"
    kept: tuple[str, ...] = ()
    repair: bool = True
    seed: int = 0
    memory: int = BUDGET


@dataclass(frozen=True)
class Pruned:
    """The smaller `net`; `figures` are what was measured on the way."""

    net: Net
    figures: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A prepared net, what can be removed from it and what that costs: made once, used for any budget."""

    trace: Trace
    families: list[Family]
    left: dict[str, str]
    meter: Meter
    stats: dict
    curves: list[Curve]


def prune(
    path: str,
    samples: Sequence[Sample],
    options: Options = Options(),
    told: Told | None = None,
    *,
    labels: np.ndarray | None = None,
) -> Pruned:
    """Remove channels from a float ONNX model until it takes `options.macs` of its multiply-accumulates.

    Raises LeptonError for a file that cannot be prepared, for no samples, for samples that do not fit or hold NaN, for
    a model with nothing to remove, and for a share that its narrowest form is above.
    """
    found = study(path, samples, options, told, labels=labels)
    return apply(found, samples, options, told)


def study(
    path: str,
    samples: Sequence[Sample],
    options: Options,
    told: Told | None = None,
    *,
    labels: np.ndarray | None = None,
) -> Study:
    """Find what can be removed from a model and measure what it costs; see prune(). `labels` [samples] are for the
    importance "taylor", which asks the model itself where there are none."""
    tell = told or (lambda done, total, what: None)
    if not len(samples):
        raise LeptonError("no calibration samples", "give at least one; 100 to 500 are usual")
    shown, held_back = divided(samples)
    net = prepare(path)
    if options.importance != "magnitude":
        net = rebased(
            net, place(net), take(shown, BASED), Quantizing(seed=options.seed, memory=options.memory), principal
        )
    explicit(net)
    t = trace(net)
    known(t, options.kept, Path(path).name)
    found, left = families(t, options.round_to, options.kept)
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:3])
        raise LeptonError(
            f"{Path(path).name}: none of its channels can be removed" + (f" ({reasons})" if reasons else ""),
            "set weights to zero instead: method weights or 2:4",
        )
    meter = Meter(t, found)
    held_back = take(held_back, scaled(JUDGED, meter.total))
    consumers = list({(c.node, c.axis): c for family in found for c in family.consumers}.values())
    stats = moments(
        net, consumers, shown, memory=options.memory, seed=options.seed,
        told=lambda done: tell(done, len(shown), "calibration samples"),
    )  # fmt: skip
    scores: list[np.ndarray] | None = None
    if options.importance == "taylor":
        from lepton_edge.slim.taylor import scored

        shown_labels = None if labels is None else labels[learned(samples)]
        scores = scored(
            t, found, shown, shown_labels, Path(path).name, options.seed,
            lambda done, total: tell(done, total, "gradients of channels, sample"),
        )  # fmt: skip
    orders = []
    for k, family in enumerate(found):
        by = scores[k] if scores is not None else None
        orders.append(order(t, family, stats, options.importance) if by is None else ranked(family, by))
        tell(k + 1, len(found), "ranking channels, family")
    curves = measure(
        t,
        found,
        orders,
        stats,
        held_back,
        lambda done, total: tell(done, total, "measuring what channels are worth, family"),
    )
    return Study(t, found, left, meter, stats, curves)


def apply(found: Study, samples: Sequence[Sample], options: Options, told: Told | None = None) -> Pruned:
    """The studied net at a share of its multiply-accumulates; without samples nothing is repaired or measured."""
    tell = told or (lambda done, total, what: None)
    t = found.trace
    widths = allocate(found.meter, found.families, found.curves, options.macs)
    lost = gone(t, np.concatenate([curve.lost(width) for curve, width in zip(found.curves, widths, strict=True)]))
    made = renewed(removed(t, lost, folded(t, lost, found.stats)))
    if options.repair and len(samples):
        kept = kept_outputs(t, lost)
        made = repaired(
            t.net, made, kept, take(samples, scaled(REPAIRED, found.meter.total)),
            told=lambda done, total: tell(done, total, "fitting weights, layer"),
        )  # fmt: skip
    figures = {
        "macs": {"before": found.meter.total, "after": found.meter.macs(widths)},
        "widths": {
            f.name: [width * f.each, len(f.members) * f.each] for f, width in zip(found.families, widths, strict=True)
        },
        "left": found.left,
    }
    if len(samples):
        figures["calibration_sqnr_db"] = decibels(distance_of(t.net, made, take(samples, 32)))
    return Pruned(made, figures)


def kept_outputs(t: Trace, lost: np.ndarray) -> dict[str, np.ndarray | None]:
    """For repaired(): which outputs of a layer are left; None where rows of it went too (a layer applied by head)."""
    made: dict[str, np.ndarray | None] = {}
    for layer in layers_of(t.net):
        axis = 1 if layer.op.startswith("Conv") else (t.rank(layer.y) or 1) - 1
        axes = t.of(layer.y)
        if any(lost[channels].any() for at, channels in axes.items() if at != axis):
            made[layer.y] = None
        elif axis in axes:
            made[layer.y] = ~lost[axes[axis]]
    return made


def known(t: Trace, kept: Collection[str], name: str) -> None:
    """Raise LeptonError where a layer that is to be kept is none."""
    for wanted in kept:
        if wanted not in t.producers:
            raise LeptonError(
                f"{name}: no layer makes '{wanted}', which was to be kept",
                f"layers are named by what they make: {', '.join(list(t.producers)[:5])} ...",
            )


def divided(samples: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Samples to learn from, and a quarter to judge by: weights that take over for others fit the samples they were
    learned from far too well. A single sample is both."""
    return Picked(samples, learned(samples)), Picked(samples, np.arange(0, len(samples), 4))


def learned(samples: Sequence[Sample]) -> np.ndarray:
    """Positions of the samples that are learned from."""
    others = np.setdiff1d(np.arange(len(samples)), np.arange(0, len(samples), 4))
    return others if len(others) else np.arange(len(samples))


def scaled(samples: int, macs: int) -> int:
    """More samples for models that run fast, fewer for slow ones."""
    return max(8, round(samples * min(max(TYPICAL / max(macs, 1), 1 / 3), 4.0)))
