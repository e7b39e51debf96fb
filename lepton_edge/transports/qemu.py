"""Another processor under qemu-user: the functions of a model there, never its speed."""

from __future__ import annotations

import hashlib
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lepton_edge import rootfs, store, wheelhouse
from lepton_edge.errors import LeptonError, did_you_mean
from lepton_edge.ondevice import wheels
from lepton_edge.transport import ALONE, Transport, Why


class Arch(NamedTuple):
    """An architecture: its names in qemu, in Debian and in wheels, and the processor that /proc/cpuinfo tells of."""

    emulator: str
    debian: str
    machine: str
    cpu: str
    level: int = 0  # of the Arm architecture


ARCHES = {
    "aarch64": Arch("qemu-aarch64-static", "arm64", "aarch64", "cortex-a72", 8),
    "armhf": Arch("qemu-arm-static", "armhf", "armv7l", "cortex-a7", 7),
    "x86_64": Arch("qemu-x86_64-static", "amd64", "x86_64", "max"),
}
# Main ID register, part number: the Technical Reference Manual of each. XNNPACK chooses kernels by it.
PARTS = {
    "cortex-a7": 0xC07, "cortex-a8": 0xC08, "cortex-a9": 0xC09, "cortex-a15": 0xC0F, "cortex-a35": 0xD04,
    "cortex-a53": 0xD03, "cortex-a57": 0xD07, "cortex-a72": 0xD08, "cortex-a76": 0xD0B, "neoverse-n1": 0xD0C,
}  # fmt: skip


def connect(title: str, *, arch: str = "aarch64", root: str = "", cpu: str = "", temp: str = "") -> Transport:
    """``arch``: aarch64, armhf, or x86_64. ``cpu`` is one of 'qemu-… -cpu help'.

    ``root``: a root filesystem with Python; without one a Debian is made when it is first needed, except for this
    machine's own architecture, where this environment runs under the emulator. The wheels of runtimes are fetched.
    """
    if arch not in ARCHES:
        raise LeptonError(f"{title}: there is no emulator for arch = '{arch}'", did_you_mean(arch, list(ARCHES)))
    kind = ARCHES[arch]
    cpu = cpu or kind.cpu
    emulator = shutil.which(kind.emulator) or shutil.which(kind.emulator.removesuffix("-static"))
    if emulator is None:
        raise LeptonError(
            f"{title}: emulating {arch} needs {kind.emulator}, which is not here", "apt-get install qemu-user-static"
        )
    machine = None
    if root:
        machine = rootfs.read(Path(root).resolve())
    elif kind.machine != platform.machine():
        machine = rootfs.debian(kind.debian)
    python = _environment(emulator, kind, cpu, machine)

    def wrap(argv: Sequence[str]) -> list[str]:
        return [*ALONE, *argv]

    def explain(code: int, words: str) -> Why | None:
        if "unable to find CPU model" in words:
            return (
                f"{title}: there is no cpu '{cpu}' in {Path(emulator).name}",
                f"see '{Path(emulator).name} -cpu help'",
            )
        return None

    def site(requires: Sequence[str]) -> str:
        assert machine is not None
        return _site([*requires, "numpy"], kind.machine, machine)

    notes = (f"emulated by {Path(emulator).name} as a {cpu}: what it answers counts, not how long it takes",)
    return Transport(wrap, explain, python, temp, True, "emulated", site=site if machine else None, notes=notes)


def _environment(emulator: str, arch: Arch, cpu: str, root: rootfs.Root | None) -> str:
    """A virtual environment whose python is a script that runs the emulated one: started like any other program."""
    what = "\n".join([emulator, cpu, str(root.path) if root else sys.executable])
    place = store.root() / "emulated" / hashlib.sha256(what.encode()).hexdigest()[:16]

    def make(new: Path) -> None:
        (new / "bin").mkdir()
        interpreter = root.interpreter if root else Path(sys._base_executable)  # type: ignore[attr-defined]
        prefix = ""
        if root:
            prefix = f"-L '{place / 'prefix'}'"
            _prefix(new / "prefix", root, arch, cpu)
        script = new / "bin" / "python3"
        script.write_text(f"#!/bin/sh\nexec '{emulator}' -cpu {cpu} {prefix} -0 '{place / 'bin' / 'python3'}' "
                          f"'{interpreter.resolve()}' \"$@\"\n")  # fmt: skip
        script.chmod(0o755)
        (new / "pyvenv.cfg").write_text(f"home = {interpreter.resolve().parent}\ninclude-system-site-packages = true\n")
        if root is None:
            version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            packages = new / "lib" / version / "site-packages"
            packages.mkdir(parents=True)
            (packages / "host.pth").write_text(sysconfig.get_path("purelib") + "\n")

    return str(store.made_once(place, make) / "bin" / "python3")


def _prefix(folder: Path, root: rootfs.Root, arch: Arch, cpu: str) -> None:
    """What the emulated programs see in place of this machine's files: the root, and one processor of that kind.

    Told of this machine's processors, the libraries that look for Arm's (cpuinfo, under XNNPACK) crash.
    """
    folder.mkdir()
    for part in rootfs.KEPT:
        if (root.path / part).exists():
            (folder / part).symlink_to(root.path / part)
    if not arch.level:
        return
    system = folder / "sys" / "devices" / "system" / "cpu"
    (system / "cpu0" / "topology").mkdir(parents=True)
    for name in ("kernel_max", "possible", "present", "online", "cpu0/topology/physical_package_id",
                 "cpu0/topology/core_id", "cpu0/topology/cluster_cpus_list"):  # fmt: skip
        (system / name).write_text("0\n")
    (folder / "proc").mkdir()
    (folder / "proc" / "cpuinfo").write_text(
        f"processor\t: 0\nFeatures\t: {'fp asimd' if arch.level == 8 else 'half thumb vfp edsp neon vfpv3 vfpv4'}\n"
        f"CPU implementer\t: 0x41\nCPU architecture: {arch.level}\nCPU variant\t: 0x0\n"
        f"CPU part\t: {PARTS.get(cpu, 0):#05x}\nCPU revision\t: 0\n\n"
    )


def _site(requires: Sequence[str], machine: str, root: rootfs.Root) -> str:
    """A folder with the packages of ``requires``, of the versions installed here, for that machine."""
    wanted = wheelhouse.pins(requires, root.packages)
    what = "\n".join([*wanted, machine, root.python, root.glibc, *map(str, sorted(root.packages.items()))])
    place = store.root() / "sites" / hashlib.sha256(what.encode()).hexdigest()[:16]

    def make(new: Path) -> None:
        with store.aside(place.parent) as scratch:
            for wheel in wheelhouse.wheels(
                wanted, machine, root.python, scratch, glibc=root.glibc, present=root.packages
            ):
                wheels.unpack(str(wheel), str(new))

    return str(store.made_once(place, make))
