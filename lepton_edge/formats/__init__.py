"""The model formats: one file each, with SUFFIX and ``recognise(path, head)``.

A format of more than one file also has ``files(path)`` and, for files named after the main one, FOLLOW (suffixes).
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from lepton_edge.errors import LeptonError

# What counts as a zip bomb: weights hardly shrink, so no model of this size unpacks to that many times its bytes.
BOMB_BYTES, BOMB_RATIO = 256 * 2**20, 100


def zip_names(path: Path, head: bytes) -> list[str]:
    """The names in a zip archive; empty for a file that is none. Raises LeptonError for a damaged one."""
    if head[:4] != b"PK\x03\x04":
        return []
    try:
        with zipfile.ZipFile(path) as z:
            members = z.infolist()
    except (zipfile.BadZipFile, struct.error, OSError, ValueError, NotImplementedError) as e:
        raise LeptonError(
            f"{path}: a zip archive that is cut short or damaged ({e})", "export or download the model again"
        ) from e
    unpacked, packed = sum(m.file_size for m in members), path.stat().st_size
    if unpacked > BOMB_BYTES and unpacked > BOMB_RATIO * packed:
        raise LeptonError(
            f"{path}: a zip archive of {packed:,} bytes that would unpack to {unpacked:,}, which is refused",
            "no model packs like that; get it from its maker",
        )
    return [m.filename for m in members]
