"""A model on its way: which format its bytes are, its hash and its size. No framework is imported."""

from __future__ import annotations

import hashlib
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path

from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.interrupts import held
from lepton_edge.registry import Format, formats


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
    """Copy all the files of ``art`` so that its main file becomes ``target``: all written aside, then renamed.

    Raises LeptonError when something that is no such model is in the way.
    """
    check_place(target, art.format)
    target.parent.mkdir(parents=True, exist_ok=True)
    places = {file: _place(art, file, target) for file in ([art.path] if art.path.is_dir() else art.files)}
    parts = {file: place.with_name(f".{place.name}.part") for file, place in places.items()}
    try:
        for file, part in parts.items():
            part.parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if file.is_dir() else shutil.copyfile
            copy(file, part)
        with held():
            if target.is_dir():
                shutil.rmtree(target)
            for file in reversed(parts):  # the main file last: with it the model is there
                parts[file].replace(places[file])
    finally:
        with held():
            for part in parts.values():
                shutil.rmtree(part, ignore_errors=True)
                part.unlink(missing_ok=True)
    return open_artifact(target)


def _place(art: Artifact, file: Path, target: Path) -> Path:
    """Where a file of ``art`` goes when its main file becomes ``target``."""
    if file == art.path:
        return target
    # A file that goes by the model's own name is renamed with it; others are looked up by the name they have.
    if file.suffix in formats()[art.format].follow:
        return target.with_suffix(file.suffix)
    return target.parent / file.relative_to(art.path.parent)


def check_place(target: Path, format_: str) -> None:
    """Refuse to write a model of that format under a name of another, or over anything but such a model.

    Raises UsageError.
    """
    form = formats()[format_]
    name = target.name.lower()
    other = next((f for f in formats().values() if f.suffix and name.endswith(f.suffix)), form)
    if other.name != format_ or (form.follow and not name.endswith(form.suffix)):
        raise UsageError(
            f"{target}: not a name for {format_} models" + (f", but for {other.name}" if other.name != format_ else ""),
            f"choose {target.with_suffix(form.suffix).name} or the like with --out",
        )
    if not form.suffix and target.is_dir() and any(target.iterdir()) and not form.recognise(target, b""):
        raise UsageError(
            f"{target}: the folder is not empty and holds no {format_} model", "choose a new folder with --out"
        )
    if target.exists() and target.is_dir() != (not form.suffix):
        is_, needed = ("a file", "a folder") if not form.suffix else ("a folder", "a file")
        raise UsageError(f"{target}: is {is_}, and {needed} is needed for a {format_} model", "choose another --out")
    if target.is_file() and target.stat().st_size and not _is_a(form, target):
        raise UsageError(
            f"{target}: is there and is no {format_} model, so it is not written over", "choose another --out"
        )
    for beside in (target.with_suffix(s) for s in form.follow):
        if beside.exists() and not target.exists():
            raise UsageError(
                f"{beside}: is in the way of a part of {target.name}", "choose another --out, or remove it"
            )


def _is_a(form: Format, path: Path) -> bool:
    try:
        with path.open("rb") as f:
            return form.recognise(path, f.read(4096))
    except (OSError, LeptonError):
        return False


def suffix(format_: str) -> str:
    """The file name suffix of a format; empty for a folder."""
    return formats()[format_].suffix


def detect(path: Path) -> str:
    """The format of the model at ``path``, from its bytes."""
    try:
        if not path.exists():
            if path.is_symlink():
                raise LeptonError(f"{path}: a link that leads to no file", f"it leads to {path.readlink()}: mend it")
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
        denied = isinstance(e, PermissionError)
        raise LeptonError(
            f"{path}: cannot be read ({e.strerror})", f"check {'its permissions' if denied else 'the path'}"
        ) from e
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
        "known: " + ", ".join(form.summary for form in formats().values()),
    )
