"""Root filesystems for emulated machines: Debian's packages for their processor, unpacked by mmdebstrap, never booted.

Kept in the store's folder. Only what programs and libraries lie in is kept: whatever is not there is this machine's
own, /tmp and /proc among it (qemu's -L).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from lepton_edge import store
from lepton_edge.errors import LeptonError

SUITE = "bookworm"  # the last one whose Python runs tflite-runtime, and what fielded boards run
PACKAGES = (
    "python3.11", "libpython3.11-stdlib", "libstdc++6", "libgcc-s1", "zlib1g", "libssl3", "libffi8", "libexpat1",
    "libbz2-1.0", "liblzma5",
)  # fmt: skip
# PyPI has no numpy for 32-bit Arm.
MORE = {"armhf": ("python3-numpy",)}
KEPT = ("usr", "lib", "lib64", "bin")
LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian")


@dataclass(frozen=True)
class Root:
    """A root filesystem: its interpreter, the versions of its Python ("3.11") and glibc, the packages it holds."""

    path: Path
    interpreter: Path
    python: str
    glibc: str
    packages: dict[str, str] = field(default_factory=dict)


def read(path: Path) -> Root:
    """What a root filesystem holds. Raises LeptonError when there is no Python 3.9 or newer in it."""
    found = [f for f in (path / "usr" / "bin").glob("python3.*") if re.fullmatch(r"python3\.\d+", f.name)]
    if not found:
        raise LeptonError(f"{path}: there is no usr/bin/python3.N in this root filesystem", "install Python there")
    interpreter = max(found, key=lambda f: int(f.name.rpartition(".")[2]))
    libc = next(iter(sorted(path.glob("usr/lib/**/libc.so.6")) or sorted(path.glob("lib/**/libc.so.6"))), None)
    version = re.search(rb"stable release version (\d+\.\d+)", libc.read_bytes()) if libc else None
    if version is None:
        raise LeptonError(f"{path}: the GNU C library is not in this root filesystem", "take one of Debian, or Ubuntu")
    packages = {}
    for about in (path / "usr" / "lib" / "python3" / "dist-packages").glob("*-info"):
        if named := re.fullmatch(r"(.+?)-(\d[^-]*?)(-py[\d.]+)?\.(egg|dist)-info", about.name):
            packages[named[1]] = named[2]
    return Root(path, interpreter, interpreter.name.removeprefix("python"), version[1].decode(), packages)


def debian(arch: str) -> Root:
    """A Debian of that architecture ("arm64", "armhf", "amd64") with Python, made when it is not there yet.

    Raises LeptonError when mmdebstrap is missing, may not do it, or cannot reach Debian's packages.
    """
    return read(store.made_once(store.root() / "rootfs" / f"{SUITE}-{arch}", lambda new: _make(arch, new)))


def _make(arch: str, folder: Path) -> None:
    tool = shutil.which("mmdebstrap")
    if tool is None:
        raise LeptonError(
            f"making a Debian for {arch} needs mmdebstrap, which is not here",
            'apt-get install mmdebstrap, or name a root filesystem: root = "…" in [reach]',
        )
    packages = ",".join((*PACKAGES, *MORE.get(arch, ())))
    command = [tool, "--quiet", "--variant=extract", f"--architectures={arch}", f"--include={packages}", "--format=tar",
               SUITE, "-", *_mirror()]  # fmt: skip
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL)
        assert process.stdout
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(folder, (m for m in archive if _wanted(m)), filter="tar")
            process.stdout.read()
            problem = ""
        except tarfile.TarError as e:
            problem = str(e)
        if process.wait() or problem:
            log.seek(0)
            words = [line[3:] for line in log.read().decode("utf-8", "replace").splitlines() if line.startswith("E: ")]
            raise LeptonError(
                f"a Debian for {arch} cannot be made: {(words or [problem or 'mmdebstrap failed'])[0][:200]}",
                'run this once as root and with a network, or name a root filesystem: root = "…" in [reach]',
            )
    # Debian leaves the choice between implementations to a script that never runs here.
    for library in ("blas", "lapack"):
        for file in folder.glob(f"usr/lib/*/{library}/lib{library}.so.3"):
            (file.parent.parent / file.name).symlink_to(f"{library}/{file.name}")


def _wanted(member: tarfile.TarInfo) -> bool:
    name = os.path.normpath(member.name)
    return name.split("/")[0] in KEPT and not name.startswith(LEFT_OUT) and not member.isdev()


def _mirror() -> list[str]:
    """The mirror that this machine's apt uses for the suite, without its security updates; mmdebstrap's own choice
    where apt knows none."""
    if not shutil.which("apt-get"):
        return []
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        address, _, rest = line.partition(" ")
        if rest == f"{SUITE} main":
            return [f"deb {address} {SUITE} main"]
    return []
