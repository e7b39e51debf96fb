"""A source as an ONNX file by way of tf2onnx, run once before it is published."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, first_line
from lepton_edge.tf_export.check import distance_db
from lepton_edge.tf_export.freeze import Frozen, freeze, probe
from lepton_edge.tf_export.onnx_model import finish_onnx, run_onnx, simplified_onnx
from lepton_edge.tf_export.publish import publish
from lepton_edge.tf_export.shapes import fixed_shapes
from lepton_edge.tf_export.source import Source, unique


def write_onnx(source: Source, dst: str, input_shapes: str, fixed_batch: int, opset: int) -> dict[str, Any]:
    """Write the source as ONNX; inputs and outputs keep the source's names and order, LSTM and GRU are one node."""
    import tf2onnx

    shapes = fixed_shapes(source, fixed_batch, input_shapes, static=False)
    frozen = freeze(source, shapes, fuse="onnx")
    feeds, reference = probe(freeze(source, shapes) if source.recurrent else frozen)
    graph_def = _tidied(frozen)
    renames = dict(
        zip(
            frozen.input_tensors + frozen.output_tensors,
            [port.name for port in frozen.inputs] + list(_apart(frozen)),
            strict=True,
        )
    )
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            graph_def,
            name="model",
            input_names=list(frozen.input_tensors),
            output_names=list(frozen.output_tensors),
            opset=opset,
            custom_op_handlers={"Erfc": (_erfc_to_onnx, [])},
            tensors_to_rename=renames,
        )
    except Exception as error:  # tf2onnx lets through whatever the handler of an operation raises
        raise LeptonError(f"tf2onnx failed: {first_line(error)}") from error
    finish_onnx(model)
    _means_as_reductions(model)
    model = simplified_onnx(model)
    got = run_onnx(model, feeds)
    return publish(dst, model.SerializeToString(), frozen, distance_db(reference, got), [], list(_apart(frozen)))


def _apart(frozen: Frozen) -> tuple[str, ...]:
    """Output names that no input has (ONNX names are one space)."""
    taken = [port.name for port in frozen.inputs]
    return unique(taken + list(frozen.outputs))[len(taken) :]


def _tidied(frozen: Frozen) -> Any:
    """The graph as tf2onnx 1.17 converts it best.

    Rules: Shape of a tensor of known shape becomes a constant (tf2onnx leaves chains of Shape, Gather and Concat
    around every Dense on sequences); a scalar constant of Add becomes [1] (tf2onnx stops moving transposes at it).
    """
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.CopyFrom(frozen.graph_def)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    nodes = {node.name: node for node in graph_def.node}
    uses = collections.Counter(name.lstrip("^").split(":")[0] for node in graph_def.node for name in node.input)
    for node in graph_def.node:
        if node.op not in ("Add", "AddV2", "Shape"):
            continue
        tensors = graph.get_operation_by_name(node.name).inputs
        if node.op == "Shape" and tensors[0].shape.is_fully_defined():
            kind = tf.as_dtype(node.attr["out_type"].type or tf.int32.as_datatype_enum)
            value = tf.make_tensor_proto(tensors[0].shape.as_list(), kind)
            name = node.name
            node.Clear()
            node.name, node.op = name, "Const"
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
        elif node.op != "Shape":
            for side, other in ((0, 1), (1, 0)):
                constant = nodes.get(node.input[side].split(":")[0])
                if constant is None or constant.op != "Const" or tensors[side].shape.rank != 0:
                    continue
                if (tensors[other].shape.rank or 0) >= 1 and uses[constant.name] == 1:
                    constant.attr["value"].tensor.tensor_shape.dim.add().size = 1
                    constant.attr.pop("_output_shapes", None)
    return graph_def


def _erfc_to_onnx(graph: Any, node: Any, name: str, args: Any) -> Any:
    """Erfc(x) = 1 - Erf(x), which ONNX has (tf.nn.gelu needs it and tf2onnx 1.17 has no handler)."""
    dtype = {1: np.float32, 10: np.float16, 11: np.float64}[graph.get_dtype(node.output[0])]
    one = graph.make_const(f"{name}_one", np.array(1, dtype))
    erf = graph.make_node("Erf", [node.input[0]], name=f"{name}_erf")
    shape, kind = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    graph.remove_node(node.name)
    inputs = [one.output[0], erf.output[0]]
    return graph.make_node("Sub", inputs, name=name, outputs=node.output, shapes=[shape], dtypes=[kind])


def _means_as_reductions(model: Any) -> None:
    """Means over the last axis of sequences, which tf2onnx writes as GlobalAveragePool, as ReduceMean.

    They are LayerNormalization's, which quantizers must not take for pooling.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*inferred.graph.value_info, *inferred.graph.input]}
    newer = any(entry.version >= 18 for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for node in model.graph.node:
        if node.op_type == "GlobalAveragePool" and ranks.get(node.input[0]) == 3:
            node.op_type = "ReduceMean"
            node.attribute.append(onnx.helper.make_attribute("keepdims", 1))
            if newer:
                axes = onnx.numpy_helper.from_array(np.array([2], np.int64), f"{node.output[0]}_axes")
                model.graph.initializer.append(axes)
                node.input.append(axes.name)
            else:
                node.attribute.append(onnx.helper.make_attribute("axes", [2]))
    finish_onnx(model)
