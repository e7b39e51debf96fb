"""Legacy Keras model in HDF5."""

from __future__ import annotations

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
    return True
