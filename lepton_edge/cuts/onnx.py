"""The beginning of an ONNX model, up to one of its tensors."""

from __future__ import annotations

from typing import Any


def inspect(path: str) -> dict[str, Any]:
    """The float tensors that nodes of the main graph make and that are read, in order: [[tensor, operator, node]]."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = model.graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in [*inferred.value_info, *inferred.output]}
    read = {o.name for o in model.graph.output}
    for node in model.graph.node:
        read |= {*node.input, *_outer(node)}
    found = []
    for node in model.graph.node:
        if node.op_type in ("Constant", "Shape", "Size", "If", "Loop", "Scan"):
            continue
        for name in node.output:
            if name in read and kinds.get(name, onnx.TensorProto.FLOAT) == onnx.TensorProto.FLOAT:
                found.append([name, node.op_type, node.name])
    return {"tensors": found}


def run(src: str, dst: str, *, tensor: str) -> dict:
    """Write `dst`: the model `src` with `tensor` as its only output and nothing that it does not need."""
    import onnx

    model = onnx.load(src)
    graph = model.graph
    makers = {o: n for n in graph.node for o in n.output}
    needed, todo = set(), [tensor]
    while todo:
        name = todo.pop()
        node = makers.get(name)
        if node is None or id(node) in needed:
            continue
        needed.add(id(node))
        todo += [*node.input, *_outer(node)]
    kept = [n for n in graph.node if id(n) in needed]
    del graph.node[:]
    graph.node.extend(kept)
    known = {v.name: v for v in [*graph.value_info, *graph.output]}
    value = known.get(tensor) or onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None)
    output = onnx.ValueInfoProto()
    output.CopyFrom(value)
    del graph.output[:]
    graph.output.append(output)
    onnx.save(model, dst)
    return {"outputs": [{"name": tensor, "source": tensor, "perm": None}]}


def _outer(node: Any) -> list[str]:
    """The tensors that the subgraphs of a node read from around it."""
    names = []
    for attribute in node.attribute:
        for graph in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for inner in graph.node:
                names += [*inner.input, *_outer(inner)]
            names += [o.name for o in graph.output]
    return names
