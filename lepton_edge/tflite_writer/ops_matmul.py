"""Matrix products: Gemm and MatMul as FULLY_CONNECTED (constant weights) or BATCH_MATMUL."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.emit import Emitter
from lepton_edge.tflite_writer.flatbuffer import Quant
from lepton_edge.tflite_writer.graph import Node

_ROUNDS: dict[str, Any] = {"asymmetricQuantizeInputs": True}  # a float input with integer weights, row by row


def gemm(e: Emitter, n: Node) -> None:
    """alpha * A' * B' + beta * C."""
    alpha, beta = n.attrs.get("alpha", 1.0), n.attrs.get("beta", 1.0)
    a, b = n.inputs[:2]
    weights = e.value(b)
    if n.attrs.get("transA"):
        a = _turned(e, a)
    addend = n.inputs[2] if n.has(2) and beta != 0 else None
    units = e.shape(n.out)[1]
    if weights is None:
        return _gemm_computed(e, n, a, b, alpha, beta, addend)
    matrix = weights if n.attrs.get("transB") else weights.T
    if alpha != 1:
        matrix = (matrix * alpha).astype(weights.dtype)
    constant: Any = e.value(addend) if addend else None
    row = constant is not None and constant.size in (1, units) and (constant.ndim < 2 or constant.shape[0] == 1)
    bias = None
    if row:
        bias = np.broadcast_to(constant.reshape(-1) * beta if beta != 1 else constant.reshape(-1), (units,))
        bias = bias.astype(constant.dtype)
    if addend is None or row:
        quant = e.quant(b)
        if quant is not None and len(quant.scale) > 1:
            quant = replace(quant, axis=0)
        bias_quant = e.quant(addend) if addend else None
        return fully_connected(e, n, a, matrix, bias, n.out, b, quant, bias_quant)
    product = e.graph.fresh(f"{n.out}_product", e.shape(n.out), e.dtype(n.out))
    plain = Node("Gemm", n.name, n.inputs, [product])
    fully_connected(e, plain, a, matrix, None, product, b)
    _add(e, n, product, addend, beta)


def _gemm_computed(e: Emitter, n: Node, a: str, b: str, alpha: float, beta: float, addend: str | None) -> None:
    right = _turned(e, b) if n.attrs.get("transB") else b
    if alpha == 1 and addend is None:
        return batch_matmul(e, n, a, right, n.out)
    product = e.graph.fresh(f"{n.out}_product", e.shape(n.out), e.dtype(n.out))
    batch_matmul(e, Node("Gemm", n.name, n.inputs, [product]), a, right, product)
    if alpha != 1:
        perm, scaled = e.perm(product), n.out if addend is None else f"{product}_scaled"
        e.graph.shapes[scaled], e.graph.dtypes[scaled] = e.shape(product), e.dtype(product)
        factor = e.constant(np.asarray(alpha, e.dtype(product)))
        e.emit("MUL", [e.get(product, perm), factor], scaled, perm)
        product = scaled
    if addend is not None:
        _add(e, n, product, addend, beta)


def _add(e: Emitter, n: Node, product: str, addend: str, beta: float) -> None:
    from lepton_edge.tflite_writer.ops_math import binary

    if beta != 1:
        value = e.value(addend)
        scaled = e.graph.fresh(f"{addend}_scaled", e.shape(addend), e.dtype(addend))
        if value is not None:
            e.graph.consts[scaled] = (value * beta).astype(value.dtype)
        else:
            perm = e.perm(addend)
            factor = e.constant(np.asarray(beta, e.dtype(addend)))
            e.emit("MUL", [e.get(addend, perm), factor], scaled, perm)
        addend = scaled
    binary(e, "ADD", [product, addend], n)


def _turned(e: Emitter, name: str) -> str:
    """The transposed matrix as a new tensor; nothing moves until someone needs it."""
    rows, columns = e.shape(name)
    turned = e.graph.fresh(f"{name}_turned", (columns, rows), e.dtype(name))
    if e.value(name) is not None:
        e.graph.consts[turned] = np.ascontiguousarray(e.value(name).T)
    else:
        for perm, index in list(e.views[name].items()):
            e.put(turned, index, layout.compose(perm, (1, 0)))
    return turned


def matmul(e: Emitter, n: Node) -> None:
    """MatMul; a constant right-hand matrix makes it a FULLY_CONNECTED, with a fused constant bias."""
    a, b = n.inputs[:2]
    weights = e.value(b)
    if weights is not None and 2 < weights.ndim <= e.rank(a) and math.prod(weights.shape[:-2]) == 1:
        weights = weights.reshape(weights.shape[-2:])
    if weights is not None and weights.ndim == 2 and e.value(a) is None:
        bias = e.value(n.inputs[2]).reshape(-1) if n.has(2) else None
        quant = e.quant(b)
        if quant is not None and len(quant.scale) > 1:
            quant = replace(quant, axis=0)
        bias_quant = e.quant(n.inputs[2]) if n.has(2) else None
        return fully_connected(e, n, a, weights.T, bias, n.out, b, quant, bias_quant)
    if e.rank(a) == 1 or e.rank(b) == 1:
        return _vector_matmul(e, n, a, b)
    batch_matmul(e, n, a, b, n.out)


def _vector_matmul(e: Emitter, n: Node, a: str, b: str) -> None:
    """A one-dimensional operand is a matrix of one row (left) or one column (right)."""
    left, right = e.shape(a), e.shape(b)
    names = []
    for name, shape in ((a, (1, *left) if len(left) == 1 else left), (b, (*right, 1) if len(right) == 1 else right)):
        view = e.graph.fresh(f"{name}_matrix", shape, e.dtype(name))
        e.put(view, e.reshape(e.get(name), shape), layout.identity(len(shape)))
        names.append(view)
    shape = (
        *np.broadcast_shapes(e.shape(names[0])[:-2], e.shape(names[1])[:-2]),
        e.shape(names[0])[-2],
        e.shape(names[1])[-1],
    )
    product = e.graph.fresh(f"{n.out}_matrix", shape, e.dtype(n.out))
    batch_matmul(e, Node("MatMul", n.name, names, [product]), names[0], names[1], product)
    e.put(n.out, e.reshape(e.get(product), e.shape(n.out)), layout.identity(e.rank(n.out)))


def fully_connected(
    e: Emitter, n: Node, a: str, matrix: np.ndarray, bias: np.ndarray | None, out: str, name: str,
    quant: Quant | None = None, bias_quant: Quant | None = None,
) -> None:  # fmt: skip
    """out = a * matrix.T + bias over the last logical axis of a; matrix is [units, depth]."""
    rank = e.rank(a)
    order = e.order.get(a)
    if order is not None:
        matrix = matrix[:, order]
    perm = _inner_last(e, a)
    index = e.get(a, perm)
    if order is not None and quant is not None and quant.block:  # blocks lie side by side: the input is put in order
        matrix, t = matrix[:, np.argsort(order)], e.writer.tensors[index]
        back = e.constant(np.argsort(order).astype(np.int32))
        index = e.add("GATHER", [index, back], t.shape, t.dtype, axis=len(t.shape) - 1, batchDims=0)
    stored = e.writer.tensors[index].shape
    ins = [index, e.constant(matrix, name, quant)]
    ins.append(e.constant(bias, f"{out}_bias", bias_quant) if bias is not None else -1)
    if ins[2] < 0 and e.writer.tensors[index].dtype == np.float32:
        ins[2] = e.constant(np.zeros(matrix.shape[0], np.float32), "no_bias")
    kind = {} if e.writer.tensors[ins[1]].dtype.kind == "f" or e.dtype(a).kind != "f" else _ROUNDS
    made = e.add(
        "FULLY_CONNECTED", ins, (*stored[:-1], matrix.shape[0]), e.dtype(out), out, e.quant(out),
        keepNumDims=len(stored) != 2, fusedActivationFunction=n.attrs.get("fused", "NONE"), **kind,
    )  # fmt: skip
    if rank == 1:
        e.put(out, e.reshape(made, e.shape(out)), (0,))
    else:
        e.put(out, made, perm)


def _inner_last(e: Emitter, name: str) -> layout.Perm:
    """The stored order if it ends with the last logical axis, else ONNX order."""
    rank = e.rank(name)
    for perm in e.views[name]:
        if perm and perm[-1] == rank - 1 and len(perm) > 1:
            return perm
    return (-1, 0) if rank == 1 else layout.identity(rank)


def batch_matmul(e: Emitter, n: Node, a: str, b: str, out: str) -> None:
    """a [..., M, K] times b [..., K, N]."""
    left = e.get(a)
    rank = e.rank(b)
    turned = (*range(rank - 2), rank - 1, rank - 2)
    adjoint = rank > 1 and e.value(b) is None and not e.free(b, layout.identity(rank)) and _keeps_inner(e, b)
    right = e.get(b, turned if adjoint else None)
    e.emit(
        "BATCH_MATMUL", [left, right], out, layout.identity(e.rank(out)), adjX=False, adjY=adjoint,
        asymmetricQuantizeInputs=False,
    )  # fmt: skip


def _keeps_inner(e: Emitter, name: str) -> bool:
    """Whether the innermost stored axis is the one before last: turning it is then cheaper than moving it."""
    rank, perm = e.rank(name), e.perm(name)
    return bool(perm) and perm[-1] == rank - 2


OPS = {"Gemm": gemm, "MatMul": matmul}
