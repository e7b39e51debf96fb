"""TFLite files in memory: their ports named, and one run in TensorFlow's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, first_line
from lepton_edge.tf_export.source import Port


def name_tflite(content: bytes, inputs: tuple[Port, ...], outputs: tuple[str, ...]) -> bytes:
    """The flatbuffer with its input and output tensors, and a `serving_default` signature, named as given.

    From a function the converter keeps the order; from a SavedModel it does not, and the signature's keys tell it.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    graph = model.subgraphs[0]
    for made in model.signatureDefs or []:
        graph.inputs = [m.tensorIndex for m in sorted(made.inputs, key=lambda m: m.name)]
        graph.outputs = [m.tensorIndex for m in sorted(made.outputs, key=lambda m: m.name)]
    if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
        raise LeptonError(
            f"the TFLite converter made {len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            f" of {len(inputs)} and {len(outputs)}"
        )

    def maps(tensors: Any, names: tuple[str, ...]) -> list[Any]:
        result = []
        for index, name in zip(tensors, names, strict=True):
            graph.tensors[index].name = name.encode()
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), int(index)
            result.append(entry)
        return result

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs = maps(graph.inputs, tuple(port.name for port in inputs))
    signature.outputs = maps(graph.outputs, outputs)
    model.signatureDefs = [signature]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def run_tflite(content: bytes, feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Load, allocate and run the flatbuffer once, feeds and outputs in its order."""
    import tensorflow as tf

    try:
        runner = tf.lite.Interpreter(model_content=content, num_threads=1)
        runner.allocate_tensors()
        runner.reset_all_variables()
        for detail, feed in zip(runner.get_input_details(), feeds, strict=True):
            runner.set_tensor(detail["index"], feed)
        runner.invoke()
        return [runner.get_tensor(detail["index"]) for detail in runner.get_output_details()]
    except (RuntimeError, ValueError) as error:
        raise LeptonError(f"the TFLite file that was made does not run: {first_line(error)}") from error
