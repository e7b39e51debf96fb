"""Wheels on a device that may install nothing: unpacked into a folder of ours."""

from __future__ import annotations

import os
import shutil
import zipfile

LIBRARIES = (".data/purelib/", ".data/platlib/")


def unpack(wheel: str, folder: str) -> int:
    """Unpack the library files of a wheel (PEP 427): how many. Raises ValueError for a path that leads out."""
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for entry in archive.infolist():
            name = entry.filename
            for part in LIBRARIES:
                name = name.split(part, 1)[1] if part in name else name
            target = os.path.normpath(os.path.join(folder, name))
            if not target.startswith(os.path.normpath(folder) + os.sep):
                raise ValueError(f"the wheel {os.path.basename(wheel)} holds a path that leads out: {entry.filename}")
            if entry.is_dir() or ".data/" in name:
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with archive.open(entry) as packed, open(target, "wb") as out:
                shutil.copyfileobj(packed, out)
            count += 1
    return count
