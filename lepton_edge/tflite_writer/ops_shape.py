"""Operators that only rename, move or copy elements."""

from __future__ import annotations

import numpy as np

from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node


def transpose(e: Emitter, n: Node) -> None:
    """Transpose renames axes; nothing moves until an operator needs it."""
    x = n.inputs[0]
    axes = n.attrs.get("perm") or list(reversed(range(e.rank(x))))
    for perm, index in list(e.views[x].items()):
        e.put(n.out, index, layout.compose(perm, axes))


def reshape(e: Emitter, n: Node) -> None:
    """Reshape, Flatten, Squeeze, Unsqueeze: no data moves when the blocks of axes stay together."""
    x, after = n.inputs[0], e.shape(n.out)
    before = e.shape(x)
    for perm in e.views[x]:
        target = layout.reshape(before, perm, after)
        if target is not None:
            e.put(n.out, e.reshape(e.get(x, perm), e.stored(n.out, target), n.out), target)
            return
    if _only_matrices_read(e, n.out) and len(after) >= 1:
        perm = e.perm(x)
        tail = _flattened_tail(before, perm, after)
        if tail is not None:
            e.order[n.out] = tail
            e.put(n.out, e.reshape(e.get(x, perm), after, n.out), layout.identity(len(after)))
            return
    perm = layout.gather_blocks(before, e.perm(x), after)
    target = layout.reshape(before, perm, after) or layout.identity(len(after))
    e.put(n.out, e.reshape(e.get(x, perm), e.stored(n.out, target), n.out), target)


def _only_matrices_read(e: Emitter, name: str) -> bool:
    """Whether every reader is a Gemm or MatMul with constant weights, so that the weights can follow the order."""
    if name in e.graph.outputs:
        return False
    readers = [n for n in e.graph.nodes if name in n.inputs]
    return bool(readers) and all(
        n.op in ("Gemm", "MatMul")
        and n.inputs[0] == name
        and name not in n.inputs[1:]
        and not n.attrs.get("transA")
        and (w := e.value(n.inputs[1])) is not None
        and w.ndim == 2
        for n in readers
    )


def _flattened_tail(before: layout.Shape, perm: layout.Perm, after: layout.Shape) -> np.ndarray | None:
    """For [N, ...] stored as perm and flattened to [N, K]: the logical position of each stored element of K."""
    if len(after) != 2 or after[0] != before[0] or (before[0] != 1 and perm[0] != 0):
        return None
    positions = np.arange(int(np.prod(before[1:]))).reshape(1, *before[1:])
    return layout.store(positions, perm).reshape(-1)


def concat(e: Emitter, n: Node) -> None:
    """Concat along the stored place of its axis."""
    rank = e.rank(n.out)
    axis = n.attrs["axis"] % rank
    names = [x for x in n.inputs if 0 not in e.shape(x)] or n.inputs[:1]
    perm = e.common(names, rank)
    ins = [e.get(x, perm) for x in names]
    if len(ins) == 1:
        return e.put(n.out, ins[0], perm)
    e.emit(
        "CONCATENATION", ins, n.out, perm, axis=perm.index(axis),
        fusedActivationFunction=n.attrs.get("fused", "NONE"),
    )  # fmt: skip


def split(e: Emitter, n: Node) -> None:
    """Split: SPLIT into equal parts, one SLICE a part otherwise (delegates know those, not SPLIT_V)."""
    x = n.inputs[0]
    axis = n.attrs.get("axis", 0) % e.rank(x)
    sizes = [e.shape(o)[axis] for o in n.outputs]
    if len(set(sizes)) > 1 or len(sizes) == 1:
        at = 0
        for name, size in zip(n.outputs, sizes, strict=True):
            ranges = [range(d) for d in e.shape(x)]
            ranges[axis] = range(at, at + size)
            at += size
            cut(e, x, ranges, name)
        return
    perm = e.perm(x)
    index, outs = e.get(x, perm), []
    for name in n.outputs:
        outs.append(e.writer.tensor(name, e.stored(name, perm), e.dtype(name), None, e.quant(name)))
        e.put(name, outs[-1], perm)
    e.writer.operator("SPLIT", [e.shape_const(perm.index(axis)), index], outs, {"numSplits": len(outs)})


def slice_(e: Emitter, n: Node) -> None:
    """Slice with constant bounds: SLICE, or STRIDED_SLICE where steps differ from one (REVERSE_V2 for -1)."""
    x = n.inputs[0]
    shape, rank = e.shape(x), e.rank(x)
    starts, ends = e.ints(n, "starts", 1) or [], e.ints(n, "ends", 2) or []
    axes = e.ints(n, "axes", 3) or list(range(len(starts)))
    steps = e.ints(n, "steps", 4) or [1] * len(starts)
    ranges = [range(d) for d in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        ranges[axis % rank] = range(shape[axis % rank])[slice(start, _end(end, step, shape[axis % rank]), step)]
    cut(e, x, ranges, n.out)


def _end(end: int, step: int, size: int) -> int | None:
    """ONNX's end as a Python slice's: going down, anything below -size means 'through the first element'."""
    return None if step < 0 and end < -size else end


def cut(e: Emitter, x: str, ranges: list[range], out: str) -> None:
    """Keeps the given range of every logical axis."""
    perm = e.perm(x)
    index = e.get(x, perm)
    t = e.writer.tensors[index]
    full = [range(1) if p < 0 else ranges[p] for p in perm]
    whole = [r == range(d) for r, d in zip(full, t.shape, strict=True)]
    if all(whole):
        return e.put(out, index, perm)
    flipped = [k for k, r in enumerate(full) if r.step < 0 and len(r) > 0]
    if flipped:
        full = [r[::-1] if k in flipped else r for k, r in enumerate(full)]
    made_shape = [len(r) for r in full]
    if not all(r == range(d) for r, d in zip(full, t.shape, strict=True)):
        if all(r.step == 1 for r in full):
            ins = [index, e.shape_const([r.start for r in full]), e.shape_const(made_shape)]
            index = e.add("SLICE", ins, made_shape, t.dtype, out, t.quant)
        else:
            ends = [r[-1] + 1 if len(r) else r.start for r in full]
            ins = [index, e.shape_const([r.start for r in full]), e.shape_const(ends)]
            ins.append(e.shape_const([r.step for r in full]))
            index = e.add("STRIDED_SLICE", ins, made_shape, t.dtype, out, t.quant)
    for axis in flipped:
        index = e.like("REVERSE_V2", [index, e.shape_const([axis])], index)
    e.put(out, index, perm)


def expand(e: Emitter, n: Node) -> None:
    """Expand and its like: BROADCAST_TO."""
    rank, x = e.rank(n.out), n.inputs[0]
    if e.shape(x) == e.shape(n.out):
        for stored, view in list(e.views[x].items()):
            e.put(n.out, view, stored)
        return
    perm = e.common([x], rank)
    index = e.operand(x, perm, rank)
    shape = e.stored(n.out, perm)
    if e.writer.tensors[index].shape == shape:
        return e.put(n.out, index, perm)
    if int(np.prod(e.writer.tensors[index].shape)) == int(np.prod(shape)):
        return e.put(n.out, e.reshape(index, shape), perm)
    e.emit("BROADCAST_TO", [index, e.shape_const(shape)], n.out, perm)


def tile(e: Emitter, n: Node) -> None:
    """Tile by constant repeats."""
    perm = e.perm(n.inputs[0])
    repeats = [int(r) for r in e.need(n, 1, "repeats")]
    stored = [1 if p < 0 else repeats[p] for p in perm]
    e.emit("TILE", [e.get(n.inputs[0], perm), e.shape_const(stored)], n.out, perm)


def pad(e: Emitter, n: Node) -> None:
    """Pad: constant, reflect (MIRROR_PAD), edge and wrap (slices joined); negative pads crop."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    amounts = e.ints(n, "pads", 1) or e.ints(n, "paddings") or []
    axes = [a % rank for a in (e.ints(n, "axes", 3) or range(rank))]
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        before[axis], after[axis] = amounts[k], amounts[k + len(axes)]
    if any(p < 0 for p in before + after):
        ranges = [range(max(-b, 0), d - max(-a, 0)) for b, a, d in zip(before, after, e.shape(x), strict=True)]
        cropped = e.graph.fresh(f"{n.out}_crop", tuple(len(r) for r in ranges), e.dtype(x))
        cut(e, x, ranges, cropped)
        x, before, after = cropped, [max(p, 0) for p in before], [max(p, 0) for p in after]
    perm, mode = e.perm(x), n.attrs.get("mode", "constant")
    index = e.get(x, perm)
    around = [(0, 0) if p < 0 else (before[p], after[p]) for p in perm]
    if not any(map(any, around)):
        return e.put(n.out, index, perm)
    if mode == "constant":
        _constant_pad(e, n, index, around, perm)
    elif mode == "reflect":
        e.emit("MIRROR_PAD", [index, e.shape_const(around)], n.out, perm, mode="REFLECT")
    elif mode in ("edge", "wrap"):
        e.put(n.out, _edge_pad(e, index, around, mode), perm)
    else:
        raise Unsupported(f"Pad '{n.name}': mode '{mode}' has no TFLite counterpart")


def _constant_pad(e: Emitter, n: Node, index: int, around: list[tuple[int, int]], perm: layout.Perm) -> None:
    fill = n.attrs.get("value", 0.0)
    if n.has(2):
        fill = e.need(n, 2, "the fill value").reshape(-1)[0]
    amounts = e.shape_const(around)
    if fill == 0:
        e.emit("PAD", [index, amounts], n.out, perm)
    else:
        value = e.constant(np.asarray(fill, e.dtype(n.out)), "pad_value", e.quant(n.out))
        e.emit("PADV2", [index, amounts, value], n.out, perm)


def _edge_pad(e: Emitter, index: int, around: list[tuple[int, int]], mode: str) -> int:
    for axis, (low, high) in enumerate(around):
        if not low and not high:
            continue
        size = e.writer.tensors[index].shape[axis]
        positions = np.arange(-low, size + high)
        positions = np.clip(positions, 0, size - 1) if mode == "edge" else positions % size
        index = take(e, index, positions, axis)
    return index


def take(e: Emitter, index: int, positions: np.ndarray, axis: int) -> int:
    """GATHER of constant positions along a stored axis."""
    t = e.writer.tensors[index]
    shape = (*t.shape[:axis], *positions.shape, *t.shape[axis + 1 :])
    return e.add("GATHER", [index, e.shape_const(positions)], shape, t.dtype, quant=t.quant, axis=axis, batchDims=0)


def space_to_depth(e: Emitter, n: Node) -> None:
    """SpaceToDepth; TFLite has ONNX's channel order, CRD order (opset 28) sorts them afterwards."""
    perm, block = (0, 2, 3, 1), n.attrs["blocksize"]
    index = e.get(n.inputs[0], perm)
    if n.attrs.get("mode", "DCR") != "CRD":
        e.emit("SPACE_TO_DEPTH", [index], n.out, perm, blockSize=block)
        return
    made = e.add("SPACE_TO_DEPTH", [index], e.stored(n.out, perm), e.dtype(n.out), blockSize=block)
    channels = e.shape(n.inputs[0])[1]
    e.put(n.out, take(e, made, np.arange(channels * block**2).reshape(-1, channels).T.reshape(-1), 3), perm)


def depth_to_space(e: Emitter, n: Node) -> None:
    """DepthToSpace; CRD order first sorts the channels into TFLite's DCR order."""
    perm, block = (0, 2, 3, 1), n.attrs["blocksize"]
    index = e.get(n.inputs[0], perm)
    if n.attrs.get("mode", "DCR") == "CRD":
        channels = e.shape(n.inputs[0])[1]
        order = np.arange(channels).reshape(channels // block**2, block * block).T.reshape(-1)
        index = take(e, index, order, 3)
    e.emit("DEPTH_TO_SPACE", [index], n.out, perm, blockSize=block)


def same(e: Emitter, n: Node) -> None:
    """Identity and inference-time Dropout: another name for the same tensor."""
    x = n.inputs[0]
    if n.op == "Dropout" and n.has(2) and e.graph.scalar(n.inputs[2]) != 0:
        raise Unsupported(f"Dropout '{n.name}': training mode")
    if e.value(x) is not None:
        return e.put(n.out, e.get(x), layout.identity(e.rank(x)))
    for perm, index in list(e.views[x].items()):
        e.put(n.out, index, perm)


OPS = {
    "Transpose": transpose, "Reshape": reshape, "Flatten": reshape, "Squeeze": reshape, "Unsqueeze": reshape,
    "Concat": concat, "Split": split, "Slice": slice_, "Expand": expand, "Tile": tile, "Pad": pad,
    "SpaceToDepth": space_to_depth, "DepthToSpace": depth_to_space, "Identity": same, "Dropout": same,
}  # fmt: skip
