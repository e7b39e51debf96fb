"""`If` nodes whose condition the sizes and constants of the model decide: the branch that is taken, in their place.

ONNX Runtime folds most of them itself; it gives up on branches whose declared shapes contradict the sizes asked for.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def fold_branches(model: Any) -> Any:
    """Replace, in place, every such If, those inside the branches too; an If that depends on data stays."""
    while True:
        decided = [n for n in model.graph.node if n.op_type == "If" and _is_decided(model.graph, n.input[0])]
        if not decided:
            return model
        values = _observe(model, list(dict.fromkeys(n.input[0] for n in decided)))
        for node in decided:
            _inline(model.graph, node, bool(np.asarray(values[node.input[0]]).reshape(-1)[0]))
        del model.graph.value_info[:]


def _is_decided(graph: Any, name: str) -> bool:
    """Whether a tensor follows from constants and from shapes (which are static) alone."""
    makers = {o: n for n in graph.node for o in n.output}
    inputs = {i.name for i in graph.input} - {i.name for i in graph.initializer}
    todo, seen = [name], set()
    while todo:
        tensor = todo.pop()
        if tensor in seen or not tensor:
            continue
        seen.add(tensor)
        if tensor in inputs:
            return False
        node = makers.get(tensor)
        if node is None or node.op_type in ("Shape", "Size"):
            continue
        if node.op_type in ("If", "Loop", "Scan") or node.op_type.startswith("Random"):
            return False
        todo += node.input
    return True


def _observe(model: Any, names: list[str]) -> dict[str, np.ndarray]:
    """Run the model once and look at these tensors."""
    import onnx

    from lepton_edge.tflite_writer.check import reference, seeded_inputs
    from lepton_edge.tflite_writer.load import input_dtype

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.helper.make_tensor_value_info(n, onnx.TensorProto.BOOL, None) for n in names)
    shapes = {i.name: tuple(d.dim_value for d in i.type.tensor_type.shape.dim) for i in model.graph.input}
    feeds = next(seeded_inputs({n: (shape, input_dtype(model, n)) for n, shape in shapes.items()}))
    return reference(probe, feeds, names)


def _inline(graph: Any, node: Any, taken: bool) -> None:
    """Put the nodes of the branch that is taken in place of the If."""
    from onnx import helper

    wanted = "then_branch" if taken else "else_branch"
    branch = next(a.g for a in node.attribute if a.name == wanted)
    prefix = f"{node.name or node.output[0]}/"
    made = [o for n in branch.node for o in n.output if o] + [i.name for i in branch.initializer]
    names = {name: prefix + name for name in made}
    extra = []
    for place, port in zip(node.output, branch.output, strict=False):
        if names.get(port.name, "").startswith(prefix):
            names[port.name] = place
        else:  # given back twice, or of the graph around
            extra.append(helper.make_node("Identity", [names.get(port.name, port.name)], [place], name=f"{place}_same"))
    for initializer in branch.initializer:
        initializer.name = names[initializer.name]
        graph.initializer.append(initializer)
    for inner in branch.node:
        inner.name = prefix + inner.name
        _rename(inner, names)
    at = next(k for k, n in enumerate(graph.node) if n is node or n.output[:] == node.output[:])
    nodes = [*graph.node[:at], *branch.node, *extra, *graph.node[at + 1 :]]
    copies = []
    for n in nodes:
        copy = type(n)()
        copy.CopyFrom(n)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)


def _rename(node: Any, names: dict[str, str]) -> None:
    """New names for the tensors of a node and of the subgraphs in it."""
    for ports in (node.input, node.output):
        for k, name in enumerate(ports):
            if name in names:
                ports[k] = names[name]
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            own = {o for n in inner.node for o in n.output} | {i.name for i in inner.initializer}
            shown = {k: v for k, v in names.items() if k not in own}
            for deep in inner.node:
                _rename(deep, shown)
            for port in inner.output:
                port.name = shown.get(port.name, port.name)
