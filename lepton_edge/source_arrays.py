"""Samples in an .npz or a .npy: which array is for which input, whether it fits, its labels, its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lepton_edge import preprocess_core as core
from lepton_edge.array_files import Array, open_array, open_npz
from lepton_edge.errors import LeptonError, did_you_mean
from lepton_edge.preprocess import Preprocess
from lepton_edge.shapes import is_whole

LABEL_KEYS = ("y", "labels")
KINDS = {"O": "Python objects", "U": "text", "S": "bytes", "c": "complex numbers", "V": "records"}


def open_arrays(path: Path, kind: str, specs: Sequence[dict], preprocess: Preprocess) -> dict:
    """The parts of a Source that an "npz" or "npy" gives, checked against the inputs. Raises LeptonError."""
    labels, notes = None, []
    if kind == "npy":
        if len(specs) != 1:
            names = ", ".join(spec["name"] for spec in specs)
            raise LeptonError(
                f"{path} holds one array, and the model has {len(specs)} inputs ({names})",
                "give an .npz with one array an input",
            )
        arrays = {specs[0]["name"]: open_array(path)}
    else:
        found = open_npz(path)
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
        raise LeptonError(f"{path}: different numbers of samples ({listed})", "give every array the same samples")
    specs = [_as_given(spec, arrays[spec["name"]]) for spec in specs]
    prepared = _prepared(path, specs, preprocess)
    for spec in specs:
        if spec["name"] == prepared:
            preprocess = preprocess.resolve(spec["shape"][1:], spec["dtype"], images=False)
        _check_fit(arrays[spec["name"]], spec, config_of(spec, prepared, preprocess))
    total = next(iter(counts.values()))
    common = {"inputs": specs, "arrays": arrays, "preprocess": preprocess, "prepared": prepared, "classes": ()}
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


def _as_given(spec: dict, array: Array) -> dict:
    """The spec of an input, marked "whole" and with an axis for the samples where its own first axis is not that."""
    shape, sample = spec["shape"], array.shape[1:]
    batched = core.fits(sample, shape[1:]) or core.reshaped(sample, shape[1:])
    if is_whole(shape) or (not batched and is_whole(shape, sample)):
        return {**spec, "shape": [None, *shape], "whole": True}
    return spec


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


def config_of(spec: dict, prepared: str, preprocess: Preprocess) -> dict:
    """The preprocessing of one input: the given one for the input it is ``prepared`` for, else a cast alone."""
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


def array_chunks(array: Array, indices: np.ndarray, spec: dict, config: dict) -> Iterator[np.ndarray]:
    """Rows at ascending ``indices`` as the input ``spec`` takes them, [k, ...]. LeptonError names a bad sample."""
    shape, done = spec["shape"][1:], 0
    for raw in array.rows(indices):
        numbers = indices[done : done + len(raw)]
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
