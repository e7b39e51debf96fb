"""TensorFlow's TFLiteConverter, full int8 (int8 in and out), from the Keras model or SavedModel itself."""

from __future__ import annotations

import os
from pathlib import Path

from _shared import Samples, main

ENVIRONMENT = "tflite_converter"
METHODS = {"full_int8": "TFLiteConverter full int8"}
CALIBRATES = ("full_int8",)
SOURCE = "keras"


def run(args) -> dict:
    """Write model.tflite at batch 1 from --source."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # both sources were saved by Keras 2
    import tensorflow as tf

    model = tf.keras.models.load_model(args.source, compile=False)
    (spec,) = model.inputs
    concrete = tf.function(model).get_concrete_function(tf.TensorSpec((1, *spec.shape[1:]), spec.dtype))
    samples = Samples(args.calib, limit=args.samples)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([*sample.values()] for sample in samples)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
    out = Path(args.out) / "model.tflite"
    out.write_bytes(converter.convert())
    return {"artefacts": {"litert": out}}


if __name__ == "__main__":
    main(METHODS, ("tensorflow", "numpy"), run)
