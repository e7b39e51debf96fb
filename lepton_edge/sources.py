"""User data for a model, checked before it is read: an .npz (keys: the input names, or x; labels y), a .npy, images.

Everything is read a few rows at a time, so memory does not grow with the data.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge import preprocess_core as core
from lepton_edge.array_files import Array, spread
from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.preprocess import Preprocess
from lepton_edge.source_arrays import array_chunks, config_of, open_arrays
from lepton_edge.source_images import image_chunks, open_images

NUMERIC = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")


@dataclass(frozen=True)
class Source:
    """Checked data, not yet read: ``count`` samples are chosen out of ``total``, at ``indices`` (ascending).

    ``inputs`` are the model's {"name", "shape", "dtype"}, and "whole" for one whose samples are whole tensors (their
    shape here begins with an axis for the samples); ``labels`` int64 [count] or None; ``classes`` the
    names of labels where folders or labels.csv give them; ``preprocess`` is resolved for the model's input;
    ``notes`` say what was assumed; ``key`` changes when files, model input, preprocessing or choice do.
    """

    path: Path
    kind: str
    role: str
    inputs: tuple[dict, ...]
    preprocess: Preprocess
    total: int
    indices: np.ndarray
    labels: np.ndarray | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    key: str
    arrays: Mapping[str, Array] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    prepared: str = ""  # the input that the preprocessing is for

    @property
    def count(self) -> int:
        """Samples chosen."""
        return len(self.indices)

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """The model-ready samples of input ``name``, [k, ...]. Raises LeptonError on a bad sample."""
        spec = next(spec for spec in self.inputs if spec["name"] == name)
        config = config_of(spec, self.prepared, self.preprocess)
        if self.files:
            yield from image_chunks(self.path, [self.files[i] for i in self.indices], spec, config)
        else:
            yield from array_chunks(self.arrays[name], self.indices, spec, config)


def open_data(
    path: str | Path,
    inputs: Sequence[Mapping[str, Any]],
    preprocess: Preprocess | None = None,
    *,
    limit: int | None = None,
    role: str = "calibration",
    seed: int = 0,
    classes: int | None = None,
) -> Source:
    """Open data for a model with these inputs ({"name", "shape" with batch axis, "dtype"}) and check it.

    At most ``limit`` samples are chosen, evenly spread, by ``seed``. ``classes`` is how many the model has,
    if known. Arrays pass unchanged but for a safe cast unless preprocessing is declared; images are always
    fitted to the input. Raises LeptonError naming file, array and sample; UsageError for a wrong limit.
    """
    if limit is not None and (isinstance(limit, bool) or limit < 1):
        raise UsageError(f"the number of {role} samples has to be 1 or more, not {limit}", "correct the limit")
    path, preprocess = Path(path), preprocess or Preprocess()
    specs = tuple(_checked_spec(spec) for spec in inputs)
    kind = _kind_of(path, role)
    if kind == "images":
        parts = {"inputs": specs, **open_images(path, specs, preprocess, classes)}
    else:
        parts = open_arrays(path, kind, specs, preprocess)
    total, labels, notes = parts.pop("total"), parts.pop("labels"), parts.pop("notes")
    if labels is not None and classes is not None and labels.max() >= classes:
        worst = int(labels.argmax())
        raise LeptonError(
            f"{path}: label {labels[worst]} of sample {worst} does not fit a model of {classes} classes",
            f"labels count from 0 to {classes - 1}",
        )
    indices = spread(total, limit, seed)
    if len(indices) < total:
        notes.append(f"{len(indices)} of {total} {role} samples are used, evenly spread")
    stamp = [
        _stamp(path, parts.get("files", ())),
        preprocess.to_dict(),
        specs,
        indices.tolist(),
        core.__doc__,
    ]
    return Source(
        path=path,
        kind=kind,
        role=role,
        inputs=tuple(parts.pop("inputs")),
        indices=indices,
        total=total,
        labels=None if labels is None else labels[indices],
        notes=tuple(notes),
        key=hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest(),
        **parts,
    )


def _checked_spec(spec: Mapping[str, Any]) -> dict:
    shape = [s if isinstance(s, int) and s > 0 else None for s in spec["shape"]]
    if not NUMERIC.fullmatch(str(spec["dtype"])):
        raise LeptonError(
            f"the model's input '{spec['name']}' has dtype {spec['dtype']}, which no data file can hold",
            "export the model with numeric inputs",
        )
    return {"name": str(spec["name"]), "shape": shape, "dtype": str(spec["dtype"])}


def _kind_of(path: Path, role: str) -> str:
    """ "npz", "npy" or "images", from what is there rather than from its suffix."""
    if not path.exists():
        near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
        raise LeptonError(f"{path}: there is no such {role} data", did_you_mean(path.name, near[:50]))
    if path.is_dir():
        return "images"
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise LeptonError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head.startswith(b"PK"):
        return "npz"
    if not head:
        raise LeptonError(f"{path} is empty", "save or copy the file again")
    if head[:1] == b"\x80" and path.suffix in (".npy", ".npz", ".pkl", ".pickle"):
        raise LeptonError(f"{path} holds pickled Python objects, which are never loaded", "save it with np.savez")
    if path.suffix in (".npy", ".npz"):
        raise LeptonError(f"{path} is damaged: its first bytes are not those of {path.suffix}", "save it again")
    raise LeptonError(f"{path} is not data that can be read", "give an .npz, a .npy, or a folder of images")


def _stamp(path: Path, files: Sequence[str]) -> list:
    """Name, size and time of every file read: cheap to get, and different once the data is."""
    stats = [(name, (path / name).stat()) for name in files or [""]]
    return [str(path.resolve()), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]
