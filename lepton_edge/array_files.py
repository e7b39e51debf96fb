"""Arrays in .npy and .npz files: headers are checked before any value is read, and rows come in small chunks."""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from lepton_edge.errors import LeptonError

CHUNK_BYTES = 1 << 20
MAX_BYTES = 64 << 30  # declared size of one array; more is a mistake or a bomb
MAX_RATIO, RATIO_FROM = 200, 1 << 30  # deflate reaches 1000:1 on zeros, and real data of this size never does


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


_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError)


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what damaged files raise into one line."""
    try:
        yield
    except _DAMAGE as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise LeptonError(f"{what} is damaged or cut short ({reason})", "save or copy the file again") from error


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"version {version} of the .npy format is only for records")


def open_array(path: Path, member: str | None = None, packed: zipfile.ZipInfo | None = None) -> Array:
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
        raise LeptonError(f"{array.what} has no readable .npy header ({reason[:120]})", "save it again") from error
    array = Array(path, member, header[0], header[2], header[1])
    if array.dtype.hasobject:
        raise LeptonError(
            f"{array.what} holds pickled Python objects, which are never loaded",
            "save plain numbers: np.asarray(values, 'float32'), every sample of the same shape",
        )
    declared = math.prod(array.shape) * array.dtype.itemsize
    if any(side < 0 for side in array.shape):
        raise LeptonError(f"{array.what} declares a shape with a negative side {array.shape}", "save it again")
    if declared > MAX_BYTES:
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


def open_npz(path: Path) -> dict[str, Array]:
    """Every array of an .npz by name, headers read. Raises LeptonError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {i.filename: i for i in archive.infolist() if i.filename.endswith(".npy")}
    except (*_DAMAGE, ValueError) as error:
        raise LeptonError(f"{path} is not a readable .npz ({error})", "save or copy the file again") from error
    if any(info.flag_bits & 1 for info in members.values()):
        raise LeptonError(f"{path} is protected by a password", "save it with np.savez")
    if not members:
        raise LeptonError(f"{path} is a zip file without arrays", "save samples with np.savez(file, x=..., y=...)")
    return {name[:-4]: open_array(path, name, info) for name, info in members.items()}


def spread(total: int, limit: int | None, seed: int = 0) -> np.ndarray:
    """``limit`` of ``total`` indices, one at random from each of ``limit`` equal stretches; ascending."""
    if limit is None or limit >= total:
        return np.arange(total)
    edges = np.arange(limit + 1) * total // limit
    return np.random.default_rng(seed).integers(edges[:-1], edges[1:])
