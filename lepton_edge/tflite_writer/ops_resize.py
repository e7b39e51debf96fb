"""Resize and Upsample.

Every mode is a matrix along each axis. ONNX Runtime computes that matrix from the node itself; where it equals
what a TFLite operator does, that operator is used, otherwise a GATHER (nearest) or the matrix product.
"""

from __future__ import annotations

import numpy as np

from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node
from lepton_edge.tflite_writer.ops_shape import take

_FLAGS = (
    {"alignCorners": False, "halfPixelCenters": True},
    {"alignCorners": True, "halfPixelCenters": False},
    {"alignCorners": False, "halfPixelCenters": False},
)


def resize(e: Emitter, n: Node) -> None:
    """Resize over any axes."""
    x, before, after = n.inputs[0], e.shape(n.inputs[0]), e.shape(n.out)
    mode = n.attrs.get("mode", "nearest")
    if n.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise Unsupported(f"{n.op} '{n.name}': tf_crop_and_resize has no TFLite counterpart")
    scales = _scales(e, n, before, after)
    axes = [a for a in range(len(before)) if before[a] != after[a] or scales[a] != 1]
    matrices = {a: _matrix(e, n, before[a], after[a], scales[a]) for a in axes}
    if _native(e, n, x, mode, matrices):
        return
    perm = e.perm(x)
    index = e.get(x, perm)
    for axis, matrix in matrices.items():
        if mode == "nearest":
            index = take(e, index, matrix.argmax(1), perm.index(axis))
        else:
            index, perm = _product(e, index, perm, axis, matrix)
    e.put(n.out, index, perm)


def _scales(e: Emitter, n: Node, before: layout.Shape, after: layout.Shape) -> list[float]:
    """The scale of every axis: as given, or output size by input size."""
    place = 1 if n.op == "Upsample" or len(n.inputs) == 2 else 2
    given = n.attrs.get("scales")
    if given is None and n.has(place) and len(n.inputs) <= 3:
        given = e.need(n, place, "scales").reshape(-1)
    if given is None or not len(given):
        return [o / i if i else 1.0 for i, o in zip(before, after, strict=True)]
    scales = [1.0] * len(before)
    for axis, value in zip(n.attrs.get("axes", range(len(before))), given, strict=True):
        scales[axis] = float(value)
    return scales


def _matrix(e: Emitter, n: Node, size: int, target: int, scale: float) -> np.ndarray:
    """[target, size]: what the node does along one axis, found by resizing the identity matrix."""
    from lepton_edge.tflite_writer.fold import evaluate
    from lepton_edge.tflite_writer.graph import Graph

    skip = ("axes", "scales", "keep_aspect_ratio_policy")
    attrs = {k: v for k, v in n.attrs.items() if k not in skip}
    eye = np.eye(size, dtype=np.float32)[None, None]
    consts = {"x": eye, "roi": np.zeros(0, np.float32)}
    sizes = target / size == scale
    if n.op == "Upsample" or e.graph.opset < 11 or not sizes:
        consts["s"] = np.asarray([1, 1, 1, scale], np.float32)
        inputs = ["x", "s"] if n.op == "Upsample" or e.graph.opset < 11 else ["x", "roi", "s"]
    else:
        consts["s"] = np.asarray([1, 1, size, target], np.int64)
        consts["none"] = np.zeros(0, np.float32)
        inputs = ["x", "roi", "none", "s"]
    node = Node(n.op, "axis", inputs, ["y"], attrs)
    graph = Graph([node], [], ["y"], consts, {}, {}, e.graph.opset, {"": e.graph.opset})
    return evaluate(graph, [node], ["y"])[0].reshape(size, -1).T[:target]


def tflite_matrix(mode: str, size: int, target: int, flags: dict[str, bool]) -> np.ndarray:
    """[target, size]: what TFLite's RESIZE_NEAREST_NEIGHBOR or RESIZE_BILINEAR does along one axis."""
    align = flags["alignCorners"] and target > 1
    scale = np.float32((size - 1) / (target - 1) if align else size / target)
    at = np.arange(target, dtype=np.float32)
    matrix = np.zeros((target, size), np.float32)
    if mode == "nearest":
        at = (at + np.float32(0.5)) * scale if flags["halfPixelCenters"] else at * scale
        at = np.floor(at + 0.5) if align else np.floor(at)
        matrix[np.arange(target), np.clip(at.astype(int), 0, size - 1)] = 1
        return matrix
    at = (at + np.float32(0.5)) * scale - np.float32(0.5) if flags["halfPixelCenters"] else at * scale
    low = np.maximum(np.floor(at).astype(int), 0)
    high = np.minimum(np.ceil(at).astype(int), size - 1)
    np.add.at(matrix, (np.arange(target), low), 1 - (at - low))
    np.add.at(matrix, (np.arange(target), high), at - low)
    return matrix


def _native(e: Emitter, n: Node, x: str, mode: str, matrices: dict[int, np.ndarray]) -> bool:
    """Emits TFLite's own operator where it computes the same matrices."""
    rank = e.rank(x)
    if rank not in (3, 4) or not set(matrices) <= set(range(2, rank)) or mode not in ("nearest", "linear"):
        return False
    if e.dtype(x).kind != "f" and e.quant(x) is None and mode == "linear":
        return False
    code = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
    perm = (0, -1, 2, 1) if rank == 3 else (0, 2, 3, 1)
    shape = e.stored(n.out, perm)
    for flags in _FLAGS:
        if all(np.abs(tflite_matrix(mode, m.shape[1], m.shape[0], flags) - m).max() < 1e-4 for m in matrices.values()):
            e.emit(code, [e.get(x, perm), e.shape_const(shape[1:3])], n.out, perm, **flags)
            return True
    return False


def _product(e: Emitter, index: int, perm: layout.Perm, axis: int, matrix: np.ndarray) -> tuple[int, layout.Perm]:
    """Moves the axis last and multiplies by the matrix."""
    place = perm.index(axis)
    order = [k for k in range(len(perm)) if k != place] + [place]
    index = e.transpose(index, order)
    t = e.writer.tensors[index]
    ins = [index, e.constant(matrix, "resize"), e.constant(np.zeros(matrix.shape[0], np.float32), "no_bias")]
    made = e.add(
        "FULLY_CONNECTED", ins, (*t.shape[:-1], matrix.shape[0]), t.dtype, keepNumDims=True,
        fusedActivationFunction="NONE",
    )  # fmt: skip
    return made, tuple(perm[k] for k in order)


OPS = {"Resize": resize, "Upsample": resize}
