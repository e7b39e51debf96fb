"""ONNX operators written as simpler ones: recurrent layers step by step, Einsum as a matrix product."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_edge.tflite_writer.emit import Unsupported
from lepton_edge.tflite_writer.graph import Graph, Node

_STEPS = 1024  # a longer sequence would make a file of many thousand operators
_GATE = {"Sigmoid", "Tanh", "Relu", "Softsign", "Softplus", "Elu"}


def lower(graph: Graph) -> list[str]:
    """Rewrites in place; returns what could not be written out."""
    problems, nodes = [], []
    for node in graph.nodes:
        rule = LOWER.get(node.op)
        if rule is None:
            nodes.append(node)
            continue
        try:
            nodes += rule(graph, node)
        except Unsupported as error:
            problems.append(error.message)
    graph.nodes = nodes
    return problems


class Steps:
    """Collects nodes; calling it adds one and returns its output's name."""

    def __init__(self, graph: Graph, node: Node) -> None:
        self.graph, self.node = graph, node
        self.nodes: list[Node] = []

    def __call__(self, op: str, inputs: list[str], shape: Any, dtype: Any = np.float32, **attrs: Any) -> str:
        out = self.graph.fresh(f"{self.node.out or self.node.name}_{op.lower()}", shape, dtype)
        self.nodes.append(Node(op, f"{self.node.name}/{op}", inputs, [out], attrs))
        return out

    def const(self, value: Any, dtype: Any = np.float32) -> str:
        return self.graph.constant(f"{self.node.name}_const", np.asarray(value, dtype))

    def reshape(self, name: str, shape: Any) -> str:
        return self("Reshape", [name, self.const(shape, np.int64)], shape, self.graph.dtypes[name])

    def split(self, name: str, axis: int, sizes: list[int]) -> list[str]:
        shape, dtype = list(self.graph.shapes[name]), self.graph.dtypes[name]
        outs = []
        for size in sizes:
            shape[axis] = size
            outs.append(self.graph.fresh(f"{name}_part", tuple(shape), dtype))
        self.nodes.append(Node("Split", f"{self.node.name}/Split", [name], outs, {"axis": axis, "keep": 1}))
        return outs

    def finish(self, name: str, out: str) -> None:
        """Gives a result its ONNX name."""
        if out:
            self.nodes.append(Node("Reshape", f"{self.node.name}/out", [name], [out]))


def recurrent(graph: Graph, n: Node) -> list[Node]:
    """LSTM, GRU and RNN, unrolled over the sequence."""
    directions = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    s, gates = Steps(graph, n), {"LSTM": 4, "GRU": 3, "RNN": 1}[n.op]
    batch_first, hidden = n.attrs.get("layout", 0), n.attrs["hidden_size"]
    x = n.inputs[0]
    if batch_first:
        a, b, c = graph.shapes[x]
        x = s("Transpose", [x], (b, a, c), perm=[1, 0, 2])
    steps, batch, _ = graph.shapes[x]
    _check(graph, n, steps)
    ways = directions[n.attrs.get("direction", "forward")]
    acts = n.attrs.get("activations") or {
        "LSTM": ["Sigmoid", "Tanh", "Tanh"],
        "GRU": ["Sigmoid", "Tanh"],
        "RNN": ["Tanh"],
    }[n.op] * len(ways)
    if not set(acts) <= _GATE:
        raise Unsupported(f"{n.op} '{n.name}': activations {acts} have no TFLite counterpart")
    every, last_h, last_c = [], [], []
    for d, backwards in enumerate(ways):
        weights = [_slot(graph, n, k, d) for k in (1, 2)]
        bias = _slot(graph, n, 3, d) if n.has(3) else np.zeros(2 * gates * hidden, np.float32)
        states = [_state(s, n, k, d, batch, hidden) for k in ((5, 6) if n.op == "LSTM" else (5,))]
        own = acts[d * len(acts) // len(ways) : (d + 1) * len(acts) // len(ways)]
        outs, states = _CELLS[n.op](s, n, x, weights, bias, states, own, backwards)
        every.append(outs)
        last_h.append(s.reshape(states[0], (1, batch, hidden)))
        last_c += [s.reshape(states[1], (1, batch, hidden))] if n.op == "LSTM" else []
    _collect(s, n, every, last_h, last_c, (steps, batch, hidden), batch_first)
    return s.nodes


def _check(graph: Graph, n: Node, steps: int) -> None:
    if steps > _STEPS:
        raise Unsupported(f"{n.op} '{n.name}': {steps} steps, at most {_STEPS} are written out")
    if n.has(4):
        lengths = graph.consts.get(n.inputs[4])
        if lengths is None or (lengths != steps).any():
            raise Unsupported(f"{n.op} '{n.name}': sequence_lens other than the full length")
    if n.attrs.get("clip") or n.attrs.get("input_forget") or n.has(7):
        raise Unsupported(f"{n.op} '{n.name}': clip, input_forget and peepholes have no TFLite counterpart")


def _slot(graph: Graph, n: Node, k: int, d: int) -> np.ndarray:
    value = graph.consts.get(n.inputs[k])
    if value is None:
        raise Unsupported(f"{n.op} '{n.name}': its weights are computed at run time")
    return value[d]


def _state(s: Steps, n: Node, k: int, d: int, batch: int, hidden: int) -> str:
    """An initial state [batch, hidden]: zeros, a constant, or part of an input."""
    if not n.has(k):
        return s.const(np.zeros((batch, hidden)))
    name = n.inputs[k]
    value = s.graph.consts.get(name)
    axis = 1 if n.attrs.get("layout", 0) else 0
    if value is not None:
        return s.const(np.take(value, d, axis))
    count = s.graph.shapes[name][axis]
    part = s.split(name, axis, [1] * count)[d] if count > 1 else name
    return s.reshape(part, (batch, hidden))


def _inputs(s: Steps, x: str, matrix: np.ndarray, bias: np.ndarray, backwards: bool) -> list[str]:
    """x * matrix.T + bias for all steps at once, then one [batch, units] tensor a step."""
    steps, batch, _ = s.graph.shapes[x]
    units = matrix.shape[0]
    flat = s.reshape(x, (steps * batch, matrix.shape[1]))
    all_steps = s("Gemm", [flat, s.const(matrix), s.const(bias)], (steps * batch, units), transB=1)
    parts = s.split(all_steps, 0, [batch] * steps) if steps > 1 else [all_steps]
    return parts[::-1] if backwards else parts


def _times(s: Steps, h: str, matrix: np.ndarray, bias: np.ndarray | None = None) -> str:
    shape = (s.graph.shapes[h][0], matrix.shape[0])
    names = [h, s.const(matrix)] + ([s.const(bias)] if bias is not None else [])
    return s("Gemm", names, shape, transB=1)


def _lstm(
    s: Steps, n: Node, x: str, weights: list, bias: np.ndarray, states: list[str], acts: list[str], backwards: bool
):
    (w, r), (h, c), k = weights, states, n.attrs["hidden_size"]
    shape, outs = s.graph.shapes[h], []
    for part in _inputs(s, x, w, bias[: 4 * k] + bias[4 * k :], backwards):
        total = s("Add", [part, _times(s, h, r)], (shape[0], 4 * k))
        gates, candidate = s.split(total, 1, [3 * k, k])
        i, o, f = s.split(s(acts[0], [gates], (shape[0], 3 * k)), 1, [k, k, k])
        kept = s("Mul", [f, c], shape)
        c = s("Add", [kept, s("Mul", [i, s(acts[1], [candidate], shape)], shape)], shape)
        h = s("Mul", [o, s(acts[2], [c], shape)], shape)
        outs.append(h)
    return outs[::-1] if backwards else outs, [h, c]


def _gru(
    s: Steps, n: Node, x: str, weights: list, bias: np.ndarray, states: list[str], acts: list[str], backwards: bool
):
    (w, r), h, k = weights, states[0], n.attrs["hidden_size"]
    late = n.attrs.get("linear_before_reset", 0)
    shape, outs = s.graph.shapes[h], []
    first, second = bias[: 3 * k].copy(), bias[3 * k :]
    first[: 2 * k] += second[: 2 * k]
    if not late:
        first[2 * k :] += second[2 * k :]
    for part in _inputs(s, x, w, first, backwards):
        gates_x, new_x = s.split(part, 1, [2 * k, k])
        if late:
            padded = np.concatenate([np.zeros(2 * k, np.float32), second[2 * k :]])
            gates_h, new_h = s.split(_times(s, h, r, padded), 1, [2 * k, k])
        else:
            gates_h, new_h = _times(s, h, r[: 2 * k]), ""
        total = s("Add", [gates_x, gates_h], (shape[0], 2 * k))
        z, reset = s.split(s(acts[0], [total], (shape[0], 2 * k)), 1, [k, k])
        new_h = s("Mul", [reset, new_h], shape) if late else _times(s, s("Mul", [reset, h], shape), r[2 * k :])
        new = s(acts[1], [s("Add", [new_x, new_h], shape)], shape)
        h = s("Add", [new, s("Mul", [z, s("Sub", [h, new], shape)], shape)], shape)
        outs.append(h)
    return outs[::-1] if backwards else outs, [h]


def _rnn(
    s: Steps, n: Node, x: str, weights: list, bias: np.ndarray, states: list[str], acts: list[str], backwards: bool
):
    (w, r), h, k = weights, states[0], n.attrs["hidden_size"]
    shape, outs = s.graph.shapes[h], []
    for part in _inputs(s, x, w, bias[:k] + bias[k:], backwards):
        h = s(acts[0], [s("Add", [part, _times(s, h, r)], shape)], shape)
        outs.append(h)
    return outs[::-1] if backwards else outs, [h]


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def _collect(s: Steps, n: Node, every: list, last_h: list, last_c: list, sizes: tuple, batch_first: int) -> None:
    """Y, Y_h and Y_c in ONNX's shapes."""
    steps, batch, hidden = sizes
    ways = len(every)
    outputs = [*n.outputs, "", "", ""][:3]
    if outputs[0]:
        rows = [s.reshape(every[d][t], (1, 1, batch, hidden)) for t in range(steps) for d in range(ways)]
        y = s("Concat", rows, (steps * ways, 1, batch, hidden), axis=0)
        y = s.reshape(y, (steps, ways, batch, hidden))
        if batch_first:
            y = s("Transpose", [y], (batch, steps, ways, hidden), perm=[2, 0, 1, 3])
        s.finish(y, outputs[0])
    for parts, out in ((last_h, outputs[1]), (last_c, outputs[2])):
        if out and parts:
            joined = s("Concat", parts, (ways, batch, hidden), axis=0) if ways > 1 else parts[0]
            if batch_first:
                joined = s("Transpose", [joined], (batch, ways, hidden), perm=[1, 0, 2])
            s.finish(joined, out)


def einsum(graph: Graph, n: Node) -> list[Node]:
    """Einsum of one or two operands without repeated labels in one operand."""
    left, _, right = n.attrs["equation"].replace(" ", "").partition("->")
    terms = left.split(",")
    if not right and "->" not in n.attrs["equation"]:
        right = "".join(sorted(c for c in set(left) if left.count(c) == 1 and c.isalpha()))
    if len(terms) > 2 or "." in left or any(len(set(t)) != len(t) for t in terms):
        raise Unsupported(f"Einsum '{n.name}': '{n.attrs['equation']}' has no TFLite counterpart")
    s = Steps(graph, n)
    size = {c: d for t, name in zip(terms, n.inputs, strict=True) for c, d in zip(t, graph.shapes[name], strict=True)}
    dtype = graph.dtypes[n.out]
    names, labels = [], []
    for k, (term, name) in enumerate(zip(terms, n.inputs, strict=True)):
        others = right + "".join(t for j, t in enumerate(terms) if j != k)
        gone = [i for i, c in enumerate(term) if c not in others]
        if gone:
            term = "".join(c for c in term if c in others)
            name = s("ReduceSum", [name, s.const(gone, np.int64)], [size[c] for c in term], dtype, keepdims=0)
        names.append(name)
        labels.append(term)
    if len(names) == 1:
        made, order = names[0], labels[0]
    else:
        made, order = _pairwise(s, names, labels, right, size, dtype)
    made = s("Transpose", [made], [size[c] for c in right], dtype, perm=[order.index(c) for c in right])
    s.finish(made, n.out)
    return s.nodes


def _pairwise(s: Steps, names: list[str], labels: list[str], right: str, size: dict, dtype: Any) -> tuple[str, str]:
    """One batched matrix product; returns its name and labels."""
    a, b = labels
    batch = [c for c in a if c in b and c in right]
    inner = [c for c in a if c in b and c not in right]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    count = {
        k: int(np.prod([size[c] for c in v], dtype=int))
        for k, v in (("b", batch), ("k", inner), ("m", rows), ("n", columns))
    }

    def arrange(name: str, own: str, order: list[str], shape: list[int]) -> str:
        turned = s("Transpose", [name], [size[c] for c in order], dtype, perm=[own.index(c) for c in order])
        return s.reshape(turned, shape)

    left = arrange(names[0], a, batch + rows + inner, [count["b"], count["m"], count["k"]])
    other = arrange(names[1], b, batch + inner + columns, [count["b"], count["k"], count["n"]])
    product = s("MatMul", [left, other], [count["b"], count["m"], count["n"]], dtype)
    order = batch + rows + columns
    return s.reshape(product, [size[c] for c in order]), "".join(order)


LOWER = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent, "Einsum": einsum}
