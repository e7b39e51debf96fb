"""TensorFlow SavedModel, run through its serving signature."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("tensorflow>=2.19",)
SHARED = True  # with the steps, for importing TensorFlow takes seconds
FORMATS = ("savedmodel",)
# Graph operations that run Python or reach the file system.
UNSAFE_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "LegacyExec"}


class Session:
    """A loaded signature; `run` takes and returns batched arrays by the signature's names."""

    def __init__(self, loaded: Any, signature: Any) -> None:
        import tensorflow as tf

        self._keep, self._signature = loaded, signature
        specs, results = signature.structured_input_signature[1], signature.structured_outputs
        self.inputs = [_describe(name, specs[name]) for name in sorted(specs)]
        self.outputs = [_describe(name, results[name]) for name in sorted(results)]
        self.info = {"runtime": "tensorflow", "version": tf.__version__, "precision": "f32"}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One call of the signature; ValueError names a missing or unknown input."""
        import tensorflow as tf

        names = [port["name"] for port in self.inputs]
        if set(feeds) != set(names):
            raise ValueError(f"this model takes the inputs {names}, not {sorted(feeds)}")
        fed = {p["name"]: tf.constant(np.asarray(feeds[p["name"]], dtype=p["dtype"])) for p in self.inputs}
        return {name: np.array(tensor) for name, tensor in self._signature(**fed).items()}


def load(model: str, *, threads: int = 1, **options: Any) -> Session:
    """Load a SavedModel folder's signature `serving_default`, else its only one; ValueError where there is none.

    Its operations are read first, and one that runs Python or touches files is refused before loading.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:  # only possible before TensorFlow's first operation
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString((Path(model) / "saved_model.pb").read_bytes())
    except (OSError, DecodeError) as error:
        raise ValueError(f"'{model}' is not a readable SavedModel: {_first_line(error)}") from error
    for meta in proto.meta_graphs:
        for node in [*meta.graph_def.node, *(n for f in meta.graph_def.library.function for n in f.node_def)]:
            if node.op in UNSAFE_OPS:
                raise ValueError(f"'{model}' has operation {node.op} ('{node.name}'): refused")
    try:
        loaded = tf.saved_model.load(model)
        signatures = dict(loaded.signatures)
    except Exception as error:  # TensorFlow raises OSError, its own OpError, KeyError, ValueError and others
        raise ValueError(f"TensorFlow cannot load '{model}': {_first_line(error)}") from error
    if "serving_default" not in signatures and len(signatures) != 1:
        raise ValueError(f"'{model}' has no signature 'serving_default' (found: {sorted(signatures) or 'none'})")
    return Session(loaded, signatures.get("serving_default") or next(iter(signatures.values())))


def _describe(name: str, spec: Any) -> dict[str, Any]:
    shape = spec.shape.as_list() if spec.shape.rank is not None else []
    return {"name": name, "shape": shape, "dtype": spec.dtype.name}


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:240] if lines else type(error).__name__
