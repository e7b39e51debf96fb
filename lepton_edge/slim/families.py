"""Channels that can be removed, in families: those that lie on the same axes of the same tensors.

The hidden channels of a block are one family, a residual stream with all that is added to it is one, what a layer
brings to a concatenation is one, the heads of an attention are one. A family's members are interchangeable: how many of
them stay is a width, which one goes is a matter of importance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from lepton_edge.slim.trace import Consumer, Trace


@dataclass(frozen=True)
class Family:
    """`members` are roots of channels; kept counts come in multiples of `unit`; `name` is the first layer that makes
    them, `each` how many channels of a layer a member is (32 for heads of 32)."""

    name: str
    members: np.ndarray
    unit: int
    each: int
    consumers: tuple[Consumer, ...]

    @property
    def least(self) -> int:
        """The smallest width."""
        return min(self.unit, len(self.members))


def families(t: Trace, round_to: int = 8, kept: Collection[str] = ()) -> tuple[list[Family], dict[str, str]]:
    """What can be pruned in multiples of `round_to` channels, and by layer name why others can't.

    `kept` names layers (nodes' first outputs) that stay as they are.
    """
    for name in kept:
        t.pin(name, "kept by request")
    roots = t.channels.roots()
    places: dict[int, list[tuple[int, int]]] = {}
    vectors = [channels for axes in t.axes.values() for channels in axes.values()]
    for k, channels in enumerate(vectors):
        for root, count in Counter(roots[channels].tolist()).items():
            places.setdefault(root, []).append((k, count))
    found: dict[tuple, list[int]] = {}
    for root, where in places.items():
        if t.channels.pinned(root) is None:
            found.setdefault(tuple(where), []).append(root)
    cuts: dict[int, set[int]] = {}
    for cut in t.cuts:
        for root, count in Counter(roots[cut.channels].tolist()).items():
            cuts.setdefault(root, set()).add(count)
    makers = {int(roots[c]): name for name, channels in reversed(t.producers.items()) for c in channels}
    made, left = [], _pinned(t)
    for members in found.values():
        counts = cuts.get(members[0])
        name = makers.get(members[0], "")
        if not name or not counts:
            continue
        unit = math.lcm(*(round_to // math.gcd(round_to, count) for count in counts))
        if len(members) <= unit:
            left.setdefault(name, f"{len(members)} channels are no more than one step of {unit}")
            continue
        mine = set(members)
        readers = tuple(c for c in t.consumers if mine & set(roots[c.channels].tolist()))
        made.append(Family(name, np.array(members), unit, max(counts), readers))
    return made, left


def _pinned(t: Trace) -> dict[str, str]:
    """By layer, why all of its channels stay."""
    left: dict[str, str] = {}
    for name, channels in t.producers.items():
        reasons = [t.channels.pinned(c) for c in channels.tolist()]
        if all(reason is not None for reason in reasons):
            left[name] = str(reasons[0])
    return left
