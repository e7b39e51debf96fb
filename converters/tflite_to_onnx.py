"""TFLite to ONNX through tf2onnx: float models as they are, int8 ones as quantize/dequantize pairs.

tf2onnx has no LSTM or GELU for TFLite files: such a model is refused, naming the operation. It also drops the bias
of a FULLY_CONNECTED whose input it has to flatten (tf2onnx 1.17, what pooling before a Dense becomes), without a
word; such inputs are flattened in the file first. It fails over lists that an operator's options leave out (the new
shape of a RESHAPE, which its second input says too): they are written out empty. The result is run once beside the
source, and a float model that does not give the source's numbers is refused: nothing is written.
"""

COST = 2.0
HINT = "convert the model this file was made from"
REQUIRES = ("tensorflow>=2.19", "tf2onnx>=1.16", "onnx>=1.17", "onnxruntime>=1.20", "ai-edge-litert>=2.1")


def run(src: str, dst: str, *, opset: int = 17) -> dict:
    """Convert `src` to `dst`; inputs and outputs keep their order, and their names in the TFLite file."""
    import tempfile
    from pathlib import Path

    import tf2onnx

    from lepton_edge.errors import LeptonError, first_line
    from lepton_edge.tf_export.check import distance_db
    from lepton_edge.tf_export.onnx_model import finish_onnx, run_onnx
    from lepton_edge.tf_export.publish import write_bytes
    from lepton_edge.tf_export.tflite_source import open_tflite
    from lepton_edge.tflite_plain import plain

    source = open_tflite(src)
    try:
        with tempfile.TemporaryDirectory() as folder:
            flat = Path(folder) / "model.tflite"
            flat.write_bytes(_mended(plain(Path(src).read_bytes())))
            model, _ = tf2onnx.convert.from_tflite(str(flat), opset=opset)
    except Exception as error:  # tf2onnx lets through KeyError, AssertionError and more of what it does not know
        recurrent = [op for op in source.operations if "LSTM" in op or "RNN" in op]
        reason = f"it has no {recurrent[0]}" if recurrent else first_line(error)
        raise LeptonError(f"tf2onnx cannot convert '{src}': {reason}", hint=HINT) from error
    finish_onnx(model, HINT)  # unknown operations first: they make the errors below unreadable
    raw = [*source.raw_inputs, *source.raw_outputs]
    if sorted(raw) != sorted(port.name for port in [*model.graph.input, *model.graph.output]):
        raise LeptonError(f"tf2onnx lost inputs or outputs of '{src}'", hint=HINT)
    order = [port.name for port in model.graph.input]
    feeds, reference = source.probe()
    shapes = dict(zip(raw, [array.shape for array in feeds + reference], strict=True))
    for port in [*model.graph.input, *model.graph.output]:
        for dim, size in zip(port.type.tensor_type.shape.dim, shapes[port.name], strict=False):
            dim.dim_value = size
    finish_onnx(model, HINT)
    got = run_onnx(model, [feeds[source.raw_inputs.index(name)] for name in order])
    made = [port.name for port in model.graph.output]
    decibels = distance_db(reference, [got[made.index(name)] for name in source.raw_outputs])
    source.check(decibels, "ONNX")
    _real_ports(model, source)
    write_bytes(dst, model.SerializeToString())
    return source.mapping(source.raw_inputs, source.raw_outputs, decibels)


def _real_ports(model, source) -> None:
    """Quantized inputs and outputs take and give real numbers: the pair that ONNX quantizers write stands at them."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph, ports = model.graph, {}
    for raw, port in zip([*source.raw_inputs, *source.raw_outputs], [*source.session.inputs, *source.session.outputs],
                         strict=True):  # fmt: skip
        if "quantization" in port:
            ports[raw] = (port["quantization"], port["dtype"])
    first, last = [], []
    for value in [*graph.input, *graph.output]:
        if value.name not in ports:
            continue
        (scale, zero), dtype = ports[value.name]
        name, stored, is_input = value.name, f"{value.name}_stored", value in graph.input
        for node in graph.node:
            for side in (node.input, node.output):
                for k, used in enumerate(side):
                    side[k] = stored if used == name else used
        held = [numpy_helper.from_array(np.asarray(scale, np.float32), f"{name}_scale")]
        held.append(numpy_helper.from_array(np.asarray(zero, dtype), f"{name}_zero_point"))
        graph.initializer.extend(held)
        constants = [h.name for h in held]
        if is_input:
            first.append(helper.make_node("QuantizeLinear", [name, *constants], [stored], name=f"{name}_quantize"))
        else:
            last.append(helper.make_node("DequantizeLinear", [stored, *constants], [name], name=f"{name}_dequantize"))
        value.type.tensor_type.elem_type = TensorProto.FLOAT
    nodes = [*first, *graph.node, *last]
    del graph.node[:]
    graph.node.extend(nodes)


def _mended(content: bytes) -> bytes:
    """The flatbuffer with a RESHAPE to [rows, weights' columns] before each FULLY_CONNECTED that flattens its input.

    Lists that its operators' options leave out are there, and empty.
    """
    import copy

    import numpy as np
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    kinds = schema.BuiltinOperator
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    codes = [max(code.builtinCode, code.deprecatedBuiltinCode) for code in model.operatorCodes]
    changed = False
    for graph in model.subgraphs:
        operators = []
        for operator in graph.operators:
            changed |= _write_out(operator.builtinOptions, schema)
            if codes[operator.opcodeIndex] == kinds.FULLY_CONNECTED and not operator.builtinOptions.keepNumDims:
                data, weights = (graph.tensors[index] for index in operator.inputs[:2])
                columns = int(weights.shape[1])
                if data.shape is not None and len(data.shape) != 2:
                    if kinds.RESHAPE not in codes:
                        code = schema.OperatorCodeT()
                        code.builtinCode = code.deprecatedBuiltinCode = kinds.RESHAPE
                        code.version = 1
                        model.operatorCodes.append(code)
                        codes.append(kinds.RESHAPE)
                    shape = [int(np.prod(data.shape)) // columns, columns]
                    flat, size = copy.deepcopy(data), schema.TensorT()
                    flat.name, flat.shape, flat.shapeSignature, flat.buffer = data.name + b"_flat", shape, None, 0
                    held = schema.BufferT()
                    held.data = np.frombuffer(np.array(shape, np.int32).tobytes(), np.uint8)
                    model.buffers.append(held)
                    size.name, size.shape = data.name + b"_flat_shape", [2]
                    size.type, size.buffer = schema.TensorType.INT32, len(model.buffers) - 1
                    graph.tensors.extend([flat, size])
                    reshape = schema.OperatorT()
                    reshape.opcodeIndex = codes.index(kinds.RESHAPE)
                    reshape.inputs = [int(operator.inputs[0]), len(graph.tensors) - 1]
                    reshape.outputs = [len(graph.tensors) - 2]
                    reshape.builtinOptionsType = schema.BuiltinOptions.ReshapeOptions
                    reshape.builtinOptions = schema.ReshapeOptionsT()
                    reshape.builtinOptions.newShape = shape
                    operators.append(reshape)
                    operator.inputs = [len(graph.tensors) - 2, *(int(i) for i in operator.inputs[1:])]
                    changed = True
            operators.append(operator)
        graph.operators = operators
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model)) if changed else content


def _write_out(options, schema) -> bool:
    """Give the lists among an operator's options, where they are left out, no elements; whether there were any."""
    table = getattr(schema, type(options).__name__.removesuffix("T"), None)
    absent = [name for name, value in vars(options).items() if value is None] if options is not None else []
    lists = [name for name in absent if hasattr(table, f"{name[0].upper()}{name[1:]}AsNumpy")]
    for name in lists:
        setattr(options, name, [])
    return bool(lists)
