"""Keras to float TFLite (LiteRT), through a frozen graph of fixed batch.

The converter is fed a frozen concrete function, not the Keras model: `from_keras_model` fails on an LSTM with a
free batch, leaves Keras 3's variables as VAR_HANDLE operations and orders several outputs alphabetically.
LSTM layers become UNIDIRECTIONAL_SEQUENCE_LSTM, whose state a caller resets before each sample.
`input_shapes` ("1,64,64,3", or "image=1,64,64,3;mask=1,64") gives sizes to free dimensions.
"""

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "h5py>=3.11")


def run(src: str, dst: str, *, fixed_batch: int = 1, input_shapes: str = "", trust: bool = False) -> dict:
    """Convert the .keras or .h5 file `src` to `dst`; names and order of inputs and outputs are the source's."""
    from lepton_edge.tf_export.load import load_keras
    from lepton_edge.tf_export.source import keras_source
    from lepton_edge.tf_export.to_tflite import write_tflite

    model, notes = load_keras(src, trust)
    result = write_tflite(keras_source(model), dst, input_shapes, fixed_batch)
    return {**result, "notes": notes + result["notes"]}
