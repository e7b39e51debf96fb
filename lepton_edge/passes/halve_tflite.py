"""TFLite with its weights stored in half precision; arithmetic stays as it was.

They stand behind DEQUANTIZE operators, as the TFLite converter writes them.

LiteRT's XNNPACK kernels read such weights as float32 when the model is loaded.
"""

from __future__ import annotations

from typing import Any

from lepton_edge.passes._tflite_file import code_of, put, read

REQUIRES = ("ai-edge-litert>=2.1", "flatbuffers>=24")


def run(src: str, dst: str) -> dict:
    """Write `dst` from `src`; float32 constants of two elements or more that float16 can hold become float16.

    Raises LeptonError for a file that is no TFLite model, and for what LiteRT then does not load.
    """
    model, schema = read(src)
    code = code_of(model, schema, "DEQUANTIZE", 3)  # the first version with float16
    stored = sum(_halve(model, graph, code, schema) for graph in model.subgraphs)
    put(model, dst)
    return {"notes": [f"{stored} tensors stored as float16"]}


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
