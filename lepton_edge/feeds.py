"""Feed folders: samples for a model, streamed to a folder that every step reads.

A feed folder holds feed.json and one .npy an input, [count, *input shape without its batch axis] in the
input's dtype, plus int64 labels [count] if there are any. Inputs without a batch axis (scalars, recurrent states)
are listed as "whole": their samples have all the axes. It is written aside and published in one rename.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import mmap
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from lepton_edge import preprocess_core as core
from lepton_edge.array_files import CHUNK_BYTES, open_array, spread
from lepton_edge.errors import LeptonError
from lepton_edge.sources import Source, open_data
from lepton_edge.store import aside

__all__ = [
    "Feed", "Source", "adapt_feed", "feed_from_arrays", "load_feed", "open_data", "spread", "thinned",
    "write_feed",
]  # fmt: skip

SCHEMA = "lepton-edge.feed/1"

Progress = Callable[[int, int, str], None]


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
    whole: tuple[str, ...] = ()

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
        parts = {k: getattr(self, k) for k in ("inputs", "count", "labels", "sha256", "source", "labels_file")}
        return {
            "schema": SCHEMA,
            **parts,
            "files": dict(self.files),
            "classes": self.classes,
            "notes": self.notes,
            "whole": self.whole,
        }


def let_go(array: np.ndarray) -> None:
    """Pages of a memory-mapped array that were read, which else add up to the whole file."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


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
    whole = tuple(spec["name"] for spec in source.inputs if spec.get("whole"))
    told = {"source": str(source.path), "classes": source.classes, "notes": source.notes, "whole": whole}
    return _write(Path(folder), arrays, source.count, source.labels, told)


def feed_from_arrays(
    arrays: Mapping[str, np.ndarray],
    labels: np.ndarray | None,
    folder: str | Path,
    *,
    source: str,
    whole: Sequence[str] = (),
) -> Feed:
    """Write arrays [count, ...] that are model-ready already, and int64 labels [count], as a feed folder."""
    counts = {len(array) for array in (*arrays.values(), *([] if labels is None else [labels]))}
    if len(counts) != 1 or 0 in counts:
        raise LeptonError(f"{source}: different numbers of samples, or none ({sorted(counts)})", "give as many of each")
    return _write(
        Path(folder),
        {k: iter([a]) for k, a in arrays.items()},
        counts.pop(),
        labels,
        {"source": source, "whole": tuple(whole)},
    )


def thinned(feed: Feed, most: int, folder: str | Path) -> tuple[Feed, np.ndarray]:
    """At most ``most`` samples of a feed, evenly spread, and which they are: int64 [count]. Few enough: itself."""
    chosen = np.arange(feed.count)
    if feed.count <= most:
        return feed, chosen
    chosen = np.linspace(0, feed.count - 1, most).round().astype(np.int64)
    arrays, labels = {name: feed.array(name)[chosen] for name in feed.inputs}, feed.label_array()
    kept = None if labels is None else labels[chosen]
    return feed_from_arrays(arrays, kept, folder, source=feed.source, whole=feed.whole), chosen


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
    if folder.exists() and not (folder / "feed.json").is_file() and (not folder.is_dir() or any(folder.iterdir())):
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
            raise LeptonError(f"{folder} cannot be written ({error.strerror or error})", "free some space") from error


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
            tuple(told.get("whole", ())),
        )
        files = [feed.files[name] for name in feed.inputs] + ([feed.labels_file] if feed.labels_file else [])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LeptonError(f"{folder} is not a feed folder ({error})", "write it again") from error
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise LeptonError(f"{folder}: feed.json names a file outside of the folder ({file})", "write it again")
        array = open_array(folder / file)
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
    if not changed and tuple(port["name"] for port in ports) == feed.inputs == tuple(p["source"] for p in ports):
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
        whole = tuple(str(port["name"]) for port in ports if port["source"] in feed.whole)
        rest = (feed.source, files, labels_file, feed.classes, feed.notes, whole)
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
    if perm is not None and len(perm) == array.ndim - 1:  # whole samples
        perm = [0, *(axis + 1 for axis in perm)]
    if perm is not None and len(perm) != array.ndim:
        raise LeptonError(f"a perm of {len(perm)} axes {perm} is given for samples of shape {list(array.shape[1:])}")
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
