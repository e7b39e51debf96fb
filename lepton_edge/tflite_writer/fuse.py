"""Patterns TFLite has one operator for."""

from __future__ import annotations

import math

import numpy as np

from lepton_edge.tflite_writer.graph import Graph, Node

_TAKES_ACTIVATION = {"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool"}


def fuse(graph: Graph) -> None:
    """Applies every rule in place."""
    activations(graph)


def activations(graph: Graph) -> None:
    """Relu, Clip(0, 6) and Clip(-1, 1) move into the operator before them."""
    users, makers = graph.consumers(), graph.producers()
    gone = set()
    for node in graph.nodes:
        kind = _activation(graph, node)
        maker = makers.get(node.inputs[0]) if kind and node.inputs else None
        if maker is None or maker.op not in _TAKES_ACTIVATION or "fused" in maker.attrs:
            continue
        if len(users[node.inputs[0]]) != 1 or node.inputs[0] in graph.outputs or len(maker.outputs) > 1:
            continue
        if graph.dtypes[node.out] != np.float32:
            continue
        maker.attrs["fused"] = kind
        maker.outputs = [node.out]
        makers[node.out] = maker
        gone.add(id(node))
    graph.nodes = [n for n in graph.nodes if id(n) not in gone]


def _activation(graph: Graph, node: Node) -> str | None:
    if node.op == "Relu":
        return "RELU"
    if node.op != "Clip":
        return None
    low, high = node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf)
    for i in (1, 2):
        if node.has(i):
            value = graph.scalar(node.inputs[i])
            if value is None:
                return None
            low, high = (value, high) if i == 1 else (low, value)
    return {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get((low, high))
