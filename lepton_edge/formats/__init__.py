"""The model formats: one file each, with SUFFIX and ``recognise(path, head)``.

A format of more than one file also has ``files(path)`` and, for files named after the main one, FOLLOW (suffixes).
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

from lepton_edge.errors import LeptonError


def zip_names(path: Path, head: bytes) -> list[str]:
    """The names in a zip archive; empty for a file that is none. Raises LeptonError for a damaged one."""
    if head[:4] != b"PK\x03\x04":
        return []
    try:
        with zipfile.ZipFile(path) as z:
            return z.namelist()
    except (zipfile.BadZipFile, struct.error, OSError, ValueError) as e:
        raise LeptonError(
            f"{path}: a zip archive that is cut short or damaged ({e})", "export or download the model again"
        ) from e
