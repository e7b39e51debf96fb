"""A model on its way: which format its bytes are, its hash and its size. No framework is imported."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from lepton_edge.errors import LeptonError

SUFFIX = {
    "keras": ".keras",
    "h5": ".h5",
    "savedmodel": "",
    "onnx": ".onnx",
    "pt2": ".pt2",
    "tflite": ".tflite",
    "openvino": ".xml",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Artifact:
    """A model file (or folder) and the format that its bytes, not its suffix, say it has.

    ``files`` are all the files that belong to it: one, or the .xml and .bin of an OpenVINO IR, or the
    tree of a SavedModel, or an .onnx and its external data.
    """

    path: Path
    format: str
    sha256: str
    size_bytes: int
    files: tuple[Path, ...]

    def zip_bytes(self) -> int:
        """Size in bytes of the files deflated, as they would travel in an update or an app package."""
        total = 0
        for file in self.files:
            packer = zlib.compressobj(6, zlib.DEFLATED, -15)
            with file.open("rb") as f:
                while block := f.read(1 << 20):
                    total += len(packer.compress(block))
            total += len(packer.flush())
        return total


def open_artifact(path: Path | str) -> Artifact:
    """Recognise the model at ``path``.

    Raises LeptonError when nothing is there, when it is empty or cut short, or when no known format fits.
    """
    path = Path(path)
    format_ = detect(path)
    files = _files_of(path, format_)
    digest, size = hashlib.sha256(), 0
    for file in files:
        with file.open("rb") as f:
            if len(files) > 1:
                # An .onnx refers to its data by name, so the name is part of what it is.
                digest.update(str(file.relative_to(path if path.is_dir() else path.parent)).encode())
            while block := f.read(1 << 20):
                digest.update(block)
                size += len(block)
    return Artifact(path, format_, digest.hexdigest(), size, files)


def copy_artifact(art: Artifact, target: Path) -> Artifact:
    """Copy all the files of ``art`` so that its main file becomes ``target`` (written aside, then renamed)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if art.path.is_dir():
        aside = target.with_name(f".{target.name}.part")
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(art.path, aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.replace(target)
        return open_artifact(target)
    for file in art.files:
        name = target.name if file == art.path else target.stem + file.suffix if art.format == "openvino" else file.name
        aside = target.with_name(f".{name}.part")
        try:
            shutil.copyfile(file, aside)
            aside.replace(target.with_name(name))
        finally:
            aside.unlink(missing_ok=True)
    return open_artifact(target)


def detect(path: Path) -> str:
    """The format of the model at ``path``, from its bytes."""
    if not path.exists():
        near = sorted(p.name for p in path.parent.glob("*")) if path.parent.is_dir() else []
        from lepton_edge.errors import did_you_mean

        raise LeptonError(f"{path}: no such model file", did_you_mean(path.name, near) if near else "check the path")
    if path.is_dir():
        if (path / "saved_model.pb").is_file():
            return "savedmodel"
        raise LeptonError(
            f"{path}: a folder, but not a SavedModel (there is no saved_model.pb in it)",
            "give the folder that holds saved_model.pb, or a model file",
        )
    try:
        with path.open("rb") as f:
            head = f.read(4096)
    except OSError as e:
        raise LeptonError(f"{path}: cannot be read ({e.strerror})", "check its permissions") from e
    if not head:
        raise LeptonError(f"{path}: the file is empty", "export or download the model again")
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:8] == _HDF5:
        _check_hdf5(path, head)
        return "h5"
    if head[:4] == b"PK\x03\x04":
        return _detect_zip(path)
    if head.lstrip().startswith((b"<?xml", b"<net")):
        if b"<net" in head:
            return "openvino"
    elif _is_onnx(path):
        return "onnx"
    raise LeptonError(
        f"{path}: not a model in any known format (its first bytes are {head[:8]!r})",
        "known: .keras, .h5, SavedModel folder, .onnx, .pt2, .tflite, OpenVINO .xml",
    )


def _detect_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as z:
            names = z.namelist()
    except (zipfile.BadZipFile, struct.error, OSError, ValueError) as e:
        raise LeptonError(
            f"{path}: a zip archive that is cut short or damaged ({e})", "export or download the model again"
        ) from e
    tops = {n.split("/", 1)[-1] for n in names}
    if "config.json" in names and "metadata.json" in names:
        return "keras"
    if "archive_format" in tops or any("serialized_exported_program" in n or n.endswith("models/model.json") for n in names):
        return "pt2"
    if any(n.startswith("code/") for n in tops) or "constants.pkl" in tops:
        raise LeptonError(
            f"{path}: a TorchScript archive, which is not supported",
            "export it with torch.export.export and torch.export.save (.pt2), or to ONNX",
        )
    if "data.pkl" in tops:
        raise LeptonError(
            f"{path}: a pickled PyTorch checkpoint; it is never loaded, for a pickle can run code",
            "export the model with torch.export.export and torch.export.save (.pt2), or to ONNX",
        )
    raise LeptonError(
        f"{path}: a zip archive, but neither a .keras model nor a .pt2 program (it holds {', '.join(names[:3]) or 'nothing'})",
        "known: .keras, .h5, SavedModel folder, .onnx, .pt2, .tflite, OpenVINO .xml",
    )


def _check_hdf5(path: Path, head: bytes) -> None:
    """Compare the end-of-file address in the HDF5 superblock (HDF5 file format specification 3.0, II.A) with the size."""
    version = head[8]
    at = {0: 40, 1: 44, 2: 28, 3: 28}.get(version)
    if at is None or len(head) < at + 8:
        raise LeptonError(f"{path}: an HDF5 file that is cut short or damaged", "export or download the model again")
    (end,) = struct.unpack_from("<Q", head, at)
    size = path.stat().st_size
    if size < end:
        raise LeptonError(
            f"{path}: an HDF5 file that is cut short ({size:,} of {end:,} bytes)", "export or download the model again"
        )


def _varint(f: io.BufferedReader) -> int | None:
    value = shift = 0
    while byte := f.read(1):
        value |= (byte[0] & 0x7F) << shift
        if not byte[0] & 0x80:
            return value
        shift += 7
        if shift > 63:
            return None
    return None


def _is_onnx(path: Path) -> bool:
    """Walk the top-level fields of an ONNX ModelProto (onnx.proto: 1 ir_version, 7 graph, 8 opset_import ...).

    Raises LeptonError when the walk starts as an ONNX model does and then runs past the end of the file.
    """
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
                    # A lone field that claims more than the file holds is as likely text as a model.
                    if 1 in seen and field in (7, 8, 14) or field == 7:
                        raise LeptonError(
                            f"{path}: an ONNX model that is cut short (at byte {size:,} of at least {f.tell() + value:,})",
                            "export or download the model again",
                        )
                    return False
                f.seek(value, 1)
            if field == 1 and start == 0 and not (wire == 0 and 1 <= value <= 64):
                return False
    return 7 in seen and bool(seen & {1, 8})


def _files_of(path: Path, format_: str) -> tuple[Path, ...]:
    if format_ == "savedmodel":
        return tuple(sorted(p for p in path.rglob("*") if p.is_file()))
    if format_ == "openvino":
        weights = path.with_suffix(".bin")
        if not weights.is_file():
            raise LeptonError(
                f"{path}: its weights {weights.name} are missing beside it", f"copy {weights.name} into the same folder"
            )
        return (path, weights)
    if format_ == "onnx":
        return (path, *_external_data(path))
    return (path,)


def _external_data(path: Path) -> list[Path]:
    """The files an ONNX model keeps its tensors in, checked to lie in its own folder.

    The names are read from the protobuf bytes ("location" entries); a model without the word has none.
    """
    import mmap
    import re

    with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as m:
        if m.find(b"\x0a\x08location") < 0:
            return []
        # StringStringEntryProto: 0a 08 "location" 12 <length> <value>
        names = {
            m[at.end() + 1 : at.end() + 1 + m[at.end()]].decode("utf-8", "replace")
            for at in re.finditer(rb"\x0a\x08location\x12", m)
        }
    folder = path.parent.resolve()
    files = []
    for name in sorted(names):
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise LeptonError(
                f"{path}: its external data '{name}' lies outside the model's folder, which is refused",
                "save the model again with its data beside it",
            )
        if not file.is_file():
            raise LeptonError(f"{path}: its external data '{name}' is missing", "copy the file beside the model")
        files.append(path.parent / name)
    return files


def describe_ports(specs: list[dict]) -> str:
    """One line for a list of tensor specs: ``x float32 [1, 224, 224, 3]``."""
    return ", ".join(f"{s['name']} {s['dtype']} {json.dumps(s['shape']).replace('null', '?')}" for s in specs)
