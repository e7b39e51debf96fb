"""What narrower families cost, measured at the outputs on calibration samples, each family alone."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lepton_edge.quant.place import Placement
from lepton_edge.quant.search import distance, measured
from lepton_edge.quant.segments import Kept, Segment, cut, run_all, sub_net
from lepton_edge.quant.tap import Runner, Sample
from lepton_edge.slim.families import Family
from lepton_edge.slim.fold import folded
from lepton_edge.slim.moments import Place, Stats
from lepton_edge.slim.remove import gone, removed
from lepton_edge.slim.repair import layers_of
from lepton_edge.slim.trace import Trace

POINTS = 4  # widths of a family that are measured
NARROWEST = 0.2  # of a family's width


@dataclass(frozen=True)
class Curve:
    """A family's members, least important first, and the error at the outputs (noise over power) at some widths,
    falling to 0 at the whole family's; `widths` rise."""

    order: np.ndarray
    widths: np.ndarray
    errors: np.ndarray

    def error(self, width: int) -> float:
        """The error at any width: measured ones are joined by straight lines in the logarithm, the last and 0 by one
        in the error itself."""
        if width >= self.widths[-2]:
            return float(np.interp(width, self.widths[-2:], self.errors[-2:]))
        return float(np.exp(np.interp(width, self.widths[:-1], np.log(self.errors[:-1] + 1e-12))))

    def lost(self, width: int) -> np.ndarray:
        """The members that go at a width."""
        return self.order[: len(self.order) - width]


def levels(family: Family, points: int) -> list[int]:
    """Up to `points` widths below the whole family's, in multiples of its unit, rising."""
    lowest = max(family.unit, int(np.ceil(NARROWEST * len(family.members) / family.unit)) * family.unit)
    every = np.arange(lowest, len(family.members), family.unit)
    if len(every) <= points:
        return every.tolist()
    return np.unique(every[np.linspace(0, len(every) - 1, points).round().astype(int)]).tolist()


def measure(
    t: Trace,
    families: Sequence[Family],
    orders: Sequence[np.ndarray],
    stats: Mapping[Place, Stats],
    samples: Sequence[Sample],
    told: Callable[[int, int], None] | None = None,
) -> list[Curve]:
    """The curve of each family; its readers' weights take over what they can (fold.py), nothing else is repaired."""
    ends = measured(t.net)
    whole = Runner(t.net, ends)
    expected = [whole.run(sample) for sample in samples]
    curves: dict[int, Curve] = {}
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        for f, segment, entering in _tails(t, families, samples, Path(folder)):
            family, order = families[f], orders[f]
            tail = replace(segment, last=len(t.net.nodes), gives=tuple(e for e in ends if _after(t, segment, e)))
            wanted = [[values[ends.index(e)] for e in tail.gives] for values in expected]
            widths, errors = levels(family, POINTS), []
            for width in widths:
                lost = gone(t, order[: len(order) - width])
                runner = Runner(sub_net(removed(t, lost, folded(t, lost, stats)), tail), tail.gives)
                got = [runner.run({name: sample[name] for name in tail.takes}) for sample in entering]
                errors.append(distance(wanted, got) * len(tail.gives) / len(ends))
            falling = np.maximum.accumulate([0.0, *errors[::-1]])[::-1]
            curves[f] = Curve(order, np.array([*widths, len(order)]), falling)
            if told:
                told(len(curves), len(families))
    return [curves[f] for f in range(len(families))]


def _tails(
    t: Trace, families: Sequence[Family], samples: Sequence[Sample], folder: Path
) -> Iterator[tuple[int, Segment, Sequence[Sample] | Kept]]:
    """Each family by index, in the order of the net, with the segment that its first change lies in, and what enters
    that segment for each sample: nothing before it has to be run again."""
    roots = t.channels.roots()
    first = [min(cut_.node for cut_ in t.cuts if np.isin(roots[cut_.channels], f.members).any()) for f in families]
    segments = cut(t.net, Placement(tuple(layers_of(t.net)), (), (), False, frozenset()), 1)
    at = 0
    entering: Sequence[Sample] | Kept = samples
    for f in sorted(range(len(families)), key=lambda f: first[f]):
        while segments[at].last <= first[f]:
            after = Kept(folder / str(at), segments[at].gives)
            run_all(sub_net(t.net, segments[at]), entering, after)
            if isinstance(entering, Kept):
                entering.drop()
            at, entering = at + 1, after
        yield f, segments[at], entering


def _after(t: Trace, segment: Segment, tensor: str) -> bool:
    """Whether a tensor is made in the segment or behind it, or enters it."""
    return tensor in segment.takes or any(tensor in node.output for node in t.net.nodes[segment.first :])
