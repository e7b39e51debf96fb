"""Products whose activations are rounded to 8 bits while the model runs: DynamicQuantizeLinear and MatMulInteger.

The form is what ONNX Runtime fuses into DynamicQuantizeMatMul (one scale for the whole tensor): the integer product,
Cast, then Mul with scale of the activations times scales of the weights. `plain` takes it back to float products with
integer weights, from which TFLite and OpenVINO make their own: a scale for each row, or for each group of a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_edge.quant.emit_weights import add
from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Layer
from lepton_edge.quant.weight_only import Stored

PRODUCTS = ("MatMul", "Gemm")


def write(net: Net, layers: Sequence[Layer], weights: Mapping[str, Stored]) -> Net:
    """A copy of `net` whose MatMul and Gemm `layers` are integer products of activations rounded at run time."""
    from lepton_edge.quant.emit import _sort

    made = net.copy()
    seen: dict[str, list[str]] = {}
    for layer in layers:
        if layer.x not in seen:
            seen[layer.x] = [made.fresh(f"{layer.x}_dynamic_{what}") for what in ("quantized", "scale", "zero_point")]
            add(made, "DynamicQuantizeLinear", [layer.x], seen[layer.x])
        _product(made, layer, weights[layer.y], seen[layer.x])
    _sort(made)
    return made


def _product(made: Net, layer: Layer, stored: Stored, rounded: list[str]) -> None:
    node = next(n for n in made.nodes if n.name == layer.node)
    turned = layer.axis == 0
    held, scale = made.fresh(f"{layer.weight}_quantized"), made.fresh(f"{layer.weight}_scale")
    made.consts[held] = np.ascontiguousarray(stored.values.T) if turned else stored.values
    made.consts[scale] = stored.scale
    total, wide, factor = (made.fresh(f"{layer.y}_{what}") for what in ("integer", "wide", "factor"))
    has_bias = bool(layer.bias) and layer.op == "Gemm"
    bias = node.input[2] if has_bias else ""
    product = made.fresh(f"{layer.y}_product") if has_bias else layer.y
    made.nodes = [n for n in made.nodes if n is not node]
    add(made, "MatMulInteger", [rounded[0], held, rounded[2]], total)
    add(made, "Cast", [total], wide, to=1)
    add(made, "Mul", [rounded[1], scale], factor)
    add(made, "Mul", [wide, factor], product)
    if has_bias:
        add(made, "Add", [product, bias], layer.y)
    made.link()


def plain(model: Any) -> bool:
    """Rewrite, in a ModelProto, every such product as MatMul with dequantized weights; whether there was any."""
    from onnx import helper

    graph = model.graph
    makers = {out: node for node in graph.node for out in node.output}
    users: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    made: dict[str, list[Any]] = {}
    gone: set[str] = set()
    for node in graph.node:
        found = _pattern(node, makers, users) if node.op_type == "MatMulInteger" else None
        if found is None:
            continue
        source, scale, cast, factor, last = found
        back = f"{node.input[1]}_dequantized"
        zero = [node.input[3]] if len(node.input) > 3 and node.input[3] else []
        made[last.output[0]] = [
            helper.make_node("DequantizeLinear", [node.input[1], scale, *zero], [back], name=back, axis=1),
            helper.make_node("MatMul", [source, back], [last.output[0]], name=f"{last.output[0]}_MatMul"),
        ]
        gone |= {node.output[0], cast.output[0], factor.output[0]}
    if not made:
        return False
    written, nodes = set(), []
    for node in graph.node:
        for new in made.get(node.output[0], [] if node.output[0] in gone else [node]):
            if new.output[0] not in written:
                nodes.append(new)
                written.add(new.output[0])
    read = {name for node in nodes for name in node.input} | {o.name for o in graph.output}
    kept = [n for n in nodes if n.op_type != "DynamicQuantizeLinear" or set(n.output) & read]
    del graph.node[:]
    graph.node.extend(kept)
    return True


def _pattern(node: Any, makers: dict, users: dict) -> tuple[Any, ...] | None:
    """(float input, name of the weights' scale, Cast, Mul of scales, last Mul) of a MatMulInteger, or None."""
    rounded = makers.get(node.input[0])
    if rounded is None or rounded.op_type != "DynamicQuantizeLinear" or len(node.input) < 3:
        return None
    cast = _only(users, node.output[0], "Cast")
    last = _only(users, cast.output[0], "Mul") if cast is not None else None
    if node.input[2] != rounded.output[2] or cast is None or last is None:
        return None
    other = last.input[1 - list(last.input).index(cast.output[0])]
    factor = makers.get(other)
    if factor is None or factor.op_type != "Mul" or rounded.output[1] not in factor.input:
        return None
    scale = factor.input[1 - list(factor.input).index(rounded.output[1])]
    return None if scale in makers else (rounded.input[0], scale, cast, factor, last)


def _only(users: dict, tensor: str, kind: str) -> Any | None:
    found = users.get(tensor, [])
    return found[0] if len(found) == 1 and found[0].op_type == kind else None
