"""Integer weights that float operators read: kept as integers in the file.

- MatMul and Gemm with int4 weights, and with int8 ones where the model is `dynamic`, become FULLY_CONNECTED with a
  float input, which LiteRT rounds row by row while it runs; ungrouped Conv of a dynamic model likewise;
- other int8 weights (scheme w8) stand behind a DEQUANTIZE, which LiteRT runs once, when the model is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.tflite_writer.flatbuffer import Quant
from lepton_edge.tflite_writer.fuse import Links, activations, matmul_bias
from lepton_edge.tflite_writer.graph import Graph, Node

_BLOCK = 32  # LiteRT's kernel takes multiples of it


def compress(graph: Graph, dynamic: bool) -> bool:
    """Rewrites in place; whether any operator now rounds its input while it runs."""
    links, rounds, found = Links(graph), False, False
    for node in graph.nodes:
        held = _held(graph, links, node)
        if held is None:
            continue
        hybrid = _hybrid(graph, node, held, dynamic)
        if not hybrid and graph.dtypes[held] != np.int8:
            continue
        name = held
        if not hybrid:
            name = graph.constant(f"{held}_stored", graph.consts[held])
            graph.quant[name] = replace(graph.quant[held], unpack=True)
        node.inputs = [node.inputs[0], name, *node.inputs[2:]]
        rounds, found = rounds or hybrid, True
    if found:
        matmul_bias(graph)
        activations(graph)
    return rounds


def _held(graph: Graph, links: Links, node: Node) -> str | None:
    """The integer constant behind the weights of a float operator, where its scales run along the outputs."""
    if node.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul") or node.inputs[0] in graph.consts:
        return None
    maker = links.maker(node.inputs[1], "DequantizeLinear")
    if maker is None or maker.inputs[0] not in graph.consts or graph.dtypes[node.inputs[0]] != np.float32:
        return None
    name = maker.inputs[0]
    quant, value = graph.quant[name], graph.consts[name]
    if any(quant.zero_point) or (len(quant.scale) > 1 and not quant.block and quant.axis != _outputs(node)):
        return None
    if node.op in ("Conv", "ConvTranspose"):
        turned = node.op == "ConvTranspose"
        plain = node.attrs.get("group", 1) == 1 and set(node.attrs.get("dilations", [1])) == {1}
        return name if value.ndim <= 4 and (plain or not turned) else None
    if node.op == "Gemm":
        bias: np.ndarray | None = np.zeros(1)
        if node.has(2):
            behind = links.maker(node.inputs[2], "DequantizeLinear")
            bias = graph.consts.get(behind.inputs[0] if behind is not None else node.inputs[2])
        scaled = node.attrs.get("alpha", 1.0) != 1 or node.attrs.get("beta", 1.0) != 1 or node.attrs.get("transA")
        if scaled or bias is None or bias.size not in (1, graph.shapes[node.out][-1]):
            return None
    return name if value.ndim == 2 else None


def _outputs(node: Node) -> int:
    """The axis of the output channels in an operator's weights."""
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB") else 1
    return 0 if node.op == "Conv" else 1


def _hybrid(graph: Graph, node: Node, held: str, dynamic: bool) -> bool:
    """Whether the operator takes the integers themselves. Raises LeptonError for blocks that LiteRT does not take."""
    quant = graph.quant[held]
    if quant.block % _BLOCK:
        raise LeptonError(
            f"scheme w4 in blocks of {quant.block} is not possible in tflite: {node.op} '{node.name}' becomes "
            f"FULLY_CONNECTED, whose kernel takes blocks of multiples of {_BLOCK}",
            f"set block to {_BLOCK}, or to 0 for one scale a channel",
        )
    if node.op in ("Gemm", "MatMul"):
        return graph.dtypes[held] != np.int8 or dynamic
    return dynamic and node.op == "Conv" and node.attrs.get("group", 1) == 1 and len(quant.scale) > 1


def unpacked(value: np.ndarray, quant: Quant) -> np.ndarray:
    """float32 values of integer constants."""
    if quant.block:
        scale = np.asarray(quant.scale, np.float32).reshape(value.shape[1], -1).T
        return (value.astype(np.float32) * np.repeat(scale, quant.block, axis=0)).astype(np.float32)
    shape = [1] * value.ndim
    if len(quant.scale) > 1:
        shape[quant.axis] = -1
    zero, scale = (np.asarray(v, np.float32).reshape(shape) for v in (quant.zero_point, quant.scale))
    return ((value.astype(np.float32) - zero) * scale).astype(np.float32)
