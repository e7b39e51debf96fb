"""Training samples from a function of the user's own: run in a process of its own, written to an .npz on disk.

The function takes nothing and returns (x, y) arrays, a tf.data.Dataset, a PyTorch Dataset or DataLoader, or any
iterable of (x, y), single samples or batches; x may be a dict by input name. What it gives is written as it comes, so
that memory holds one batch. Runs in a worker (worker.py), where the user's code can harm nothing but itself.
"""

from __future__ import annotations

import importlib.util
import random
import shutil
import sys
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lepton_edge import settings
from lepton_edge.errors import LeptonError, did_you_mean, first_line

LIMIT_GB = 20  # LEPTON_EDGE_TRAIN_MAX_GB
LABELS = "y"


def run(
    src: str, dst: str, *, function: str, inputs: list[dict], seed: int = 0, progress: Callable | None = None
) -> dict:
    """Call ``function`` of the Python file ``src`` and write what it gives to the .npz ``dst``.

    ``inputs`` are the model's {"name", "shape" with batch axis}. Returns the number of samples, and whether they have
    labels. Raises LeptonError, naming file, function and element, for a function that fails or gives something else.
    """
    name = f"{Path(src).name}:{function}"
    made = _call(src, function, name, seed)
    folder = Path(dst).with_suffix(".parts")
    folder.mkdir(parents=True)
    try:
        with _Writer(folder, inputs, name) as writer:
            total = _length(made)
            for element in _elements(made, name, inputs, src):
                writer.add(element)
                if progress:
                    progress(writer.count, max(total or 0, writer.count + 1), "training samples")
        if not writer.count:
            raise LeptonError(f"{name} gave no samples", "return arrays, or an iterable of (x, y) that is not used up")
        writer.pack(Path(dst))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"count": writer.count, "labels": writer.labelled}


def _call(src: str, function: str, name: str, seed: int) -> Any:
    """Import the file, which is named by the user, and call its function."""
    path = Path(src).resolve()
    spec = importlib.util.spec_from_file_location(f"lepton_user_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    random.seed(seed)
    np.random.seed(seed)
    with _told(name, path):
        spec.loader.exec_module(module)
    made = getattr(module, function, None)
    if not callable(made):
        known = [k for k, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == spec.name]
        raise LeptonError(f"{path.name} has no function '{function}'", did_you_mean(function, known) if known else "")
    with _told(name, path):
        return made()


class _told:
    """What the user's code raises, in one line with its place in the user's file."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, LeptonError | MemoryError | KeyboardInterrupt):
            return
        own = [f for f in traceback.extract_tb(trace) if Path(f.filename) == self.path]
        line = own[-1].lineno if own else getattr(error, "lineno", None)
        where = f" ({self.path.name}:{line})" if line else ""
        raise LeptonError(
            f"{self.name} failed: {type(error).__name__}: {first_line(error)}{where}",
            "it is your own function: mend it, and run it alone to see more",
        ) from error


def _length(made: Any) -> int | None:
    try:
        return len(made)
    except TypeError:
        return None


def _is(value: Any, module: str, *names: str) -> bool:
    """Whether a class of that module and name is among a value's; frameworks are not imported for it."""
    return any(c.__module__.startswith(module) and c.__name__ in names for c in type(value).__mro__)


def _elements(made: Any, name: str, inputs: Sequence[Mapping], src: str) -> Iterator[tuple[dict, Any, bool]]:
    """(x by input name, y or None, whether it is a batch) of whatever the function returned."""
    names = [spec["name"] for spec in inputs]
    if _is(made, "tensorflow", "DatasetV2", "Dataset"):
        if int(made.cardinality()) == -1:
            raise LeptonError(f"{name} returns a dataset without end", "cut it with .take(n), or leave .repeat() out")
        each: Iterator = iter(made)
    elif _is(made, "torch.utils.data", "Dataset") and hasattr(made, "__getitem__") and _length(made) is not None:
        each = (made[i] for i in range(len(made)))
    elif _is_arrays(made):
        each = iter([made])
    elif hasattr(made, "__iter__") and not isinstance(made, str | bytes):
        each = iter(made)
    else:
        raise LeptonError(
            f"{name} returned {type(made).__name__}, which gives no samples",
            "return (x, y) arrays, a tf.data.Dataset, a PyTorch Dataset or DataLoader, or an iterable of (x, y)",
        )
    at = 0
    while True:
        with _told(name, Path(src).resolve()):
            try:
                element = next(each)
            except StopIteration:
                return
        at += 1
        yield _element(element, names, inputs, f"element {at} of {name}")


def _is_arrays(made: Any) -> bool:
    """Whether it is all the samples at once: an array, arrays by name, or (x, y) of them."""
    if isinstance(made, tuple) and len(made) == 2 and (_is_array(made[0]) or _by_name(made[0])):
        numbers = isinstance(made[1], list) and all(isinstance(v, int | float | np.number) for v in made[1])
        return numbers or (_is_array(made[1]) and np.ndim(made[1]) > 0)
    return _is_array(made) or _by_name(made)


def _by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(_is_array(v) for v in value.values())


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) or hasattr(value, "__array__") or _is(value, "torch", "Tensor")


def _element(element: Any, names: list[str], inputs: Sequence[Mapping], what: str) -> tuple[dict, Any, bool]:
    x, y = element, None
    if isinstance(element, tuple | list):
        if len(element) != 2:
            raise LeptonError(f"{what} has {len(element)} parts, not (x, y)", "give the samples and their labels only")
        x, y = element
    if isinstance(x, Mapping):
        if set(x) != set(names):
            raise LeptonError(f"{what} holds {sorted(map(str, x))}, the model takes {names}", "name them as the model")
        arrays = {n: _array(x[n], f"'{n}' in {what}") for n in names}
    elif isinstance(x, tuple | list) and len(names) > 1 and len(x) == len(names):
        arrays = {n: _array(v, f"'{n}' in {what}") for n, v in zip(names, x, strict=True)}
    elif len(names) > 1:
        raise LeptonError(f"{what} holds one input, the model takes {names}", "give a dict by input name as x")
    else:
        arrays = {names[0]: _array(x, f"x in {what}")}
    rank = len(inputs[0]["shape"])
    batch = arrays[names[0]].ndim == rank
    if not batch and arrays[names[0]].ndim != rank - 1:
        shape = list(arrays[names[0]].shape)
        raise LeptonError(
            f"x in {what} is {shape}: neither a sample {list(inputs[0]['shape'])[1:]} of the model nor a batch of them",
            "shape the samples as the model takes them",
        )
    return arrays, None if y is None else _labels(_array(y, f"y in {what}"), batch, what), batch


def _array(value: Any, what: str) -> np.ndarray:
    if _is(value, "torch", "Tensor"):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise LeptonError(f"{what} is {type(value).__name__} of {array.dtype}, not numbers", "give arrays of numbers")
    return array


def _labels(y: np.ndarray, batch: bool, what: str) -> np.ndarray:
    """Class numbers int64 [n], or of a single sample []: one-hot rows become numbers."""
    y = np.squeeze(y, axis=-1) if y.ndim == batch + 1 and y.shape[-1] == 1 else y
    if y.ndim == batch + 1 and ((y == 0) | (y == 1)).all() and (y.sum(-1) == 1).all():
        y = y.argmax(-1)
    if y.ndim != int(batch) or (y.dtype.kind == "f" and not np.array_equal(y, np.rint(y))):
        raise LeptonError(
            f"y in {what} is {y.dtype} {list(y.shape)}, not one class number a sample",
            "give whole numbers or one-hot rows",
        )
    return y.astype(np.int64)


class _Writer:
    """Appends elements to one raw file an array, then packs them as an .npz."""

    def __init__(self, folder: Path, inputs: Sequence[Mapping], name: str) -> None:
        self.folder, self.name, self.count, self.labelled = folder, name, 0, False
        names = [spec["name"] for spec in inputs]
        self.files: dict[str, BinaryIO] = {}
        self.kinds: dict[str, tuple[np.dtype, tuple[int, ...]]] = {}
        self.names = {n: n if len(names) > 1 else "x" for n in names}
        self.limit = int(settings.number("LEPTON_EDGE_TRAIN_MAX_GB", LIMIT_GB) * 1e9)
        self.bytes = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files.values():
            file.close()

    def add(self, element: tuple[dict, Any, bool]) -> None:
        """One sample, or a batch of them."""
        arrays, labels, batch = element
        parts = {self.names[n]: a if batch else a[None] for n, a in arrays.items()}
        if labels is not None:
            parts[LABELS] = labels if batch else labels[None]
        counts = {len(part) for part in parts.values()}
        if len(counts) != 1:
            sizes = ", ".join(f"{len(part)} of {n}" for n, part in parts.items())
            raise LeptonError(f"{self.name} gave a batch of unequal parts: {sizes}", "give as many labels as samples")
        if self.count and self.labelled != (labels is not None):
            raise LeptonError(f"{self.name} gave labels for some samples only", "give them for all, or for none")
        self.labelled = labels is not None
        for n, part in parts.items():
            self._append(n, part)
        self.count += counts.pop()

    def _append(self, name: str, part: np.ndarray) -> None:
        dtype, shape = self.kinds.setdefault(name, (part.dtype, part.shape[1:]))
        if part.shape[1:] != shape or not np.can_cast(part.dtype, dtype, "same_kind"):
            raise LeptonError(
                f"{self.name} gave {name} as {dtype} {list(shape)} first, and after {self.count} samples as "
                f"{part.dtype} {list(part.shape[1:])}",
                "give samples of one kind",
            )
        if name not in self.files:
            self.files[name] = (self.folder / f"{len(self.files)}.raw").open("wb")
        data = np.ascontiguousarray(part, dtype).tobytes()
        self.bytes += len(data)
        free = shutil.disk_usage(self.folder).free
        if self.bytes > self.limit or len(data) > free / 3:
            what = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e8 else f"{self.bytes / 1e6:.1f} MB"
            raise LeptonError(
                f"{self.name} gave {self.count} samples ({what}) and goes on: an iterable without end?",
                "let it end, or raise LEPTON_EDGE_TRAIN_MAX_GB (and have the disk space)",
            )
        self.files[name].write(data)

    def pack(self, path: Path) -> None:
        """All of it as one uncompressed .npz."""
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as packed:
            for k, (name, (dtype, shape)) in enumerate(self.kinds.items()):
                with packed.open(f"{name}.npy", "w", force_zip64=True) as stream:
                    header = {
                        "descr": np.lib.format.dtype_to_descr(dtype),
                        "fortran_order": False,
                        "shape": (self.count, *shape),
                    }
                    np.lib.format.write_array_header_1_0(stream, header)  # type: ignore[arg-type]
                    with (self.folder / f"{k}.raw").open("rb") as raw:
                        shutil.copyfileobj(raw, stream, 1 << 20)
