"""TFLite with its zeros left out: float weights of pruned layers as compressed sparse rows.

They stand behind DENSIFY operators, as the TFLite converter writes them. XNNPACK unpacks them when the model is loaded,
and runs 1x1 convolutions on its sparse kernels where over two thirds of their weights (and of the dense layers' behind
them) are zero, the network begins with a 3x3 convolution of stride 2 on three channels, and the processor is not an x86
with AVX, on which it holds dense kernels to be faster (XNNPACK, xnn_subgraph_rewrite_for_nchw and
xnn_is_chw_compatible_config; Elsen et al., "Fast Sparse ConvNets", arXiv:1911.09723).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_edge.passes._tflite_file import code_of, put, read

REQUIRES = ("ai-edge-litert>=2.1", "flatbuffers>=24")
READERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
LEAST = 64  # weights of a tensor


def run(src: str, dst: str) -> dict:
    """Write `dst` from `src`; float32 weights of layers that take fewer bytes without their zeros are stored so.

    Raises LeptonError for a file that is no TFLite model, for one without such weights, and for what LiteRT then does
    not load.
    """
    from pathlib import Path

    from lepton_edge.errors import LeptonError

    model, schema = read(src)
    code = code_of(model, schema, "DENSIFY", 1)
    counts = [_graph(model, graph, code, schema) for graph in model.subgraphs]
    stored, zeros, weights = (sum(part) for part in zip(*counts, strict=True))
    if not stored:
        raise LeptonError(
            f"{Path(src).name}: no layer has zeros enough among its float weights to be stored without them",
            "prune it first: lepton-edge prune --method weights --sparsity 0.7",
        )
    put(model, dst)
    return {"notes": [f"{stored} tensors stored without their zeros ({zeros / weights:.1%} of their weights)"]}


def _graph(model: Any, graph: Any, code: int, schema: Any) -> tuple[int, int, int]:
    """Leave the zeros out in one subgraph: how many tensors, and their zeros and weights."""
    import copy

    kinds = {getattr(schema.BuiltinOperator, name) for name in READERS}
    codes = [max(c.builtinCode, c.deprecatedBuiltinCode) for c in model.operatorCodes]
    weights = {int(op.inputs[1]) for op in graph.operators if codes[op.opcodeIndex] in kinds}
    steps, zeros, total = [], 0, 0
    for index in sorted(weights):
        tensor = graph.tensors[index]
        content = model.buffers[tensor.buffer].data
        if tensor.type != schema.TensorType.FLOAT32 or content is None or tensor.sparsity is not None:
            continue
        value = np.frombuffer(np.asarray(content, np.uint8).tobytes(), np.float32).reshape(tensor.shape)
        parts = rows(value)
        if value.size < LEAST or sum(part.nbytes for part in parts) >= value.nbytes:
            continue
        held = schema.BufferT()
        held.data = np.frombuffer(parts[0].tobytes(), np.uint8)
        model.buffers.append(held)
        small = copy.copy(tensor)
        small.name = (tensor.name or b"weights") + b"_sparse"
        small.buffer, small.sparsity = len(model.buffers) - 1, _sparsity(schema, value.shape, parts[1], parts[2])
        tensor.buffer = 0
        graph.tensors.append(small)
        step = schema.OperatorT()
        step.opcodeIndex, step.inputs, step.outputs = code, [len(graph.tensors) - 1], [index]
        step.builtinOptionsType, step.builtinOptions = schema.BuiltinOptions.DensifyOptions, schema.DensifyOptionsT()
        steps.append(step)
        zeros, total = zeros + value.size - parts[0].size, total + value.size
    graph.operators = steps + list(graph.operators)
    read = {t.buffer for g in model.subgraphs for t in g.tensors} | {m.buffer for m in model.metadata or []}
    for k, buffer in enumerate(model.buffers):
        if k not in read:
            buffer.data = None
    return len(steps), zeros, total


def rows(value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compressed sparse rows along the last axis: values, where each row begins [rows + 1], and positions in it; the
    latter two in the smallest type that TFLite has for them."""
    matrix = value.reshape(-1, value.shape[-1])
    at, positions = np.nonzero(matrix)
    begins = np.concatenate([[0], np.cumsum(np.bincount(at, minlength=len(matrix)))])
    return matrix[at, positions], _small(begins), _small(positions)


def _small(numbers: np.ndarray) -> np.ndarray:
    most = int(numbers.max(initial=0))
    return numbers.astype(np.uint8 if most < 2**8 else np.uint16 if most < 2**16 else np.int32)


def _sparsity(schema: Any, shape: tuple[int, ...], begins: np.ndarray, positions: np.ndarray) -> Any:
    """The parameters of a tensor whose last axis is sparse."""
    made = schema.SparsityParametersT()
    made.traversalOrder = list(range(len(shape)))
    made.dimMetadata = []
    for size in shape[:-1]:
        axis = schema.DimensionMetadataT()
        axis.format, axis.denseSize = schema.DimensionType.DENSE, int(size)
        made.dimMetadata.append(axis)
    last = schema.DimensionMetadataT()
    last.format = schema.DimensionType.SPARSE_CSR
    last.arraySegmentsType, last.arraySegments = _vector(schema, begins)
    last.arrayIndicesType, last.arrayIndices = _vector(schema, positions)
    made.dimMetadata.append(last)
    return made


def _vector(schema: Any, numbers: np.ndarray) -> tuple[int, Any]:
    name = {"uint8": "Uint8Vector", "uint16": "Uint16Vector", "int32": "Int32Vector"}[numbers.dtype.name]
    held = getattr(schema, f"{name}T")()
    held.values = numbers
    return getattr(schema.SparseIndexVector, name), held
