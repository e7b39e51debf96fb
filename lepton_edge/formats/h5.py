"""Legacy Keras model in HDF5."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from lepton_edge.errors import LeptonError

SUFFIX = ".h5"


def recognise(path: Path, head: bytes) -> bool:
    """The HDF5 signature; the end-of-file address in the superblock has to lie within the file.

    Source: HDF5 File Format Specification 3.0, section II.A (superblock versions 0 to 3).
    """
    if head[:8] != b"\x89HDF\r\n\x1a\n":
        return False
    at = {0: 40, 1: 44, 2: 28, 3: 28}.get(head[8]) if len(head) > 8 else None
    if at is None or len(head) < at + 8:
        raise LeptonError(f"{path}: an HDF5 file that is cut short or damaged", "export or download the model again")
    (end,) = struct.unpack_from("<Q", head, at)
    size = path.stat().st_size
    if size < end:
        raise LeptonError(
            f"{path}: an HDF5 file that is cut short ({size:,} of {end:,} bytes)",
            "export or download the model again",
        )
    if not _heaps_end(path):
        raise LeptonError(f"{path}: an HDF5 file that is damaged", "export or download the model again")
    return True


def _heaps_end(path: Path) -> bool:
    """Whether the objects of each global heap, where HDF5 keeps its texts, lead to the heap's end.

    libhdf5 never comes back from a heap whose free space is said to be empty. Source: as above, section III.E.
    """
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        at = -1
        while (at := m.find(b"GCOL\x01\0\0\0", at + 1)) >= 0:
            end = at + int.from_bytes(m[at + 8 : at + 16], "little")
            if end > len(m) or end < at + 4096:  # not a heap: weights that look like one
                continue
            place = at + 16
            while place + 16 <= end:
                index, size = struct.unpack_from("<H6xQ", m, place)
                place += size if index == 0 else 16 + -(-size // 8) * 8
                if place > end or (index == 0 and size < 16):
                    return False
    return True
