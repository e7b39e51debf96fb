"""SavedModel folders as sources, their graphs read before TensorFlow loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, first_line
from lepton_edge.tf_export.source import Port, Source

# Graph operations that run Python or reach the file system, wherever in a SavedModel they stand.
UNSAFE_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "LegacyExec"}


def load_signature(path: str) -> Source:
    """The serving signature of a SavedModel folder (`serving_default`, else the only one) as a Source.

    The graph is read first: one that runs Python or touches files is refused before it is loaded.
    """
    import tensorflow as tf

    _scan_saved_model(path)
    try:
        loaded = tf.saved_model.load(path)
        signatures = dict(loaded.signatures)
    except Exception as error:  # TensorFlow raises OSError, its own OpError, KeyError, ValueError and others
        raise LeptonError(
            f"TensorFlow cannot load the SavedModel '{path}': {first_line(error)}",
            hint="check that its variables/ folder is complete and that no custom operation is needed",
        ) from error
    if "serving_default" not in signatures and len(signatures) != 1:
        found = ", ".join(sorted(signatures)) or "none"
        raise LeptonError(
            f"'{path}' has no signature 'serving_default' (found: {found})",
            hint="save it with tf.saved_model.save(module, folder, signatures=module.function)",
        )
    signature = signatures.get("serving_default") or next(iter(signatures.values()))
    specs = signature.structured_input_signature[1]
    names, outputs = sorted(specs), sorted(signature.structured_outputs)
    inputs = []
    for name in names:
        if specs[name].shape.rank is None:
            raise LeptonError(f"input '{name}' of '{path}' has no known rank", hint="save it with an input_signature")
        inputs.append(Port(name, tuple(specs[name].shape.as_list()), specs[name].dtype.name))

    def call(*tensors: Any) -> list[Any]:
        result = signature(**dict(zip(names, tensors, strict=True)))
        return [result[name] for name in outputs]

    return Source(tuple(inputs), tuple(outputs), call, loaded)


def _scan_saved_model(path: str) -> None:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    file = Path(path) / "saved_model.pb"
    if not file.is_file():
        raise LeptonError(f"'{path}' is not a SavedModel: it has no saved_model.pb")
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise LeptonError(f"'{file}' is damaged or truncated", hint="copy the whole folder again") from error
    if not proto.meta_graphs:
        raise LeptonError(f"'{file}' holds no graph", hint="copy the whole folder again")
    for meta in proto.meta_graphs:
        nodes = [*meta.graph_def.node, *(n for f in meta.graph_def.library.function for n in f.node_def)]
        for node in nodes:
            if node.op in UNSAFE_OPS:
                raise LeptonError(
                    f"'{path}' has operation {node.op} ('{node.name}'), which runs code or touches files: refused",
                    hint="save the model without its preprocessing",
                )
