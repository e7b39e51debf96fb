"""A source as one frozen graph: traced for given shapes, its variables folded into constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.tf_export.recurrent import fused_recurrent
from lepton_edge.tf_export.source import Port, Source


@dataclass(frozen=True)
class Frozen:
    """A graph without variables: its tensors by the names they have in the graph, and the source's names."""

    graph_def: Any
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    input_tensors: tuple[str, ...]
    output_tensors: tuple[str, ...]

    def function(self) -> Any:
        """The concrete function: positional tensors in, a list of tensors out."""
        import tensorflow as tf

        wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(self.graph_def, name=""), [])
        graph = wrapped.graph
        return wrapped.prune(
            [graph.as_graph_element(name) for name in self.input_tensors],
            [graph.as_graph_element(name) for name in self.output_tensors],
        )


def trace(source: Source, shapes: list[list[int | None]], fuse: str = "") -> Any:
    """The source as a concrete function `arg_0, arg_1, ... -> {out_0000, out_0001, ...}` of these input shapes.

    `fuse`: "onnx" or "tflite" traces LSTM and GRU layers in the form that converter recognises, "" as Keras does.
    """
    import tensorflow as tf

    specs = [
        tf.TensorSpec(shape, port.dtype, name=f"arg_{i:04d}")
        for i, (shape, port) in enumerate(zip(shapes, source.inputs, strict=True))
    ]

    def traced(*tensors: Any) -> dict[str, Any]:
        return {f"out_{i:04d}": tf.identity(tensor) for i, tensor in enumerate(source.call(*tensors))}

    with fused_recurrent(source.recurrent, fuse):
        concrete = tf.function(traced, input_signature=specs, autograph=False).get_concrete_function()
    for name, tensor in zip(source.outputs, concrete.outputs, strict=True):
        if tensor.dtype == tf.string:
            raise LeptonError(f"output '{name}' is a string, which edge runtimes do not return")
    return concrete


def freeze(source: Source, shapes: list[list[int | None]], fuse: str = "") -> Frozen:
    """Trace the source and fold its variables and captured constants into the graph."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = trace(source, shapes, fuse)
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    graph_def = frozen.graph.as_graph_def()
    captured = {inner.op.name: outer for outer, inner in frozen.graph.captures}
    for node in graph_def.node:
        if node.name in captured:
            name, value = node.name, tf.make_tensor_proto(captured[node.name].numpy())
            node.Clear()
            node.name, node.op = name, "Const"
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
    ports = tuple(Port(p.name, tuple(s), p.dtype) for p, s in zip(source.inputs, shapes, strict=True))
    user = [t.name for t in frozen.inputs if t.op.name not in captured][: len(ports)]
    return Frozen(graph_def, ports, source.outputs, tuple(user), tuple(t.name for t in frozen.outputs))


def probe(frozen: Frozen, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One seeded input (normal floats, 0/1 integers) and the frozen graph's outputs for it."""
    import tensorflow as tf

    random = np.random.default_rng(seed)
    feeds = []
    for port in frozen.inputs:
        shape = [dim or 1 for dim in port.shape]
        real = np.issubdtype(np.dtype(port.dtype), np.floating)
        values = random.standard_normal(shape) if real else random.integers(0, 2, shape)
        feeds.append(np.asarray(values).astype(port.dtype))
    return feeds, [np.asarray(t) for t in frozen.function()(*(tf.constant(feed) for feed in feeds))]
