"""A model on its way: which format its bytes are, its hash and its size. No framework is imported."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from lepton_edge.errors import LeptonError, did_you_mean
from lepton_edge.registry import formats


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
    files = tuple(formats()[format_].files(path))
    digest, size = hashlib.sha256(), 0
    for file in files:
        with file.open("rb") as f:
            if len(files) > 1:
                # The files of one model refer to each other by name, so the names are part of what it is.
                digest.update(str(file.relative_to(path)).encode() if path.is_dir() else file.suffix.encode())
            while block := f.read(1 << 20):
                digest.update(block)
                size += len(block)
    return Artifact(path, format_, digest.hexdigest(), size, files)


def copy_artifact(art: Artifact, target: Path) -> Artifact:
    """Copy all the files of ``art`` so that its main file becomes ``target`` (written aside, then renamed)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if art.path.is_dir():
        _publish(lambda aside: shutil.copytree(art.path, aside), target)
        return open_artifact(target)
    for file in art.files:
        # An OpenVINO .bin follows the name of its .xml; external data of an .onnx is looked up by its own name.
        renamed = file == art.path or file.stem == art.path.stem
        name = target.stem + file.suffix if renamed and file != art.path else target.name if renamed else file.name
        _publish(lambda aside, file=file: shutil.copyfile(file, aside), target.with_name(name))
    return open_artifact(target)


def _publish(write, target: Path) -> None:
    aside = target.with_name(f".{target.name}.part")
    try:
        write(aside)
        if target.is_dir():
            shutil.rmtree(target)
        aside.replace(target)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def suffix(format_: str) -> str:
    """The file name suffix of a format; empty for a folder."""
    return formats()[format_].suffix


def detect(path: Path) -> str:
    """The format of the model at ``path``, from its bytes."""
    try:
        if not path.exists():
            near = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
            raise LeptonError(
                f"{path}: no such model file",
                did_you_mean(path.name, near[:20]) if near else "check the path",
            )
        head = b""
        if path.is_file():
            with path.open("rb") as f:
                head = f.read(4096)
    except OSError as e:
        raise LeptonError(f"{path}: cannot be read ({e.strerror})", "check its permissions") from e
    if path.is_file() and not head:
        raise LeptonError(f"{path}: the file is empty", "export or download the model again")
    for name, form in formats().items():
        if form.recognise(path, head):
            return name
    if path.is_dir():
        raise LeptonError(
            f"{path}: a folder, but not a SavedModel (there is no saved_model.pb in it)",
            "give the folder that holds saved_model.pb, or a model file",
        )
    raise LeptonError(
        f"{path}: not a model in any known format (its first bytes are {head[:8]!r})",
        "known: .keras, .h5, SavedModel folder, .onnx, .pt2, .tflite, OpenVINO .xml",
    )
