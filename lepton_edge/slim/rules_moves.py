"""Channels through operators that only move values.

A reshape that merges axes repeats each channel for all that it becomes; of two axes with channels the first keeps
them. One that splits channels keeps them on one of the new axes, and joins what lies along the others: the last but one
of a split last axis (heads of attention), the longest elsewhere (channel shuffle).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lepton_edge.quant.net import attribute
from lepton_edge.slim.trace import Count, Remap, Trace

FREE = 1_000_003  # stands for the size of a free axis


def reshape(t: Trace, k: int, node: Any) -> None:
    """Reshape to constant sizes, and Flatten."""
    x, y = node.input[0], node.output[0]
    shapes = [t.net.shapes.get(name) for name in (x, y)]
    target = t.const(node, 1)
    if shapes[0] is None or shapes[1] is None or (node.op_type == "Reshape" and target is None):
        return t.stop(node)
    for ins, outs in blocks(shapes[0], shapes[1]) or [(tuple(range(len(shapes[0]))), ())]:
        held = [axis for axis in ins if axis in t.of(x)]
        if not held:
            continue
        t.pin(x, f"{node.op_type} mixes them with others", ins if not outs else tuple(held[1:]))
        if not outs:
            continue
        sizes = [_size(shapes[0][axis]) for axis in ins], [_size(shapes[1][axis]) for axis in outs]
        stacked = [at for at, axis in enumerate(outs) if _stacked(t, y, axis)]
        last = held[0] == len(shapes[0]) - 1
        found = _reshaped(t, t.of(x)[held[0]], ins.index(held[0]), *sizes, stacked, last=last)
        t.give(y, outs[found[0]], found[1])
        if target is not None:
            t.counts.append(Count(k, 1, outs[found[0]], found[1]))
    return None


def _size(dim: int | None) -> int:
    return FREE if dim is None else dim


def blocks(
    before: Sequence[int | None], after: Sequence[int | None]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]] | None:
    """Axes before and after a reshape in runs of equal size, in order; None where they cannot be told."""
    a, b = [_size(d) for d in before], [_size(d) for d in after]
    if 0 in a + b or np.prod(a, dtype=object) != np.prod(b, dtype=object):
        return None
    made: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(a) and j < len(b):
        first, second, start = a[i], b[j], (i, j)
        i, j = i + 1, j + 1
        while first != second:
            if first < second:
                first, i = first * a[i], i + 1
            else:
                second, j = second * b[j], j + 1
        made.append((tuple(range(start[0], i)), tuple(range(start[1], j))))
    if made and (i < len(a) or j < len(b)):  # ones at the end
        ins, outs = made.pop()
        made.append(((*ins, *range(i, len(a))), (*outs, *range(j, len(b)))))
    return made


def _reshaped(
    t: Trace, channels: np.ndarray, at: int, before: list[int], after: list[int], stacked: list[int], last: bool
) -> tuple[int, np.ndarray]:
    """The axis (of `after`) that keeps the channels of axis `at` (of `before`), and its channels."""
    wide = [axis for axis, size in enumerate(after) if size > 1] or [0]
    if sum(size > 1 for size in before) <= 1 and len(wide) == 1:
        return wide[0], channels
    lead = [1] * len(before)
    lead[at] = -1
    spread = np.broadcast_to(channels.reshape(lead), before).reshape(after)
    if len(wide) == 1:
        return wide[0], spread.reshape(-1)
    for axis in wide:
        rows = np.moveaxis(spread, axis, 0).reshape(after[axis], -1)
        if (rows == rows[:, :1]).all():
            return axis, rows[:, 0].copy()
    wide = [axis for axis in wide if axis not in stacked] or wide
    axis = wide[-2:][0] if last else max(wide, key=lambda k: (after[k], k))
    rows = np.moveaxis(spread, axis, 0).reshape(after[axis], -1)
    for column in np.unique(rows, axis=1).T:
        t.channels.join(rows[:, 0], column)
    return axis, rows[:, 0].copy()


def _stacked(t: Trace, tensor: str, axis: int) -> bool:
    """Whether things of different kinds lie along an axis (queries, keys, values): it is taken apart by its index."""
    for node in t.net.users.get(tensor, ()):
        rank = t.rank(tensor) or 0
        if node.op_type in ("Gather", "Split", "Slice") and node.input[0] == tensor:
            axes = t.const(node, 3) if node.op_type == "Slice" else [attribute(node, "axis", 0)]
            if axes is not None and axis in [int(a) % rank for a in axes]:
                return True
        elif node.op_type == "Transpose":
            perm = attribute(node, "perm") or list(range(rank))[::-1]
            if _stacked(t, node.output[0], list(perm).index(axis)):
                return True
        elif node.op_type in ("Squeeze", "Unsqueeze"):
            at = _moved(t, node).get(axis)
            if at is not None and _stacked(t, node.output[0], at):
                return True
    return False


def transpose(t: Trace, k: int, node: Any) -> None:
    """Axes trade places."""
    x, rank = node.input[0], t.rank(node.input[0])
    if rank is None:
        return t.stop(node)
    perm = attribute(node, "perm") or list(range(rank))[::-1]
    for axis, channels in t.of(x).items():
        t.give(node.output[0], list(perm).index(axis), channels)
    return None


def concat(t: Trace, k: int, node: Any) -> None:
    """Channels one after the other; what has none brings fixed ones. Other axes go together."""
    names, rank = list(node.input), t.rank(node.output[0])
    shapes = [t.net.shapes.get(name) for name in names]
    if rank is None or any(shape is None for shape in shapes):
        return t.stop(node)
    axis = int(attribute(node, "axis", 0)) % rank
    for at in range(rank):
        held = [t.of(name).get(at) for name in names]
        if all(channels is None for channels in held):
            continue
        parts: list[np.ndarray] = []
        for name, shape, channels in zip(names, shapes, held, strict=True):
            size = shape[at] if shape else None
            if channels is None and size is None:
                return t.stop(node)
            if channels is None:
                channels = t.channels.fresh(int(size or 0))
                t.channels.pin(channels, f"Concat with '{name}', which keeps its channels")
            parts.append(channels)
        if at == axis:
            t.give(node.output[0], at, np.concatenate(parts))
        else:
            for one, other in pairwise(parts):
                t.channels.join(one, other)
            t.give(node.output[0], at, parts[0])
    return None


def split(t: Trace, k: int, node: Any) -> None:
    """Parts of an axis; their sizes are a constant (see explicit())."""
    x, rank, sizes = node.input[0], t.rank(node.input[0]), t.const(node, 1)
    if rank is None or sizes is None:
        return t.stop(node)
    axis = int(attribute(node, "axis", 0)) % rank
    starts = [0, *np.cumsum(sizes).tolist()]
    for at, channels in t.of(x).items():
        for part, out in enumerate(node.output):
            if at != axis:
                t.give(out, at, channels)
                continue
            some = channels[starts[part] : starts[part + 1]]
            t.give(out, at, some)
            t.counts.append(Count(k, 1, part, some))
    return None


def slice_(t: Trace, k: int, node: Any) -> None:
    """Whole axes, and runs of channels."""
    x, shape = node.input[0], t.net.shapes.get(node.input[0])
    starts, ends, axes, steps = (t.const(node, port) for port in (1, 2, 3, 4))
    given = [port < len(node.input) and bool(node.input[port]) for port in (3, 4)]
    if shape is None or starts is None or ends is None or (given[0] and axes is None) or (given[1] and steps is None):
        return t.stop(node)
    where = [int(a) % len(shape) for a in (axes if axes is not None else range(len(starts)))]
    for at, channels in t.of(x).items():
        if at not in where:
            t.give(node.output[0], at, channels)
            continue
        part = where.index(at)
        step = 1 if steps is None else int(steps[part])
        run = slice(int(starts[part]), int(ends[part])).indices(len(channels))
        if step != 1 or run[1] <= run[0]:
            t.pin(x, "Slice with steps", (at,))
            continue
        t.give(node.output[0], at, channels[run[0] : run[1]])
        t.counts.append(Count(k, 1, part, channels[: run[0]]))
        t.counts.append(Count(k, 2, part, channels[: run[1]]))
    return None


def gather(t: Trace, k: int, node: Any) -> None:
    """Constant indices: of channels, or along another axis."""
    x, rank, indices = node.input[0], t.rank(node.input[0]), t.const(node, 1)
    if rank is None or indices is None:
        return t.stop(node)
    axis = int(attribute(node, "axis", 0)) % rank
    for at, channels in t.of(x).items():
        if at < axis:
            t.give(node.output[0], at, channels)
        elif at > axis:
            t.give(node.output[0], at + indices.ndim - 1, channels)
        elif indices.ndim == 1:
            t.give(node.output[0], at, channels[indices])
            t.remaps.append(Remap(k, 1, channels))
        else:
            t.pin(x, "Gather of single ones", (at,))
    return None


def squeeze(t: Trace, k: int, node: Any) -> None:
    """Axes of size 1 go, or come."""
    moved = _moved(t, node)
    if not moved:
        return t.stop(node)
    for at, channels in t.of(node.input[0]).items():
        t.give(node.output[0], moved[at], channels)
    return None


def _moved(t: Trace, node: Any) -> dict[int, int]:
    """Where the axes of the input of Squeeze or Unsqueeze are in its output; empty where that is not known."""
    x, y = node.input[0], node.output[0]
    ranks, axes = (t.rank(x), t.rank(y)), t.const(node, 1)
    if ranks[0] is None or ranks[1] is None or (len(node.input) > 1 and axes is None):
        return {}
    more = node.op_type == "Unsqueeze"
    wide = ranks[1] if more else ranks[0]
    ones = [d for d, size in enumerate(t.net.shapes[x]) if size == 1]
    changed = {int(a) % wide for a in axes.reshape(-1)} if axes is not None else set(ones)
    left = [axis for axis in range(wide) if axis not in changed]  # axes of the wide tensor that the narrow one has
    return dict(enumerate(left)) if more else {axis: k for k, axis in enumerate(left)}


def pad(t: Trace, k: int, node: Any) -> None:
    """Axes that are not padded carry their channels."""
    x, rank, pads, axes = node.input[0], t.rank(node.input[0]), t.const(node, 1), t.const(node, 3)
    if rank is None or pads is None or (len(node.input) > 3 and node.input[3] and axes is None):
        return t.stop(node)
    where = [int(a) % rank for a in axes] if axes is not None else list(range(rank))
    padded = {axis for part, axis in enumerate(where) if pads[part] or pads[part + len(where)]}
    t.pin(x, "padded with more channels", tuple(padded))
    for at, channels in t.of(x).items():
        if at not in padded:
            t.give(node.output[0], at, channels)
    return None


def resize(t: Trace, k: int, node: Any) -> None:
    """Axes that keep their size carry their channels; sizes that name them are counted again."""
    x, before, after = node.input[0], t.net.shapes.get(node.input[0]), t.net.shapes.get(node.output[0])
    if before is None or after is None or len(before) != len(after):
        return t.stop(node)
    port, sizes = len(node.input) - 1, t.const(node, len(node.input) - 1)
    axes = [int(a) % len(before) for a in attribute(node, "axes") or range(len(before))]
    for at, channels in t.of(x).items():
        if before[at] != after[at] or sizes is None:
            t.pin(x, f"{node.op_type} along them", (at,))
            continue
        t.give(node.output[0], at, channels)
        if at in axes and sizes.dtype == np.int64:
            t.counts.append(Count(k, port, axes.index(at), channels))
    return None


RULES = {
    "Reshape": reshape, "Flatten": reshape, "Transpose": transpose, "Concat": concat, "Split": split, "Slice": slice_,
    "Gather": gather, "Squeeze": squeeze, "Unsqueeze": squeeze, "Pad": pad, "Resize": resize, "Expand": resize,
}  # fmt: skip
