"""Products of activations rounded at run time (DynamicQuantizeLinear, MatMulInteger) as MatMul with integer weights.

TFLite and OpenVINO make such products themselves where weights are integers, with a scale for each row of the
activations, or for each group of a row, instead of one for the whole tensor.
"""

from __future__ import annotations

from typing import Any


def unrounded(model: Any) -> bool:
    """Take out, in a ModelProto, the static 8-bit rounding before products whose result stays float; was there any.

    LiteRT has no product of int8 activations with a float result: it rounds each row of them while it runs.
    """
    graph = model.graph
    makers = {out: node for node in graph.node for out in node.output}
    constants = {item.name for item in graph.initializer}
    rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    eight = {item.name for item in graph.initializer if item.data_type in (2, 3)}  # uint8, int8
    found = False
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.output[0] in rounded:
            continue
        back, weight = makers.get(node.input[0]), makers.get(node.input[1])
        if back is None or weight is None or {back.op_type, weight.op_type} != {"DequantizeLinear"}:
            continue
        to = makers.get(back.input[0])
        if to is None or to.op_type != "QuantizeLinear" or to.input[0] in constants:
            continue
        if weight.input[0] in eight and len(to.input) > 2 and to.input[2] in eight:
            node.input[0] = to.input[0]
            found = True
    if found:
        read = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
        for kind in ("DequantizeLinear", "QuantizeLinear"):
            dead = [n for n in graph.node if n.op_type == kind and n.output[0] not in read]
            for n in dead:
                graph.node.remove(n)
            read = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    return found


def plain(model: Any) -> bool:
    """Rewrite, in a ModelProto, every such product; whether there was any."""
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
