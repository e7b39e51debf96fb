"""Channels removed from a net: constants sliced, the sizes that name them counted again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from lepton_edge.quant.net import Net, from_proto, to_proto
from lepton_edge.slim.trace import Trace


def gone(t: Trace, members: Iterable[int]) -> np.ndarray:
    """Which channels go when these roots do: bool [channels]."""
    wanted = np.zeros(len(t.channels), bool)
    wanted[list(members)] = True
    return wanted[t.channels.roots()]


def removed(t: Trace, lost: np.ndarray, net: Net | None = None) -> Net:
    """A copy of the traced net, or of `net`, which is the same but for constants, without the channels that are `lost`
    (bool [channels]); names of tensors stay.

    Outputs are those of the net whose removed channels hold zeros and go into their readers with zero weights.
    """
    made = (net or t.net).copy()
    edits = _cut(t, lost, made)
    for count in t.counts:
        value = int((~lost[count.channels]).sum())
        node = made.nodes[count.node]
        if count.attribute:
            _set(node, count.attribute, value)
        else:
            edits.setdefault((count.node, count.port), _input(made, node, count.port).copy())[count.at] = value
    for remap in t.remaps:
        kept = ~lost[remap.channels]
        indices = _input(made, made.nodes[remap.node], remap.port) % len(kept)
        edits[remap.node, remap.port] = (np.cumsum(kept) - 1)[indices[kept[indices]]].astype(indices.dtype)
    _put(made, edits)
    return made


def renewed(net: Net) -> Net:
    """The net with the shapes that its tensors now have; for what has been edited."""
    made = from_proto(to_proto(net))
    for before, after in zip(net.nodes, made.nodes, strict=True):
        after.name = before.name
    return made


def _cut(t: Trace, lost: np.ndarray, net: Net) -> dict[tuple[int, int], np.ndarray]:
    edits: dict[tuple[int, int], np.ndarray] = {}
    for cut in t.cuts:
        kept = ~lost[cut.channels]
        if kept.all():
            continue
        if not kept.any():
            raise ValueError(f"{t.net.nodes[cut.node].name} would lose all of its channels")
        at = cut.node, cut.port
        array = edits.get(at, _input(net, net.nodes[cut.node], cut.port))
        edits[at] = np.compress(kept, array, axis=cut.axis)
    return edits


def _input(net: Net, node: Any, port: int) -> np.ndarray:
    return net.consts[node.input[port]]


def _put(net: Net, edits: dict[tuple[int, int], np.ndarray]) -> None:
    """Give nodes their own constants; readers of one constant that lose the same still share it."""
    made: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
    for (k, port), array in edits.items():
        old = net.nodes[k].input[port]
        if net.private(old):
            net.consts[old] = array
            continue
        key = old, array.tobytes(), array.shape
        if key not in made:
            made[key] = net.fresh(f"{old}_pruned")
            net.consts[made[key]] = array
        net.nodes[k].input[port] = made[key]
    net.link()


def _set(node: Any, name: str, value: int) -> None:
    for attribute in node.attribute:
        if attribute.name == name:
            attribute.i = value
