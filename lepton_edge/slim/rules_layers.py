"""Channels through layers with weights, and products of activations.

- Conv, ConvTranspose, Gemm, MatMul with constant weights: sum over the channels of their input, make new ones;
- depthwise convolutions carry them; in grouped ones whole groups go with their outputs or, where groups are few, every
  group loses the same channels;
- MatMul of two activations: batch axes go together, and so do the two axes that are summed over (heads of attention).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_edge.quant.net import attribute
from lepton_edge.slim.trace import Consumer, Count, Cut, Trace

LEAST = 2  # channels that a layer has to make for any of them to go


def conv(t: Trace, k: int, node: Any) -> None:
    """Weights [out, in / groups, ...], bias [out]."""
    weight, group = t.const(node, 1), int(attribute(node, "group", 1))
    if weight is None or (len(node.input) > 2 and node.input[2] and t.const(node, 2) is None):
        return t.stop(node)
    x, y = node.input[0], node.output[0]
    t.pin_but(x, (1,), f"an image axis of {node.op_type}")
    ins, outs = t.of(x).get(1), None
    if group == 1:
        if ins is not None:
            _consume(t, k, node, 1, 1, ins)
        outs = t.make(y, 1, weight.shape[0]) if weight.shape[0] >= LEAST else None
    elif ins is not None:
        many = weight.shape[0] // group
        if weight.shape[1] == 1:
            outs = np.repeat(ins, many)
        else:
            outs = t.make(y, 1, weight.shape[0])
            rows, made = ins.reshape(group, -1), outs.reshape(group, -1)
            if group < weight.shape[1]:  # every group loses the same of its inputs, and of its outputs
                for part in (rows, made):
                    for row in part[1:]:
                        t.channels.join(part[0], row)
                t.cuts.append(Cut(k, 1, 1, rows[0]))
                t.cuts.append(Cut(k, 1, 0, outs))
                return _bias(t, k, node, outs)
            for part in (rows, made):  # a group's inputs and outputs go as one
                for column in part.T:
                    t.channels.join(rows[:, 0], column)
        t.counts.append(Count(k, -1, 0, ins.reshape(group, -1)[:, 0], "group"))
        t.give(y, 1, outs)
    if outs is not None:
        t.cuts.append(Cut(k, 1, 0, outs))
        _bias(t, k, node, outs)
    return None


def _bias(t: Trace, k: int, node: Any, outs: np.ndarray) -> None:
    if t.const(node, 2) is not None:
        t.cuts.append(Cut(k, 2, 0, outs))


def conv_transpose(t: Trace, k: int, node: Any) -> None:
    """Weights [in, out / groups, ...], bias [out]."""
    weight, group = t.const(node, 1), int(attribute(node, "group", 1))
    if weight is None or (len(node.input) > 2 and node.input[2] and t.const(node, 2) is None):
        return t.stop(node)
    x, y = node.input[0], node.output[0]
    t.pin_but(x, (1,), f"an image axis of {node.op_type}")
    ins, outs = t.of(x).get(1), None
    if group == 1:
        if ins is not None:
            _consume(t, k, node, 1, 0, ins)
        if weight.shape[1] >= LEAST:
            outs = t.make(y, 1, weight.shape[1])
            t.cuts.append(Cut(k, 1, 1, outs))
    elif ins is not None and weight.shape[1] == 1:
        outs = ins
        t.cuts.append(Cut(k, 1, 0, ins))
        t.counts.append(Count(k, -1, 0, ins, "group"))
        t.give(y, 1, outs)
    elif ins is not None:
        return t.pin(x, "a transposed convolution in groups")
    if outs is not None:
        _bias(t, k, node, outs)
    return None


def gemm(t: Trace, k: int, node: Any) -> None:
    """Weights [in, out] or, transposed, [out, in]; a bias that is broadcast."""
    weight, x = t.const(node, 1), node.input[0]
    has_bias = len(node.input) > 2 and bool(node.input[2])
    bias = t.const(node, 2) if has_bias else None
    if weight is None or attribute(node, "transA", 0) or (has_bias and bias is None):
        return t.stop(node)
    transposed = bool(attribute(node, "transB", 0))
    ins = t.of(x).get(1)
    t.pin_but(x, (1,), "rows of a Gemm")
    if ins is not None:
        _consume(t, k, node, 1, 1 if transposed else 0, ins)
    axis = 0 if transposed else 1
    if weight.shape[axis] < LEAST:
        return None
    outs = t.make(node.output[0], 1, weight.shape[axis])
    t.cuts.append(Cut(k, 1, axis, outs))
    if bias is not None and bias.ndim and bias.shape[-1] == weight.shape[axis]:
        t.cuts.append(Cut(k, 2, bias.ndim - 1, outs))
    return None


def matmul(t: Trace, k: int, node: Any) -> None:
    """A product with constant weights [in, out] at its right, or of two activations."""
    a = node.input[0]
    weight, rank = t.const(node, 1), t.rank(a)
    if weight is None and a not in t.net.consts:
        return _product(t, node)
    if weight is None or weight.ndim != 2 or rank is None or rank < 2:
        return t.stop(node)
    ins = t.of(a).get(rank - 1)
    if ins is not None:
        _consume(t, k, node, rank - 1, 0, ins)
    for axis, channels in t.of(a).items():
        if axis < rank - 1:
            t.give(node.output[0], axis, channels)
    if weight.shape[1] >= LEAST:
        t.cuts.append(Cut(k, 1, 1, t.make(node.output[0], rank - 1, weight.shape[1])))
    return None


def _consume(t: Trace, k: int, node: Any, axis: int, weight_axis: int, ins: np.ndarray) -> None:
    t.cuts.append(Cut(k, 1, weight_axis, ins))
    t.consumers.append(Consumer(k, node.input[0], axis, node.input[1], weight_axis, ins))


def _product(t: Trace, node: Any) -> None:
    from lepton_edge.slim.rules_values import align

    a, b = node.input
    ra, rb = t.rank(a) or 0, t.rank(b) or 0
    if min(ra, rb) < 2:
        return t.stop(node)
    out, rank = node.output[0], max(ra, rb)
    rows, columns = t.of(a).get(ra - 1), t.of(b).get(rb - 2)
    if rows is not None and columns is not None:
        t.channels.join(rows, columns)
    else:
        t.pin(a, "summed over with fixed channels", (ra - 1,))
        t.pin(b, "summed over with fixed channels", (rb - 2,))
    for axis in range(rank - 2):
        found = align(t, [(a, axis - rank + ra), (b, axis - rank + rb)], "MatMul")
        if found is not None:
            t.give(out, axis, found)
    for tensor, axis, to in ((a, ra - 2, rank - 2), (b, rb - 1, rank - 1)):
        channels = t.of(tensor).get(axis)
        if channels is not None:
            t.give(out, to, channels)
    return None


RULES = {"Conv": conv, "ConvTranspose": conv_transpose, "Gemm": gemm, "MatMul": matmul}
MAKERS = frozenset(RULES.values())  # they make channels even where none come in
