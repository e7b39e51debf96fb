"""The runtime that a bundle needs, on the device: found there, kept from before, unpacked from wheels, or installed."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from lepton_edge import there
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.progress import Silent
from lepton_edge.remote import Remote

PIP_S = 1800.0


@dataclass(frozen=True)
class Needs:
    """What has to be brought: nothing (``key`` is ""), what was kept there, wheels, or what pip installs there."""

    facts: dict  # of the device, see ondevice/deploying.py
    requires: tuple[str, ...]
    key: str = ""
    wheels: tuple[Path, ...] = field(default=())

    @property
    def size(self) -> int:
        """Bytes that the wheels take there, packed and unpacked."""
        return sum(wheel.stat().st_size + _unpacked(wheel) for wheel in self.wheels)


def requirements(bundle: Path) -> tuple[str, ...]:
    """The lines of a bundle's requirements.txt."""
    lines = [line.partition("#")[0].strip() for line in (bundle / "requirements.txt").read_text("utf-8").splitlines()]
    return tuple(line for line in lines if line)


def needs(place: Remote, home: str, bundle: Path, wheels: Path | None) -> Needs:
    """What the device lacks of a bundle's requirements, and which wheels of a folder bring it.

    ``home`` is the application's folder there, whose earlier versions may have brought it.

    A folder that holds no wheels (or is not there) is filled first, for the device's platform. Raises LeptonError
    when there is no way to the runtime.
    """
    requires = requirements(bundle)
    wanted = [Requirement(line) for line in requires]
    facts = there.call(place, "facts", names=[req.name for req in wanted])
    installed = facts["installed"]
    if all(installed[r.name] and r.specifier.contains(installed[r.name], prereleases=True) for r in wanted):
        return Needs(facts, requires)
    key = _key([facts["python"], str(facts["version"]), facts["machine"], *sorted(requires)])
    if wheels is None:
        if kept := there.call(place, "runtime_kept", folder=home, key=key):
            return Needs(facts, requires, kept)
        if not facts["venv"]:
            raise LeptonError(
                f"{place.title}: {', '.join(requires)} is not there, and cannot be installed without venv",
                "carry it along with --wheels DIR, or install python3-venv there",
            )
        return Needs(facts, requires, key)
    if not any(wheels.glob("*.whl")):
        from lepton_edge import wheelhouse

        libc, version = facts["libc"]
        if libc != "glibc":
            raise LeptonError(
                f"{place.title}: wheels can be fetched for glibc only, and it has {libc or 'another C library'}",
                "give a folder with wheels for musllinux",
            )
        python = ".".join(str(n) for n in facts["version"])
        wheelhouse.wheels(requires, facts["machine"], python, wheels, glibc=version)
    chosen = pick(wheels, facts, wanted, place.title)
    return Needs(facts, requires, f"{key}-{_key([w.name for w in chosen])}", tuple(chosen))


def install(place: Remote, folder: str, needs: Needs, progress: Silent) -> dict:
    """Bring the runtime to the device: {"how", "key", "python", "site"}, ``site`` what goes on PYTHONPATH.

    Raises LeptonError with pip's last words.
    """
    python = needs.facts["python"]
    if not needs.key:
        return {"how": "there already", "key": "", "python": python, "site": ""}
    state = there.call(place, "runtime_folder", folder=folder, name=needs.key)
    path, what = state["path"], ", ".join(needs.requires)
    if needs.wheels or state["site"]:
        result = {"how": "wheels", "key": needs.key, "python": python, "site": f"{path}/site"}
    else:
        result = {"how": "venv", "key": needs.key, "python": f"{path}/bin/python", "site": ""}
    if state["ready"]:
        return {**result, "how": "kept from an earlier version"}
    for wheel in needs.wheels:
        progress.stage(f"carrying {wheel.name} to {place.title}")
        there.put(place, wheel, f"{path}/wheels/{wheel.name}", progress)
        there.call(place, "unpack", there.WHEELS, wheel=f"{path}/wheels/{wheel.name}", folder=result["site"])
    if not needs.wheels:
        progress.stage(f"installing {what} on {place.title}")
        pip = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", *needs.requires]
        for argv in ([python, "-m", "venv", path], [result["python"], *pip]):
            done = place.run(argv, timeout=PIP_S)
            if done["code"] != 0:
                raise LeptonError(
                    f"{place.title}: {what} cannot be installed there: {there.last_line(done, PIP_S)}",
                    "is it in a network? --wheels DIR carries the runtime along",
                )
    there.call(place, "runtime_complete", path=path)
    return result


def pick(folder: Path, facts: dict, wanted: list[Requirement], title: str) -> list[Path]:
    """Of every package in a folder of wheels, the best that the device can use. Raises LeptonError for one that lacks.

    What fits is decided by the tags in the names (PEP 425, PEP 600).
    """
    order = {tag: k for k, tag in enumerate(_tags(facts))}
    demands = {canonicalize_name(req.name): req.specifier for req in wanted}
    found: dict[str, tuple] = {}
    others: dict[str, str] = {}
    for file in sorted(folder.glob("*.whl")):
        try:
            name, version, _, tags = parse_wheel_filename(file.name)
        except InvalidWheelFilename as e:
            raise UsageError(f"{file}: this is not the name of a wheel ({e})", "take it out of the folder") from e
        if name in demands and not demands[name].contains(version, prereleases=True):
            continue
        ranks = [order[tag] for tag in tags if tag in order]
        if not ranks:
            others[name] = file.name
        elif name not in found or (version, -min(ranks)) > found[name][:2]:
            found[name] = (version, -min(ranks), file)
    python = ".".join(str(n) for n in facts["version"])
    for name, specifier in demands.items():
        if name in found:
            continue
        fix = f"for {facts['machine']} and Python {python}; an empty folder is filled with what fits"
        if name in others:
            raise LeptonError(f"{title}: {others[name]} is for another machine or Python", f"give wheels {fix}")
        raise LeptonError(f"{folder}: there is no wheel of {name}{specifier} here", f"add one {fix}")
    return [found[name][2] for name in sorted(found)]


def _tags(facts: dict) -> list:
    major, minor = facts["version"]
    machine, (libc, version) = facts["machine"], facts["libc"]
    if libc == "glibc":
        newest = int(version.split(".")[1])
        platforms = [f"manylinux_2_{n}_{machine}" for n in range(newest, 4, -1)]
        old = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
        platforms += [f"{name}_{machine}" for name, glibc in old.items() if glibc <= newest]
    else:
        platforms = [f"musllinux_1_{n}_{machine}" for n in (2, 1, 0)]
    platforms.append(f"linux_{machine}")
    ours = f"cp{major}{minor}"
    return [
        *cpython_tags((major, minor), platforms=platforms),
        *compatible_tags((major, minor), interpreter=ours, platforms=platforms),
    ]


def _unpacked(wheel: Path) -> int:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as e:
        raise LeptonError(f"{wheel}: this is not a wheel ({e})", "download it again") from e


def _key(what: list[str]) -> str:
    return hashlib.sha256("\n".join(what).encode()).hexdigest()[:12]
