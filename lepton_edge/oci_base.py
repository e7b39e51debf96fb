"""What images are built on: a root file system with Python and glibc; a tar, an OCI layout, or Debian's packages."""

from __future__ import annotations

import bz2
import datetime
import gzip
import hashlib
import json
import lzma
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from lepton_edge import store, wheelhouse
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.oci_parts import Blobs, Layer
from lepton_edge.progress import Silent


@dataclass(frozen=True)
class Arch:
    """One architecture under its names: Python's, and that of ELF (e_machine)."""

    machine: str
    elf: int


ARCHS = {"amd64": Arch("x86_64", 62), "arm64": Arch("aarch64", 183)}
SUITE, PACKAGES = "bookworm", ("python3", "libstdc++6", "libgomp1", "zlib1g")
PYTHON = re.compile(r"(?:\./)?(usr/(?:local/)?bin/python(3\.\d+))")
LOADER, LIBC = re.compile(r"ld-linux[^/]*\.so\.\d$"), re.compile(r"/libc-(2\.\d+)\.so$")


@dataclass(frozen=True)
class Base:
    """The layers to build on, for one platform."""

    platform: dict[str, str]
    layers: list[Layer]
    python: str  # the absolute path of its interpreter
    version: str  # "3.11"
    glibc: str  # "2.36"
    config: dict[str, Any] = field(default_factory=dict)


def read(files: Sequence[Path], archs: Sequence[str], blobs: Blobs, progress: Silent) -> dict[str, Base]:
    """A base for every one of ``archs``, from the ``files`` or made of Debian's packages. Raises LeptonError."""
    found: dict[str, Base] = {}
    for file in files:
        progress.stage(f"reading {file.name}")
        with _layout(file) as layout:
            bases = _platforms(layout, file, archs, blobs) if layout else [_rootfs(file, blobs, file.name)]
        found |= {base.platform["architecture"]: base for base in bases}
    for arch in archs:
        if arch not in found and files:
            raise LeptonError(f"none of the bases is for {arch}", f"add one with --base, or leave {arch} out of --arch")
        if arch not in found:
            progress.stage(f"{arch}: Debian {SUITE} with Python, from its archive")
            found[arch] = _rootfs(_debian(arch), blobs, f"Debian {SUITE}")
    return found


def _debian(arch: str) -> Path:
    """A root file system of Debian's packages, unpacked but not configured; made once a day. Raises LeptonError."""
    if shutil.which("mmdebstrap") is None:
        raise LeptonError(
            "there is no mmdebstrap here to make a root file system with",
            "apt-get install mmdebstrap, or give one with --base: a root file system's .tar, or an OCI layout",
        )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()

    def make(folder: Path) -> None:
        command = [
            "mmdebstrap", "--variant=extract", "--skip=output/dev", f"--architectures={arch}",
            f"--include={','.join(PACKAGES)}", SUITE, str(folder / "rootfs.tar"),
        ]  # fmt: skip
        # Under this time stamp what it writes is the same for the same packages.
        environ = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SOURCE_DATE_EPOCH": "0", "HOME": "/root"}
        done = subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)
        if done.returncode:
            words = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["mmdebstrap failed"]
            raise LeptonError(f"Debian's packages for {arch} cannot be had: {words[0][:200]}", "check the network")

    return store.made_once(store.root() / "rootfs" / f"{SUITE}-{arch}-{today}", make) / "rootfs.tar"


def _rootfs(file: Path, blobs: Blobs, what: str) -> Base:
    """A root file system in a tar as one layer. Raises LeptonError for one without Python or glibc."""
    machine = 0
    with _tar(file) as tar:
        names = []
        for member in tar:
            names.append(member.name)
            if PYTHON.fullmatch(member.name) and member.isfile() and (stream := tar.extractfile(member)):
                machine = int.from_bytes(stream.read(20)[18:20], "little")
    python, version, glibc = _contents(names, file)
    arch = next((name for name, known in ARCHS.items() if known.elf == machine), None)
    if arch is None:
        raise LeptonError(f"{file}: its {python} is for none of {', '.join(ARCHS)}", "choose another base")
    with tempfile.TemporaryFile(dir=blobs.folder) as plain:
        _unpacked(file, plain)
        layer = blobs.layer(plain, what)
    return Base({"architecture": arch, "os": "linux"}, [layer], python, version, glibc)


def _unpacked(file: Path, plain: IO[bytes]) -> None:
    """Write an archive's tar, uncompressed, and rewind."""
    with file.open("rb") as stream:
        head = stream.read(6)
    opens: dict[bytes, Callable] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
    reader = next((how for sign, how in opens.items() if head.startswith(sign)), open)
    with reader(file, "rb") as stream:
        shutil.copyfileobj(stream, plain, 1 << 20)
    plain.seek(0)


def _contents(names: Sequence[str], file: Path) -> tuple[str, str, str]:
    """The path and version of the newest Python among the ``names`` of files, and the version of glibc."""
    found = [match for name in names if (match := PYTHON.fullmatch(name))]
    if not found:
        raise LeptonError(f"{file}: there is no /usr/bin/python3.N in it", "choose a base with Python")
    if not any(LOADER.search(name) for name in names):
        raise LeptonError(f"{file}: it has no glibc, which the runtimes' wheels need", "choose a Debian, or its like")
    best = max(found, key=lambda match: ("local" in match[1], int(match[2].partition(".")[2])))
    told = (match[1] for name in names if (match := LIBC.search(name)))  # up to 2.33 the file's name has it
    return f"/{best[1]}", best[2], next(told, wheelhouse.GLIBC)


@contextmanager
def _tar(file: Path) -> Iterator[tarfile.TarFile]:
    try:
        opened = tarfile.open(file)  # noqa: SIM115 - closed below
    except FileNotFoundError as e:
        raise UsageError(f"{file}: there is no such base", "check the path") from e
    except (tarfile.TarError, OSError) as e:
        raise LeptonError(f"{file}: it cannot be read as a tar archive ({e})", "is it whole?") from e
    try:
        with opened:
            yield opened
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as e:
        raise LeptonError(f"{file}: it is damaged ({e})", "copy it again") from e


@contextmanager
def _layout(file: Path) -> Iterator[Callable[[str], IO[bytes]] | None]:
    """A function that opens the files of an OCI layout (a folder, or an archive of one); None when it is none."""
    if file.is_dir():
        yield (lambda name: (file / name).open("rb")) if (file / "oci-layout").is_file() else None
        return
    with _tar(file) as tar:
        names = {member.removeprefix("./"): member for member in tar.getnames()}
        yield (lambda name: _extracted(tar, names[name])) if "oci-layout" in names else None


def _extracted(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    stream = tar.extractfile(name)
    if stream is None:
        raise ValueError(f"{name} is not a file")
    return stream


def _platforms(layout: Callable[[str], IO[bytes]], file: Path, archs: Sequence[str], blobs: Blobs) -> list[Base]:
    """The images of a layout that are for ``archs``, their layers copied. Raises LeptonError for a damaged one."""

    def load(descriptor: dict) -> dict:
        with layout(_path(descriptor)) as stream:
            return json.loads(stream.read())

    try:
        with layout("index.json") as stream:
            pending, found = json.loads(stream.read())["manifests"], []
        while pending:
            descriptor = pending.pop(0)
            document = load(descriptor)
            if "manifests" in document:
                pending += document["manifests"]
                continue
            config = load(document["config"])
            if config["architecture"] not in archs:
                continue
            names: list[str] = []
            layers = []
            for told, diff_id in zip(document["layers"], config["rootfs"]["diff_ids"], strict=True):
                digest = told["digest"].partition(":")[2]
                blob = blobs.folder / digest
                with layout(_path(told)) as source, blob.open("wb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
                with blob.open("rb") as copied:
                    if hashlib.file_digest(copied, "sha256").hexdigest() != digest:
                        raise ValueError(f"the contents of {told['digest']} are others")
                with _tar(blob) as tar:
                    names += tar.getnames()
                layers.append(Layer(told, diff_id, file.name))
            platform = {k: config[k] for k in ("architecture", "os", "variant") if k in config}
            found.append(Base(platform, layers, *_contents(names, file), config))
    except (KeyError, ValueError, TypeError, FileNotFoundError) as e:
        raise LeptonError(f"{file}: the OCI layout is damaged ({type(e).__name__}: {e})", "copy it again") from e
    return found


def _path(descriptor: dict) -> str:
    algorithm, _, digest = descriptor["digest"].partition(":")
    if algorithm != "sha256" or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"digest {descriptor['digest']}")
    return f"blobs/sha256/{digest}"
