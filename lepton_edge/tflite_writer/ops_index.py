"""Operators that look elements up: gather, scatter, arg-reductions, top-k, cumulative sums."""

from __future__ import annotations

import numpy as np

from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node
from lepton_edge.tflite_writer.ops_math import Maths
from lepton_edge.tflite_writer.ops_shape import cut


def gather(e: Emitter, n: Node) -> None:
    """Gather along one axis; constant runs of indices are a SLICE."""
    x, indices = n.inputs[:2]
    rank, extra = e.rank(x), e.rank(indices)
    axis = n.attrs.get("axis", 0) % rank
    size, value = e.shape(x)[axis], e.value(indices)
    perm = e.perm(x)
    after = _gathered_perm(perm, axis, extra)
    if value is not None:
        value = np.where(value < 0, value + size, value)
        if value.size and (value.min() < 0 or value.max() >= size):
            raise Unsupported(f"Gather '{n.name}': an index is outside 0..{size - 1}")
        flat = value.reshape(-1)
        if value.ndim < 2 and value.size and (np.diff(flat) == 1).all() and e.value(x) is None:
            return _gather_run(e, n, axis, flat, after)
        found = e.shape_const(value)
    else:
        found = e.get(indices)
    ins = [e.get(x, perm), found]
    e.emit("GATHER", ins, n.out, after, axis=perm.index(axis), batchDims=0)


def _gathered_perm(perm: layout.Perm, axis: int, extra: int) -> layout.Perm:
    """The order of a gather's output: the axis gives way to the axes of the indices."""
    after: list[int] = []
    for p in perm:
        if p == axis:
            after += range(axis, axis + extra)
        else:
            after.append(p if p < axis else p + extra - 1)
    return tuple(after)


def _gather_run(e: Emitter, n: Node, axis: int, flat: np.ndarray, after: layout.Perm) -> None:
    x = n.inputs[0]
    ranges = [range(d) for d in e.shape(x)]
    ranges[axis] = range(int(flat[0]), int(flat[-1]) + 1)
    part = e.graph.fresh(f"{n.out}_part", tuple(len(r) for r in ranges), e.dtype(x))
    if e.quant(x) is not None:
        e.graph.quant[part] = e.quant(x)
    cut(e, x, ranges, part)
    e.put(n.out, e.reshape(e.get(part, e.perm(part)), e.stored(n.out, after), n.out), after)


def gather_elements(e: Emitter, n: Node) -> None:
    """GatherElements: GATHER with every other axis as a batch axis."""
    x, indices = n.inputs[:2]
    rank = e.rank(x)
    axis = n.attrs.get("axis", 0) % rank
    wanted = e.shape(indices)
    ranges = [range(d) if a == axis else range(wanted[a]) for a, d in enumerate(e.shape(x))]
    part = e.graph.fresh(f"{n.out}_part", tuple(len(r) for r in ranges), e.dtype(x))
    _views(e, x)
    cut(e, x, ranges, part)
    perm = (*(a for a in range(rank) if a != axis), axis)
    value = e.value(indices)
    if value is not None:
        value = np.where(value < 0, value + e.shape(x)[axis], value)
        found = e.constant(layout.store(value.astype(np.int32), perm), indices)
    else:
        found = e.get(indices, perm)
    e.emit("GATHER", [e.get(part, perm), found], n.out, perm, axis=rank - 1, batchDims=rank - 1)


def _views(e: Emitter, name: str) -> None:
    if e.value(name) is not None:
        e.get(name)


def gather_nd(e: Emitter, n: Node) -> None:
    """GatherND without batch axes."""
    if n.attrs.get("batch_dims", 0):
        raise Unsupported(f"GatherND '{n.name}': batch_dims has no TFLite counterpart")
    x, indices = n.inputs[:2]
    value = e.value(indices)
    if value is not None:
        limits = np.asarray(e.shape(x)[: value.shape[-1]])
        found = e.shape_const(np.where(value < 0, value + limits, value))
    else:
        found = e.get(indices)
    e.emit("GATHER_ND", [e.get(x), found], n.out, layout.identity(e.rank(n.out)))


def scatter_nd(e: Emitter, n: Node) -> None:
    """ScatterND: constant indices become one GATHER over data and updates joined; else SCATTER_ND and a mask."""
    _plain_reduction(n)
    x, indices, updates = n.inputs[:3]
    shape, where = e.shape(x), e.value(indices)
    if where is not None:
        positions = np.arange(int(np.prod(shape))).reshape(shape)
        fresh = positions.size + np.arange(int(np.prod(e.shape(updates)))).reshape(e.shape(updates))
        for at in np.ndindex(where.shape[:-1]):
            positions[tuple(where[at])] = fresh[at]
        return _merge(e, n, x, updates, positions)
    if e.dtype(indices) != np.int32:
        index = e.add(
            "CAST",
            [e.get(indices)],
            e.shape(indices),
            np.int32,
            inDataType=e.dtype(indices),
            outDataType=np.dtype(np.int32),
        )
    else:
        index = e.get(indices)
    target = e.shape_const(shape)
    placed = e.add("SCATTER_ND", [index, e.get(updates), target], shape, e.dtype(x))
    ones = e.constant(np.ones(e.shape(updates), np.float32))
    hits = e.add("SCATTER_ND", [index, ones, target], shape, np.float32)
    mask = e.like("GREATER", [hits, e.constant(np.zeros((), np.float32))], hits, np.bool_)
    e.emit("SELECT_V2", [mask, placed, e.get(x)], n.out, layout.identity(len(shape)))


def scatter_elements(e: Emitter, n: Node) -> None:
    """ScatterElements with constant indices."""
    _plain_reduction(n)
    x, updates = n.inputs[0], n.inputs[2]
    where = e.need(n, 1, "indices")
    axis = n.attrs.get("axis", 0) % e.rank(x)
    shape = e.shape(x)
    positions = np.arange(int(np.prod(shape))).reshape(shape)
    fresh = positions.size + np.arange(where.size).reshape(where.shape)
    for at in np.ndindex(where.shape):
        target = list(at)
        target[axis] = int(where[at])
        positions[tuple(target)] = fresh[at]
    _merge(e, n, x, updates, positions)


def _plain_reduction(n: Node) -> None:
    if n.attrs.get("reduction", "none") != "none":
        raise Unsupported(f"{n.op} '{n.name}': reduction '{n.attrs['reduction']}' has no TFLite counterpart")


def _merge(e: Emitter, n: Node, x: str, updates: str, positions: np.ndarray) -> None:
    """Picks every output element from data and updates laid end to end."""
    flat = [e.reshape(e.get(v), (int(np.prod(e.shape(v))),)) for v in (x, updates)]
    total = sum(e.writer.tensors[i].shape[0] for i in flat)
    joined = e.add("CONCATENATION", flat, (total,), e.dtype(x), axis=0, fusedActivationFunction="NONE")
    made = e.add("GATHER", [joined, e.shape_const(positions)], e.shape(x), e.dtype(x), n.out, axis=0, batchDims=0)
    e.put(n.out, made, layout.identity(e.rank(x)))


def arg(code: str):
    """ArgMax and ArgMin; the last of equal elements by looking from the other end."""

    def apply(e: Emitter, n: Node) -> None:
        x, rank = n.inputs[0], e.rank(n.inputs[0])
        axis = n.attrs.get("axis", 0) % rank
        perm = e.perm(x)
        place, index = perm.index(axis), e.get(x, perm)
        last = n.attrs.get("select_last_index", 0)
        if last:
            index = e.like("REVERSE_V2", [index, e.shape_const([place])], index)
        t = e.writer.tensors[index]
        shape = [d for k, d in enumerate(t.shape) if k != place]
        found = e.add(code, [index, e.shape_const(place)], shape, np.int64, outputType=np.dtype(np.int64))
        if last:
            found = e.like("SUB", [e.constant(np.asarray(t.shape[place] - 1, np.int64)), found], found)
        after = perm if n.attrs.get("keepdims", 1) else layout.drop_axes(perm, [axis])
        e.put(n.out, e.reshape(found, e.stored(n.out, after)), after)

    return apply


def top_k(e: Emitter, n: Node) -> None:
    """TopK along one axis; the smallest are the largest of the negated."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    axis = n.attrs.get("axis", -1) % rank
    k = int(n.attrs["k"]) if "k" in n.attrs else int(e.need(n, 1, "k").reshape(-1)[0])
    perm = (*(a for a in range(rank) if a != axis), axis)
    index, down = e.get(x, perm), n.attrs.get("largest", 1)
    t = e.writer.tensors[index]
    index = index if down else e.like("NEG", [index], index)
    shape = (*t.shape[:-1], k)
    values, found = e.writer.tensor(n.out, shape, t.dtype), e.writer.tensor("positions", shape, np.int32)
    e.writer.operator("TOPK_V2", [index, e.shape_const(k)], [values, found], {})
    e.put(n.out, values if down else e.like("NEG", [values], values), perm)
    if len(n.outputs) > 1 and n.outputs[1]:
        e.emit("CAST", [found], n.outputs[1], perm, inDataType=np.dtype(np.int32), outDataType=np.dtype(np.int64))


def cumsum(e: Emitter, n: Node) -> None:
    """CumSum along a constant axis."""
    x, perm = n.inputs[0], e.perm(n.inputs[0])
    axis = int(e.need(n, 1, "the axis").reshape(-1)[0]) % e.rank(x)
    e.emit(
        "CUMSUM", [e.get(x, perm), e.shape_const(perm.index(axis))], n.out, perm,
        exclusive=bool(n.attrs.get("exclusive", 0)), reverse=bool(n.attrs.get("reverse", 0)),
    )  # fmt: skip


def one_hot(e: Emitter, n: Node) -> None:
    """OneHot with constant depth and values."""
    depth = int(e.need(n, 1, "depth").reshape(-1)[0])
    off, on = e.need(n, 2, "the values").reshape(-1)
    x, axis = n.inputs[0], n.attrs.get("axis", -1)
    index, m = e.get(x), None
    t = e.writer.tensors[index]
    if t.dtype not in (np.int32, np.int64):
        index = e.like("CAST", [index], index, np.int64, inDataType=t.dtype, outDataType=np.dtype(np.int64))
    m = Maths(e, index)
    negative = e.like("LESS", [index, m.const(0)], index, np.bool_)
    index = m("SELECT_V2", negative, m("ADD", index, m.const(depth)), index)
    ins = [index, e.shape_const(depth), *(e.constant(np.asarray(v, e.dtype(n.out))) for v in (on, off))]
    axis = axis % e.rank(n.out)
    e.emit("ONE_HOT", ins, n.out, layout.identity(e.rank(n.out)), axis=-1 if axis == e.rank(x) else axis)


def trilu(e: Emitter, n: Node) -> None:
    """Trilu: a constant triangle chooses between the input and zero."""
    k = int(e.need(n, 1, "k").reshape(-1)[0]) if n.has(1) else 0
    shape = e.shape(n.out)
    keep = np.triu(np.ones(shape[-2:], bool), k) if n.attrs.get("upper", 1) else np.tril(np.ones(shape[-2:], bool), k)
    mask = e.graph.constant(f"{n.out}_mask", keep)
    zero = e.graph.constant(f"{n.out}_zero", np.zeros((), e.dtype(n.out)))
    perm, rank = e.perm(n.inputs[0]), len(shape)
    e.emit("SELECT_V2", [e.operand(v, perm, rank) for v in (mask, n.inputs[0], zero)], n.out, perm)


OPS = {
    "Gather": gather, "GatherElements": gather_elements, "GatherND": gather_nd, "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements, "ArgMax": arg("ARG_MAX"), "ArgMin": arg("ARG_MIN"), "TopK": top_k,
    "CumSum": cumsum, "OneHot": one_hot, "Trilu": trilu,
}  # fmt: skip
