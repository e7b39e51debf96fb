"""The smallest files there are, for probe_runtimes.py to offer: one operator, version, opset or type at a time."""

from __future__ import annotations

import re
from pathlib import Path

NEWEST = 24  # operator versions tried: 1 up to this
OPSETS = range(1, 21)  # of OpenVINO
ELEMENTS = ("boolean", "bf16", "f16", "f32", "f64", "f4e2m1", "f8e4m3", "f8e5m2", "f8e8m0", "i4", "i8", "i16", "i32",
            "i64", "u1", "u2", "u3", "u4", "u6", "u8", "u16", "u32", "u64", "nf4", "string", "i2")  # fmt: skip


def operator_file(code: int, version: int, used: bool = False) -> bytes:
    """The smallest TFLite file with one operator code: a flatbuffer laid out by hand (schema version 3)."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, entry = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    model.version = 3
    entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], []
    model.operatorCodes, model.subgraphs, model.buffers = [entry], [graph], [schema.BufferT()]
    if used:
        tensor, operator = schema.TensorT(), schema.OperatorT()
        tensor.shape, tensor.type, tensor.buffer = [1], schema.TensorType.FLOAT32, 0
        graph.tensors, graph.inputs, graph.outputs = [tensor, tensor], [0], [1]
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
        graph.operators = [operator]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


#: operator: shape of its input, of its weights, of its output; what needs no weights has none
MIXED = {
    "FULLY_CONNECTED": ([1, 4], [3, 4], [1, 3]),
    "CONV_2D": ([1, 4, 4, 2], [3, 1, 1, 2], [1, 4, 4, 3]),
    "DEPTHWISE_CONV_2D": ([1, 4, 4, 2], [1, 1, 1, 2], [1, 4, 4, 2]),
}


def typed_file(name: str, first: str, second: str = "") -> bytes:
    """A whole file of one operator, whose constants are of types that not every runtime computes with."""
    import flatbuffers
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    model, graph, entry = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    entry.builtinCode = entry.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
    entry.version, model.version = 3, 3
    shapes = MIXED.get(name, ([4], None, [4]))
    kinds = (first, second, "float32" if first.startswith("float") else first)
    model.buffers, graph.tensors = [schema.BufferT()], []
    for place, (shape, kind) in enumerate(zip(shapes, kinds, strict=True)):
        if shape is None:
            continue
        tensor, held = schema.TensorT(), schema.BufferT()
        tensor.shape, tensor.type, tensor.buffer = shape, getattr(schema.TensorType, kind.upper()), 0
        if kind.startswith("int"):
            tensor.quantization = schema.QuantizationParametersT()
            channels = shape[-1 if name.startswith("DEPTHWISE") else 0] if place == 1 else 1
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.1] * channels, [0] * channels
            tensor.quantization.quantizedDimension = 3 if name.startswith("DEPTHWISE") else 0
        if place == 1 or (place == 0 and shapes[1] is None):
            held.data = np.zeros(int(np.prod(shape)) * {"float16": 2}.get(kind, 1), np.uint8)
            model.buffers.append(held)
            tensor.buffer = len(model.buffers) - 1
        graph.tensors.append(tensor)
    operator, last = schema.OperatorT(), len(graph.tensors) - 1
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, list(range(last)), [last]
    options = {"FULLY_CONNECTED": "FullyConnectedOptions", "CONV_2D": "Conv2DOptions",
               "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions", "DEQUANTIZE": "DequantizeOptions"}[name]  # fmt: skip
    operator.builtinOptionsType = getattr(schema.BuiltinOptions, options)
    operator.builtinOptions = getattr(schema, f"{options}T")()
    for stride in ("strideW", "strideH", "dilationWFactor", "dilationHFactor", "depthMultiplier"):
        if hasattr(operator.builtinOptions, stride):
            setattr(operator.builtinOptions, stride, 1)
    graph.inputs, graph.outputs, graph.operators = [] if shapes[1] is None else [0], [last], [operator]
    model.operatorCodes, model.subgraphs = [entry], [graph]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def typed_files() -> dict[str, str]:
    """ "refused OPERATOR TYPE by WEIGHTS" to file: half precision, and integer weights under floats."""
    files = {"refused DEQUANTIZE float16": typed_file("DEQUANTIZE", "float16").hex()}
    pairs = [(op, first, second) for op in MIXED for first, second in (("float32", "int8"), ("int8", "int8"))]
    return files | {f"refused {op} {a} by {b}": typed_file(op, a, b).hex() for op, a, b in pairs}


def tflite_files(micro: bool = False) -> dict[str, str]:
    """ "NAME version" to file, for every builtin operator."""
    from ai_edge_litert import schema_py_generated as schema

    codes = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    skip = {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES", "CONCAT_EMBEDDINGS", "CALL"}
    versions = [1] if micro else range(1, NEWEST + 1)
    return {
        f"{name} {v}": operator_file(code, v, micro).hex()
        for code, name in sorted(codes.items())
        if name not in skip
        for v in versions
    }


def onnx_file(opset: int, ir: int, op: str = "Relu") -> str:
    """The smallest ONNX file of these versions, with one operator whose inputs are floats of unknown shape."""
    import onnx
    from onnx import TensorProto, helper

    schema = onnx.defs.get_schema(op, min(opset, onnx.defs.onnx_opset_version()))
    ins = [f"x{k}" for k in range(max(schema.min_input, 1 if schema.max_input else 0))]
    node = helper.make_node(op, ins, ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None if op != "Relu" else [1]) for n in ins]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir
    return model.SerializeToString().hex()


def onnx_files() -> dict[str, str]:
    """ "opset N" and "ir N" to file."""
    files = {f"opset {n}": onnx_file(n, 3 if n < 9 else 4) for n in range(7, 31)}
    return files | {f"ir {n}": onnx_file(9, n) for n in range(3, 16)}


def operators_of_onnx() -> dict[str, str]:
    """Operator name to a file that uses it in its newest form."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    names = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated})
    return {name: onnx_file(newest, 8, name) for name in names}


IR = """<?xml version="1.0"?><net name="m" version="{ir}"><layers>
<layer id="0" name="x" type="Parameter" version="opset1"><data shape="1" element_type="{kind}"/>{out}</layer>
<layer id="1" name="n" type="{operator}" version="{opset}">{into}{out}</layer>
<layer id="2" name="r" type="Result" version="opset1">{into}</layer></layers>
<edges><edge from-layer="0" from-port="1" to-layer="1" to-port="0"/>
<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/></edges></net>"""


def ir_file(operator: str = "Relu", opset: str = "opset1", ir: int = 11, kind: str = "f32") -> str:
    """An OpenVINO IR of one operator without attributes: what is missing is told before what is wrong with it."""
    port = '<port id="{}" precision="FP32"><dim>1</dim></port>'
    into, out = f"<input>{port.format(0)}</input>", f"<output>{port.format(1)}</output>"
    return IR.format(ir=ir, kind=kind, operator=operator, opset=opset, into=into, out=out).encode().hex()


def ir_files() -> dict[str, str]:
    """ "NAME opset", "ir N" and "type NAME" to file, for the operators that OpenVINO's own Python package makes."""
    import openvino

    made = re.compile(r"\.create\(\s*\"(\w+)\"")
    names = {"Parameter", "Result", "Constant", "TensorIterator", "Loop", "If", "Relu"}
    for file in Path(openvino.__file__).parent.rglob("ops.py"):
        names |= set(made.findall(file.read_text(encoding="utf-8")))
    files = {f"{name} {n}": ir_file(name, f"opset{n}") for name in sorted(names) for n in OPSETS}
    files |= {f"ir {n}": ir_file(ir=n) for n in range(6, 15)}
    return files | {f"type {kind}": ir_file(kind=kind) for kind in ELEMENTS}
