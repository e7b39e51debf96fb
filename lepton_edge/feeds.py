"""Samples for a model: user data, checked, and streamed into a feed folder that every step reads.

A feed folder holds feed.json and one .npy an input, [count, *input shape without its batch axis] in the
input's dtype, plus int64 labels [count] if there are any. It is written aside and published in one rename.
Data is an .npz (keys: the input names, or x; labels y), a .npy, or a folder of images. Everything is read a
few rows at a time, so memory does not grow with the data.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np

from lepton_edge import preprocess_core as core
from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.preprocess import Preprocess
from lepton_edge.store import aside

SCHEMA = "lepton-edge.feed/1"
CHUNK_BYTES = 1 << 20
MAX_BYTES = 64 << 30  # declared size of one array; more is a mistake or a bomb
MAX_RATIO, RATIO_FROM = 200, 1 << 30  # deflate reaches 1000:1 on zeros, and real data of this size never does
LABEL_KEYS = ("y", "labels")
IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "gif", "webp", "ppm", "pgm", "pnm", "tif", "tiff")
NUMERIC = re.compile(r"bool|u?int(8|16|32|64)|float(16|32|64)")
KINDS = {"O": "Python objects", "U": "text", "S": "bytes", "c": "complex numbers", "V": "records"}

Progress = Callable[[int, int, str], None]


# --- arrays on disk -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Array:
    """An array in a .npy file, or in a member of an .npz, of which only the header has been read."""

    path: Path
    member: str | None
    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool

    @property
    def what(self) -> str:
        """How messages name it."""
        return f"{self.path}: array '{self.member[:-4]}'" if self.member else str(self.path)

    def rows(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """Rows at ascending ``indices``, in chunks [k, ...] as stored. Raises LeptonError if damaged."""
        row = self.shape[1:]
        size = math.prod(row) * self.dtype.itemsize
        step = max(1, CHUNK_BYTES // max(size, 1))
        whole = self._whole() if self.fortran else None
        with _reading(self.what), self._open() as stream:
            at = 0
            for start in range(0, len(indices), step):
                block = indices[start : start + step]
                if whole is not None:
                    yield np.ascontiguousarray(whole[block])
                    continue
                out = np.empty((len(block), *row), self.dtype)
                view = memoryview(out.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
                runs = [block] if block[-1] - block[0] + 1 == len(block) else np.split(block, len(block))
                for i, run in enumerate(runs):
                    stream.seek((int(run[0]) - at) * size, os.SEEK_CUR)
                    _fill(stream, view[i * len(run) * size :][: len(run) * size])
                    at = int(run[-1]) + 1
                yield out
            while self.member and stream.read(1 << 20):
                continue  # the checksum of a zip member is compared at its end

    @contextmanager
    def _open(self) -> Iterator[IO[bytes]]:
        """The file behind its header."""
        if self.member is None:
            with self.path.open("rb") as stream:
                _read_header(stream)
                yield stream
        else:
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as stream:
                _read_header(stream)
                yield stream

    def _whole(self) -> np.ndarray:
        """Column-major arrays keep no row together: mapped from a .npy, read whole from an .npz."""
        with _reading(self.what):
            if self.member is None:
                return np.load(self.path, mmap_mode="r", allow_pickle=False)
            if math.prod(self.shape) * self.dtype.itemsize > 2 << 30:
                raise LeptonError(
                    f"{self.what} is too large to read in column-major order",
                    "save it again from np.ascontiguousarray(array)",
                )
            with np.load(self.path, allow_pickle=False) as arrays:
                return arrays[self.member[:-4]]


def _fill(stream: IO[bytes], view: memoryview) -> None:
    while len(view):
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("it ends too soon")
        view = view[count:]


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what damaged files raise into one line."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise LeptonError(
            f"{what} is damaged or cut short ({reason})", "save or copy the file again"
        ) from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the .npy format is only for records")


def _open_array(path: Path, member: str | None = None, packed: zipfile.ZipInfo | None = None) -> Array:
    """Read the header of an array, and refuse what it declares if that is not safe or not true."""
    array = Array(path, member, (), np.dtype("u1"), False)
    try:
        with _reading(array.what):
            if member is None:
                with path.open("rb") as stream:
                    header, start, end = _read_header(stream), stream.tell(), path.stat().st_size
            else:
                with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
                    header, start, end = (
                        _read_header(stream),
                        stream.tell(),
                        archive.getinfo(member).file_size,
                    )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise LeptonError(
            f"{array.what} has no readable .npy header ({reason[:120]})", "save it again"
        ) from error
    array = Array(path, member, header[0], header[2], header[1])
    if array.dtype.hasobject:
        raise LeptonError(
            f"{array.what} holds pickled Python objects, which are never loaded",
            "save plain numbers: np.asarray(values, 'float32'), every sample of the same shape",
        )
    declared = math.prod(array.shape) * array.dtype.itemsize
    if declared > MAX_BYTES or any(side < 0 for side in array.shape):
        raise LeptonError(
            f"{array.what} declares {declared / 2**30:,.0f} GB, and at most {MAX_BYTES >> 30} GB are read",
            "give fewer samples",
        )
    if packed and declared > RATIO_FROM and declared > MAX_RATIO * max(packed.compress_size, 1):
        raise LeptonError(
            f"{array.what} would unpack {packed.compress_size / 2**20:,.1f} MB "
            f"into {declared / 2**30:,.1f} GB: it is taken for a zip bomb",
            "if the data is real, save it with np.savez instead of np.savez_compressed",
        )
    if start + declared != end:
        raise LeptonError(
            f"{array.what} is damaged or cut short (it declares {declared} bytes, has {max(end - start, 0)})",
            "save or copy the file again",
        )
    return array


def _open_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename: i for i in archive.infolist() if i.filename.endswith(".npy")}
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        raise LeptonError(
            f"{path} is not a readable .npz ({error})", "save or copy the file again"
        ) from error
    if any(info.flag_bits & 1 for info in members.values()):
        raise LeptonError(f"{path} is protected by a password", "save it with np.savez")
    if not members:
        raise LeptonError(
            f"{path} is a zip file without arrays", "save samples with np.savez(file, x=..., y=...)"
        )
    return {name[:-4]: _open_array(path, name, info) for name, info in members.items()}


# --- sources --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Checked data, not yet read: ``count`` samples are chosen out of ``total``, at ``indices`` (ascending).

    ``inputs`` are the model's {"name", "shape", "dtype"}; ``labels`` int64 [count] or None; ``classes`` the
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
        yield from _image_chunks(self, spec) if self.files else _array_chunks(self, spec)


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
        raise UsageError(
            f"the number of {role} samples has to be 1 or more, not {limit}", "correct the limit"
        )
    path, preprocess = Path(path), preprocess or Preprocess()
    specs = tuple(_checked_spec(spec) for spec in inputs)
    kind = _kind_of(path, role)
    if kind == "images":
        parts = _open_images(path, specs, preprocess, classes)
    else:
        parts = _open_arrays(path, kind, specs, preprocess)
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
        inputs=specs,
        indices=indices,
        total=total,
        labels=None if labels is None else labels[indices],
        notes=tuple(notes),
        key=hashlib.sha256(json.dumps(stamp, sort_keys=True).encode()).hexdigest(),
        **parts,
    )


def spread(total: int, limit: int | None, seed: int = 0) -> np.ndarray:
    """``limit`` of ``total`` indices, one at random from each of ``limit`` equal stretches; ascending."""
    if limit is None or limit >= total:
        return np.arange(total)
    edges = np.arange(limit + 1) * total // limit
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])


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
        raise LeptonError(
            f"{path} holds pickled Python objects, which are never loaded", "save it with np.savez"
        )
    if path.suffix in (".npy", ".npz"):
        raise LeptonError(
            f"{path} is damaged: its first bytes are not those of {path.suffix}", "save it again"
        )
    raise LeptonError(f"{path} is not data that can be read", "give an .npz, a .npy, or a folder of images")


def _stamp(path: Path, files: Sequence[str]) -> list:
    """Name, size and time of every file read: cheap to get, and different once the data is."""
    stats = [(name, (path / name).stat()) for name in files or [""]]
    return [str(path.resolve()), *([name, stat.st_size, stat.st_mtime_ns] for name, stat in stats)]


# --- .npz and .npy --------------------------------------------------------------------------------


def _open_arrays(path: Path, kind: str, specs: Sequence[dict], preprocess: Preprocess) -> dict:
    labels, notes = None, []
    if kind == "npy":
        if len(specs) != 1:
            names = ", ".join(spec["name"] for spec in specs)
            raise LeptonError(
                f"{path} holds one array, and the model has {len(specs)} inputs ({names})",
                "give an .npz with one array an input",
            )
        arrays = {specs[0]["name"]: _open_array(path)}
    else:
        found = _open_npz(path)
        keys = _match(path, list(found), specs)
        arrays = {name: found.pop(key) for name, key in keys.items()}
        given = [key for key in LABEL_KEYS if key in found]
        if len(given) > 1:
            raise LeptonError(f"{path} has labels twice, as {' and '.join(given)}", "keep one of them")
        if given:
            labels = _read_labels(found.pop(given[0]))
        if found:
            notes.append(f"{path.name}: {', '.join(sorted(found))} not used (labels would be y)")
    counts = {array.what: array.shape[0] if array.shape else 0 for array in arrays.values()}
    for what, count in counts.items():
        if count == 0:
            raise LeptonError(f"{what} holds no samples", "its first axis has to count samples")
    if labels is not None:
        counts[f"{path}: array '{given[0]}'"] = len(labels)
    if len(set(counts.values())) > 1:
        listed = "; ".join(f"{what.removeprefix(f'{path}: ')} has {n}" for what, n in counts.items())
        raise LeptonError(
            f"{path}: different numbers of samples ({listed})", "give every array the same samples"
        )
    prepared = _prepared(path, specs, preprocess)
    for spec in specs:
        if spec["name"] == prepared:
            preprocess = preprocess.resolve(spec["shape"][1:], spec["dtype"], images=False)
        _check_fit(arrays[spec["name"]], spec, _config(spec, prepared, preprocess))
    total = next(iter(counts.values()))
    common = {"arrays": arrays, "preprocess": preprocess, "prepared": prepared, "classes": ()}
    return {**common, "total": total, "labels": labels, "notes": notes}


def _match(path: Path, keys: list[str], specs: Sequence[dict]) -> dict[str, str]:
    """Which array is for which input: its name, without TensorFlow's decoration, or x for an only one."""
    matched = {}
    for spec in specs:
        plain = spec["name"].removeprefix("serving_default_").removesuffix(":0")
        names = [spec["name"], plain, *(["x"] if len(specs) == 1 else [])]
        key = next((name for name in names if name in keys), None)
        if key is None:
            wanted = f"'{spec['name']}'" + (" or 'x'" if len(specs) == 1 else "")
            raise LeptonError(
                f"{path} has no array {wanted}, which the model takes; it holds {', '.join(keys)}",
                f"{did_you_mean(spec['name'], keys)}; name the array {wanted}",
            )
        matched[spec["name"]] = key
    return matched


def _prepared(path: Path, specs: Sequence[dict], preprocess: Preprocess) -> str:
    """The input that a declared preprocessing is for: the only one, or the only one that takes images."""
    if len(specs) == 1:
        return specs[0]["name"]
    if not preprocess.declared:
        return ""
    images = [spec["name"] for spec in specs if len(spec["shape"]) == 4]
    if len(images) != 1:
        raise LeptonError(
            f"{path}: the preprocessing does not say which of the model's {len(specs)} inputs it is for",
            "prepare the arrays beforehand and leave the preprocessing out",
        )
    return images[0]


def _config(spec: dict, prepared: str, preprocess: Preprocess) -> dict:
    chosen = preprocess if spec["name"] == prepared else Preprocess(dtype=spec["dtype"])
    return {**chosen.to_dict(), "dtype": spec["dtype"]}


def _check_fit(array: Array, spec: dict, config: dict) -> None:
    """Refuse dtypes and shapes that cannot become the input, before any sample is read."""
    if array.dtype.kind not in "biuf":
        kind = KINDS.get(array.dtype.kind, f"values of type {array.dtype}")
        raise LeptonError(
            f"{array.what} holds {kind}, and the model's input '{spec['name']}' takes {spec['dtype']}",
            f"save it as {spec['dtype']}",
        )
    shape, sample = spec["shape"][1:], array.shape[1:]
    try:
        core.arrangement(sample, config, shape)
    except core.PreprocessError as error:
        raise LeptonError(
            f"{array.what} holds samples of shape {core.show(sample)}, and the model's input "
            f"'{spec['name']}' takes {core.show(shape)}",
            _shape_hint(array.shape, shape),
        ) from error


def _shape_hint(full: tuple[int, ...], shape: list) -> str:
    sample = full[1:]
    if core.fits(full, shape):
        return "the first axis has to count samples: save array[None]"
    if len(sample) == len(shape) == 3:
        if core.fits((sample[2], *sample[:2]), shape):
            return "the layout looks swapped (NHWC data, NCHW model): declare preprocess layout = 'NCHW'"
        if core.fits((*sample[1:], sample[0]), shape):
            return "the layout looks swapped (NCHW data, NHWC model): save array.transpose(0, 2, 3, 1)"
        if sample[2] == shape[2] or sample[2] == shape[0]:
            return "declare size in the preprocessing to have images resized"
    if math.prod(sample) == math.prod(side or 1 for side in shape) and None not in shape:
        return f"the number of values agrees: save array.reshape(-1, {', '.join(str(s) for s in shape)})"
    return f"the array has to be [samples, {', '.join('any' if s is None else str(s) for s in shape)}]"


def _array_chunks(source: Source, spec: dict) -> Iterator[np.ndarray]:
    array = source.arrays[spec["name"]]
    config, shape = _config(spec, source.prepared, source.preprocess), spec["shape"][1:]
    done = 0
    for raw in array.rows(source.indices):
        numbers = source.indices[done : done + len(raw)]
        done += len(raw)
        bad = ~np.isfinite(raw.reshape(len(raw), -1)).all(axis=1)
        if bad.any():
            raise LeptonError(
                f"{array.what} holds NaN or infinity in sample {numbers[bad.argmax()]}",
                "repair the sample, or leave it out",
            )
        try:
            yield core.prepare(raw, config, shape)
        except core.PreprocessError as error:
            number = numbers[_first_failing(raw, config, shape)]
            raise LeptonError(
                f"{array.what}, sample {number}: {error}",
                f"input '{spec['name']}' takes {spec['dtype']}: change the data or the preprocessing",
            ) from error


def _first_failing(raw: np.ndarray, config: dict, shape: list) -> int:
    for i in range(len(raw)):
        try:
            core.prepare(raw[i : i + 1], config, shape)
        except core.PreprocessError:
            return i
    return 0


def _read_labels(array: Array) -> np.ndarray:
    """Class numbers int64 [n] from integers, whole floats, or one-hot rows."""
    hint = "labels are class numbers from 0; for any other target leave them out and outputs are compared"
    if array.dtype.kind not in "biuf":
        kind = KINDS.get(array.dtype.kind, str(array.dtype))
        raise LeptonError(f"{array.what} holds {kind} where labels have to be integers", hint)
    if len(array.shape) not in (1, 2) or 0 in array.shape:
        raise LeptonError(f"{array.what} of shape {core.show(array.shape)} are not labels", hint)
    blocks: list[np.ndarray] = []
    for block in array.rows(np.arange(array.shape[0])):
        at = sum(map(len, blocks))
        if block.ndim == 2 and block.shape[1] > 1:
            bad = ~(((block == 0) | (block == 1)).all(1) & ((block != 0).sum(1) == 1))
            values = block.argmax(1)
            why = "is not one-hot"
        else:
            values = block.reshape(-1)
            with np.errstate(invalid="ignore"):
                bad = ~((values >= 0) & (values < 2**31) & (values == np.floor(values.astype(np.float64))))
            why = "is negative" if values[bad.argmax()] < 0 else "is not an integer class number"
        if bad.any():
            shown = f" ({block[bad.argmax()]})" if values is not None and block.ndim == 1 else ""
            raise LeptonError(f"{array.what}: label {at + int(bad.argmax())}{shown} {why}", hint)
        blocks.append(values.astype(np.int64))
    return np.concatenate(blocks)


# --- folders of images ----------------------------------------------------------------------------


def _open_images(path: Path, specs: Sequence[dict], preprocess: Preprocess, classes: int | None) -> dict:
    if len(specs) != 1:
        raise LeptonError(
            f"{path} is a folder of images, and the model has {len(specs)} inputs",
            "give an .npz with one array each",
        )
    files, others = _list_images(path)
    if not files:
        raise LeptonError(
            f"{path} holds no images" + (f" (but {others[0]})" if others else ""),
            "give a folder of .jpg or .png files, or an .npz file itself",
        )
    spec = specs[0]
    try:
        preprocess = preprocess.resolve(spec["shape"][1:], spec["dtype"], images=True)
    except LeptonError as error:
        raise LeptonError(
            f"{path}: images for the model's input '{spec['name']}': {error}", error.hint
        ) from error
    notes = []
    others = [name for name in others if Path(name).name != "labels.csv"]
    if others:
        notes.append(
            f"{len(others)} file(s) in {path.name} are not images and are left out, such as {others[0]}"
        )
    resized = preprocess.size and any(size != preprocess.size for size in _sizes(path, files))
    if resized and preprocess.size:
        notes.append(f"images are resized to {'x'.join(map(str, preprocess.size))} ({preprocess.resize})")
    labels, names, said = _image_labels(path, files, classes)
    common = {"files": tuple(files), "preprocess": preprocess, "prepared": spec["name"], "classes": names}
    return {**common, "total": len(files), "labels": labels, "notes": [*notes, said]}


def _list_images(folder: Path) -> tuple[list[str], list[str]]:
    """Images, and the other files, as sorted relative POSIX paths; hidden ones do not count."""
    found: list[str] = []
    others: list[str] = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = Path(place).relative_to(folder)
        for name in names:
            if not name.startswith("."):
                kept = found if name.lower().rpartition(".")[2] in IMAGE_SUFFIXES else others
                kept.append((relative / name).as_posix())
    return sorted(found), sorted(others)


def _sizes(folder: Path, files: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(height, width) of up to 256 of the images, from their headers alone."""
    from PIL import Image, UnidentifiedImageError

    for i in spread(len(files), 256):
        try:
            with Image.open(folder / files[i], formats=core.PIL_FORMATS) as image:
                yield image.height, image.width
        except (
            OSError,
            UnidentifiedImageError,
            Image.DecompressionBombError,
            ValueError,
            SyntaxError,
        ) as error:
            raise _broken(f"{folder / files[i]} cannot be read as an image") from error


def _broken(message: str) -> LeptonError:
    return LeptonError(message, "replace or remove the file")


def _image_chunks(source: Source, spec: dict) -> Iterator[np.ndarray]:
    config, pending, first = _config(spec, source.prepared, source.preprocess), [], ""
    shape = list(spec["shape"][1:])
    for i in source.indices:
        file = source.path / source.files[i]
        try:
            sample = core.images(core.decode(file)[None], config)
        except core.PreprocessError as error:
            message = str(error) if str(error).startswith(str(file)) else f"{file}: {error}"
            raise _broken(message) from error
        if not core.fits(sample.shape[1:], shape):
            against = f"{first} gives" if first else "the model takes"
            raise LeptonError(
                f"{file} gives a sample of {core.show(sample.shape[1:])}, and {against} {core.show(shape)}",
                "declare size in the preprocessing to have all images resized",
            )
        first, shape = first or str(file), list(sample.shape[1:])
        pending.append(sample)
        if len(pending) * sample.nbytes >= CHUNK_BYTES:
            yield np.concatenate(pending)
            pending = []
    if pending:
        yield np.concatenate(pending)


def _image_labels(
    folder: Path, files: Sequence[str], classes: int | None
) -> tuple[np.ndarray | None, tuple[str, ...], str]:
    """Labels, the class names if any, and a note on where they come from."""
    if (folder / "labels.csv").is_file():
        return _csv_labels(folder / "labels.csv", files)
    parts = [file.split("/") for file in files]
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    nested = sum(len(part) > 1 for part in parts)
    if nested and len(names) > 1:
        if nested < len(files):
            return None, (), f"no labels: {folder.name} holds images both inside and outside of sub-folders"
        if all(name.isascii() and name.isdigit() for name in names):
            labels = np.array([int(part[0]) for part in parts])
            return labels, (), "labels are the sub-folder names, which are numbers"
        index = {name: i for i, name in enumerate(names)}
        said = f"labels are the {len(names)} sub-folder names in sorted order ({names[0]} = 0)"
        return np.array([index[part[0]] for part in parts], np.int64), tuple(names), said
    matches = [re.match(r"(\d{1,6})(?:[_-].*)?\.[^.]*$", part[-1], re.ASCII) for part in parts]
    if not all(matches):
        return (
            None,
            (),
            "no labels: neither sub-folders, nor labels.csv, nor file names such as 0009.jpg give a class",
        )
    labels = np.array([int(match[1]) for match in matches if match], np.int64)
    if classes is not None and labels.max() >= classes:
        return None, (), f"no labels: the file names are numbered beyond the model's {classes} classes"
    return labels, (), f"labels are the numbers in the file names ({parts[0][-1]} is class {labels[0]})"


def _csv_labels(table: Path, files: Sequence[str]) -> tuple[np.ndarray, tuple[str, ...], str]:
    """Labels from rows "file,label"; labels are class numbers, or names that are numbered in sorted order."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = [(number, row) for number, row in enumerate(csv.reader(stream), 1) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LeptonError(
            f"{table} cannot be read ({error})", "save it as UTF-8, rows of file,label"
        ) from error
    known = set(files)
    given: dict[str, str] = {}
    for number, row in rows:
        if len(row) != 2:
            raise LeptonError(
                f"{table}, line {number}: {len(row)} columns instead of file,label", "correct the row"
            )
        name, label = row[0].strip().replace("\\", "/").removeprefix("./"), row[1].strip()
        if number == 1 and name not in known:
            continue  # the header
        if name not in known:
            raise LeptonError(
                f"{table}, line {number}: there is no image '{name}'", did_you_mean(name, list(files[:999]))
            )
        if not label or given.setdefault(name, label) != label:
            raise LeptonError(
                f"{table}, line {number}: '{name}' has no label or two", "give every image one label"
            )
    missing = next((name for name in files if name not in given), None)
    if missing:
        raise LeptonError(f"{table} gives no label for '{missing}'", "add the row, or remove the image")
    values = [given[name] for name in files]
    numbers = [bool(re.fullmatch(r"-?\d{1,9}", value, re.ASCII)) for value in values]
    if all(numbers):
        labels = np.array([int(value) for value in values], np.int64)
        if labels.min() < 0:
            raise LeptonError(
                f"{table}: the label of '{files[int(labels.argmin())]}' is negative", "classes count from 0"
            )
        return labels, (), "labels come from labels.csv"
    if any(numbers):
        raise LeptonError(f"{table} mixes class numbers and class names", "use one of the two")
    names = sorted(set(values))
    index = {name: i for i, name in enumerate(names)}
    said = f"labels come from labels.csv, its {len(names)} class names in sorted order ({names[0]} = 0)"
    return np.array([index[value] for value in values], np.int64), tuple(names), said


# --- feed folders ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Feed:
    """A feed folder: ``inputs`` in order, a file each; ``sha256`` of the contents, ``source`` the data."""

    folder: Path
    inputs: tuple[str, ...]
    count: int
    labels: bool
    sha256: str
    source: str
    files: Mapping[str, str]
    labels_file: str | None = None
    classes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def array(self, name: str) -> np.ndarray:
        """The samples of an input [count, ...], memory-mapped."""
        return np.load(self.folder / self.files[name], mmap_mode="r", allow_pickle=False)

    def open(self) -> dict[str, np.ndarray]:
        """All the inputs, memory-mapped."""
        return {name: self.array(name) for name in self.inputs}

    def label_array(self) -> np.ndarray | None:
        """The labels int64 [count], or None."""
        return np.load(self.folder / self.labels_file, allow_pickle=False) if self.labels_file else None

    def to_json(self) -> dict:
        """What feed.json says."""
        parts = {
            k: getattr(self, k) for k in ("inputs", "count", "labels", "sha256", "source", "labels_file")
        }
        return {
            "schema": SCHEMA,
            **parts,
            "files": dict(self.files),
            "classes": self.classes,
            "notes": self.notes,
        }


def write_feed(source: Source, folder: str | Path, progress: Progress | None = None) -> Feed:
    """Read every chosen sample of ``source`` into the feed ``folder``; progress(done, total, what).

    Raises LeptonError on a bad sample or a full disk and then leaves nothing; an older feed is replaced.
    """
    names, done = [spec["name"] for spec in source.inputs], 0

    def counted(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        for chunk in source.chunks(name):
            yield chunk
            done += len(chunk)
            if progress:
                progress(done, source.count * len(names), f"{source.role} samples")

    arrays = {name: counted(name) for name in names}
    told = {"source": str(source.path), "classes": source.classes, "notes": source.notes}
    return _write(Path(folder), arrays, source.count, source.labels, told)


def feed_from_arrays(
    arrays: Mapping[str, np.ndarray], labels: np.ndarray | None, folder: str | Path, *, source: str
) -> Feed:
    """Write arrays [count, ...] that are model-ready already, and int64 labels [count], as a feed folder."""
    counts = {len(array) for array in (*arrays.values(), *([] if labels is None else [labels]))}
    if len(counts) != 1 or 0 in counts:
        raise LeptonError(
            f"{source}: different numbers of samples, or none ({sorted(counts)})", "give as many of each"
        )
    return _write(
        Path(folder), {k: iter([a]) for k, a in arrays.items()}, counts.pop(), labels, {"source": source}
    )


def _write(
    folder: Path,
    arrays: Mapping[str, Iterator[np.ndarray]],
    count: int,
    labels: np.ndarray | None,
    told: dict,
) -> Feed:
    with _publishing(folder) as part:
        digest, files = hashlib.sha256(), _file_names(list(arrays))
        for name, chunks in arrays.items():
            _write_array(part / files[name], count, chunks, digest, name)
        labels_file = None if labels is None else _labels_file(files.values())
        if labels is not None and labels_file:
            np.save(part / labels_file, labels.astype(np.int64), allow_pickle=False)
            digest.update(b"labels" + labels.astype(np.int64).tobytes())
        feed = Feed(
            folder=folder,
            inputs=tuple(arrays),
            count=count,
            labels=labels_file is not None,
            sha256=digest.hexdigest(),
            files=files,
            labels_file=labels_file,
            **told,
        )
        (part / "feed.json").write_text(json.dumps(feed.to_json(), indent=1), encoding="utf-8")
    return feed


def _write_array(path: Path, count: int, chunks: Iterator[np.ndarray], digest: Any, name: str) -> None:
    """Chunks [k, ...] as one .npy, in plain writes: mapped pages would count as this process's memory."""
    first = next(chunks)
    path.parent.mkdir(parents=True, exist_ok=True)
    need, free = count * first[0].nbytes, shutil.disk_usage(path.parent).free
    if need > free:
        raise LeptonError(
            f"{count} samples of '{name}' take {need / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            "use fewer samples, or another folder",
        )
    descr = np.lib.format.dtype_to_descr(first.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (count, *first.shape[1:])}
    digest.update(json.dumps([name, descr, header["shape"]]).encode())
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for chunk in itertools.chain([first], chunks):
            data = np.ascontiguousarray(chunk).tobytes()
            stream.write(data)
            digest.update(data)


def _file_names(names: Sequence[str]) -> dict[str, str]:
    """File of each input: its name, escaped where that would leave the folder, be too long or be hidden."""
    files: dict[str, str] = {}
    for name in names:
        safe = re.fullmatch(r"[\w:+=-][\w.:+ =-]*(/[\w:+=-][\w.:+ =-]*)*", name, re.ASCII) and len(name) < 200
        file = name if safe else "%" + quote(name, safe="")
        if len(file) >= 200:
            file = "%" + hashlib.sha256(name.encode()).hexdigest()
        files[name] = f"{file}.npy"
    return files


def _labels_file(taken: Any) -> str:
    return next(name for name in ("y.npy", "labels.npy", "%labels.npy") if name not in taken)


@contextmanager
def _publishing(folder: Path) -> Iterator[Path]:
    """A folder written beside ``folder`` that takes its place once complete; only a feed is ever replaced."""
    if (
        folder.exists()
        and not (folder / "feed.json").is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        raise LeptonError(f"{folder} exists and is not a feed folder", "choose another folder")
    with aside(folder.absolute().parent) as scratch:
        part = scratch / "feed"
        part.mkdir()
        try:
            yield part
            if folder.exists():
                folder.rename(scratch / "old")
            part.replace(folder)
        except OSError as error:
            raise LeptonError(
                f"{folder} cannot be written ({error.strerror or error})", "free some space"
            ) from error


def load_feed(folder: str | Path) -> Feed:
    """Open a feed folder and check that its arrays are whole. Raises LeptonError."""
    folder = Path(folder)
    try:
        told = json.loads((folder / "feed.json").read_text(encoding="utf-8"))
        feed = Feed(
            folder,
            tuple(told["inputs"]),
            int(told["count"]),
            bool(told["labels"]),
            str(told["sha256"]),
            str(told["source"]),
            {str(k): str(v) for k, v in told["files"].items()},
            told.get("labels_file"),
            tuple(told.get("classes", ())),
            tuple(told.get("notes", ())),
        )
        files = [feed.files[name] for name in feed.inputs] + ([feed.labels_file] if feed.labels_file else [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LeptonError(f"{folder} is not a feed folder ({error})", "write it again") from error
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise LeptonError(
                f"{folder}: feed.json names a file outside of the folder ({file})", "write it again"
            )
        array = _open_array(folder / file)
        if not array.shape or array.shape[0] != feed.count:
            raise LeptonError(f"{folder / file} does not hold {feed.count} samples", "write the feed again")
    return feed


def adapt_feed(feed: Feed, ports: Sequence[Mapping[str, Any]], folder: str | Path) -> Feed:
    """The same samples for a converted model whose inputs are ``ports``: {"name", "source", "perm"}.

    ``perm`` counts the batch axis as 0 and has to leave it there. An optional "dtype" casts where no value
    changes. Returns ``feed`` itself where nothing differs; arrays that stay as they are are linked.
    """
    folder = Path(folder)
    for port in ports:
        if port["source"] not in feed.inputs:
            raise LeptonError(
                f"input '{port['name']}' of the converted model comes from '{port['source']}', which the "
                f"data lacks (it has {', '.join(feed.inputs)})",
                "the converter has to name an input of the source model",
            )
    changed = [port for port in ports if _perm(port) is not None or _recast(feed, port) is not None]
    if not changed and tuple(port["name"] for port in ports) == feed.inputs == tuple(
        p["source"] for p in ports
    ):
        return feed
    told = [[p["name"], p["source"], _perm(p), str(_recast(feed, p))] for p in ports]
    names = [str(port["name"]) for port in ports]
    with _publishing(folder) as part:
        files = _file_names(names)
        for port in ports:
            target = part / files[port["name"]]
            target.parent.mkdir(parents=True, exist_ok=True)
            if port in changed:
                chunks = _transposed(feed.array(port["source"]), _perm(port), _recast(feed, port))
                _write_array(target, feed.count, chunks, hashlib.sha256(), port["name"])
            else:
                _link(feed.folder / feed.files[port["source"]], target)
        labels_file = _labels_file(files.values()) if feed.labels_file else None
        if feed.labels_file and labels_file:
            _link(feed.folder / feed.labels_file, part / labels_file)
        sha256 = hashlib.sha256(json.dumps([feed.sha256, told]).encode()).hexdigest()
        rest = (feed.source, files, labels_file, feed.classes, feed.notes)
        made = Feed(folder, tuple(names), feed.count, feed.labels, sha256, *rest)
        (part / "feed.json").write_text(json.dumps(made.to_json(), indent=1), encoding="utf-8")
    return made


def _perm(port: Mapping[str, Any]) -> list[int] | None:
    perm = port.get("perm")
    if perm is None or list(perm) == list(range(len(perm))):
        return None
    if perm[0] != 0 or sorted(perm) != list(range(len(perm))):
        raise LeptonError(
            f"the converted model's input '{port['name']}' moves the batch axis (perm {list(perm)})",
            "samples are fed one by one, so the batch axis has to stay first",
        )
    return list(perm)


def _recast(feed: Feed, port: Mapping[str, Any]) -> np.dtype | None:
    wanted = port.get("dtype")
    return None if wanted is None or feed.array(port["source"]).dtype == wanted else np.dtype(wanted)


def _transposed(array: np.ndarray, perm: list[int] | None, dtype: np.dtype | None) -> Iterator[np.ndarray]:
    if perm is not None and len(perm) != array.ndim:
        raise LeptonError(
            f"a perm of {len(perm)} axes {perm} is given for samples of shape {list(array.shape[1:])}"
        )
    step = max(1, CHUNK_BYTES // max(1, array[0].nbytes))
    for start in range(0, len(array), step):
        chunk = np.asarray(array[start : start + step])
        try:
            yield core.cast(chunk if perm is None else chunk.transpose(perm), str(dtype) if dtype else None)
        except core.PreprocessError as error:
            raise LeptonError(str(error), "the converted model takes another type than the data") from error


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
