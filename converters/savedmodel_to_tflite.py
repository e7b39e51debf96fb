"""SavedModel to float TFLite (LiteRT), through a frozen graph of fixed batch.

Takes the signature `serving_default`, else the only one. `input_shapes` ("1,64,64,3", or "image=1,64,64,3;mask=1,64")
gives sizes to free dimensions other than the batch.
"""

REQUIRES = ("tensorflow>=2.19",)


def run(src: str, dst: str, *, fixed_batch: int = 1, input_shapes: str = "") -> dict:
    """Convert the SavedModel folder `src` to `dst`; inputs and outputs are named as in its signature."""
    from lepton_edge.tf_export.saved_model import load_signature
    from lepton_edge.tf_export.to_tflite import write_tflite

    return write_tflite(load_signature(src), dst, input_shapes, fixed_batch)
