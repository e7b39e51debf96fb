"""Keras models, .keras (zip) and legacy .h5, read from JSON and HDF5: no framework is needed."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.inspectors._common import CHUNK, Weights, assemble, count_nonzeros, damaged, layer, spec
from lepton_edge.inspectors._keras_graph import MODELS, Walk, dtype_of, layers_of, walk
from lepton_edge.runtimes.keras import UNREADABLE, datasets
from lepton_edge.tf_export.source import unique

REQUIRES = ("h5py>=3.11",)
EXTRA = "tensorflow"

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
WEIGHT_KINDS = "fiuV"


def inspect(path: str) -> dict[str, Any]:
    """Shapes and MACs come from the layers' configs by rule; what no rule covers is None, with a note."""
    with Path(path).open("rb") as file:
        kind = "h5" if file.read(8) == HDF5_MAGIC else "keras"
    try:
        return _inspect_h5(path) if kind == "h5" else _inspect_keras(path)
    except UNREADABLE as problem:
        raise damaged(path, "Keras", problem) from problem


def _inspect_keras(path: str) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        if "config.json" not in archive.namelist():
            raise ValueError("config.json is missing in the archive")
        model = json.loads(archive.read("config.json"))
        metadata = json.loads(archive.read("metadata.json")) if "metadata.json" in archive.namelist() else {}
        if "model.weights.h5" not in archive.namelist():
            raise ValueError("model.weights.h5 is missing in the archive")
        with _extracted(archive, "model.weights.h5") as (store, size):
            tensors = list(datasets(store, size))
            paths = dict(_stored_paths(model, store))
            return _report("keras", metadata.get("keras_version"), model, _Owned(tensors, paths))


@contextmanager
def _extracted(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[Any, int]]:
    """HDF5 needs to seek, which a zip member does badly: a temporary file keeps memory bounded."""
    import h5py

    with tempfile.TemporaryFile() as copy, archive.open(name) as member:
        shutil.copyfileobj(member, copy)
        size = copy.tell()
        with h5py.File(copy, "r") as store:
            yield store, size


def _inspect_h5(path: str) -> dict[str, Any]:
    import h5py

    with h5py.File(path, "r") as store:
        if "model_config" not in store.attrs:
            raise LeptonError(
                f"{path}: this HDF5 file holds no Keras model (only weights, or other data)",
                hint="save the whole model with model.save(...), not save_weights",
            )
        config = store.attrs["model_config"]
        model = json.loads(config.decode() if isinstance(config, bytes) else config)
        group = store.get("model_weights", store)
        version = store.attrs.get("keras_version") or group.attrs.get("keras_version")
        tensors = list(datasets(group, Path(path).stat().st_size))
        paths = {name: name for name in group}
        return _report("h5", version, model, _Owned(tensors, paths))


def _stored_paths(model: dict, store: Any) -> Iterator[tuple[str, str]]:
    """(layer path, HDF5 path): Keras stores by class name and order, whatever the layer is called."""
    yield from _container_paths(model, "", "layers/" if "layers" in store else "_layer_checkpoint_dependencies/")


def _container_paths(model: dict, prefix: str, base: str) -> Iterator[tuple[str, str]]:
    used: dict[str, int] = {}
    for entry in layers_of(model):
        snake = _snake(entry["class_name"])
        number = used.get(snake, 0)
        used[snake] = number + 1
        stored = f"{base}{snake}_{number}" if number else f"{base}{snake}"
        name = prefix + (entry.get("name") or entry["config"].get("name") or "")
        yield name, stored
        if entry["class_name"] in MODELS:
            yield from _container_paths(entry, f"{name}/", f"{stored}/layers/")


def _snake(name: str) -> str:
    """Keras' own to_snake_case."""
    name = re.sub(r"\W+", "", name)
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


class _Owned:
    """The stored tensors and which layer each belongs to."""

    def __init__(self, tensors: list[tuple[str, Any]], paths: dict[str, str]) -> None:
        self.tensors = [(name, item) for name, item in tensors if item.dtype.kind in WEIGHT_KINDS and item.shape]
        self.paths = paths

    def of(self, layer_path: str) -> list[tuple[str, Any]]:
        """The tensors of a layer; legacy files hold those of a nested one under the outer model's name."""
        stored = self.paths.get(layer_path)
        if stored is not None:
            return [(name, item) for name, item in self.tensors if name.startswith(stored + "/")]
        outer, _, inner = layer_path.partition("/")
        under = self.paths.get(outer)
        wanted = inner.rsplit("/", 1)[-1]
        return [
            (name, item)
            for name, item in self.tensors
            if under and name.startswith(under + "/") and wanted in name[len(under) + 1 :].split("/")[:-1]
        ]


def _report(format: str, version: Any, model: dict, owned: _Owned) -> dict[str, Any]:
    version = version.decode() if isinstance(version, bytes) else version
    notes = []
    try:
        found = walk(model)
    except ValueError as problem:
        found = Walk()
        notes.append(f"no shapes, no MACs: {problem}")
    weights = Weights()
    statistics = _statistics(found, owned)
    for name, item in owned.tensors:
        if _is_weight(name, item):
            weights.add(item.size, item.nbytes, _nonzeros(item), name in statistics)
    layers = [_row(call, owned) for call in found.calls]
    if not found.calls:
        layers = [layer(model.get("class_name", "?"), str(model.get("class_name")), None, None)]
    dtypes = {_leaf(call.path): dtype_of(call.config) for call in found.calls}
    names = unique([name for name, _ in found.outputs])
    return assemble(
        format=format,
        producer=f"Keras {version}" if version else "Keras",
        inputs=[spec(e["name"], e["shape"], e["dtype"]) for e in found.inputs],
        outputs=[
            spec(name, shape, dtypes.get(end, "float32"))
            for name, (end, shape) in zip(names, found.outputs, strict=True)
        ],
        layers=layers,
        weights=weights,
        versions={"keras": version},
        quantized=_quantized(owned),
        notes=notes + _refused(found),
    )


def _leaf(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _is_weight(name: str, item: Any) -> bool:
    """Counters, seeds and the like are integers of 32 bits and more; quantized kernels are int8."""
    return item.dtype.kind in "fV" or item.dtype.itemsize == 1


def _statistics(found: Walk, owned: _Owned) -> set[str]:
    """Named so in legacy files; in new ones the last two variables of a BatchNormalization."""
    names = {name for name, _ in owned.tensors if _leaf(name).startswith("moving_")}
    for call in found.calls:
        if call.kind in ("BatchNormalization", "SyncBatchNormalization"):
            own = [name for name, _ in owned.of(call.path) if _leaf(name).isdigit()]
            names.update(sorted(own, key=lambda name: int(_leaf(name)))[-2:])
        if call.kind == "Normalization":
            names.update(name for name, _ in owned.of(call.path))
    return names


def _nonzeros(item: Any) -> int | None:
    if item.dtype.kind == "V":  # bfloat16 and float8 have no NumPy type of their own
        return None
    rows = max(1, CHUNK // max(1, prod(item.shape[1:])))
    return sum(count_nonzeros(np.asarray(item[i : i + rows])) for i in range(0, item.shape[0], rows))


def _row(call: Any, owned: _Owned) -> dict:
    own = [item for name, item in owned.of(call.path) if _is_weight(name, item)] if call.first else []
    count, size = sum(item.size for item in own), sum(item.nbytes for item in own)
    return layer(call.path, call.kind, call.output, call.macs, count, size)


def _quantized(owned: _Owned) -> dict[str, int]:
    counts: dict[str, int] = {}
    for _, item in owned.tensors:
        if item.dtype.kind in "iu" and item.dtype.itemsize == 1:
            counts[f"{item.dtype}_tensors"] = counts.get(f"{item.dtype}_tensors", 0) + 1
    return counts


def _refused(found: Walk) -> list[str]:
    """Lambda layers carry Python code; they are described, and never loaded."""
    names = [call.path for call in found.calls if call.kind == "Lambda"]
    return [f"Lambda layers carry code and are not run: {', '.join(names)}"] if names else []
