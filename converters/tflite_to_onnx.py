"""TFLite to ONNX through tf2onnx: float models as they are, int8 ones as quantize/dequantize pairs.

tf2onnx has no LSTM, GELU or WHILE for TFLite files: such a model is refused, naming the operation, and nothing
is written. The result is run once beside the source; figures of that are in the notes only where they are low.
"""

COST = 2.0
HINT = "convert the model this file was made from"
REQUIRES = ("tensorflow>=2.19", "tf2onnx>=1.16", "onnx>=1.17", "onnxruntime>=1.20", "ai-edge-litert>=2.1")


def run(src: str, dst: str, *, opset: int = 17) -> dict:
    """Convert `src` to `dst`; inputs and outputs keep their order, and their names in the TFLite file."""
    import tf2onnx

    from lepton_edge import keras_safe
    from lepton_edge.errors import LeptonError

    source = keras_safe.open_tflite(src)
    try:
        model, _ = tf2onnx.convert.from_tflite(src, opset=opset)
    except Exception as error:
        recurrent = [op for op in source.operations if "LSTM" in op or "RNN" in op]
        reason = f"it has no {recurrent[0]}" if recurrent else keras_safe.first_line(error)
        raise LeptonError(f"tf2onnx cannot convert '{src}': {reason}", hint=HINT) from error
    keras_safe.finish_onnx(model, HINT)  # unknown operations first: they make the errors below unreadable
    raw = [*source.raw_inputs, *source.raw_outputs]
    if sorted(raw) != sorted(port.name for port in [*model.graph.input, *model.graph.output]):
        raise LeptonError(f"tf2onnx lost inputs or outputs of '{src}'", hint=HINT)
    order = [port.name for port in model.graph.input]
    feeds, reference = source.probe()
    shapes = dict(zip(raw, [array.shape for array in feeds + reference], strict=True))
    for port in [*model.graph.input, *model.graph.output]:
        for dim, size in zip(port.type.tensor_type.shape.dim, shapes[port.name], strict=False):
            dim.dim_value = size
    keras_safe.finish_onnx(model, HINT)
    got = keras_safe.run_onnx(model, [feeds[source.raw_inputs.index(name)] for name in order])
    made = [port.name for port in model.graph.output]
    decibels = keras_safe.distance_db(reference, [got[made.index(name)] for name in source.raw_outputs])
    keras_safe.write_bytes(dst, model.SerializeToString())
    return source.mapping(source.raw_inputs, source.raw_outputs, decibels)
