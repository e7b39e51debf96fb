"""ONNX models, with external data and sub-graphs."""

from __future__ import annotations

from collections import Counter
from typing import Any

from lepton_edge.inspectors._common import Shape, assemble, damaged, layer, spec
from lepton_edge.inspectors._onnx_graph import STANDARD, dims_of, key_of, nodes_of, shapes_of
from lepton_edge.inspectors._onnx_macs import macs_of
from lepton_edge.inspectors._onnx_weights import Initializers

REQUIRES = ("onnx>=1.17",)
EXTRA = "onnx"
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
    try:
        return _report(path, _load(path))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError) as problem:  # what contradicts itself
        raise damaged(path, "ONNX", problem) from problem


def _report(path: str, model: Any) -> dict[str, Any]:
    shapes = shapes_of(model)
    weights = Initializers(path, model.graph)
    nodes = list(nodes_of(model.graph))
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
    return spec(value.name, dims_of(tensor), {"float": "float32", "double": "float64"}.get(dtype, dtype))


def _row(node: Any, shapes: dict[str, Shape], weights: Initializers, owners: dict) -> dict:
    owned = [weights.per_layer[name] for name in owners.get(key_of(node), ())]
    standard = node.domain in STANDARD
    return layer(
        node.name or key_of(node),
        node.op_type if standard else f"{node.domain}.{node.op_type}",
        shapes.get(key_of(node)),
        macs_of(node, shapes, standard),
        sum(count for count, _ in owned),
        sum(size for _, size in owned),
    )


def _quantized(weights: Initializers, nodes: list) -> dict[str, int]:
    ops = Counter(node.op_type for node in nodes)
    found = {f"{kind}_tensors": weights.kinds[kind] for kind in QUANTIZED}
    found["quantize_nodes"] = ops["QuantizeLinear"] + ops["DynamicQuantizeLinear"]
    found["dequantize_nodes"] = ops["DequantizeLinear"]
    integer = ("QLinear", "ConvInteger", "MatMulInteger", "QGemm", "DynamicQuantize")
    found["integer_nodes"] = sum(n for op, n in ops.items() if op.startswith(integer) and op != "DynamicQuantizeLinear")
    return found
