"""Constants computed at build time, no-ops and dead nodes removed, until nothing changes."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_edge.tflite_writer.graph import Graph, Node

_KEEP = {"QuantizeLinear", "DequantizeLinear", "If", "Loop", "Scan"}
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
FOLDED = {"Range", "Shape", "Size", "EyeLike", "Constant", "ConstantOfShape"}  # constants once shapes are known
_LIMIT = 2**26  # bytes: what a folded constant may weigh beyond its inputs


def fold(graph: Graph) -> None:
    """Folds in place."""
    while True:
        before = len(graph.nodes)
        _static_shapes(graph)
        _identities(graph)
        _compute(graph)
        sweep(graph)
        if len(graph.nodes) == before:
            return


def _static_shapes(graph: Graph) -> None:
    """Shape and Size are constants, because every shape is static."""
    kept = []
    for node in graph.nodes:
        if node.op not in ("Shape", "Size", "EyeLike"):
            kept.append(node)
            continue
        shape = graph.shapes[node.inputs[0]]
        if node.op == "EyeLike":
            graph.consts[node.out] = np.eye(shape[0], shape[1], k=node.attrs.get("k", 0), dtype=graph.dtypes[node.out])
            continue
        start, end = node.attrs.get("start", 0), node.attrs.get("end", len(shape))
        part = shape[start:end] if node.op == "Shape" else int(np.prod(shape, dtype=np.int64))
        graph.consts[node.out] = np.asarray(part, np.int64)
    graph.nodes = kept


def _identities(graph: Graph) -> None:
    """Identity, inference-time Dropout, Cast to the same type, single-input Concat/Sum/Max/Min."""
    alias: dict[str, str] = {}
    kept = []
    for node in graph.nodes:
        node.inputs = [alias.get(n, n) for n in node.inputs]
        if _is_identity(graph, node) and node.out not in graph.outputs:
            alias[node.out] = node.inputs[0]
        else:
            kept.append(node)
    graph.nodes = kept


def _is_identity(graph: Graph, node: Node) -> bool:
    users_of_mask = len(node.outputs) > 1 and any(node.outputs[1] in n.inputs for n in graph.nodes)
    if node.op == "Dropout":
        training = node.has(2) and graph.scalar(node.inputs[2]) != 0
        return not training and not users_of_mask and not (len(node.outputs) > 1 and node.outputs[1] in graph.outputs)
    if node.op == "Cast":
        return graph.dtypes[node.inputs[0]] == graph.dtypes[node.out]
    if node.op in ("Concat", "Sum", "Max", "Min", "Mean"):
        return len(node.inputs) == 1
    return node.op == "Identity"


def _compute(graph: Graph) -> None:
    """Runs every node that hangs on constants only, all in one ONNX Runtime call."""
    known = set(graph.consts)
    ready: list[Node] = []
    for node in graph.nodes:
        if node.op in _KEEP or node.op in _RANDOM or "." in node.op or "keep" in node.attrs:
            continue
        if all(not n or n in known for n in node.inputs) and _small(graph, node):
            ready.append(node)
            known |= set(node.outputs)
    if not ready:
        return
    done = {id(n) for n in ready}
    rest = [n for n in graph.nodes if id(n) not in done]
    wanted = {name for n in rest for name in n.inputs} | set(graph.outputs)
    names = [name for n in ready for name in n.outputs if name and name in wanted]
    if names:
        graph.consts.update(zip(names, evaluate(graph, ready, names), strict=True))
        for name in names:
            graph.dtypes[name] = graph.consts[name].dtype
            graph.shapes[name] = tuple(graph.consts[name].shape)
    graph.nodes = rest


def _small(graph: Graph, node: Node) -> bool:
    made = sum(_bytes(graph, n) for n in node.outputs if n)
    read = sum(_bytes(graph, n) for n in node.inputs if n)
    return made <= max(2 * read, _LIMIT)


def _bytes(graph: Graph, name: str) -> int:
    return int(np.prod(graph.shapes[name], dtype=np.int64)) * graph.dtypes[name].itemsize


def evaluate(graph: Graph, nodes: list[Node], names: list[str]) -> list[np.ndarray]:
    """The named results of nodes that read constants only."""
    from onnx import helper, numpy_helper

    from lepton_edge.tflite_writer.check import session
    from lepton_edge.tflite_writer.load import narrow

    read = {n for node in nodes for n in node.inputs if n in graph.consts}
    inits = [numpy_helper.from_array(np.ascontiguousarray(graph.consts[n]), n) for n in sorted(read)]
    protos = [to_proto(node) for node in nodes]
    outs = [helper.make_empty_tensor_value_info(n) for n in names]
    onnx_graph = helper.make_graph(protos, "constants", [], outs, inits)
    model = helper.make_model(onnx_graph, opset_imports=[helper.make_opsetid(d, v) for d, v in graph.domains.items()])
    model.ir_version = 10
    return [narrow(np.asarray(v)) for v in session(model).run(names, {})]


def to_proto(node: Node) -> Any:
    """The NodeProto of a plain ONNX node."""
    from onnx import helper, numpy_helper

    attrs = {
        k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else _retype(node.op, k, v)
        for k, v in node.attrs.items()
    }
    return helper.make_node(node.op, node.inputs, node.outputs, **attrs)


def _retype(op: str, key: str, value: Any) -> Any:
    """Casts to 16- and 64-bit floats become casts to float32, as the whole graph is."""
    wide = {1: 1, 10: 1, 11: 1, 16: 1}
    return wide.get(value, value) if (op, key) in (("Cast", "to"), ("EyeLike", "dtype")) else value


def sweep(graph: Graph) -> None:
    """Drops nodes nobody reads."""
    wanted, kept = set(graph.outputs), []
    for node in reversed(graph.nodes):
        if wanted & set(node.outputs):
            kept.append(node)
            wanted |= set(node.inputs) - {""}
    graph.nodes = kept[::-1]
