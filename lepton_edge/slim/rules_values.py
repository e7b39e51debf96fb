"""Channels through operators that compute element by element, pool, or normalize.

A sum or product of two tensors joins their channels; normalizing or reducing over an axis needs all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_edge.quant.net import attribute
from lepton_edge.slim.trace import Cut, Trace

UNARY = (
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Selu", "Celu", "Gelu", "Erf",
    "Mish", "Softplus", "Softsign", "ThresholdedRelu", "Exp", "Log", "Sqrt", "Reciprocal", "Neg", "Abs", "Sign",
    "Floor", "Ceil", "Round", "Not", "IsNaN", "IsInf", "Sin", "Cos", "Identity", "Dropout", "Cast", "CastLike", "Swish",
)  # fmt: skip
BROADCAST = (
    "Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mean", "Sum", "Where", "PRelu", "Mod", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "And", "Or", "Xor",
)  # fmt: skip
POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool")
REDUCTIONS = (
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
    "ReduceSumSquare", "ReduceLogSum", "ArgMax", "ArgMin",
)  # fmt: skip


def unary(t: Trace, k: int, node: Any) -> None:
    """The first output is as the first input."""
    for axis, channels in t.of(node.input[0]).items():
        t.give(node.output[0], axis, channels)


def broadcast(t: Trace, k: int, node: Any) -> None:
    """Operands aligned at their last axes; constants are sliced with their partners."""
    names = [name for name in node.input if name]
    ranks = [t.rank(name) for name in names]
    if any(rank is None for rank in ranks):
        return t.stop(node)
    known = [rank or 0 for rank in ranks]
    wide = max(known)
    for axis in range(wide):
        places = [(name, axis - wide + rank) for name, rank in zip(names, known, strict=True)]
        found = align(t, [(name, at) for name, at in places if name not in t.net.consts], node.op_type)
        if found is None:
            continue
        t.give(node.output[0], axis, found)
        for port, name in enumerate(node.input):
            if name in t.net.consts:
                at = axis - wide + t.net.consts[name].ndim
                if at >= 0 and t.net.consts[name].shape[at] != 1:
                    t.cuts.append(Cut(k, port, at, found))
    return None


def align(t: Trace, places: Sequence[tuple[str, int]], op: str) -> np.ndarray | None:
    """The channels of an axis that the axes of several computed tensors are broadcast to; they are joined.

    `places` are (tensor, axis); an axis below 0 isn't there. None: no tensor has channels there.
    """
    found: np.ndarray | None = None
    fixed = ""
    for name, axis in places:
        if axis < 0 or (t.net.shapes.get(name) or ())[axis] == 1:
            continue
        channels = t.of(name).get(axis)
        if channels is None:
            fixed = name
        elif found is None:
            found = channels
        else:
            t.channels.join(found, channels)
    if found is not None and fixed:
        t.channels.pin(found, f"{op} with '{fixed}', which keeps its channels")
    return found


def pool(t: Trace, k: int, node: Any) -> None:
    """Axis 1 stays what it is."""
    x = node.input[0]
    t.pin_but(x, (1,), f"an axis that {node.op_type} works on")
    if (channels := t.of(x).get(1)) is not None:
        t.give(node.output[0], 1, channels)
    for out in node.output[1:]:
        if out:
            t.pin(x, f"{node.op_type} with indices")


def per_channel(t: Trace, k: int, node: Any) -> None:
    """BatchNormalization, InstanceNormalization: statistics or parameters [channels] by themselves."""
    x = node.input[0]
    ports = range(1, len(node.input))
    if any(t.const(node, port) is None for port in ports) or attribute(node, "training_mode", 0):
        return t.stop(node)
    t.pin_but(x, (1,), f"an axis that {node.op_type} works on")
    if (channels := t.of(x).get(1)) is not None:
        t.give(node.output[0], 1, channels)
        t.cuts.extend(Cut(k, port, 0, channels) for port in ports)
    return None


def over_axis(t: Trace, k: int, node: Any) -> None:
    """Softmax over one axis, LayerNormalization over the last ones: those stay whole."""
    x, rank = node.input[0], t.rank(node.input[0])
    if rank is None:
        return t.stop(node)
    axis = int(attribute(node, "axis", -1)) % rank
    whole = tuple(range(axis, rank)) if node.op_type.endswith("LayerNormalization") else (axis,)
    t.pin(x, f"{node.op_type} over them", whole)
    for at, channels in t.of(x).items():
        for out in node.output[:1]:
            t.give(out, at, channels)
    for out in node.output[1:]:
        if out:
            t.pin(x, f"statistics of {node.op_type}")
    return None


def reduction(t: Trace, k: int, node: Any) -> None:
    """The axes that are reduced stay whole; the others carry their channels."""
    x, rank = node.input[0], t.rank(node.input[0])
    if rank is None:
        return t.stop(node)
    axes = attribute(node, "axes")
    if node.op_type.startswith("Arg"):
        axes = [attribute(node, "axis", 0)]
    elif axes is None and len(node.input) > 1 and node.input[1]:
        found = t.const(node, 1)
        if found is None:
            return t.stop(node)
        axes = found.reshape(-1).tolist()
    if axes is None or not len(axes):
        axes = [] if attribute(node, "noop_with_empty_axes", 0) else range(rank)
    gone = {int(axis) % rank for axis in axes}
    t.pin(x, f"{node.op_type} over them", tuple(gone))
    keeps = attribute(node, "keepdims", 1)
    for at, channels in t.of(x).items():
        if at not in gone:
            t.give(node.output[0], at if keeps else at - sum(g < at for g in gone), channels)
    return None


RULES = {
    **dict.fromkeys(UNARY, unary),
    **dict.fromkeys(BROADCAST, broadcast),
    **dict.fromkeys(POOLS, pool),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), per_channel),
    **dict.fromkeys(("Softmax", "LogSoftmax", "LayerNormalization", "RMSNormalization"), over_axis),
}
