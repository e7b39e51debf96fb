"""TFLite to ONNX, through tf2onnx: float models as they are, int8 ones bit-exact as quantize/dequantize pairs.

tf2onnx has no LSTM, GELU or WHILE for TFLite files; such models are refused by name before anything is written.
"""

COST = 2.0
REQUIRES = ("tensorflow>=2.19", "tf2onnx>=1.16", "onnx>=1.17", "onnxruntime>=1.20")


def run(src: str, dst: str, *, opset: int = 17) -> dict:
    """Convert `src` to `dst`; inputs and outputs keep the names and order of the TFLite file."""
    import tf2onnx

    from lepton_edge import keras_safe
    from lepton_edge.errors import LeptonError

    inputs, outputs = keras_safe.tflite_ports(src)
    try:
        model, _ = tf2onnx.convert.from_tflite(src, opset=opset)
    except Exception as error:
        raise LeptonError(
            f"tf2onnx cannot convert '{src}': {keras_safe.first_line(error)}", hint="convert its source model instead"
        ) from error
    keras_safe.finish_onnx(model)
    return {}
