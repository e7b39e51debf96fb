"""Wheels for another machine: fetched by pip for its platform, never installed here.

For boards that have no network, and for emulated places. pip reads markers in requirements for this machine, not for
that one: a package that is wanted on one of the two only can be missing or too many.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from lepton_edge import store
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.registry import Runtime

#: platform.machine() of the machine -> the name of its platform in wheels (PEP 600).
MACHINES = {"x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64", "armv7l": "armv7l", "armhf": "armv7l"}
GLIBC = "2.36"  # Debian 12's, and Raspberry Pi OS's that is made from it
OLDEST = 5  # glibc 2.5: manylinux1


def wheels(
    requires: Sequence[str],
    machine: str,
    python: str,
    folder: Path,
    *,
    glibc: str = GLIBC,
    present: Mapping[str, str] | None = None,
) -> list[Path]:
    """The wheels of ``requires`` and of all that they need, in ``folder``, sorted by name.

    ``machine`` is what platform.machine() says there, ``python`` its version ("3.11"), ``glibc`` that of its C
    library. ``present`` are packages that are there already, with their versions. Wheels fetched before are taken from
    the store. Raises LeptonError naming the package that has no wheel for that machine, UsageError for an unknown
    machine or a version that is none.
    """
    _check(machine, python, glibc)
    present = dict(present or {})
    what = [*sorted(requires), MACHINES[machine], python, glibc, *(f"{k}={v}" for k, v in sorted(present.items()))]
    place = store.root() / "wheels" / hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    store.made_once(place, lambda new: _download(requires, machine, python, glibc, present, new))
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for wheel in sorted(place.glob("*.whl")):
        part = folder / f".{wheel.name}.part"
        shutil.copyfile(wheel, part)
        made.append(part.replace(folder / wheel.name))
    return made


def for_device(
    device: Device, runtime: Runtime, folder: Path, *, python: str = "3.11", glibc: str = GLIBC
) -> list[Path]:
    """The wheels with which a device runs ``runtime``: of the versions in its file, else those here. See ``wheels``."""
    if device.arch not in ("host", *MACHINES):
        raise UsageError(f"{device.name}: no Python runs on {device.arch}", "see 'lepton-edge devices show'")
    machine = platform.machine() if device.arch == "host" else device.arch
    return wheels(pins([*runtime.requires, "numpy"], device.installs), machine, python, folder, glibc=glibc)


def pins(requires: Sequence[str], versions: Mapping[str, str] | None = None) -> list[str]:
    """``requires`` as exact versions: those of ``versions`` (by package), else the ones installed here, else as it is.

    Python's packages that several requirements name come once.
    """
    from importlib import metadata

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    known = {canonicalize_name(name): version for name, version in (versions or {}).items()}
    found: dict[str, str] = {}
    for text in requires:
        req = Requirement(text)
        name = canonicalize_name(req.name)
        version = known.get(name)
        if version is None:
            try:
                version = metadata.version(name)
            except metadata.PackageNotFoundError:
                found.setdefault(name, text)
                continue
        if req.specifier.contains(version, prereleases=True):
            found[name] = f"{name}=={version.partition('+')[0]}"
        else:
            found.setdefault(name, text)
    return [found[name] for name in sorted(found)]


def _check(machine: str, python: str, glibc: str) -> None:
    if machine not in MACHINES:
        raise UsageError(f"no wheels are known for the machine '{machine}'", did_you_mean(machine, list(MACHINES)))
    for name, version in (("Python", python), ("glibc", glibc)):
        if not re.fullmatch(r"\d+\.\d+", version):
            raise UsageError(f"'{version}' is no version of {name}", "write it as 3.11")


def _download(
    requires: Sequence[str], machine: str, python: str, glibc: str, present: Mapping[str, str], folder: Path
) -> None:
    newest = int(glibc.partition(".")[2])
    tags = [f"manylinux_2_{n}_{MACHINES[machine]}" for n in range(newest, OLDEST - 1, -1)]
    tags += [f"{name}_{MACHINES[machine]}" for name in ("manylinux2014", "linux")]
    stubs = folder / "present"
    stubs.mkdir()
    for name, version in present.items():
        _stub(stubs, name, version)
    command = [
        *_pip(),
        "download",
        "--quiet",
        "--no-input",
        "--retries",
        "2",
        "--only-binary",
        ":all:",
        "--implementation",
        "cp",
    ]
    command += ["--python-version", python, "--dest", str(folder), "--find-links", str(stubs)]
    command += [part for tag in tags for part in ("--platform", tag)]
    wanted = [*requires, *(f"{name}=={version}" for name, version in present.items())]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        raise _why(done.stderr, f"Linux {machine}, Python {python}, glibc {glibc}", requires)
    for stub in stubs.iterdir():
        (folder / stub.name).unlink(missing_ok=True)
    shutil.rmtree(stubs)


def _stub(folder: Path, name: str, version: str) -> None:
    """An empty wheel: pip then counts the package as had, and still sees to it that its version suits the others."""
    stem = f"{re.sub(r'[-_.]+', '_', name).lower()}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as archive:
        about = f"{stem}.dist-info"
        archive.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


@cache
def _pip() -> list[str]:
    """A pip that works: this environment's, that of the Python it was made with, or one on the path."""
    pythons = [sys.executable, getattr(sys, "_base_executable", ""), shutil.which("python3") or ""]
    for candidate in [[p, "-m", "pip"] for p in pythons if p] + [["pip"]]:
        try:
            if subprocess.run([*candidate, "--version"], capture_output=True, check=False).returncode == 0:
                return candidate
        except OSError:
            continue
    raise LeptonError("fetching wheels needs pip, which is not here", f"{sys.executable} -m ensurepip")


def _why(words: str, where: str, requires: Sequence[str]) -> LeptonError:
    """pip's last words as one line."""
    if re.search(r"connection broken|ConnectionError|Max retries exceeded", words):
        return LeptonError(
            f"the wheels of {', '.join(requires)} for {where} cannot be fetched: the package index cannot be reached",
            "check the network (and pip's settings), and run again",
        )
    found = re.search(r"satisfies the requirement (.+?) \(from versions: (.*?)\)", words)
    if found:
        others = [v for v in found[2].split(", ") if v and v != "none"]
        there = f"those that have one: {', '.join(others[-5:])}" if others else "no version of it has one"
        return LeptonError(f"{found[1].split(' (from')[0]} has no wheel for {where}", there)
    if "conflicting dependencies" in words or "ResolutionImpossible" in words:
        cause = re.search(r"Cannot install (.+?) because", words)
        named = cause[1] if cause else ", ".join(requires)
        return LeptonError(f"{named}: no versions for {where} go together", "name other versions of them")
    lines = [line.removeprefix("ERROR: ") for line in words.splitlines() if line.startswith("ERROR")]
    return LeptonError(
        f"the wheels of {', '.join(requires)} for {where} cannot be fetched: {(lines or ['pip failed'])[-1][:200]}",
        "check the network, and run again",
    )
