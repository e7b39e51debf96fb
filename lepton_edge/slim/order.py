"""The order in which a family's members go, least important first.

- reconstruction: backward elimination. The member goes whose loss, after the weights of what is left have taken over
  what they can, changes the outputs of the family's readers least; the inverse covariance and the weights are then
  those without it (Hassibi & Stork, "Optimal Brain Surgeon", NeurIPS 1992, for groups as in Kurtic et al., "ZipLM",
  arXiv:2302.04089). Errors are shares of the variance of a reader's output, summed over readers.
- activation: E[(x - mean)^2] |w|^2 of each member, nothing taken over (An et al., "FLAP", arXiv:2312.11983).
- magnitude: the sum of squares of all weights that make the member;
- taylor: what the loss changes by without it, by gradients (taylor.py, which needs PyTorch).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lepton_edge.slim.families import Family
from lepton_edge.slim.moments import Place, Stats, by_channel
from lepton_edge.slim.trace import Trace

IMPORTANCE = ("reconstruction", "activation", "magnitude", "taylor")
STEPS = 48  # removals of a family at most; members go in batches


def order(t: Trace, family: Family, stats: Mapping[Place, Stats], importance: str = "reconstruction") -> np.ndarray:
    """The members of a family, least important first: int64 [members]."""
    roots = t.channels.roots()
    readers = [_Reader(t, c.weight, c.weight_axis, stats[c.x, c.axis].covariance, _places(roots[c.channels], family))
               for c in family.consumers if (c.x, c.axis) in stats]  # fmt: skip
    if importance == "magnitude" or not readers:
        return family.members[np.argsort(_magnitude(t, family, roots), kind="stable")]
    if importance == "activation":
        return family.members[np.argsort(sum(r.alone() for r in readers), kind="stable")]
    left = np.ones(len(family.members), bool)
    batch = max(1, len(left) // STEPS)
    gone: list[int] = []
    while left.sum() > family.least:
        losses = np.where(left, sum(r.losses(left) for r in readers), np.inf)
        some = np.argsort(losses, kind="stable")[: min(batch, int(left.sum()) - family.least)]
        for reader in readers:
            reader.remove(some)
        left[some] = False
        gone += some.tolist()
    losses = np.where(left, sum(r.losses(left) for r in readers), np.inf)
    gone += [k for k in np.argsort(losses, kind="stable").tolist() if left[k]]
    return family.members[gone]


def ranked(family: Family, scores: np.ndarray) -> np.ndarray:
    """The members of a family by their scores [members], the least first."""
    return family.members[np.argsort(scores, kind="stable")]


def _places(channels: np.ndarray, family: Family) -> np.ndarray:
    """Where each member lies among a reader's channels: int64 [members, times]."""
    at = {int(root): k for k, root in enumerate(family.members)}
    found: list[list[int]] = [[] for _ in family.members]
    for place, root in enumerate(channels.tolist()):
        if root in at:
            found[at[root]].append(place)
    return np.array(found)


def _magnitude(t: Trace, family: Family, roots: np.ndarray) -> np.ndarray:
    """Sum of squares of the constants that each member would take with it, as far as they make it: not its readers."""
    at = {int(root): k for k, root in enumerate(family.members)}
    reads = {(c.node, c.weight_axis) for c in t.consumers}
    total = np.zeros(len(family.members))
    for cut in t.cuts:
        value = t.net.consts[t.net.nodes[cut.node].input[cut.port]]
        owners = roots[cut.channels]
        if value.ndim < 2 or (cut.node, cut.axis) in reads or not set(owners.tolist()) & at.keys():
            continue
        for channel, power in zip(owners.tolist(), (by_channel(value, cut.axis) ** 2).sum(1), strict=True):
            if channel in at:
                total[at[channel]] += power
    return total


class _Reader:
    """One layer that sums over a family's channels: inverse covariance and weights [channels, outputs]."""

    def __init__(self, t: Trace, weight: str, axis: int, covering: np.ndarray, places: np.ndarray) -> None:
        self._places = places
        self._power = np.diag(covering).copy()
        self._inverse = np.linalg.inv(covering)
        w = by_channel(t.net.consts[weight], axis)
        if w.shape[1] > w.shape[0]:  # only its Gram matrix counts
            w = np.asarray(np.linalg.qr(w.T, mode="r")).T
        self._w = w
        self._whole = max(float(np.einsum("co,co->", covering @ w, w)), 1e-30)

    def alone(self) -> np.ndarray:
        """Share of the output's variance that each member brings if nothing takes over."""
        return (self._power * (self._w**2).sum(1))[self._places].sum(1) / self._whole

    def losses(self, left: np.ndarray) -> np.ndarray:
        """Share of the output's variance lost with each member that is `left`."""
        if self._places.shape[1] == 1:
            at = self._places[:, 0]
            return (self._w[at] ** 2).sum(1) / np.maximum(np.diag(self._inverse)[at], 1e-30) / self._whole
        found = np.zeros(len(left))
        for k in np.flatnonzero(left):
            at = self._places[k]
            block = self._inverse[np.ix_(at, at)]
            found[k] = np.einsum("co,co->", np.linalg.solve(block, self._w[at]), self._w[at]) / self._whole
        return found

    def remove(self, some: np.ndarray) -> None:
        """Take members out; what is left takes over what it can."""
        at = self._places[some].reshape(-1)
        columns = self._inverse[:, at]
        taken = np.linalg.solve(columns[at], np.concatenate([columns.T, self._w[at]], axis=1))
        self._w = self._w - columns @ taken[:, len(self._inverse) :]
        self._inverse = self._inverse - columns @ taken[:, : len(self._inverse)]
        self._w[at] = 0.0
        self._inverse[at] = self._inverse[:, at] = 0.0
        self._inverse[at, at] = 1.0
