"""Axis orders. A *perm* says how a logical (ONNX) tensor is stored: stored axis k is logical axis perm[k].

An entry -1 is an axis of length one that the logical tensor doesn't have (the H of a 1-D convolution).
A TRANSPOSE in the ONNX graph then only renames axes; data moves only where an operator needs another order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Perm = tuple[int, ...]
Shape = tuple[int, ...]


def identity(rank: int) -> Perm:
    """The order ONNX itself uses."""
    return tuple(range(rank))


def channels_last(rank: int) -> Perm:
    """N, spatial axes, C for a tensor of N, C, spatial axes."""
    return (0, *range(2, rank), 1)


def stored_shape(shape: Shape, perm: Perm) -> Shape:
    """The shape of a tensor stored in the given order."""
    return tuple(1 if p < 0 else int(shape[p]) for p in perm)


def store(value: np.ndarray, perm: Perm) -> np.ndarray:
    """A constant rearranged into the given order."""
    moved = value.transpose([p for p in perm if p >= 0])
    return np.asarray(moved.reshape(stored_shape(value.shape, perm)), order="C")


def solid(shape: Shape, perm: Perm) -> Perm:
    """The axes longer than one, in stored order: two perms with equal `solid` hold the same bytes."""
    return tuple(p for p in perm if p >= 0 and shape[p] != 1)


def compose(perm: Perm, transpose: Sequence[int]) -> Perm:
    """The perm of y = transpose(x, axes) when x is stored as `perm` and no data moves."""
    where = {int(a): k for k, a in enumerate(transpose)}
    return tuple(-1 if p < 0 else where[p] for p in perm)


def pad_rank(perm: Perm, rank: int, target: int) -> Perm:
    """The perm of a tensor whose logical shape got leading ones up to rank `target`."""
    lead = target - rank
    return (*range(lead), *(-1 if p < 0 else p + lead for p in perm))


def drop_axes(perm: Perm, axes: Sequence[int]) -> Perm:
    """The perm after logical axes were removed (reduced without keepdims)."""
    gone = set(axes)
    rank = {a: i for i, a in enumerate(sorted(set(p for p in perm if p >= 0) - gone))}
    return tuple(-1 if p < 0 else rank[p] for p in perm if p not in gone)


def complete(order: Sequence[int], shape: Shape) -> Perm:
    """A full perm from the stored order of the long axes, placing axes of length one where they fit best."""
    rank, order = len(shape), tuple(order)
    for candidate in (identity(rank), channels_last(rank) if rank > 2 else identity(rank)):
        if solid(shape, candidate) == order:
            return candidate
    perm = list(order)
    for axis in (a for a in range(rank) if a not in order):
        perm.insert(perm.index(axis - 1) + 1 if axis else 0, axis)
    return tuple(perm)


def groups(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Splits a reshape into the smallest blocks of axes with equal products; axes of length one are left out."""
    a = [i for i, d in enumerate(before) if d != 1]
    b = [i for i, d in enumerate(after) if d != 1]
    blocks, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        left, right, m, n = [a[i]], [b[j]], before[a[i]], after[b[j]]
        while m != n:
            if m < n:
                i += 1
                left.append(a[i])
                m *= before[a[i]]
            else:
                j += 1
                right.append(b[j])
                n *= after[b[j]]
        blocks.append((left, right))
        i, j = i + 1, j + 1
    return blocks


def gather_blocks(before: Shape, perm: Perm, after: Shape) -> Perm:
    """The stored order nearest to `perm` from which the reshape moves nothing: each block's axes in a row."""
    order = solid(before, perm)
    blocks = sorted((left for left, _ in groups(before, after)), key=lambda left: order.index(left[-1]))
    return complete([a for left in blocks for a in left], before)


def reshape(before: Shape, perm: Perm, after: Shape) -> Perm | None:
    """The perm the reshaped tensor has when its bytes stay where they are, or None when they must move."""
    if 0 in before:
        return identity(len(after))
    order, position, result = solid(before, perm), 0, []
    blocks = {left[0]: (left, right) for left, right in groups(before, after)}
    while position < len(order):
        block = blocks.get(order[position])
        if block is None or list(order[position : position + len(block[0])]) != block[0]:
            return None
        result += block[1]
        position += len(block[0])
    return complete(result, after)
