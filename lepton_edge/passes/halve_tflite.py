"""TFLite with its weights stored in half precision; arithmetic stays as it was.

They stand behind DEQUANTIZE operators, as the TFLite converter writes them.

LiteRT's XNNPACK kernels read such weights as float32 when the model is loaded.
"""

from __future__ import annotations

from typing import Any

REQUIRES = ("ai-edge-litert>=2.1", "flatbuffers>=24")


def run(src: str, dst: str) -> dict:
    """Write `dst` from `src`; float32 constants of two elements or more that float16 can hold become float16.

    Raises LeptonError for a file that is no TFLite model, and for what LiteRT then does not load.
    """
    from pathlib import Path

    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from lepton_edge.tf_export.publish import write_bytes
    from lepton_edge.tflite_writer.check import interpreter

    data = Path(src).read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    code = _dequantize(model, schema)
    stored = sum(_halve(model, graph, code, schema) for graph in model.subgraphs)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    content = bytes(builder.Output())
    interpreter(content)
    write_bytes(dst, content)
    return {"notes": [f"{stored} tensors stored as float16"]}


def _dequantize(model: Any, schema: Any) -> int:
    """The index of DEQUANTIZE version 3 (the first with float16) among the operator codes, added where it is not."""
    kind = schema.BuiltinOperator.DEQUANTIZE
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == kind:
            code.version = max(code.version, 3)
            return index
    made = schema.OperatorCodeT()
    made.builtinCode = made.deprecatedBuiltinCode = kind
    made.version = 3
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1


def _halve(model: Any, graph: Any, code: int, schema: Any) -> int:
    """Halve the constants of one subgraph; the number of tensors that were."""
    import copy

    import numpy as np

    ends = {int(i) for i in (*graph.inputs, *graph.outputs)}
    read = {int(i) for operator in graph.operators for i in operator.inputs}
    steps, packed = [], {}
    for index, tensor in enumerate(list(graph.tensors)):
        content = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or content is None or index in ends or index not in read:
            continue
        value = np.frombuffer(np.asarray(content, np.uint8).tobytes(), np.float32)
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if value.size < 2 or not np.isfinite(half).all() or tensor.sparsity is not None:
            continue
        if tensor.buffer not in packed:
            held = schema.BufferT()
            held.data = np.frombuffer(half.tobytes(), np.uint8)
            model.buffers.append(held)
            packed[tensor.buffer] = len(model.buffers) - 1
        small = copy.copy(tensor)
        small.name = (tensor.name or b"weights") + b"_float16"
        small.type, small.buffer = schema.TensorType.FLOAT16, packed[tensor.buffer]
        tensor.buffer = 0
        graph.tensors.append(small)
        step = schema.OperatorT()
        step.opcodeIndex, step.inputs, step.outputs = code, [len(graph.tensors) - 1], [index]
        steps.append(step)
    graph.operators = steps + list(graph.operators)
    shared = {t.buffer for g in model.subgraphs for t in g.tensors}
    for buffer in packed:  # kept only where another tensor still reads it as float32
        if buffer not in shared:
            model.buffers[buffer].data = None
    return len(steps)
