"""Keras to TensorFlow SavedModel with one signature, `serving_default`.

The signature is written here, not by `model.export`, whose outputs lose their names (`output_0`) and order.
The batch stays free by default: a SavedModel is a station on the way, not an artefact for a device.
"""

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "h5py>=3.11")


def run(src: str, dst: str, *, fixed_batch: int = 0, input_shapes: str = "", trust: bool = False) -> dict:
    """Convert the .keras or .h5 file `src` to the folder `dst`; names are the source's, as identifiers."""
    import re
    import tempfile
    from pathlib import Path

    import tensorflow as tf

    from lepton_edge.tf_export.load import load_keras
    from lepton_edge.tf_export.saved_model import load_signature
    from lepton_edge.tf_export.shapes import fixed_shapes
    from lepton_edge.tf_export.source import keras_source, unique

    model, notes = load_keras(src, trust)
    source = keras_source(model)
    shapes = fixed_shapes(source, fixed_batch, input_shapes, static=False)
    names = unique([re.sub(r"\W", "_", port.name) for port in source.inputs])
    specs = [
        tf.TensorSpec(shape, port.dtype, name=name)
        for name, shape, port in zip(names, shapes, source.inputs, strict=True)
    ]
    module = tf.Module()
    module.variables_ = [getattr(weight, "value", weight) if _is_keras3(weight) else weight for weight in model.weights]

    @tf.function(input_signature=specs, autograph=False)
    def serve(*tensors):
        results = [tf.identity(tensor) for tensor in source.call(*tensors)]
        return dict(zip(source.outputs, results, strict=True))

    module.serve = serve
    target = Path(dst)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / "model"
        tf.saved_model.save(module, str(made), signatures=serve.get_concrete_function())
        load_signature(str(made))
        made.replace(target)
    return {
        "inputs": [{"name": n, "source": p.name, "perm": None} for n, p in zip(names, source.inputs, strict=True)],
        "outputs": [{"name": name, "source": name, "perm": None} for name in source.outputs],
        "notes": notes,
    }


def _is_keras3(weight: object) -> bool:
    return type(weight).__module__.startswith("keras.")
