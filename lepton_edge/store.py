"""The store of finished steps: written aside, published in one rename, found again by what went in.

Its key is the hash of (input model, source code of the step and of the project files it imports, options,
versions of the packages it requires), so a killed run resumes, and a changed step runs again.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from lepton_edge import settings
from lepton_edge.artifact import Artifact, open_artifact
from lepton_edge.errors import LeptonError
from lepton_edge.interrupts import held
from lepton_edge.registry import PACKAGE, Step


def root() -> Path:
    """The folder of the store: LEPTON_EDGE_CACHE, else the user's cache folder."""
    set_ = os.environ.get("LEPTON_EDGE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(set_) if set_ else base / "lepton-edge"


def max_bytes() -> int:
    """What the store may hold: LEPTON_EDGE_CACHE_MAX, in GB."""
    return int(settings.number("LEPTON_EDGE_CACHE_MAX", 10) * 1e9)


def key(step: Step, source: Artifact, options: dict[str, Any]) -> str:
    """The key of ``step`` on ``source`` with ``options`` (values that JSON can hold)."""
    parts = {
        "source": [source.format, source.sha256],
        "code": code(step.file),
        "options": options,
        "versions": _versions(step.requires),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@cache
def code(file: Path) -> str:
    """Hash of a file and of all the project files that it imports, however deep."""
    seen: set[Path] = set()
    queue = [file]
    while queue:
        path = queue.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lepton_edge"):
                at = PACKAGE.parent.joinpath(*(node.module or "").split("."))
                queue += [at.with_suffix(".py"), *(at / f"{a.name}.py" for a in node.names)]
                if at.is_dir():
                    queue += sorted(at.glob("*.py")) if at != PACKAGE else []
    digest = hashlib.sha256()
    for path in sorted(seen):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _versions(requires: tuple[str, ...]) -> dict[str, str]:
    from importlib import metadata

    from packaging.requirements import Requirement

    found = {}
    for name in (Requirement(r).name for r in requires):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "elsewhere"
    return found


def find(key_: str) -> tuple[Artifact, dict] | None:
    """The finished artefact of a key and the step's result, or None. A damaged entry counts as none."""
    place = root() / key_[:2] / key_
    record = place / "step.json"
    try:
        result = json.loads(record.read_text(encoding="utf-8"))
        art = open_artifact(place / result["file"])
    except (OSError, json.JSONDecodeError, KeyError, LeptonError):
        return None
    if art.sha256 != result["sha256"]:
        return None
    os.utime(record)
    return art, result


@contextmanager
def aside(near: Path) -> Iterator[Path]:
    """A scratch folder in ``near``, gone afterwards whatever happens; so are the folders made for it, when empty."""
    missing = [p for p in (near, *near.parents) if not p.exists()]
    scratch: Path | None = None
    try:
        try:
            with held():
                near.mkdir(parents=True, exist_ok=True)
                _clear_after_the_killed(near)
                scratch = Path(tempfile.mkdtemp(prefix=f".part-{_here()}-{os.getpid()}-", dir=near))
        except OSError as e:
            raise LeptonError(
                f"{near}: cannot be written ({e.strerror})", "choose another folder, or free some space"
            ) from e
        yield scratch
    finally:
        with held():
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            with suppress(OSError):  # not empty: then it is of use
                for folder in missing:
                    folder.rmdir()


def made_once(place: Path, make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` fills when it is not there yet: aside, published in one rename, the first writer wins."""
    if not place.is_dir():
        with aside(place.parent) as scratch:
            new = scratch / place.name
            new.mkdir()
            make(new)
            try:
                new.rename(place)
            except OSError:
                if not place.is_dir():
                    raise
    return place


def _here() -> str:
    """This machine or container: process numbers of another one mean nothing here."""
    return f"{zlib.crc32(platform.node().encode()):08x}"


def _clear_after_the_killed(folder: Path) -> None:
    """Remove the scratch folders of processes of this machine that are gone: killed with -9, or by a power cut."""
    for left in folder.glob(f".part-{_here()}-*"):
        number = left.name.split("-")[2]
        if number.isdecimal() and not _alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it belongs to someone else
        return True
    return True


def publish(key_: str, scratch: Path, file: str, result: dict) -> tuple[Artifact, dict]:
    """Move a finished scratch folder into the store under its key; the first of two writers wins."""
    art = open_artifact(scratch / file)
    result = {**result, "file": file, "sha256": art.sha256}
    (scratch / "step.json").write_text(json.dumps(result), encoding="utf-8")
    place = root() / key_[:2] / key_
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists() and find(key_) is None:
        shutil.rmtree(place)
    try:
        scratch.rename(place)
    except OSError:
        if not place.exists():
            raise
    found = find(key_)
    if found is None:
        raise LeptonError(f"{place}: the stored result is damaged", f"remove {place} and run again")
    return found


def trim(limit_bytes: int | None = None) -> int:
    """Remove the entries unused for longest until the store fits its limit (LEPTON_EDGE_CACHE_MAX, in GB; 10).

    Returns the bytes that were freed. Entries used within the last day stay.
    """
    limit = limit_bytes if limit_bytes is not None else max_bytes()
    entries = []
    for record in root().glob("??/*/step.json"):
        place = record.parent
        size = sum(f.stat().st_size for f in place.rglob("*") if f.is_file())
        entries.append((record.stat().st_mtime, size, place))
    total, freed = sum(e[1] for e in entries), 0
    for used, size, place in sorted(entries):
        if total - freed <= limit or used > time.time() - 86400:
            break
        shutil.rmtree(place, ignore_errors=True)
        freed += size
    for left in root().glob(".part-*"):
        if left.stat().st_mtime < time.time() - 7 * 86400:
            shutil.rmtree(left, ignore_errors=True)
    return freed
