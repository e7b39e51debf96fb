"""SavedModel to ONNX, through a frozen graph and tf2onnx.

Takes the signature `serving_default`, else the only one. `fixed_batch=0` keeps the batch free; `input_shapes`
("1,64,64,3", or "image=1,64,64,3;mask=1,64") gives sizes to the other free dimensions.
"""

REQUIRES = ("tensorflow>=2.19", "tf2onnx>=1.16", "onnx>=1.17", "onnxruntime>=1.20")


def run(src: str, dst: str, *, fixed_batch: int = 1, opset: int = 17, input_shapes: str = "") -> dict:
    """Convert the SavedModel folder `src` to `dst`; inputs and outputs are named as in its signature."""
    from lepton_edge.tf_export.saved_model import load_signature
    from lepton_edge.tf_export.to_onnx import write_onnx

    return write_onnx(load_signature(src), dst, input_shapes, fixed_batch, opset)
