"""ONNX models, with external data and sub-graphs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.inspectors._common import (
    Shape,
    Weights,
    assemble,
    count_nonzeros,
    damaged,
    einsum_macs,
    layer,
    size_of,
    spec,
    times,
)

REQUIRES = ("onnx>=1.17",)
EXTRA = "onnx"

STANDARD = ("", "ai.onnx", "ai.onnx.ml")
# Where the weight, or second factor, of an operator is among its inputs; the default is 1.
SECOND = {"QLinearConv": 3, "QLinearMatMul": 3, "QGemm": 3}
CONVOLUTIONS = ("Conv", "ConvInteger", "QLinearConv", "FusedConv", "DeformConv", "NhwcConv", "NhwcFusedConv")
PRODUCTS = (
    "MatMul",
    "MatMulInteger",
    "QLinearMatMul",
    "FusedMatMul",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "TransposeMatMul",
)
GEMMS = ("Gemm", "FusedGemm", "QGemm")
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "DynamicQuantizeLSTM": 4}
UNCOUNTED = ("Attention", "Loop", "Scan", "SequenceMap")  # standard, but not a fixed amount of work
FREE_CONTRIB = frozenset((
    "QLinearAdd", "QLinearMul", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearAveragePool",
    "QLinearGlobalAveragePool", "QLinearConcat", "QLinearSoftmax", "QLinearWhere", "QLinearReduceMean",
    "Gelu", "FastGelu", "BiasGelu", "QuickGelu", "QuantizeLinear", "DequantizeLinear",
    "LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "GroupNorm", "BiasSplitGelu",
    "NhwcMaxPool", "BiasAdd", "BiasSoftmax", "Inverse", "Pad", "Unique", "ExpandDims", "Trilu",
    "RotaryEmbedding",
))  # fmt: skip
# A weight keeps its owner through these; their own row would hide which layer it belongs to.
CARRIERS = ("DequantizeLinear", "QuantizeLinear", "Identity", "Cast", "Transpose", "Reshape", "Unsqueeze")
# Inputs that steer an operator and are no weights: {op: positions}; -1 means all but the first.
STEERING = {
    "Clip": (-1,),
    "Resize": (-1,),
    "Upsample": (-1,),
    "Pad": (-1,),
    "Dropout": (-1,),
    "Range": (0, 1, 2),
}
QUANTIZED = (
    "int8",
    "uint8",
    "int4",
    "uint4",
    "int16",
    "uint16",
    "int2",
    "uint2",
    "float8e4m3fn",
    "float8e5m2",
)


def inspect(path: str) -> dict[str, Any]:
    """Reads the graph, fixes a free batch to one, infers shapes and counts."""
    model = _load(path)
    shapes = _shapes(model)
    weights = _Initializers(path, model.graph)
    nodes = list(_nodes(model.graph))
    owners = weights.owners(nodes)
    layers = [_row(node, shapes, weights, owners) for node in nodes if node.op_type != "Constant"]
    producer = " ".join(str(part) for part in (model.producer_name, model.producer_version) if part) or "unknown"
    notes = list(weights.notes)
    contrib = sorted({node.domain for node in nodes if node.domain not in STANDARD})
    if contrib:
        notes.append(f"operators outside the ONNX standard: {', '.join(contrib)}")
    return assemble(
        format="onnx",
        producer=producer,
        inputs=[_spec(value) for value in model.graph.input if value.name not in weights.tensors],
        outputs=[_spec(value) for value in model.graph.output],
        layers=layers,
        weights=weights.totals,
        versions={
            "ir": int(model.ir_version),
            "opset": {entry.domain or "ai.onnx": int(entry.version) for entry in model.opset_import},
        },
        quantized=_quantized(weights, nodes),
        notes=notes,
    )


def _load(path: str) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        if model.functions:
            from onnx import inliner

            model = inliner.inline_local_functions(model)
    except (DecodeError, ValueError, UnicodeDecodeError, RuntimeError) as problem:
        raise damaged(path, "ONNX", problem) from problem
    if not model.ir_version or not model.graph.output or not model.opset_import:
        raise damaged(path, "ONNX", "it holds no graph with outputs and an operator set version")
    return model


def _spec(value: Any) -> dict:
    from onnx import TensorProto

    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        return spec(value.name, None, str(kind))
    tensor = value.type.tensor_type
    dtype = TensorProto.DataType.Name(tensor.elem_type).lower()
    return spec(value.name, _dims(tensor), {"float": "float32", "double": "float64"}.get(dtype, dtype))


def _dims(tensor: Any) -> list[int | None] | None:
    if not tensor.HasField("shape"):
        return None
    return [int(d.dim_value) if d.WhichOneof("value") == "dim_value" else None for d in tensor.shape.dim]


def _shapes(model: Any) -> dict[str, Shape]:
    """Shapes of all named tensors for a batch of one, inferred by ONNX itself on a copy without weights."""
    import onnx

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    _fix_batch(bare.graph)
    for tensor in bare.graph.initializer:
        if len(tensor.raw_data) > 4096:
            tensor.ClearField("raw_data")
    shapes: dict[str, Shape] = {}
    try:
        bare = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        shapes.clear()  # what the file itself declares is still there; layers without shapes are noted
    _collect(bare.graph, shapes)
    return shapes


def _fix_batch(graph: Any) -> None:
    """Sets the free first dimension of every input to one, and the same symbol wherever else it stands."""
    symbols = set()
    known = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in known or not dims or dims[0].WhichOneof("value") == "dim_value":
            continue
        if dims[0].dim_param:
            symbols.add(dims[0].dim_param)
        dims[0].dim_value = 1
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.WhichOneof("value") == "dim_param" and dim.dim_param in symbols:
                dim.dim_value = 1


def _collect(graph: Any, shapes: dict[str, Shape]) -> None:
    for value in [*graph.input, *graph.output, *graph.value_info]:
        dims = _dims(value.type.tensor_type) if value.type.WhichOneof("value") == "tensor_type" else None
        if dims is not None:
            shapes.setdefault(value.name, dims)
    for tensor in graph.initializer:
        shapes[tensor.name] = [int(d) for d in tensor.dims]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _collect(attribute.g, shapes)
            if node.op_type == "Constant" and attribute.HasField("t"):
                shapes[node.output[0]] = [int(d) for d in attribute.t.dims]


def _nodes(graph: Any) -> Any:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for branch in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _nodes(branch)


def _graphs(graph: Any) -> Any:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for branch in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(branch)


class _Initializers:
    """The constants of a model by name, and the totals over those that are weights."""

    def __init__(self, path: str, graph: Any) -> None:
        self.path = path
        self.tensors = {t.name: t for g in _graphs(graph) for t in g.initializer}
        for node in _nodes(graph):
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        self.tensors[node.output[0]] = attribute.t
        self.totals = Weights()
        self.per_layer: dict[str, tuple[int, int]] = {}
        self.kinds: Counter = Counter()
        self.notes: list[str] = []

    def owners(self, nodes: list) -> dict[str, list[str]]:
        """{key of a node: names of the weights it owns}; fills the totals. A shared weight counts once."""
        roles = _roles(nodes, self.tensors)
        owners: dict[str, list[str]] = {}
        for name, (owner, statistic, zero_point) in roles.items():
            self._count(name, statistic, zero_point)
            owners.setdefault(owner, []).append(name)
        return owners

    def _count(self, name: str, statistic: bool, zero_point: str | None) -> None:
        from onnx import TensorProto

        tensor = self.tensors[name]
        count = size_of([int(d) for d in tensor.dims]) or 0
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        size = (count * _bits(kind) + 7) // 8
        self.kinds[kind] += 1
        self.per_layer[name] = (count, size)
        array = self._array(tensor, size)
        zero = self._zero(zero_point)
        nonzeros = None if zero is None else count_nonzeros(array, zero)
        self.totals.add(count, size, nonzeros, statistic)

    def _zero(self, zero_point: str | None) -> int | None:
        """The one value that stands for zero; None when channels differ in it."""
        if zero_point is None or zero_point not in self.tensors:
            return 0
        values = np.unique(self._array(self.tensors[zero_point], 0).astype(np.int64))
        return int(values[0]) if values.size == 1 else None

    def _array(self, tensor: Any, size: int) -> np.ndarray:
        from onnx import numpy_helper

        external = {entry.key: entry.value for entry in tensor.external_data}
        if not external and tensor.raw_data and size and len(tensor.raw_data) != size:
            reason = f"tensor '{tensor.name}' holds {len(tensor.raw_data)} bytes where its shape needs {size}"
            raise damaged(self.path, "ONNX", reason)
        try:
            array = numpy_helper.to_array(_copy(tensor), base_dir=str(Path(self.path).resolve().parent))
        except (OSError, ValueError, TypeError, RuntimeError) as problem:
            raise self._unreadable(tensor.name, external.get("location"), problem) from problem
        except Exception as problem:  # onnx.checker.ValidationError, for a path that leaves the folder
            if type(problem).__name__ != "ValidationError":
                raise
            raise self._unreadable(tensor.name, external.get("location"), problem) from problem
        return np.asarray(array)

    def _unreadable(self, name: str, location: str | None, problem: Exception) -> LeptonError:
        if location is None:
            return damaged(self.path, "ONNX", f"tensor '{name}': {problem}")
        return LeptonError(
            f"{self.path}: the weights of '{name}' cannot be read from '{location}' beside it",
            hint="an ONNX model with external data is two files: copy the data file into the same folder",
        )


def _copy(tensor: Any) -> Any:
    """External data is loaded into the tensor itself; a copy keeps memory bounded to one tensor."""
    from onnx import TensorProto

    if not tensor.external_data:
        return tensor
    twin = TensorProto()
    twin.CopyFrom(tensor)
    return twin


def _bits(kind: str) -> int:
    if kind in ("int4", "uint4", "float4e2m1"):
        return 4
    if kind in ("int2", "uint2"):
        return 2
    if kind.startswith("float8") or kind in ("int8", "uint8", "bool"):
        return 8
    return {
        "float16": 16,
        "bfloat16": 16,
        "int16": 16,
        "uint16": 16,
        "double": 64,
        "int64": 64,
        "uint64": 64,
    }.get(kind, 32)


def _roles(nodes: list, tensors: dict) -> dict[str, tuple[str, bool, str | None]]:
    """{weight: (owning node, is a running statistic, its zero point)}, following it through QDQ and casts."""
    consumers: dict[str, list[tuple[Any, int]]] = {}
    for node in nodes:
        for position, name in enumerate(node.input):
            consumers.setdefault(name, []).append((node, position))
    multiplied = {n.output[0] for n in nodes if n.output and n.op_type in (*CONVOLUTIONS, *PRODUCTS, "ConvTranspose")}
    roles = {}
    for name, tensor in tensors.items():
        role = _role(name, _kind(tensor), consumers, tensor)
        if role and size_of([int(d) for d in tensor.dims]) == 1:
            role = role if _lone_weight(role[0], nodes, multiplied) else None
        if role:
            roles[name] = role
    return roles


def _lone_weight(owner: str, nodes: list, multiplied: set[str]) -> bool:
    """Whether a constant of one element is a bias; elsewhere it is a factor or an epsilon of the formula."""
    node = next(n for n in nodes if _key(n) == owner)
    if node.op_type == "Add":
        return any(name in multiplied for name in node.input)
    return node.op_type in (
        *CONVOLUTIONS,
        *PRODUCTS,
        *GEMMS,
        *GATES,
        "ConvTranspose",
        "BatchNormalization",
        "PRelu",
    )


def _kind(tensor: Any) -> str:
    from onnx import TensorProto

    return TensorProto.DataType.Name(tensor.data_type).lower()


def _role(name: str, kind: str, consumers: dict, tensor: Any) -> tuple[str, bool, str | None] | None:
    floating = kind.startswith(("float", "bfloat", "double"))
    zero_point, seen, integer_weight = None, name, False
    for _ in range(8):  # a chain of carriers is short; a longer one is no weight
        uses = consumers.get(seen, [])
        if not uses:
            return None
        node, position = uses[0]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and position > 0:
            return None
        if node.op_type not in CARRIERS or position > 0:
            break
        if node.op_type == "DequantizeLinear":
            integer_weight = True
            zero_point = node.input[2] if len(node.input) > 2 else None
        seen = node.output[0]
    else:
        return None
    place = _quantized_place(node.op_type, position)
    if place is not None:
        integer_weight, zero_point = (
            place == "weight",
            _zero_input(node, position) if place == "weight" else None,
        )
    if not (floating and place != "scale") and not integer_weight:
        return None
    if not tensor.dims or _steers(node.op_type, position):
        return None
    return _key(node), node.op_type == "BatchNormalization" and position in (3, 4), zero_point


def _quantized_place(op: str, position: int) -> str | None:
    """An input of an operator on integers: "weight", "scale" (or zero point), None for neither."""
    if op in ("QLinearConv", "QLinearMatMul", "QGemm"):
        bias = {"QLinearConv": 8, "QGemm": 6}.get(op)
        return "weight" if position in (3, bias) else "scale"
    if op in ("ConvInteger", "MatMulInteger"):
        return "weight" if position == 1 else "scale"
    if op in ("DynamicQuantizeMatMul", "MatMulNBits", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"):
        return "weight" if position == 1 or (position == 2 and op == "DynamicQuantizeLSTM") else "scale"
    return "scale" if op.startswith("QLinear") else None


def _zero_input(node: Any, position: int) -> str | None:
    """The input with the zero point of the weight at `position`."""
    at = {("QLinearConv", 3): 5, ("QLinearMatMul", 3): 5, ("QGemm", 3): 5, ("DynamicQuantizeMatMul", 1): 3}
    at |= {("ConvInteger", 1): 3, ("MatMulInteger", 1): 3, ("MatMulIntegerToFloat", 1): 5}
    place = at.get((node.op_type, position))
    return node.input[place] if place is not None and len(node.input) > place and node.input[place] else None


def _steers(op: str, position: int) -> bool:
    places = STEERING.get(op, ())
    return position in places or (-1 in places and position > 0)


def _key(node: Any) -> str:
    return next((name for name in node.output if name), node.name)


def _row(node: Any, shapes: dict[str, Shape], weights: _Initializers, owners: dict) -> dict:
    owned = [weights.per_layer[name] for name in owners.get(_key(node), ())]
    standard = node.domain in STANDARD
    return layer(
        node.name or _key(node),
        node.op_type if standard else f"{node.domain}.{node.op_type}",
        shapes.get(_key(node)),
        _macs(node, shapes, standard),
        sum(count for count, _ in owned),
        sum(size for _, size in owned),
    )


def _macs(node: Any, shapes: dict[str, Shape], standard: bool) -> int | None:
    op = node.op_type
    args = [shapes.get(name) for name in node.input]
    output = shapes.get(_key(node))
    second = args[SECOND.get(op, 1)] if len(args) > SECOND.get(op, 1) else None
    if op in CONVOLUTIONS:
        return _convolution(output, second, op.startswith("Nhwc"))
    if op == "ConvTranspose":
        return times(size_of(args[0]), size_of(second[1:]) if second else None)
    if op in PRODUCTS:
        return _product(node, args[0], output)
    if op in GEMMS:
        columns = second[0 if _attribute(node, "transB", 0) else -1] if second else None
        return times(size_of(args[0]), columns)
    if op == "MatMulNBits":
        return times(size_of(output), _attribute(node, "K", None))
    if op in GATES:
        return _recurrent(node, args[0], GATES[op])
    if op == "Einsum":
        return einsum_macs(_attribute(node, "equation", b"...").decode(), args)
    if op in UNCOUNTED:
        return None if op not in ("Loop", "Scan") or _works(node) else 0
    return 0 if standard or op in FREE_CONTRIB else None


def _convolution(output: Shape | None, weight: Shape | None, channels_last: bool) -> int | None:
    if weight is None or not weight[0]:
        return None
    each = size_of(weight[1:])
    return times(size_of(output), each)


def _product(node: Any, first: Shape | None, output: Shape | None) -> int | None:
    if not first:
        return None
    transposed = _attribute(node, "transA", 0) and len(first) > 1
    return times(size_of(output), first[-2] if transposed else first[-1])


def _recurrent(node: Any, data: Shape | None, gates: int) -> int | None:
    """Each step multiplies the input (I) and the state (H) by gates x H rows, in each direction."""
    hidden = _attribute(node, "hidden_size", None)
    if data is None or len(data) != 3 or hidden is None:
        return None
    directions = 2 if _attribute(node, "direction", b"forward") == b"bidirectional" else 1
    width = None if data[2] is None else data[2] + hidden
    return times(data[0], data[1], directions * gates * hidden, width)


def _works(node: Any) -> bool:
    """Whether the body of a loop holds anything that costs MACs."""
    heavy = {*CONVOLUTIONS, *PRODUCTS, *GEMMS, *GATES, "ConvTranspose", "Einsum", "Attention", "MatMulNBits"}
    bodies = [a.g for a in node.attribute if a.HasField("g")]
    return any(inner.op_type in heavy for body in bodies for inner in _nodes(body))


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _quantized(weights: _Initializers, nodes: list) -> dict[str, int]:
    ops = Counter(node.op_type for node in nodes)
    found = {f"{kind}_tensors": weights.kinds[kind] for kind in QUANTIZED}
    found["quantize_nodes"] = ops["QuantizeLinear"] + ops["DynamicQuantizeLinear"]
    found["dequantize_nodes"] = ops["DequantizeLinear"]
    integer = ("QLinear", "ConvInteger", "MatMulInteger", "QGemm", "DynamicQuantize")
    found["integer_nodes"] = sum(n for op, n in ops.items() if op.startswith(integer) and op != "DynamicQuantizeLinear")
    return found
