"""A source as a float TFLite file, run once before it is published."""

from __future__ import annotations

import re
import tempfile
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, first_line
from lepton_edge.tf_export.check import FUSED_DB, distance_db
from lepton_edge.tf_export.flatbuffer import name_tflite, run_tflite
from lepton_edge.tf_export.freeze import Frozen, freeze, probe, trace
from lepton_edge.tf_export.publish import publish
from lepton_edge.tf_export.recurrent import fusable
from lepton_edge.tf_export.shapes import fixed_shapes
from lepton_edge.tf_export.source import Source


def write_tflite(source: Source, dst: str, input_shapes: str, fixed_batch: int) -> dict[str, Any]:
    """Write the source as a float TFLite file; inputs and outputs keep the source's names and order.

    LSTM layers are fused where the fused model gives the source's numbers, else they stay loops.
    """
    shapes = fixed_shapes(source, fixed_batch, input_shapes, static=True)
    notes: list[str] = []
    plain = freeze(source, shapes)
    feeds, reference = probe(plain)
    content = b""
    if any(type(layer).__name__ == "LSTM" and fusable(layer) for layer in source.recurrent):
        content = name_tflite(_fused_to_tflite(source, shapes), plain.inputs, plain.outputs)
        decibels = distance_db(reference, run_tflite(content, feeds))
        if decibels < FUSED_DB:
            notes.append(f"LSTM layers stay loops: the fused form is {decibels:.0f} dB off")
            content = b""
    if not content:
        content = name_tflite(_loops_to_tflite(plain, fixed_batch, feeds, reference), plain.inputs, plain.outputs)
    got = run_tflite(content, feeds)
    return publish(dst, content, plain, distance_db(reference, got), notes)


def _to_tflite(frozen: Frozen) -> bytes:
    import tensorflow as tf

    try:
        return tf.lite.TFLiteConverter.from_concrete_functions([frozen.function()]).convert()
    except Exception as error:  # the converter's ConverterError is private, and others come through it
        missing = sorted(set(re.findall(r"\btf\.([A-Z]\w+)", str(error))))
        if missing:
            hint = "convert this model to ONNX or OpenVINO instead"
            raise LeptonError(f"TFLite has no operation for {', '.join(missing)}", hint=hint) from error
        raise LeptonError(f"the TFLite converter failed: {first_line(error)}") from error


def _loops_to_tflite(plain: Frozen, batch: int, feeds: list[np.ndarray], reference: list[np.ndarray]) -> bytes:
    """Convert; where a loop of a SavedModel was traced with a free batch, set that batch and convert again.

    TFLite wants the shape of a loop's list elements, which such a graph gives as [-1, units]. The second try
    counts only if it gives the source's numbers.
    """
    try:
        return _to_tflite(plain)
    except LeptonError as error:
        if "TensorList" not in error.message:
            raise
        fixed = replace(plain, graph_def=_with_list_shapes(plain.graph_def, batch))
        content = _to_tflite(fixed)
        if distance_db(reference, run_tflite(content, feeds)) < FUSED_DB:
            raise error from None
        return content


def _with_list_shapes(graph_def: Any, batch: int) -> Any:
    """The graph with -1 in the element shapes of its tensor lists made `batch`."""
    import tensorflow as tf

    copy = tf.compat.v1.GraphDef()
    copy.CopyFrom(graph_def)
    # TensorFlow knows functions by name in the whole process: a changed one needs a name of its own.
    names = {function.signature.name: f"{function.signature.name}_batch{batch}" for function in copy.library.function}
    for function in copy.library.function:
        function.signature.name = names[function.signature.name]
    for node in [*copy.node, *(node for function in copy.library.function for node in function.node_def)]:
        for attribute in node.attr.values():
            for called in [attribute.func, *attribute.list.func]:
                if called.name in names:
                    called.name = names[called.name]
    for nodes in (copy.node, *(function.node_def for function in copy.library.function)):
        by_name = {node.name: node for node in nodes}
        for node in nodes:
            if not node.op.startswith("TensorList"):
                continue
            for name in node.input:
                constant = by_name.get(name.split(":")[0])
                if constant is None or constant.op != "Const":
                    continue
                value = tf.make_ndarray(constant.attr["value"].tensor)
                if value.ndim == 1 and value.dtype.kind == "i" and (value == -1).any():
                    fixed = tf.make_tensor_proto(np.where(value == -1, batch, value), value.dtype)
                    constant.attr["value"].tensor.CopyFrom(fixed)
    return copy


def _fused_to_tflite(source: Source, shapes: list[list[int | None]]) -> bytes:
    """By way of a SavedModel: freezing first would take the LSTM functions apart before TFLite can know them."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [getattr(weight, "value", weight) for weight in source.keep.weights]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=trace(source, shapes, "tflite"))
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()
