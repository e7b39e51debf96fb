"""ONNX model."""

from __future__ import annotations

import io
import mmap
import re
from pathlib import Path
from typing import BinaryIO

from lepton_edge.errors import LeptonError

SUFFIX = ".onnx"
# TensorProto.external_data (field 13) with a StringStringEntryProto: 0a 08 "location" 12 <length> <value>
EXTERNAL = rb"\x6a[\x80-\xff]{0,2}[\x00-\x7f]\x0a\x08location\x12([\x80-\xff]{0,2}[\x00-\x7f])"


def recognise(path: Path, head: bytes) -> bool:
    """Walk the top-level fields of an ONNX ModelProto (onnx.proto: 1 ir_version, 7 graph, 8 opset_import ...).

    Raises LeptonError when the walk starts as an ONNX model does and then runs past the end of the file.
    """
    if path.is_dir():
        return False
    size = path.stat().st_size
    seen: set[int] = set()
    with path.open("rb") as f:
        while f.tell() < size:
            start = f.tell()
            tag = _varint(f)
            if tag is None:
                break
            field, wire = tag >> 3, tag & 7
            if field not in (1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26) or wire not in (0, 2):
                return False
            value = _varint(f)
            if value is None:
                break
            seen.add(field)
            if wire == 2:
                if f.tell() + value > size:
                    # Without ir_version before it, a length beyond the end is as likely text as a model.
                    if 1 in seen:
                        raise LeptonError(
                            f"{path}: an ONNX model, cut short ({size:,} of {f.tell() + value:,} bytes or more)",
                            "export or download the model again",
                        )
                    return False
                f.seek(value, 1)
            if field == 1 and start == 0 and not (wire == 0 and 1 <= value <= 64):
                return False
    return 7 in seen and bool(seen & {1, 8})


def _varint(f: BinaryIO) -> int | None:
    value = shift = 0
    while byte := f.read(1):
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
        shift += 7
        if shift > 63:
            return None
    return None


def files(path: Path) -> list[Path]:
    """The model and the files it keeps its tensors in, checked to lie in its own folder.

    The names are read from the protobuf bytes ("location" entries); a model without the word has none.
    """
    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        if m.find(b"\x0a\x08location") < 0:
            return [path]
        names = {
            m[at.end() : at.end() + (_varint(io.BytesIO(at[1])) or 0)].decode("utf-8", "replace")
            for at in re.finditer(EXTERNAL, m)
        }
    folder = path.parent.resolve()
    found = [path]
    for name in sorted(names):
        try:
            file = (folder / name).resolve()
            file.exists()
        except (OSError, ValueError) as error:
            raise LeptonError(
                f"{path}: its external data has a name that no file can have ('{name[:40]}')", "save the model again"
            ) from error
        if not file.is_relative_to(folder):
            raise LeptonError(
                f"{path}: its external data '{name}' lies outside the model's folder, which is refused",
                "save the model again with its data beside it",
            )
        if not file.is_file():
            raise LeptonError(f"{path}: its external data '{name}' is missing", "copy the file beside the model")
        found.append(path.parent / name)
    return found
