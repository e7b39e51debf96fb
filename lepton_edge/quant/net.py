"""An ONNX graph that can be edited: nodes in order, constants as arrays, who makes and who reads each tensor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Net:
    """`nodes` are onnx.NodeProto in topological order, `consts` initializers by name, `shapes` of every tensor
    that shape inference knows (None: a free axis), `base` the rest of the model (opsets, inputs, outputs)."""

    nodes: list[Any]
    consts: dict[str, np.ndarray]
    inputs: list[str]
    outputs: list[str]
    shapes: dict[str, tuple[int | None, ...]]
    dtypes: dict[str, int]
    base: Any
    makers: dict[str, Any] = field(default_factory=dict)
    users: dict[str, list[Any]] = field(default_factory=dict)

    def link(self) -> None:
        """Rebuild `makers` and `users`; call it after editing `nodes` or their inputs."""
        self.makers = {out: node for node in self.nodes for out in node.output if out}
        self.users = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                if name:
                    self.users.setdefault(name, []).append(node)

    def alone(self, tensor: str) -> Any | None:
        """The only node that reads `tensor`; None where there are several, none, or it is an output."""
        users = self.users.get(tensor, [])
        return users[0] if len(users) == 1 and tensor not in self.outputs else None

    def private(self, const: str) -> bool:
        """Whether `const` is a constant that a single node reads once."""
        users = self.users.get(const, [])
        return const in self.consts and len(users) == 1 and list(users[0].input).count(const) == 1

    def fresh(self, stem: str) -> str:
        """A tensor name that is not taken yet."""
        taken = self.consts.keys() | self.makers.keys() | set(self.inputs)
        name, k = stem, 1
        while name in taken:
            name, k = f"{stem}_{k}", k + 1
        return name

    def copy(self) -> Net:
        """Nodes are copied, arrays are shared: replace them, don't write into them."""
        nodes = []
        for node in self.nodes:
            twin = type(node)()
            twin.CopyFrom(node)
            nodes.append(twin)
        net = Net(nodes, dict(self.consts), list(self.inputs), list(self.outputs), self.shapes, self.dtypes, self.base)
        net.link()
        return net


def from_proto(model: Any) -> Net:
    """A `Net` of a checked model; Constant nodes become constants. Shapes are inferred as far as ONNX can."""
    import onnx
    from onnx import numpy_helper

    graph = model.graph
    consts = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    nodes = []
    for proto in graph.node:
        value = next((a.t for a in proto.attribute if a.name == "value" and a.type == onnx.AttributeProto.TENSOR), None)
        if proto.op_type == "Constant" and value is not None:
            consts[proto.output[0]] = numpy_helper.to_array(value)
        else:
            nodes.append(proto)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):  # shapes are then those the file states
        inferred = graph
    shapes: dict[str, tuple[int | None, ...]] = {name: array.shape for name, array in consts.items()}
    dtypes = {}
    for item in [*graph.input, *inferred.value_info, *graph.output, *inferred.output]:
        kind = item.type.tensor_type
        dtypes[item.name] = kind.elem_type
        if kind.HasField("shape"):
            shapes[item.name] = tuple(
                d.dim_value if d.WhichOneof("value") == "dim_value" else None for d in kind.shape.dim
            )
    base = onnx.ModelProto()
    base.CopyFrom(model)
    del base.graph.node[:], base.graph.initializer[:], base.graph.value_info[:]
    inputs = [i.name for i in graph.input if i.name not in consts]
    net = Net(nodes, consts, inputs, [o.name for o in graph.output], shapes, dtypes, base)
    net.link()
    return net


def to_proto(net: Net, extra_outputs: Iterable[str] = ()) -> Any:
    """The ModelProto, with only the constants that are read, and `extra_outputs` beside the model's own."""
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(net.base)
    used = {name for node in net.nodes for name in reads(node)} | set(net.outputs)
    model.graph.node.extend(net.nodes)
    for name, array in net.consts.items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs if name not in net.outputs)
    return model


def reads(node: Any) -> list[str]:
    """Names that a node reads, also inside its subgraphs."""
    names = list(node.input)
    for attribute in node.attribute:
        for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            for child in inner.node:
                names += reads(child)
            names += [out.name for out in inner.output]
    return names


def attribute(node: Any, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default`."""
    from onnx import helper

    for item in node.attribute:
        if item.name == name:
            value = helper.get_attribute_value(item)
            return value.decode() if isinstance(value, bytes) else value
    return default
