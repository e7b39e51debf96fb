"""The TFLite file: tensors, operators and buffers collected here, then packed with the schema's own classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.tflite_writer import opcodes

_LIMIT = 2**31 - 2**20  # offsets inside a flatbuffer are signed 32-bit
_ENUMS = {"padding": "Padding", "fusedActivationFunction": "ActivationFunctionType", "mode": "MirrorPadMode"}
_TYPES = {"inDataType", "outDataType", "outputType"}


@dataclass(frozen=True)
class Quant:
    """Affine quantization: real = scale * (stored - zero_point), per tensor or along stored axis `axis`.

    `unpack`: weights that float operators read behind a DEQUANTIZE. `block`: scales for so many neighbours on the last
    axis of a matrix, row by row; TFLite keeps them in a tensor of their own.
    """

    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    axis: int = 0
    unpack: bool = False
    block: int = 0


@dataclass
class Tensor:
    """One TFLite tensor; `data` is None for anything computed at run time. `scales` is the tensor of block scales."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    data: np.ndarray | None = None
    quant: Quant | None = None
    scales: int = -1


@dataclass
class Operator:
    code: str
    version: int
    inputs: list[int]
    outputs: list[int]
    options: dict[str, Any]


class Writer:
    """Collects one subgraph; `pack` returns the file's bytes."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self.operators: list[Operator] = []
        self._names: dict[str, int] = {}

    def tensor(
        self, name: str, shape: Any, dtype: Any, data: np.ndarray | None = None, quant: Quant | None = None
    ) -> int:
        """Adds a tensor and returns its index; a taken name gets a number behind it."""
        shape = tuple(int(d) for d in shape)
        scales = -1
        if quant is not None and quant.block:
            held = np.asarray(quant.scale, np.float16).reshape(shape[0], -1)
            scales = self.tensor(f"{name}_scales", held.shape, held.dtype, held)
        self.tensors.append(Tensor(self._unique(name), shape, np.dtype(dtype), data, quant, scales))
        return len(self.tensors) - 1

    def operator(self, code: str, inputs: list[int], outputs: list[int], options: dict[str, Any]) -> None:
        """Adds an operator; input -1 is an absent optional tensor."""
        ins = [self.tensors[i] if i >= 0 else None for i in inputs]
        outs = [self.tensors[i] for i in outputs]
        number = opcodes.version(code, ins, outs, options)
        self.operators.append(Operator(code, number, inputs, outputs, options))

    def rename(self, index: int, name: str) -> None:
        """Gives a tensor its final name, moving whoever has it out of the way."""
        for other in self.tensors:
            if other.name == name and other is not self.tensors[index]:
                other.name = self._unique(name)
        self.tensors[index].name = name

    def _unique(self, name: str) -> str:
        count = self._names.get(name)
        if count is None:
            self._names[name] = 0
            return name
        while True:
            count += 1
            candidate = f"{name}_{count}"
            if candidate not in self._names:
                self._names[name] = count
                self._names[candidate] = 0
                return candidate

    def pack(self, inputs: dict[str, int], outputs: dict[str, int], description: str) -> bytes:
        """The TFLite file: inputs and outputs are signature names -> tensor indices."""
        return bytes(self.view(inputs, outputs, description))

    def view(self, inputs: dict[str, int], outputs: dict[str, int], description: str) -> memoryview:
        """As `pack`, without the copy."""
        import flatbuffers
        from ai_edge_litert import schema_py_generated as schema

        self._sweep(set(inputs.values()) | set(outputs.values()))
        renumber = self._renumber(list(inputs.values()) + list(outputs.values()))
        ins = {k: renumber[v] for k, v in inputs.items()}
        outs = {k: renumber[v] for k, v in outputs.items()}
        buffers = _Buffers(schema)
        model = schema.ModelT()
        model.version = 3
        model.description = description
        model.operatorCodes, index = self._codes(schema)
        subgraph = schema.SubGraphT()
        subgraph.name = "main"
        subgraph.tensors = [_tensor(schema, t, buffers) for t in self.tensors]
        subgraph.inputs, subgraph.outputs = list(ins.values()), list(outs.values())
        subgraph.operators = [_operator(schema, o, index) for o in self.operators]
        model.subgraphs = [subgraph]
        model.signatureDefs = [_signature(schema, ins, outs)]
        model.metadata = [_min_runtime(schema, buffers, list(index))]
        model.buffers = buffers.list
        size = sum(b.size_hint for b in buffers.list)
        if size > _LIMIT:
            raise LeptonError(
                f"the TFLite file would hold {size / 2**30:.1f} GiB of weights; the format ends at 2 GiB",
                hint="compress the weights first (float16 or int8), or split the model",
            )
        builder = flatbuffers.Builder(size + 2**16)
        builder.Finish(model.Pack(builder), b"TFL3")
        return memoryview(builder.Bytes)[builder.head :]

    def _sweep(self, wanted: set[int]) -> None:
        """Drops operators nobody reads."""
        kept = []
        for op in reversed(self.operators):
            if wanted & set(op.outputs):
                kept.append(op)
                wanted |= set(op.inputs)
        self.operators = kept[::-1]

    def _renumber(self, keep: list[int]) -> dict[int, int]:
        """Drops tensors nobody reads or writes; returns old index -> new index."""
        used = set(keep)
        for op in self.operators:
            used |= set(op.inputs) | set(op.outputs)
        used |= {self.tensors[i].scales for i in used if i >= 0}
        order = [i for i in range(len(self.tensors)) if i in used]
        new = {old: k for k, old in enumerate(order)} | {-1: -1}
        self.tensors = [self.tensors[i] for i in order]
        for tensor in self.tensors:
            tensor.scales = new[tensor.scales]
        for op in self.operators:
            op.inputs = [new[i] for i in op.inputs]
            op.outputs = [new[i] for i in op.outputs]
        return new

    def _codes(self, schema: Any) -> tuple[list[Any], dict[tuple[str, int], int]]:
        table: list[Any] = []
        index: dict[tuple[str, int], int] = {}
        for op in self.operators:
            if (op.code, op.version) in index:
                continue
            code = schema.OperatorCodeT()
            code.builtinCode = getattr(schema.BuiltinOperator, op.code)
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            code.version = op.version
            index[(op.code, op.version)] = len(table)
            table.append(code)
        return table, index


class _Buffers:
    """The file's buffers: the empty one first, equal contents stored once."""

    def __init__(self, schema: Any) -> None:
        self._class = _aligned_buffer(schema)
        self.list = [self._class(b"")]
        self._seen: dict[bytes, int] = {}

    def add(self, data: Any) -> int:
        import hashlib

        key = hashlib.sha256(data).digest()
        if key not in self._seen:
            self._seen[key] = len(self.list)
            self.list.append(self._class(data))
        return self._seen[key]


def _aligned_buffer(schema: Any) -> Any:
    """BufferT whose bytes start at a multiple of 16 (`force_align: 16`), which the Python generator ignores."""

    class AlignedBuffer(schema.BufferT):
        def __init__(self, data: Any) -> None:
            super().__init__()
            self.bytes = data
            self.size_hint = len(data) + 32

        def Pack(self, builder: Any) -> int:  # named by the schema's classes
            if len(self.bytes):
                count = len(self.bytes)
                builder.StartVector(1, count, 16)
                builder.head -= count
                builder.Bytes[builder.head : builder.head + count] = self.bytes
                offset = builder.EndVector()
            schema.BufferStart(builder)
            if len(self.bytes):
                schema.BufferAddData(builder, offset)
            return schema.BufferEnd(builder)

    return AlignedBuffer


def type_code(schema: Any, dtype: Any) -> int:
    """TFLite's number for a numpy dtype; LeptonError for one that TFLite hasn't."""
    name = np.dtype(dtype).name.upper()
    if not hasattr(schema.TensorType, name):
        raise LeptonError(f"TFLite has no type {name.lower()}", hint="export the model with float32 and int32 or int64")
    return getattr(schema.TensorType, name)


def _bytes(data: np.ndarray) -> Any:
    """The bytes of an array, not copied where they lie in order already; of 4-bit numbers two in a byte, low first."""
    whole = np.ascontiguousarray(data)
    if whole.dtype.name == "int4":
        nibbles = np.append(whole.reshape(-1).astype(np.int8), np.zeros(whole.size % 2, np.int8)).view(np.uint8) & 15
        whole = nibbles[0::2] | nibbles[1::2] << 4
    return whole.reshape(-1).view(np.uint8).data if whole.size else b""


def _tensor(schema: Any, tensor: Tensor, buffers: _Buffers) -> Any:
    item = schema.TensorT()
    item.name, item.shape = tensor.name, list(tensor.shape)
    item.type = type_code(schema, tensor.dtype)
    item.hasRank = True
    if tensor.data is not None:
        item.buffer = buffers.add(_bytes(tensor.data))
    if tensor.quant is not None:
        item.quantization = schema.QuantizationParametersT()
        if tensor.quant.block:
            item.quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
            item.quantization.details = schema.BlockwiseQuantizationT()
            item.quantization.details.scales = tensor.scales
            item.quantization.details.zeroPoints = -1
            item.quantization.details.blockSize = tensor.quant.block
            return item
        item.quantization.scale = [float(s) for s in tensor.quant.scale]
        item.quantization.zeroPoint = [int(z) for z in tensor.quant.zero_point]
        item.quantization.quantizedDimension = tensor.quant.axis
    return item


def _operator(schema: Any, op: Operator, index: dict[tuple[str, int], int]) -> Any:
    item = schema.OperatorT()
    item.opcodeIndex = index[(op.code, op.version)]
    item.inputs, item.outputs = list(op.inputs), list(op.outputs)
    name = opcodes.OPTIONS.get(op.code)
    if name:
        item.builtinOptionsType = getattr(schema.BuiltinOptions, name)
        item.builtinOptions = getattr(schema, f"{name}T")()
        for key, value in op.options.items():
            setattr(item.builtinOptions, key, _option(schema, key, value))
    return item


def _option(schema: Any, key: str, value: Any) -> Any:
    if key in _ENUMS and isinstance(value, str):
        return getattr(getattr(schema, _ENUMS[key]), value)
    return type_code(schema, value) if key in _TYPES else value


def _signature(schema: Any, inputs: dict[str, int], outputs: dict[str, int]) -> Any:
    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    for field, tensors in (("inputs", inputs), ("outputs", outputs)):
        maps = []
        for name, tensor in tensors.items():
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, tensor
            maps.append(entry)
        setattr(signature, field, maps)
    return signature


def _min_runtime(schema: Any, buffers: _Buffers, used: list[tuple[str, int]]) -> Any:
    entry = schema.MetadataT()
    entry.name = "min_runtime_version"
    entry.buffer = buffers.add(opcodes.min_runtime(used).encode().ljust(16, b"\0"))
    return entry
