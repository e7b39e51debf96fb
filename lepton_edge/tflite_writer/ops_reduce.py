"""Reductions, softmax and normalizations."""

from __future__ import annotations

import numpy as np

from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node
from lepton_edge.tflite_writer.ops_math import Maths


def axes_of(e: Emitter, n: Node) -> list[int] | None:
    """The reduced logical axes; None when the node reduces nothing (noop_with_empty_axes)."""
    rank = e.rank(n.inputs[0])
    axes = e.ints(n, "axes", 1)
    if not axes:
        return None if n.attrs.get("noop_with_empty_axes", 0) else list(range(rank))
    return sorted({a % rank for a in axes})


def reduce(code: str):
    """One TFLite reduction."""

    def apply(e: Emitter, n: Node) -> None:
        x, axes = n.inputs[0], axes_of(e, n)
        perm = e.perm(x)
        index = e.get(x, perm)
        if axes is None or not e.rank(x):
            return e.put(n.out, index, perm)
        reduced(e, n, code, index, perm, axes)

    return apply


def reduced(e: Emitter, n: Node, code: str, index: int, perm: layout.Perm, axes: list[int]) -> None:
    """Emits the reduction of stored tensor `index` as the node's output."""
    keep = bool(n.attrs.get("keepdims", 1))
    places = [k for k, p in enumerate(perm) if p in axes]
    after = perm if keep else layout.drop_axes(perm, axes)
    e.emit(code, [index, e.shape_const(places)], n.out, after, keepDims=keep)


def composed(before: str | None, code: str, after: str | None):
    """A reduction with an elementwise operator before or after it."""

    def apply(e: Emitter, n: Node) -> None:
        x, axes = n.inputs[0], axes_of(e, n)
        perm = e.perm(x)
        index = e.get(x, perm)
        if before:
            index = e.like(before, [index, index] if before == "MUL" else [index], index)
        if axes is None:
            return e.put(n.out, e.like(after, [index], index) if after else index, perm)
        if not after:
            return reduced(e, n, code, index, perm, axes)
        middle = e.graph.fresh(f"{n.out}_sum", e.shape(n.out), e.dtype(n.out))
        reduced(e, Node(n.op, n.name, n.inputs, [middle], n.attrs), code, index, perm, axes)
        e.emit(after, [e.get(middle, e.perm(middle))], n.out, e.perm(middle))

    return apply


def log_sum_exp(e: Emitter, n: Node) -> None:
    """log(sum(exp(x))) with the maximum taken out first."""
    x, axes = n.inputs[0], axes_of(e, n)
    perm = e.perm(x)
    index = e.get(x, perm)
    if axes is None:
        return e.put(n.out, index, perm)
    m, places = Maths(e, index), e.shape_const([k for k, p in enumerate(perm) if p in axes])
    t = e.writer.tensors[index]
    small = tuple(1 if p in axes else d for p, d in zip(perm, t.shape, strict=True))
    top = e.add("REDUCE_MAX", [index, places], small, t.dtype, keepDims=True)
    total = e.add("SUM", [m("EXP", m("SUB", index, top)), places], small, t.dtype, keepDims=True)
    value = e.add("ADD", [e.add("LOG", [total], small, t.dtype), top], small, t.dtype)
    after = perm if n.attrs.get("keepdims", 1) else layout.drop_axes(perm, axes)
    e.put(n.out, e.reshape(value, e.stored(n.out, after)), after)


def softmax(code: str, **options: float):
    """Softmax over one axis, which TFLite wants stored last; before opset 13 over all axes from there on."""

    def apply(e: Emitter, n: Node) -> None:
        x, rank = n.inputs[0], e.rank(n.inputs[0])
        old = e.graph.opset < 13
        axis = n.attrs.get("axis", 1 if old else -1) % max(rank, 1)
        long_after = [a for a in range(axis, rank) if e.shape(x)[a] != 1]
        if old and len(long_after) > 1:
            rows = int(np.prod(e.shape(x)[:axis]))
            flat = e.reshape(e.get(x), (rows, int(np.prod(e.shape(x)[axis:]))))
            made = e.like(code, [flat], flat, **options)
            return e.put(n.out, e.reshape(made, e.shape(x)), layout.identity(rank))
        if old and long_after:
            axis = long_after[0]
        perm = next((p for p in e.views[x] if p and p[-1] == axis), None)
        if perm is None:
            perm = (*(a for a in e.perm(x) if a not in (axis, -1)), axis)
        e.emit(code, [e.get(x, perm)], n.out, perm, **options)

    return apply


def hardmax(e: Emitter, n: Node) -> None:
    """One where the first maximum is, zero elsewhere."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    if e.graph.opset < 13:
        raise Unsupported(f"Hardmax '{n.name}': only from opset 13")
    axis = n.attrs.get("axis", -1) % rank
    perm = (*(a for a in range(rank) if a != axis), axis)
    index = e.get(x, perm)
    t = e.writer.tensors[index]
    best = e.add(
        "ARG_MAX", [index, e.shape_const(len(perm) - 1)], t.shape[:-1], np.int32, outputType=np.dtype(np.int32)
    )
    ins = [best, e.shape_const(t.shape[-1])]
    ins += [e.constant(np.asarray(v, t.dtype)) for v in (1, 0)]
    e.emit("ONE_HOT", ins, n.out, perm, axis=-1)


def layer_norm(e: Emitter, n: Node) -> None:
    """LayerNormalization over the axes from `axis` on, written out."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    first = n.attrs.get("axis", -1) % rank
    axes = list(range(first, rank))
    perm = e.perm(x)
    normal = normalize(e, x, perm, axes, n.attrs.get("epsilon", 1e-5))
    if any(len(n.outputs) > k and n.outputs[k] in e.graph.consumers() for k in (1, 2)):
        raise Unsupported(f"LayerNormalization '{n.name}': its Mean and InvStdDev outputs are read")
    _scale_shift(e, n, normal, perm, [n.inputs[1], n.inputs[2] if n.has(2) else ""])


def normalize(e: Emitter, x: str, perm: layout.Perm, axes: list[int], epsilon: float) -> int:
    """(x - mean) / sqrt(variance + epsilon) over logical axes, stored in order `perm`."""
    index = e.get(x, perm)
    t, m = e.writer.tensors[index], Maths(e, index)
    places = e.shape_const([k for k, p in enumerate(perm) if p in axes])
    small = tuple(1 if p in axes else d for p, d in zip(perm, t.shape, strict=True))
    center = e.add("MEAN", [index, places], small, t.dtype, keepDims=True)
    centered = m("SUB", index, center)
    variance = e.add("MEAN", [m("MUL", centered, centered), places], small, t.dtype, keepDims=True)
    shifted = e.add("ADD", [variance, m.const(float(epsilon))], small, t.dtype)
    return m("MUL", centered, e.add("RSQRT", [shifted], small, t.dtype))


def _scale_shift(e: Emitter, n: Node, normal: int, perm: layout.Perm, names: list[str]) -> None:
    """normal * scale + bias as the node's output; the operands broadcast as trailing logical axes."""
    rank, index = e.rank(n.out), normal
    for code, name in zip(("MUL", "ADD"), names, strict=True):
        if name:
            index = e.like(code, [index, e.operand(name, perm, rank)], index)
    e.put(n.out, index, perm)


def _per_channel(e: Emitter, name: str, rank: int) -> str:
    """A [C] tensor as [C, 1, 1 ...], so that it broadcasts along axis 1."""
    shape = (e.shape(name)[0], *[1] * (rank - 2))
    view = e.graph.fresh(f"{name}_channels", shape, e.dtype(name))
    if e.value(name) is not None:
        e.graph.consts[view] = e.value(name).reshape(shape)
    else:
        e.put(view, e.reshape(e.get(name), shape), layout.identity(len(shape)))
    return view


def instance_norm(e: Emitter, n: Node) -> None:
    """InstanceNormalization, written out."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    perm = e.perm(x)
    normal = normalize(e, x, perm, list(range(2, rank)), n.attrs.get("epsilon", 1e-5))
    _scale_shift(e, n, normal, perm, [_per_channel(e, v, rank) for v in n.inputs[1:3]])


def group_norm(e: Emitter, n: Node) -> None:
    """GroupNormalization (scale and bias per channel since opset 21, per group before)."""
    x, rank, shape = n.inputs[0], e.rank(n.inputs[0]), e.shape(n.inputs[0])
    groups = n.attrs["num_groups"]
    split = (shape[0], groups, shape[1] // groups, *shape[2:])
    view = e.graph.fresh(f"{n.out}_groups", split, e.dtype(x))
    stored = e.perm(x)
    wide = tuple(q for p in stored for q in ((1, 2) if p == 1 else (p + 1 if p > 1 else p,)))
    e.put(view, e.reshape(e.get(x, stored), layout.stored_shape(split, wide)), wide)
    normal = normalize(e, view, wide, list(range(2, rank + 1)), n.attrs.get("epsilon", 1e-5))
    normal = e.reshape(normal, e.stored(x, stored))
    names = []
    for name in n.inputs[1:3]:
        value = e.value(name)
        if value is None:
            raise Unsupported(f"GroupNormalization '{n.name}': its scale and bias are computed at run time")
        if value.size == groups != shape[1]:
            name = e.graph.constant(f"{name}_channels", np.repeat(value, shape[1] // groups))
        names.append(_per_channel(e, name, rank))
    _scale_shift(e, n, normal, stored, names)


def batch_norm(e: Emitter, n: Node) -> None:
    """BatchNormalization that nothing took in: one multiplication and one addition."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    scale, bias, mean, variance = (e.need(n, k, "a parameter").astype(np.float64) for k in range(1, 5))
    factor = scale / np.sqrt(variance + n.attrs.get("epsilon", 1e-5))
    offset = bias - mean * factor
    perm = e.perm(x)
    names = [
        e.graph.constant(f"{n.out}_{k}", v.astype(np.float32).reshape(-1, *[1] * max(rank - 2, 0)))
        for k, v in (("factor", factor), ("offset", offset))
    ]
    _scale_shift(e, n, e.get(x, perm), perm, names)


def lp_norm(e: Emitter, n: Node) -> None:
    """LpNormalization: x divided by its L1 or L2 norm along one axis."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    axis, perm = n.attrs.get("axis", -1) % rank, e.perm(x)
    index = e.get(x, perm)
    t, m = e.writer.tensors[index], Maths(e, index)
    small = tuple(1 if p == axis else d for p, d in zip(perm, t.shape, strict=True))
    two = n.attrs.get("p", 2) == 2
    size = m("MUL", index, index) if two else m("ABS", index)
    norm = e.add("SUM", [size, e.shape_const([perm.index(axis)])], small, t.dtype, keepDims=True)
    e.emit("DIV", [index, e.add("SQRT", [norm], small, t.dtype) if two else norm], n.out, perm)


def rms_norm(e: Emitter, n: Node) -> None:
    """RMSNormalization: x / sqrt(mean(x^2) + epsilon) * scale."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    axes, perm = range(n.attrs.get("axis", -1) % rank, rank), e.perm(x)
    index = e.get(x, perm)
    t, m = e.writer.tensors[index], Maths(e, index)
    small = tuple(1 if p in axes else d for p, d in zip(perm, t.shape, strict=True))
    places = e.shape_const([k for k, p in enumerate(perm) if p in axes])
    power = e.add("MEAN", [m("MUL", index, index), places], small, t.dtype, keepDims=True)
    shifted = e.add("ADD", [power, m.const(float(n.attrs.get("epsilon", 1e-5)))], small, t.dtype)
    normal = m("MUL", index, e.add("RSQRT", [shifted], small, t.dtype))
    _scale_shift(e, n, normal, perm, [n.inputs[1], ""])


def lrn(e: Emitter, n: Node) -> None:
    """LRN across channels: LOCAL_RESPONSE_NORMALIZATION, whose alpha isn't divided by the size."""
    size = n.attrs["size"]
    if size % 2 == 0:
        raise Unsupported(f"LRN '{n.name}': TFLite's window is odd, this one is {size}")
    perm = (0, 2, 3, 1)
    e.emit(
        "LOCAL_RESPONSE_NORMALIZATION", [e.get(n.inputs[0], perm)], n.out, perm, radius=size // 2,
        bias=float(n.attrs.get("bias", 1.0)), alpha=float(n.attrs.get("alpha", 1e-4)) / size,
        beta=float(n.attrs.get("beta", 0.75)),
    )  # fmt: skip


OPS = {
    "ReduceMean": reduce("MEAN"), "ReduceSum": reduce("SUM"), "ReduceMax": reduce("REDUCE_MAX"),
    "ReduceMin": reduce("REDUCE_MIN"), "ReduceProd": reduce("REDUCE_PROD"),
    "ReduceL1": composed("ABS", "SUM", None), "ReduceL2": composed("MUL", "SUM", "SQRT"),
    "ReduceSumSquare": composed("MUL", "SUM", None), "ReduceLogSum": composed(None, "SUM", "LOG"),
    "ReduceLogSumExp": log_sum_exp, "Softmax": softmax("SOFTMAX", beta=1.0), "LogSoftmax": softmax("LOG_SOFTMAX"),
    "Hardmax": hardmax, "LayerNormalization": layer_norm, "InstanceNormalization": instance_norm,
    "GroupNormalization": group_norm, "BatchNormalization": batch_norm, "LpNormalization": lp_norm,
    "RMSNormalization": rms_norm, "LRN": lrn,
}  # fmt: skip
