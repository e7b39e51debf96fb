"""TensorFlow's TFLiteConverter, full int8 (int8 in and out), from the Keras model or SavedModel itself."""

from __future__ import annotations

from pathlib import Path

from _shared import Samples, main

ENVIRONMENT = "tflite_converter"
METHODS = {"full_int8": "TFLiteConverter full int8"}
CALIBRATES = ("full_int8",)
SOURCE = "keras"


def run(args) -> dict:
    """Write model.tflite at batch 1 from --source."""
    import tensorflow as tf

    if Path(args.source).is_dir():
        model = tf.saved_model.load(args.source)
        call = model.signatures["serving_default"]
        (spec,) = call.structured_input_signature[1].values()
        name = spec.name

        def function(x):
            return call(**{name: x})
    else:
        model = tf.keras.models.load_model(args.source, compile=False)
        function, spec = model, model.inputs[0]
    shape = (1, *spec.shape[1:])
    concrete = tf.function(function).get_concrete_function(tf.TensorSpec(shape, spec.dtype))
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
