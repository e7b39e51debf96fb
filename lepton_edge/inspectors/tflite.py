"""TensorFlow Lite (LiteRT) flatbuffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.inspectors._common import (
    CHUNK,
    Shape,
    Weights,
    assemble,
    count_nonzeros,
    damaged,
    layer,
    size_of,
    spec,
    times,
)
from lepton_edge.inspectors._flow import Flow

REQUIRES = ("ai-edge-litert>=2.1", "flatbuffers>=24")
EXTRA = "tflite"

BITS = {
    "float32": 32,
    "float64": 64,
    "float16": 16,
    "bfloat16": 16,
    "bool": 8,
    "int4": 4,
    "uint4": 4,
    "int2": 2,
}
READABLE = {"float32": "<f4", "float64": "<f8", "float16": "<f2", "int8": "i1", "uint8": "u1", "int16": "<i2"}
READABLE |= {"int32": "<i4", "int64": "<i8", "uint16": "<u2", "uint32": "<u4", "uint64": "<u8"}
WEIGHTS = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int4", "int2")
RECURRENT = (
    "UNIDIRECTIONAL_SEQUENCE_LSTM",
    "UNIDIRECTIONAL_SEQUENCE_RNN",
    "BIDIRECTIONAL_SEQUENCE_LSTM",
    "BIDIRECTIONAL_SEQUENCE_RNN",
)
CELLS = ("LSTM", "RNN", "SVDF")
# Inputs that hold the state between steps; a file may store their first values, which are no weights.
STATES = {"UNIDIRECTIONAL_SEQUENCE_LSTM": (18, 19), "LSTM": (18, 19), "UNIDIRECTIONAL_SEQUENCE_RNN": (4,)}
STATES |= {"RNN": (4,), "SVDF": (4,), "BIDIRECTIONAL_SEQUENCE_RNN": (4, 8)}
STATES |= {"BIDIRECTIONAL_SEQUENCE_LSTM": (35, 36, 37, 38)}
LOOPS = ("WHILE", "STABLEHLO_WHILE")
HEAVY: tuple[str, ...] = (
    "CONV_2D",
    "DEPTHWISE_CONV_2D",
    "TRANSPOSE_CONV",
    "CONV_3D",
    "CONV_3D_TRANSPOSE",
    "FULLY_CONNECTED",
)
HEAVY += ("BATCH_MATMUL", "STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL", *RECURRENT, *CELLS)
UNCOUNTED = ("STABLEHLO_CONVOLUTION", "STABLEHLO_DOT_GENERAL", "STABLEHLO_CUSTOM_CALL", "DELEGATE")
FREE_CUSTOM = ("TFLite_Detection_PostProcess",)
RESHAPING = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
# Constants at these inputs steer the operator: factors, shapes, paddings, not weights. -1: all but the first.
STEERING = {"RESHAPE": -1, "PAD": -1, "PADV2": -1, "MIRROR_PAD": -1, "TRANSPOSE": -1, "RESIZE_BILINEAR": -1}


def inspect(path: str) -> dict[str, Any]:
    """Reads the flatbuffer without an interpreter, so models with unknown operators can be looked at."""
    data = Path(path).read_bytes()
    if data[4:8] != b"TFL3":
        raise damaged(path, "TFLite", "the identifier TFL3 is missing at byte 4")
    model = _parse(path, data)
    if not model.subgraphs:
        raise damaged(path, "TFLite", "it holds no graph")
    try:
        return _report(path, _Reader(path, data, model))
    except (IndexError, ValueError, TypeError, AttributeError, KeyError) as problem:
        raise damaged(path, "TFLite", problem) from problem


def _parse(path: str, data: bytes) -> Any:
    import struct

    from ai_edge_litert import schema_py_generated as schema

    try:
        return schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    except (
        struct.error,
        IndexError,
        ValueError,
        TypeError,
        UnicodeDecodeError,
        OverflowError,
        MemoryError,
    ) as problem:
        raise damaged(path, "TFLite", f"the flatbuffer is inconsistent ({problem})") from problem


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _names(kind: type) -> dict[int, str]:
    return {value: name for name, value in vars(kind).items() if isinstance(value, int)}


class _Reader:
    """Looks things up in one model."""

    def __init__(self, path: str, data: bytes, model: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.path, self.data, self.model = path, data, model
        self.schema = schema
        self.op_names = _names(schema.BuiltinOperator)
        self.type_names = {value: name.lower() for value, name in _names(schema.TensorType).items()}

    def op(self, operator: Any) -> str:
        code = self.model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return _text(code.customCode) if number == 32 else self.op_names.get(number, f"BUILTIN_{number}")

    def is_custom(self, operator: Any) -> bool:
        return self.model.operatorCodes[operator.opcodeIndex].customCode is not None

    def dtype(self, tensor: Any) -> str:
        return self.type_names.get(tensor.type, f"type{tensor.type}")

    def shape(self, tensor: Any) -> list[int | None]:
        """Free dimensions are None: the signature holds them, the shape has ones in their place."""
        shape = [int(d) for d in (() if tensor.shape is None else tensor.shape)]
        signature = () if tensor.shapeSignature is None else tensor.shapeSignature
        if len(signature) == len(shape):
            return [None if int(s) < 0 else d for s, d in zip(signature, shape, strict=True)]
        return [None if d < 0 else d for d in shape]

    def bytes(self, tensor: Any) -> np.ndarray | None:
        """A constant's bytes, None for a computed tensor; those above 2 GB lie behind the flatbuffer."""
        buffer = self.model.buffers[tensor.buffer]
        if buffer.data is not None and len(buffer.data):
            return np.frombuffer(bytes(buffer.data), np.uint8)
        if getattr(buffer, "offset", 0) and buffer.offset > 1:
            end = buffer.offset + buffer.size
            if end > len(self.data):
                raise damaged(self.path, "TFLite", f"a buffer ends at byte {end}, the file at {len(self.data)}")
            return np.frombuffer(self.data, np.uint8, buffer.size, buffer.offset)
        return None


def _report(path: str, reader: _Reader) -> dict[str, Any]:
    model = reader.model
    weights, layers = Weights(), []
    kinds: Counter[str] = Counter()
    for index, graph in enumerate(model.subgraphs):
        layers += _graph_layers(reader, graph, index, weights, kinds)
    inputs, outputs, notes = _signature(reader)
    custom = sorted({reader.op(op) for g in model.subgraphs for op in g.operators or () if reader.is_custom(op)})
    if custom:
        notes.append(f"custom operators: {', '.join(custom)} (a plain runtime may not have them)")
    if any(row["op"] == "VAR_HANDLE" for row in layers):
        weights.nonzeros = None
        notes.append("weights held in resource variables are not counted")
    metadata = _metadata(reader)
    return assemble(
        format="tflite",
        producer=_text(model.description) or "unknown",
        inputs=inputs,
        outputs=outputs,
        layers=layers,
        weights=weights,
        versions={
            "schema": int(model.version),
            "min_runtime_version": metadata.get("min_runtime_version"),
            "op_versions": _op_versions(reader),
        },
        quantized=dict(kinds),
        notes=notes,
    )


def _op_versions(reader: _Reader) -> dict[str, int]:
    versions: dict[str, int] = {}
    for graph in reader.model.subgraphs:
        for operator in graph.operators or ():
            code = reader.model.operatorCodes[operator.opcodeIndex]
            name = reader.op(operator)
            versions[name] = max(int(code.version), versions.get(name, 0))
    return dict(sorted(versions.items()))


def _metadata(reader: _Reader) -> dict[str, str]:
    found = {}
    for entry in reader.model.metadata or ():
        data = reader.model.buffers[entry.buffer].data
        if _text(entry.name) == "min_runtime_version" and data is not None:
            found["min_runtime_version"] = bytes(data).split(b"\0")[0].decode("ascii", "replace")
    return found


def _signature(reader: _Reader) -> tuple[list[dict], list[dict], list[str]]:
    """Inputs and outputs under the names of the one signature, else of the tensors."""
    graph, signatures = reader.model.subgraphs[0], reader.model.signatureDefs or []
    names: list[dict[int, str]] = [{}, {}]
    notes = []
    if len(signatures) == 1 and signatures[0].subgraphIndex == 0:
        sides = (signatures[0].inputs or (), signatures[0].outputs or ())
        names = [{entry.tensorIndex: _text(entry.name) for entry in side} for side in sides]
    elif len(signatures) > 1:
        keys = ", ".join(_text(s.signatureKey) for s in signatures)
        notes.append(f"{len(signatures)} signatures ({keys}): the names are those of the tensors of the first graph")
    return _ports(reader, graph.inputs, names[0]), _ports(reader, graph.outputs, names[1]), notes


def _ports(reader: _Reader, indices: Any, signed: dict[int, str]) -> list[dict]:
    """Specs under the names that the runtime gives: the signature's, else tidied tensor names, made unique."""
    graph, numbers = reader.model.subgraphs[0], [int(i) for i in _list(indices)]
    raw = [_text(graph.tensors[i].name) for i in numbers]
    tidy = [name.removeprefix("serving_default_").removesuffix(":0") for name in raw]
    names = [signed.get(i, name) for i, name in zip(numbers, tidy, strict=True)]
    names = names if len(set(names)) == len(names) else raw
    names = names if len(set(names)) == len(names) else [f"{name}_{i}" for i, name in enumerate(names)]
    return [_spec(reader, graph, i, dict(zip(numbers, names, strict=True))) for i in numbers]


def _list(values: Any) -> list:
    return [] if values is None else list(values)


def _spec(reader: _Reader, graph: Any, index: int, names: dict[int, str]) -> dict:
    tensor = graph.tensors[index]
    entry = spec(names[index], reader.shape(tensor), reader.dtype(tensor))
    quantization = tensor.quantization
    if quantization is not None and quantization.scale is not None and len(quantization.scale) == 1:
        entry["quantization"] = [float(quantization.scale[0]), int(quantization.zeroPoint[0])]
    return entry


def _graph_layers(reader: _Reader, graph: Any, index: int, weights: Weights, kinds: Counter) -> list[dict]:
    constants = {i: data for i, t in enumerate(graph.tensors) if (data := reader.bytes(t)) is not None}
    for i, tensor in enumerate(graph.tensors):
        _count_kind(reader, tensor, i in constants, kinds)
    unpacked = _unpacked(reader, graph, constants)
    fixed = {*constants, *unpacked}
    flow = Flow(RESHAPING)
    for i in [*_list(graph.inputs), *fixed]:
        flow.feed(int(i), reader.shape(graph.tensors[int(i)]))
    owned: set[int] = set()
    rows = []
    for number, operator in enumerate(graph.operators or ()):
        op = reader.op(operator)
        ins, outs = [int(i) for i in _list(operator.inputs)], [int(i) for i in _list(operator.outputs)]
        flow.step(op, [i for i in ins if i not in fixed], [(i, reader.shape(graph.tensors[i])) for i in outs])
        stored = [] if outs and outs[0] in unpacked else [unpacked.get(i, i) for i in _stateless(op, ins) if i in fixed]
        count, size = _own(reader, graph, op, stored, constants, owned, weights)
        name = _text(graph.tensors[outs[0]].name) if outs else f"{index}/{number}"
        shape = reader.shape(graph.tensors[outs[0]]) if outs else None
        rows.append(layer(name, op, shape, _macs(reader, operator, op, ins, outs, flow, fixed), count, size))
    return rows


def _stateless(op: str, ins: list[int]) -> list[int]:
    """The inputs without those that hold a state."""
    return [i for position, i in enumerate(ins) if position not in STATES.get(op, ())]


def _unpacked(reader: _Reader, graph: Any, constants: Collection[int]) -> dict[int, int]:
    """{tensor: the stored constant behind it}: float16 weights are dequantized by an operator of their own."""
    found = {}
    for operator in graph.operators or ():
        ins, outs = _list(operator.inputs), _list(operator.outputs)
        if reader.op(operator) in ("DEQUANTIZE", "DENSIFY") and ins and outs and int(ins[0]) in constants:
            found[int(outs[0])] = int(ins[0])
    return found


def _count_kind(reader: _Reader, tensor: Any, constant: bool, kinds: Counter) -> None:
    quantization, dtype = tensor.quantization, reader.dtype(tensor)
    if constant and dtype in ("float16", "bfloat16"):
        kinds[f"{dtype}_tensors"] += 1
    if quantization is None or quantization.scale is None or not len(quantization.scale):
        return
    kinds[f"{dtype}_tensors"] += 1
    kinds["per_channel_tensors"] += len(quantization.scale) > 1


def _own(
    reader: _Reader, graph: Any, op: str, constants: list[int], data: dict, owned: set[int], weights: Weights
) -> tuple[int, int]:
    """Counts the weights an operator reads; one that several operators share belongs to the first."""
    count = size = 0
    for position, index in enumerate(constants):
        tensor = graph.tensors[index]
        if index in owned or not _is_weight(reader, tensor, op, position):
            continue
        owned.add(index)
        elements = size_of(reader.shape(tensor)) or 0
        bits = _nonzeros(reader, tensor, data[index], elements)
        weights.add(elements, len(data[index]), bits)
        count, size = count + elements, size + len(data[index])
    return count, size


def _is_weight(reader: _Reader, tensor: Any, op: str, position: int) -> bool:
    dtype, shape = reader.dtype(tensor), reader.shape(tensor)
    bias = dtype in ("int32", "int64") and op in HEAVY and op != "TRANSPOSE_CONV"
    bias = bias or (op == "TRANSPOSE_CONV" and dtype in ("int32", "int64") and position == 2)
    if not shape or not (dtype in WEIGHTS or bias) or op in STEERING:
        return False
    return size_of(shape) != 1 or op in HEAVY


def _nonzeros(reader: _Reader, tensor: Any, raw: np.ndarray, elements: int) -> int | None:
    """Elements off their zero point; None for packed, sparse or per-channel zero points."""
    dtype = reader.dtype(tensor)
    if tensor.sparsity is not None:
        return None
    needed = (elements * BITS.get(dtype, 8 * np.dtype(READABLE.get(dtype, "u1")).itemsize) + 7) // 8
    if len(raw) != needed:
        name = _text(tensor.name)
        raise damaged(reader.path, "TFLite", f"tensor '{name}' holds {len(raw)} bytes where it needs {needed}")
    if dtype == "int4":
        return _nonzero_nibbles(raw, elements)
    if dtype not in READABLE:
        return None
    points = None if tensor.quantization is None else tensor.quantization.zeroPoint
    zeros = {int(z) for z in _list(points)} or {0}
    return count_nonzeros(raw.view(READABLE[dtype]), zeros.pop()) if len(zeros) == 1 else None


def _nonzero_nibbles(raw: np.ndarray, elements: int) -> int:
    total = 0
    for start in range(0, raw.size, CHUNK):
        part = raw[start : start + CHUNK]
        total += int(np.count_nonzero(part & 0x0F)) + int(np.count_nonzero(part & 0xF0))
    return total - (int(raw[-1] & 0xF0 != 0) if elements % 2 and raw.size else 0)


def _macs(
    reader: _Reader, operator: Any, op: str, ins: list[int], outs: list[int], flow: Flow, constants: Collection[int]
) -> int | None:
    args = [flow.shape(i) if i >= 0 else None for i in ins]
    output = flow.shape(outs[0]) if outs else None
    if op == "CONV_2D":
        return times(size_of(output[:-1]) if output else None, size_of(args[1]))
    if op == "FULLY_CONNECTED":
        return _dense(ins, outs, flow)
    if op == "DEPTHWISE_CONV_2D":
        return times(size_of(output), size_of(args[1][:3]) if args[1] else None)
    if op in ("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"):
        depth = args[1][3 if op == "TRANSPOSE_CONV" else 4] if args[1] else None
        each = size_of(args[1])
        return times(size_of(args[2]), each // depth if each is not None and depth else None)
    if op == "CONV_3D":
        return times(size_of(output[:-1]) if output else None, size_of(args[1]))
    if op == "BATCH_MATMUL":
        options = operator.builtinOptions
        width = (args[0][-2] if getattr(options, "adjX", False) else args[0][-1]) if args[0] else None
        return times(size_of(output), width)
    if op in RECURRENT or op in CELLS:
        return _recurrent(args[0], [flow.shape(i) for i in _stateless(op, ins)[1:] if i in constants])
    return _other(reader, operator, op)


def _dense(ins: list[int], outs: list[int], flow: Flow) -> int | None:
    """The weight [units, width] is applied to each row; the input may have any rank."""
    total, weight = flow.size(ins[0]), flow.shape(ins[1])
    if total is None or not weight or not weight[-1]:
        return None
    if len(flow.shape(outs[0]) or ()) == 2:
        flow.settle(outs[0], total // weight[-1])
    return times(total // weight[-1], size_of(weight))


def _recurrent(data: Shape | None, matrices: list[Shape | None]) -> int | None:
    """Every stored matrix is used once for each step of each sample; a cell takes one step."""
    sizes = [size_of(shape) for shape in matrices if shape and len(shape) == 2]
    if not data or not sizes:
        return None
    return times(size_of(data[:-1]), sum(size or 0 for size in sizes))


def _other(reader: _Reader, operator: Any, op: str) -> int | None:
    if op in LOOPS:
        body = getattr(operator.builtinOptions, "bodySubgraphIndex", None)
        inner = () if body is None else reader.model.subgraphs[body].operators or ()
        return None if body is None or any(reader.op(o) in HEAVY for o in inner) else 0
    if op in UNCOUNTED:
        return None
    return 0 if not reader.is_custom(operator) or op in FREE_CUSTOM else None
