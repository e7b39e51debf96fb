"""ONNX to TFLite, written directly (no TensorFlow) and checked against ONNX Runtime."""

from __future__ import annotations

REQUIRES = ("onnx>=1.17", "onnxruntime>=1.20", "ai-edge-litert>=2.1", "flatbuffers>=24")


def run(
    src: str,
    dst: str,
    *,
    float16: bool = False,
    keep_nchw_inputs: bool = False,
    input_shapes: str = "",
    input_values: str = "",
) -> dict:
    """Writes `dst` (.tflite) from `src` (.onnx); image inputs and outputs become NHWC.

    `float16` stores weights in half precision, `keep_nchw_inputs` keeps the inputs' axis order, `input_shapes`
    sets free axes ('x=1,3,224,224;y=1,10'; a free batch is 1), `input_values` ('sr=16000') makes inputs constants,
    which stay in the signature and are no longer read. Raises LeptonError for a file that isn't ONNX,
    operators without a counterpart (all named at once), and a result that disagrees with ONNX Runtime.
    """
    from lepton_edge.tflite_writer.convert import convert

    return convert(
        src,
        dst,
        float16=float16,
        keep_nchw_inputs=keep_nchw_inputs,
        input_shapes=input_shapes,
        input_values=input_values,
    )
