"""Keras (.keras and .h5) models, run as they are: the reference every conversion is compared with."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "h5py>=3.11")
SHARED = True  # with the steps, for importing TensorFlow takes seconds
FORMATS = ("keras", "h5")
# What json, zipfile and h5py raise for damaged files.
UNREADABLE = (OSError, LookupError, ArithmeticError, TypeError, AttributeError, EOFError, RuntimeError, ValueError,
              zipfile.BadZipFile, zlib.error)  # fmt: skip


class Session:
    """A loaded model; `run` takes and returns batched arrays by name (layer names, as the converters use)."""

    def __init__(self, model: Any, library: Any, notes: list[str]) -> None:
        import tensorflow as tf

        self._model, self._legacy = model, library.__name__ == "tf_keras"
        self._nest = tf.nest if self._legacy else library.tree
        if self._legacy:
            names, results = list(model.input_names), list(model.output_names)
        else:
            names = [tensor._keras_history.operation.name for tensor in model.inputs]
            results = [tensor._keras_history.operation.name for tensor in model.outputs]
        structure = getattr(model, "_nested_outputs" if self._legacy else "_outputs_struct", None)
        if isinstance(structure, dict) and len(structure) == len(results):
            results = sorted(structure)
        self.inputs = _describe(_unique(names), model.inputs)
        self.outputs = _describe(_unique(results), model.outputs)
        self._packed = getattr(model, "_nested_inputs" if self._legacy else "_inputs_struct", None)
        self._call = tf.function(self._forward, autograph=False, reduce_retracing=True)
        self.info = {"runtime": library.__name__, "version": library.__version__, "precision": "f32", "notes": notes}

    def _forward(self, tensors: list[Any]) -> list[Any]:
        fed = tensors[0] if self._packed is None else self._nest.pack_sequence_as(self._packed, tensors)
        return self._nest.flatten(self._model(fed, training=False))

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass (inference mode); ValueError names a missing or unknown input."""
        import tensorflow as tf

        names = [port["name"] for port in self.inputs]
        if set(feeds) != set(names):
            raise ValueError(f"this model takes the inputs {names}, not {sorted(feeds)}")
        results = self._call([tf.constant(np.asarray(feeds[p["name"]], dtype=p["dtype"])) for p in self.inputs])
        if len(results) != len(self.outputs):
            raise ValueError(f"the model gave {len(results)} outputs where {len(self.outputs)} are declared")
        return {p["name"]: np.array(result) for p, result in zip(self.outputs, results)}


def load(model: str, *, threads: int = 1, trust: bool = False, **options: Any) -> Session:
    """Load a .keras or .h5 file; ValueError, in one line, where that cannot be.

    Code that it carries (Lambda layers) is never run, unless `trust` says that the file may be trusted.
    """
    config, version, suffix = _config(model)
    if not trust:
        _refuse_code(config, model)
        check_weights(model)
    import tensorflow as tf

    try:  # only possible before TensorFlow's first operation
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        pass
    import keras

    library: Any = keras
    with tempfile.TemporaryDirectory() as folder:
        named = Path(folder) / f"model.{suffix}"  # Keras tells formats by the suffix
        named.symlink_to(Path(model).resolve())
        try:
            whole = (mended(model, folder) if suffix == "h5" and not version.startswith("2.") else None) or named
            loaded = keras.saving.load_model(whole, compile=False, safe_mode=not trust)
        except Exception as error:  # Keras lets through whatever rebuilding a layer raises
            if not version.startswith("2."):
                raise ValueError(f"Keras cannot load '{model}': {_first_line(error)}") from error
            loaded, library = _load_keras2(str(named), model, error)
    if not getattr(loaded, "inputs", None):
        raise ValueError(f"'{model}' holds a model that was never built")
    notes = []
    for layer in loaded._flatten_layers() if hasattr(loaded, "_flatten_layers") else []:
        if str(getattr(getattr(layer, "dtype_policy", None), "name", "")).startswith("mixed_"):
            layer.dtype_policy = "float32"
            notes = ["layers trained in mixed precision compute in float32"]
    return Session(loaded, library, notes)


def _load_keras2(named: str, model: str, first: Exception) -> tuple[Any, Any]:
    try:
        import tf_keras
    except ImportError:
        raise ValueError(f"Keras 3 cannot load '{model}', a Keras 2 file: {_first_line(first)}") from first
    try:
        return tf_keras.models.load_model(named, compile=False, safe_mode=True), tf_keras
    except Exception as error:  # as above, of tf_keras
        raise ValueError(f"neither Keras 3 nor tf_keras can load '{model}': {_first_line(error)}") from error


def _config(model: str) -> tuple[Any, str, str]:
    """The model's config, the Keras version that wrote it, and the suffix its bytes ask for."""
    try:
        with Path(model).open("rb") as file:
            magic = file.read(4)
        if magic == b"PK\x03\x04":
            with zipfile.ZipFile(model) as archive:
                meta = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
                return json.loads(archive.read("config.json")), str(meta.get("keras_version", "")), "keras"
        if magic != b"\x89HDF":
            raise ValueError("neither a .keras archive nor an HDF5 file")
        import h5py

        with h5py.File(model, "r") as file:
            raw, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
        if raw is None:
            raise ValueError("it holds no model config (weights only?)")
        return json.loads(raw), version.decode() if isinstance(version, bytes) else str(version), "h5"
    except UNREADABLE as error:
        raise ValueError(f"cannot read '{model}' as a Keras model: {_first_line(error)}") from error


def _refuse_code(config: Any, model: str, layer: str = "") -> None:
    """Keras ignores safe_mode for .h5 files, so a layer that carries code is refused from the config."""
    if isinstance(config, dict):
        name, inner = config.get("class_name"), config.get("config")
        layer = inner["name"] if isinstance(inner, dict) and isinstance(inner.get("name"), str) else layer
        if isinstance(name, str) and name in ("Lambda", "__lambda__", "TFSMLayer"):
            raise ValueError(f"'{model}' has a {name.strip('_')} layer '{layer}', which can carry code: refused")
        symbol = str(inner.get("function")) if name == "TFOpLambda" and isinstance(inner, dict) else ""
        if re.match(
            r"(io|raw_ops|saved_model|data|train|summary|py_func)\b|.*(py_func|numpy_func|load|save|file)", symbol
        ):
            raise ValueError(f"'{model}' calls tf.{symbol} in layer '{layer}': refused")
        root = str(config.get("module", "keras")).split(".")[0]  # null: a class that is not Keras's own
        registered = ">" in str(config.get("registered_name"))
        if "config" in config and (registered or root not in ("keras", "tf_keras", "builtins")):
            raise ValueError(f"'{model}' has a custom object '{name}' in layer '{layer}': its code is not in the file")
    parts = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in parts:
        if key != "compile_config":
            _refuse_code(value, model, layer)


DEFLATE_LIMIT = 1100  # no compressor of HDF5 gains more: a dataset that claims to is a trap


def datasets(store: Any, size: int) -> Iterator[tuple[str, Any]]:
    """(path, dataset) of every weight in an HDF5 file of ``size`` bytes.

    Raises ValueError for links out of the file and impossible sizes, which Keras would follow and make room for.
    """
    import h5py

    todo = [("", store)]
    while todo:
        prefix, group = todo.pop(0)
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"'{prefix}{name}' links out of the file")
            item = group[name]
            if isinstance(item, h5py.Group):
                todo.append((f"{prefix}{name}/", item))
                continue
            if item.external or item.is_virtual or item.nbytes > size * DEFLATE_LIMIT:
                raise ValueError(f"'{prefix}{name}' claims data that is not in the file")
            yield prefix + name, item


def check_weights(model: str) -> None:
    """Raise ValueError where a .keras or .h5 file has weights that are not in it."""
    import h5py

    try:
        with Path(model).open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        if zipped:
            with zipfile.ZipFile(model) as archive, tempfile.TemporaryFile() as copy:
                if "model.weights.h5" not in archive.namelist():  # in an .npz, which holds all that it claims
                    return
                with archive.open("model.weights.h5") as member:
                    shutil.copyfileobj(member, copy)
                size = copy.tell()
                with h5py.File(copy, "r") as store:
                    list(datasets(store, size))
        else:
            with h5py.File(model, "r") as store:
                list(datasets(store, Path(model).stat().st_size))
    except UNREADABLE as error:
        raise ValueError(f"cannot read the weights of '{model}': {_first_line(error)}") from error


def _unique(names: list[str]) -> list[str]:
    """Repeated names numbered: rnn, rnn_1, rnn_2."""
    result: list[str] = []
    for name in names:
        candidate, count = name, 0
        while candidate in result:
            count += 1
            candidate = f"{name}_{count}"
        result.append(candidate)
    return result


def _describe(names: list[str], tensors: list[Any]) -> list[dict[str, Any]]:
    if len(names) != len(tensors):
        raise ValueError(f"the model names {len(names)} tensors ({', '.join(names)}) and has {len(tensors)}")
    kinds = [getattr(tensor.dtype, "name", tensor.dtype) for tensor in tensors]
    return [
        {"name": name, "shape": list(tensor.shape), "dtype": str(kind)}
        for name, tensor, kind in zip(names, tensors, kinds)
    ]


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:240] if lines else type(error).__name__


MERGES = ("Add", "Subtract", "Multiply", "Maximum", "Minimum")


def mended(path: str, folder: str) -> str | None:
    """A copy in ``folder`` of a Keras 3 HDF5 file that Keras 3 can read; None where the file is one already.

    In this format the operator `a + b` and the layer `Add` have one name, and Keras rebuilds either as the layer, which
    takes its tensors as a list: a model with an operator in it fails with "too many positional arguments".
    """
    import h5py

    with h5py.File(path, "r") as file:
        text = file.attrs.get("model_config")
    if text is None:
        return None
    config = json.loads(text)
    if not _mend(config):
        return None
    copy = Path(folder) / "mended.h5"
    shutil.copyfile(path, copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["model_config"] = json.dumps(config)
    return str(copy)


def _mend(item: Any) -> bool:
    changed = False
    if isinstance(item, list):
        for inner in item:
            changed |= _mend(inner)
    elif isinstance(item, dict):
        if item.get("class_name") in MERGES:
            changed |= _mend_operator(item)
        for inner in item.values():
            changed |= _mend(inner)
    return changed


def _mend_operator(item: dict[str, Any]) -> bool:
    """An operator on two tensors becomes the layer of its name; on a tensor and a number, a Rescaling."""
    nodes = [n for n in item.get("inbound_nodes") or () if isinstance(n, dict) and len(n.get("args") or ()) == 2]
    if not nodes:
        return False
    if all(_is_tensor(a) for n in nodes for a in n["args"]):
        for node in nodes:
            node["args"] = [node["args"]]
        return True
    kind, (first, second) = item["class_name"], nodes[0]["args"]
    number = second if _is_tensor(first) else first
    if len(nodes) > 1 or not isinstance(number, (int, float)) or kind not in ("Add", "Subtract", "Multiply"):
        return False
    if kind == "Subtract":
        scale, offset = (1.0, -number) if _is_tensor(first) else (-1.0, number)
    else:
        scale, offset = (1.0, number) if kind == "Add" else (number, 0.0)
    item["class_name"] = "Rescaling"
    item["config"] = {"name": item["config"]["name"], "scale": scale, "offset": offset}
    nodes[0]["args"] = [first if _is_tensor(first) else second]
    return True


def _is_tensor(value: Any) -> bool:
    return isinstance(value, dict) and value.get("class_name") == "__keras_tensor__"
