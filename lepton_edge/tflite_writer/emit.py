"""Walks the graph and emits TFLite operators, keeping every tensor in the order its axes are already stored in.

A tensor may be realised in several orders; `views` remembers all of them, so each data movement happens once.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from lepton_edge.errors import NoWay
from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.flatbuffer import Quant, Writer
from lepton_edge.tflite_writer.graph import Graph, Node
from lepton_edge.tflite_writer.layout import Perm, Shape


class Unsupported(NoWay):
    """This node has no TFLite counterpart (in this form)."""


class Emitter:
    """What operator functions work with: questions about tensors, and TFLite operators to add."""

    def __init__(self, graph: Graph, *, float16: bool = False) -> None:
        self.graph = graph
        self.writer = Writer()
        self.float16 = float16
        self.views: dict[str, dict[Perm, int]] = {}
        self.order: dict[str, np.ndarray] = {}  # flattened tensors whose last axis is scrambled (ops_shape)
        self._consts: dict[tuple, int] = {}
        self._reshaped: dict[int, int] = {}

    def clear(self) -> None:
        """Let go of everything, once the file is written."""
        self.graph, self.writer = Graph([], [], [], {}, {}, {}, 0), Writer()
        self.views, self._consts, self.order, self._reshaped = {}, {}, {}, {}

    # -- questions
    def shape(self, name: str) -> Shape:
        return self.graph.shapes[name]

    def rank(self, name: str) -> int:
        return len(self.graph.shapes[name])

    def dtype(self, name: str) -> np.dtype:
        return self.graph.dtypes[name]

    def value(self, name: str) -> Any:
        """The constant's value in ONNX order, or None for a run-time tensor."""
        return self.graph.consts.get(name)

    def need(self, node: Node, i: int, what: str) -> np.ndarray:
        """A constant input; Unsupported when it is computed at run time."""
        value = self.value(node.inputs[i])
        if value is None:
            raise Unsupported(f"{node.op} '{node.name}': {what} is computed at run time, TFLite needs it constant")
        return value

    def ints(self, node: Node, key: str, i: int | None = None) -> list[int] | None:
        """Integers from an attribute, or from constant input i (newer opsets); None when absent."""
        if key in node.attrs:
            return [int(v) for v in np.atleast_1d(node.attrs[key])]
        if i is not None and node.has(i):
            return [int(v) for v in self.need(node, i, f"'{key}'").reshape(-1)]
        return None

    def perm(self, name: str) -> Perm:
        """The order the tensor is stored in (ONNX order for a constant)."""
        if name in self.graph.consts:
            return layout.identity(self.rank(name))
        return next(iter(self.views[name]))

    def stored(self, name: str, perm: Perm) -> Shape:
        return layout.stored_shape(self.shape(name), perm)

    def quant(self, name: str) -> Quant | None:
        return self.graph.quant.get(name)

    # -- tensors
    def constant(self, value: np.ndarray, name: str = "const", quant: Quant | None = None) -> int:
        """A constant tensor exactly as given (float32 ones become float16 on request)."""
        value = np.asarray(value, order="C")  # ascontiguousarray would give a scalar an axis
        key = (value.tobytes() if value.nbytes <= 4096 else id(value), value.shape, value.dtype.str, quant)
        if key in self._consts:
            return self._consts[key]
        if self.float16 and value.dtype == np.float32 and value.size > 1:
            with np.errstate(over="ignore"):
                half = value.astype(np.float16)
            if np.isfinite(half).all() or not np.isfinite(value).all():
                packed = self.writer.tensor(f"{name}_float16", value.shape, np.float16, half)
                index = self.writer.tensor(name, value.shape, np.float32)
                self.writer.operator("DEQUANTIZE", [packed], [index], {})
                if value.nbytes <= 4096:
                    self._consts[key] = index
                return index
        if quant is not None and quant.unpack:
            packed = self.writer.tensor(f"{name}_packed", value.shape, value.dtype, value, quant)
            index = self.add("DEQUANTIZE", [packed], value.shape, np.float32, name)
        else:
            index = self.writer.tensor(name, value.shape, value.dtype, value, quant)
        if value.nbytes <= 4096:
            self._consts[key] = index
        return index

    def shape_const(self, values: Any) -> int:
        """An int32 vector operand (shape, axes, perm, paddings ...)."""
        return self.constant(np.asarray(values, np.int32))

    def get(self, name: str, perm: Perm | None = None) -> int:
        """The tensor stored in order `perm` (default: ONNX order); moves data when it must."""
        perm = layout.identity(self.rank(name)) if perm is None else perm
        views = self.views.setdefault(name, {})
        if perm not in views:
            value = self.graph.consts.get(name)
            if value is not None:
                quant = self.quant(name)
                if quant is not None and len(quant.scale) > 1:
                    quant = replace(quant, axis=perm.index(quant.axis))
                views[perm] = self.constant(layout.store(value, perm), name, quant)
            else:
                views[perm] = self._move(name, perm)
        return views[perm]

    def free(self, name: str, perm: Perm) -> bool:
        """Whether `get(name, perm)` moves no data."""
        if name in self.graph.consts:
            return True
        shape = self.shape(name)
        return any(layout.solid(shape, p) == layout.solid(shape, perm) for p in self.views[name])

    def _move(self, name: str, perm: Perm) -> int:
        shape, views = self.shape(name), self.views[name]
        target = layout.stored_shape(shape, perm)
        for have, index in views.items():
            if layout.solid(shape, have) == layout.solid(shape, perm):
                return self.reshape(index, target)
        have, index = next(iter(views.items()))
        if len(have) == len(perm) and -1 not in have and -1 not in perm and len(perm) <= 6:
            return self.transpose(index, [have.index(p) for p in perm])
        now, then = layout.solid(shape, have), layout.solid(shape, perm)
        runs = _runs(now, then)
        merged = self.reshape(index, [int(np.prod([shape[a] for a in run])) for run in runs])
        wanted = sorted(range(len(runs)), key=lambda k: then.index(runs[k][0]))
        return self.reshape(self.transpose(merged, wanted), target)

    def put(self, name: str, index: int, perm: Perm) -> None:
        """Says that tensor `index` is `name`, stored in order `perm`."""
        self.views.setdefault(name, {})[perm] = index

    # -- operators
    def add(
        self, code: str, ins: list[int], shape: Any, dtype: Any, name: str = "", quant: Quant | None = None,
        **options: Any,
    ) -> int:  # fmt: skip
        """One TFLite operator with one new output tensor, whose index it returns."""
        out = self.writer.tensor(name or code.lower(), shape, dtype, None, quant)
        self.writer.operator(code, ins, [out], options)
        return out

    def emit(self, code: str, ins: list[int], name: str, perm: Perm, **options: Any) -> int:
        """One TFLite operator whose output is the ONNX tensor `name`, stored in order `perm`."""
        index = self.add(code, ins, self.stored(name, perm), self.dtype(name), name, self.quant(name), **options)
        self.put(name, index, perm)
        return index

    def like(self, code: str, ins: list[int], like: int, dtype: Any = None, **options: Any) -> int:
        """An operator whose output has the shape (and type, quantization) of tensor `like`."""
        t = self.writer.tensors[like]
        return self.add(code, ins, t.shape, dtype or t.dtype, "", t.quant if dtype is None else None, **options)

    def reshape(self, index: int, shape: Any, name: str = "") -> int:
        """RESHAPE, or the tensor itself when it has that shape."""
        t = self.writer.tensors[index]
        shape = tuple(int(d) for d in shape)
        if t.shape == shape:
            return index
        if t.data is not None:
            return self.writer.tensor(t.name, shape, t.dtype, t.data.reshape(shape), t.quant)
        if index in self._reshaped:  # a RESHAPE of a RESHAPE is one RESHAPE; the first is swept if nobody else reads it
            return self.reshape(self._reshaped[index], shape, name)
        made = self.add("RESHAPE", [index, self.shape_const(shape)], shape, t.dtype, name or f"{t.name}_r", t.quant)
        self._reshaped[made] = index
        return made

    def transpose(self, index: int, axes: list[int]) -> int:
        """TRANSPOSE, or the tensor itself."""
        t = self.writer.tensors[index]
        if list(axes) == list(range(len(axes))):
            return index
        shape = [t.shape[a] for a in axes]
        return self.add("TRANSPOSE", [index, self.shape_const(axes)], shape, t.dtype, f"{t.name}_t", t.quant)

    def common(self, names: list[str], rank: int) -> Perm:
        """The order in which operands of one broadcasting operator meet: the cheapest for what is already stored."""
        moving = [n for n in names if n not in self.graph.consts]
        options = [layout.pad_rank(p, self.rank(n), rank) for n in moving for p in self.views[n]]
        whole = [p for p in options if set(range(rank)) <= set(p)]
        if not whole:
            return layout.identity(rank)
        return min(whole, key=lambda p: (self._cost(moving, p, rank), len(p), whole.index(p)))

    def _cost(self, names: list[str], perm: Perm, rank: int) -> int:
        total = 0
        for n in names:
            if not self.free_padded(n, perm, rank):
                total += int(np.prod(self.shape(n)))
        return total

    def free_padded(self, name: str, perm: Perm, rank: int) -> bool:
        lead = rank - self.rank(name)
        return self.free(name, tuple(p - lead for p in perm if p >= lead))

    def operand(self, name: str, perm: Perm, rank: int) -> int:
        """A broadcasting operand, its logical shape led by ones up to `rank`, stored in order `perm`."""
        lead = rank - self.rank(name)
        value = self.value(name)
        if value is not None:
            padded = layout.store(value.reshape((1,) * lead + value.shape), perm)
            quant = self.quant(name)
            if quant is None or len(quant.scale) == 1:
                while padded.ndim and padded.shape[0] == 1:
                    padded = padded[0]
            return self.constant(padded, name, self.quant(name))
        own = tuple(p - lead for p in perm if p >= lead)
        inner = tuple(-1 if p < lead else p - lead for p in perm)
        if own == layout.identity(self.rank(name)) and own in self.views[name]:
            return self.views[name][own] if inner[len(inner) - len(own) :] == own else self.get(name, inner)
        return self.get(name, inner)


def _runs(now: Perm, then: Perm) -> list[list[int]]:
    """Splits stored order `now` into runs of axes that stay neighbours in `then`."""
    runs: list[list[int]] = []
    for axis in now:
        if runs and then.index(axis) == then.index(runs[-1][-1]) + 1:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs
