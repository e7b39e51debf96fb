"""Samples in a folder of images: what is an image, its size and values, and where labels come from."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lepton_edge import preprocess_core as core
from lepton_edge.array_files import CHUNK_BYTES, spread
from lepton_edge.errors import LeptonError, did_you_mean
from lepton_edge.preprocess import Preprocess

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "bmp", "gif", "webp", "ppm", "pgm", "pnm", "tif", "tiff")


def open_images(path: Path, specs: Sequence[dict], preprocess: Preprocess, classes: int | None) -> dict:
    """The parts of a Source that a folder of images gives, from headers alone. Raises LeptonError."""
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
        raise LeptonError(f"{path}: images for the model's input '{spec['name']}': {error}", error.hint) from error
    notes = []
    others = [name for name in others if Path(name).name != "labels.csv"]
    if others:
        notes.append(f"{len(others)} file(s) in {path.name} are not images and are left out, such as {others[0]}")
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


def image_chunks(folder: Path, files: Sequence[str], spec: dict, config: dict) -> Iterator[np.ndarray]:
    """The images ``files`` as the input ``spec`` takes them, [k, ...]. LeptonError names a bad file."""
    pending: list[np.ndarray] = []
    shape, first = list(spec["shape"][1:]), ""
    for name in files:
        file = folder / name
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
        raise LeptonError(f"{table} cannot be read ({error})", "save it as UTF-8, rows of file,label") from error
    known = set(files)
    given: dict[str, str] = {}
    for number, row in rows:
        if len(row) != 2:
            raise LeptonError(f"{table}, line {number}: {len(row)} columns instead of file,label", "correct the row")
        name, label = row[0].strip().replace("\\", "/").removeprefix("./"), row[1].strip()
        if number == 1 and name not in known:
            continue  # the header
        if name not in known:
            raise LeptonError(
                f"{table}, line {number}: there is no image '{name}'", did_you_mean(name, list(files[:999]))
            )
        if not label or given.setdefault(name, label) != label:
            raise LeptonError(f"{table}, line {number}: '{name}' has no label or two", "give every image one label")
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
