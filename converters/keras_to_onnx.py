"""Keras to ONNX, through a frozen graph and tf2onnx.

`tf2onnx.from_keras` fails on Keras 3 Sequential models and Keras 3's own `export("onnx")` leaves captured constants
as extra inputs; both miss `Erfc` (GELU) and leave an LSTM as a Loop. Here the frozen graph is converted: constants
are folded, LSTM and GRU become one node each. `fixed_batch=0` keeps the batch free; `input_shapes` as for TFLite.
"""

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "h5py>=3.11", "tf2onnx>=1.16", "onnx>=1.17", "onnxruntime>=1.20")


def run(
    src: str, dst: str, *, fixed_batch: int = 1, opset: int = 17, input_shapes: str = "", trust: bool = False
) -> dict:
    """Convert the .keras or .h5 file `src` to `dst`; names and order of inputs and outputs are the source's."""
    from lepton_edge.tf_export.load import load_keras
    from lepton_edge.tf_export.source import keras_source
    from lepton_edge.tf_export.to_onnx import write_onnx

    model, notes = load_keras(src, trust)
    result = write_onnx(keras_source(model), dst, input_shapes, fixed_batch, opset)
    return {**result, "notes": notes + result["notes"]}
