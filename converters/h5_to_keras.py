"""Legacy Keras HDF5 (.h5) to the Keras 3 archive (.keras).

Keras ignores `safe_mode` for HDF5 files, so the config is read and scanned before Keras sees the file: Lambda layers
and custom classes are refused by name. A Keras 2 file that Keras 3 cannot load is read and written by tf_keras.
"""

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "h5py>=3.11")


def run(src: str, dst: str, *, trust: bool = False) -> dict:
    """Convert `src` to `dst`; the model, its layer names and its weights stay the same, the optimizer is dropped."""
    import tempfile
    from pathlib import Path

    import numpy as np

    from lepton_edge.errors import LeptonError
    from lepton_edge.tf_export.load import load_keras
    from lepton_edge.tf_export.publish import write_bytes
    from lepton_edge.tf_export.source import keras_source

    model, notes = load_keras(src, trust)
    source = keras_source(model)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.keras"
        model.save(made)
        again, _ = load_keras(str(made), trust)
        pairs = zip(model.weights, again.weights, strict=True)
        if not all(np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True) for a, b in pairs):
            raise LeptonError(f"the weights of '{src}' changed on the way to .keras", hint="please report this model")
        write_bytes(dst, made.read_bytes())
    return {
        "inputs": [{"name": port.name, "source": port.name, "perm": None} for port in source.inputs],
        "outputs": [{"name": name, "source": name, "perm": None} for name in source.outputs],
        "notes": notes,
    }
