"""ONNX graphs: their nodes and sub-graphs, and the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lepton_edge.inspectors._common import Shape

STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def nodes_of(graph: Any) -> Iterator[Any]:
    """Every node of a graph and, behind each, those of its sub-graphs."""
    for node in graph.node:
        yield node
        for branch in _branches(node):
            yield from nodes_of(branch)


def graphs_of(graph: Any) -> Iterator[Any]:
    """A graph and all below it."""
    yield graph
    for node in graph.node:
        for branch in _branches(node):
            yield from graphs_of(branch)


def _branches(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from [attribute.g] if attribute.HasField("g") else attribute.graphs


def key_of(node: Any) -> str:
    """What a node is known by: its first output that has a name."""
    return next((name for name in node.output if name), node.name)


def attribute_of(node: Any, name: str, default: Any) -> Any:
    """The value of a node's attribute, `default` where it has none (strings are bytes)."""
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def kind_of(tensor: Any) -> str:
    """A stored tensor's data type in lower case, as ONNX names it (float is float32)."""
    from onnx import TensorProto

    return TensorProto.DataType.Name(tensor.data_type).lower()


def dims_of(tensor: Any) -> list[int | None] | None:
    """The shape of a tensor type; None where the file gives none, a free dimension as None."""
    if not tensor.HasField("shape"):
        return None
    return [int(d.dim_value) if d.WhichOneof("value") == "dim_value" else None for d in tensor.shape.dim]


def shapes_of(model: Any) -> dict[str, Shape]:
    """Shapes of all named tensors for a batch of one, inferred by ONNX itself on a copy without weights."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    _fix_batch(bare.graph)
    for tensor in bare.graph.initializer:
        if len(tensor.raw_data) > 4096:
            tensor.ClearField("raw_data")
    shapes: dict[str, Shape] = {}
    try:
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        shapes.clear()  # what the file itself declares is still there; layers without shapes are noted
    _collect(bare.graph, shapes)
    return shapes


def _fix_batch(graph: Any) -> None:
    """Sets the free first dimension of every input to one, and the same symbol wherever else it stands."""
    symbols = set()
    known = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in known or not dims or dims[0].WhichOneof("value") == "dim_value":
            continue
        if dims[0].dim_param:
            symbols.add(dims[0].dim_param)
        dims[0].dim_value = 1
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.WhichOneof("value") == "dim_param" and dim.dim_param in symbols:
                dim.dim_value = 1


def _collect(graph: Any, shapes: dict[str, Shape]) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        dims = dims_of(value.type.tensor_type) if value.type.WhichOneof("value") == "tensor_type" else None
        if dims is not None:
            shapes.setdefault(value.name, dims)
    for tensor in graph.initializer:
        shapes[tensor.name] = [int(d) for d in tensor.dims]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _collect(attribute.g, shapes)
            if node.op_type == "Constant" and attribute.HasField("t"):
                shapes[node.output[0]] = [int(d) for d in attribute.t.dims]
