"""Applications on a device: versions side by side, one of them current, switched in one step.

ROOT/APP/current -> versions/ID   what runs; a new link takes its place by rename, so it leads to a whole version
         versions/ID/             the files of a bundle, and .deployed/ (how it runs there, when it came)
         versions/.part-ID/       one that is arriving; what an interrupted deployment left goes with the next one
         runtimes/KEY/            a virtual environment or unpacked wheels, shared by the versions that need it
         predict                  runs the current version
         signers                  whose signatures are taken, once there are any
         history.json             the versions that were current, the last one last
         .lock                    held (flock, so that it ends with its holder) while something is changed
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import time

PART, COMPLETE, DEPLOYED = ".part-", ".complete", ".deployed"
MARGIN = 1 << 20  # bytes that must stay free
PREDICT = """#!/bin/sh
# Runs the current version; one run stays with the version that it began with.
app=$(cd "$(dirname "$(readlink -f "$0")")" && pwd -P) && version=$(readlink "$app/current") &&
    exec "$app/$version/.deployed/python" "$app/$version/predict.py" "$@"
"""
_held: dict = {}


def facts(names: list) -> dict:
    """What decides which runtime fits: the interpreter, the machine, and the installed versions of ``names``."""
    versions: dict = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "python": sys.executable,
        "version": list(sys.version_info[:2]),
        "machine": _machine(),
        "libc": list(platform.libc_ver()),
        "installed": versions,
        "venv": all(importlib.util.find_spec(n) is not None for n in ("venv", "ensurepip")),
    }


def _machine() -> str:
    """The machine that the interpreter was built for: the kernel may be of 64 bits, and all the rest of 32."""
    name = platform.machine()
    narrow = {"aarch64": "armv7l", "x86_64": "i686"}
    return narrow.get(name, name) if sys.maxsize < 2**32 else name


def app_folder(root: str, name: str) -> str:
    """The absolute folder of an application."""
    return os.path.join(os.path.abspath(os.path.expanduser(root)), name)


def claim(root: str, name: str, by: str, create: bool = True) -> dict:
    """Take the application's lock, and remove what an interrupted deployment left: {"folder", "pinned"}.

    ``pinned`` are the signers that it takes. {"problem", "hint"} when it cannot be had.
    """
    folder = app_folder(root, name)
    lock = os.path.join(folder, ".lock")
    if not os.path.exists(lock):
        if os.path.isdir(folder) and os.listdir(folder):
            return {"problem": f"{folder} holds something else than an application", "hint": "choose another --name"}
        if not create:
            hint = "'deploy --list' shows those that are there"
            return {"problem": f"there is no application '{name}' in {os.path.dirname(folder)}", "hint": hint}
    for part in ("versions", "runtimes"):
        os.makedirs(os.path.join(folder, part), exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = os.read(descriptor, 200).decode("utf-8", "replace") or "unknown"
        os.close(descriptor)
        problem = f"another deployment of '{name}' is under way there (by {who})"
        return {"problem": problem, "hint": "wait for its end, then run again"}
    os.ftruncate(descriptor, 0)
    os.write(descriptor, by.encode())
    _held[folder] = descriptor
    _sweep(folder)
    return {"folder": folder, "pinned": _read(os.path.join(folder, "signers"))}


def release(folder: str) -> None:
    """Let go of the lock; remove what did not become part of a version, and a first deployment that failed."""
    _sweep(folder)
    _drop_runtimes(folder)
    if not os.listdir(os.path.join(folder, "versions")):
        shutil.rmtree(folder, ignore_errors=True)
    os.close(_held.pop(folder))


def begin(folder: str, version: str, sha256: str, files: dict, more: int) -> dict:
    """A place for a version, {"place", "missing": names}: of one that is there already, what is damaged.

    ``files`` are {"sha256", "size_bytes"} by name, ``more`` the bytes that its runtime will take.
    """
    place = os.path.join(folder, "versions", version)
    if _facts(place).get("sha256", sha256) != sha256:
        return {"problem": f"another bundle is called {version} there", "hint": "make the bundle again"}
    if not os.path.isdir(place):
        place = os.path.join(folder, "versions", PART + version)
        os.makedirs(place)
    missing = [name for name, told in files.items() if _digest(os.path.join(place, name)) != told["sha256"]]
    need = sum(files[name]["size_bytes"] for name in missing) + more
    return {"place": place, "missing": missing, "need": need, **_room(folder, need)}


def _room(folder: str, need: int) -> dict:
    free = shutil.disk_usage(folder).free
    if free - MARGIN < need:
        hint = "free some space on it, or choose another folder with --to"
        return {"problem": f"{_size(need)} are needed in {folder}, and {_size(free)} are free", "hint": hint}
    return {}


def verify(place: str, sha256: str) -> dict:
    """{"problem", "hint"}: "" when every file that the manifest lists is there unchanged, and it is the one meant."""
    hint = "deploy the bundle again: what is damaged is sent anew"
    manifest = os.path.join(place, "manifest.json")
    if _digest(manifest) != sha256:
        return {"problem": "manifest.json there is not the one that was sent", "hint": hint}
    for name, told in json.loads(_read(manifest))["files"].items():
        path = os.path.realpath(os.path.join(place, name))
        if not path.startswith(os.path.realpath(place) + os.sep):
            return {"problem": f"the manifest names a file outside of the bundle: {name}", "hint": "do not use it"}
        if _digest(path) != told["sha256"]:
            return {"problem": f"{name} there differs from the manifest (its SHA-256 does)", "hint": hint}
    return {"problem": ""}


def runtime_kept(folder: str, key: str) -> str:
    """The name of a complete runtime that an earlier version brought for the same requirements, else ""."""
    found = [name for name in os.listdir(os.path.join(folder, "runtimes")) if name.partition("-")[0] == key]
    return sorted(found)[-1] if found else ""


def runtime_folder(folder: str, name: str) -> dict:
    """{"path", "ready", "site"}: the folder of a runtime, whether it is complete, and unpacked from wheels."""
    path = os.path.join(folder, "runtimes", name)
    os.makedirs(path, exist_ok=True)
    ready, site = (os.path.exists(os.path.join(path, part)) for part in (COMPLETE, "site"))
    return {"path": path, "ready": ready, "site": site}


def runtime_complete(path: str) -> None:
    """Mark a runtime as whole; the wheels that it was unpacked from go."""
    shutil.rmtree(os.path.join(path, "wheels"), ignore_errors=True)
    _write(os.path.join(path, COMPLETE), "")


def launcher(place: str, python: str, site: str) -> str:
    """Write the interpreter that runs a version, with its runtime on the path: its path."""
    os.makedirs(os.path.join(place, DEPLOYED), exist_ok=True)
    path = os.path.join(place, DEPLOYED, "python")
    before = f"PYTHONPATH={_quoted(site)} && export PYTHONPATH && " if site else ""
    _write(path, f'#!/bin/sh\n{before}exec {_quoted(python)} "$@"\n', 0o755)
    return path


def commit(folder: str, version: str, place: str, told: dict, pin: str, keep: int) -> dict:
    """Make a version the current one, keep the last ``keep``: {"previous", "pruned"}. All is on the disk before."""
    told = {**told, "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    _write(os.path.join(place, DEPLOYED, "facts.json"), json.dumps(told))
    final = os.path.join(folder, "versions", version)
    if place != final:
        os.rename(place, final)
    _write(os.path.join(folder, "predict"), PREDICT, 0o755)
    if pin:
        _write(os.path.join(folder, "signers"), pin)
    os.sync()
    history = _history(folder)
    previous = history[-1] if history else None
    _switch(folder, version)
    history = [*(v for v in history if v != version), version]
    _write(os.path.join(folder, "history.json"), json.dumps(history[-keep:]))
    pruned = [v for v in _versions(folder) if v not in history[-keep:]]
    for old in pruned:
        shutil.rmtree(os.path.join(folder, "versions", old), ignore_errors=True)
    _drop_runtimes(folder)
    return {"previous": previous, "pruned": pruned}


def earlier(folder: str) -> dict:
    """{"version", "place", "sha256", "current"} of the version before the current one."""
    history = _history(folder)
    if len(history) < 2:
        return {"problem": "there is no earlier version there", "hint": "deploy the bundle that you want instead"}
    place = os.path.join(folder, "versions", history[-2])
    return {"version": history[-2], "place": place, "sha256": _facts(place)["sha256"], "current": history[-1]}


def go_back(folder: str, version: str) -> None:
    """Make the version before the current one current again; the one that was is not gone back to later."""
    os.sync()
    # Should the power fail in between, the current one is found to be current still.
    _write(os.path.join(folder, "history.json"), json.dumps(_history(folder)[:-1]))
    _switch(folder, version)


def listing(root: str, name: str = "") -> list:
    """The applications in a folder, or the one named: [{"name", "folder", "versions": [...]}], the latest last."""
    root = os.path.abspath(os.path.expanduser(root))
    found = []
    for app in [name] if name else sorted(os.listdir(root)) if os.path.isdir(root) else []:
        folder = os.path.join(root, app)
        if os.path.exists(os.path.join(folder, ".lock")):
            history = _history(folder)
            order = sorted(_versions(folder), key=lambda v: history.index(v) if v in history else -1)
            rows = [{"version": v, "current": [v] == history[-1:], **_facts(_place(folder, v))} for v in order]
            signers = _read(os.path.join(folder, "signers"))
            found.append({"name": app, "folder": folder, "versions": rows, "signed": bool(signers)})
    return found


def _place(folder: str, version: str) -> str:
    return os.path.join(folder, "versions", version)


def _facts(place: str) -> dict:
    return json.loads(_read(os.path.join(place, DEPLOYED, "facts.json")) or "{}")


def _versions(folder: str) -> list:
    return [v for v in os.listdir(os.path.join(folder, "versions")) if not v.startswith(".")]


def _history(folder: str) -> list:
    """The versions that were current and are still there; what ``current`` leads to is the last, whatever was noted."""
    noted = json.loads(_read(os.path.join(folder, "history.json")) or "[]")
    link = os.path.join(folder, "current")
    if os.path.islink(link):
        now = os.path.basename(os.readlink(link))
        noted = [*(v for v in noted if v != now), now]
    there = _versions(folder)
    return [v for v in noted if v in there]


def _switch(folder: str, version: str) -> None:
    fresh = os.path.join(folder, ".current")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fresh)
    os.symlink(os.path.join("versions", version), fresh)
    os.replace(fresh, os.path.join(folder, "current"))
    _sync(folder)


def _sweep(folder: str) -> None:
    """Remove versions and runtimes that were never finished. Only under the lock."""
    for parent, unfinished in (
        ("versions", lambda path: os.path.basename(path).startswith(PART)),
        ("runtimes", lambda path: not os.path.exists(os.path.join(path, COMPLETE))),
    ):
        for name in os.listdir(os.path.join(folder, parent)):
            path = os.path.join(folder, parent, name)
            if unfinished(path):
                shutil.rmtree(path, ignore_errors=True)


def _drop_runtimes(folder: str) -> None:
    """Remove the runtimes that no version needs."""
    needed = {_facts(_place(folder, v)).get("runtime", {}).get("key") for v in _versions(folder)}
    for key in os.listdir(os.path.join(folder, "runtimes")):
        if key not in needed:
            shutil.rmtree(os.path.join(folder, "runtimes", key), ignore_errors=True)


def _digest(path: str) -> str:
    """The SHA-256 of a file, "" where there is none."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as f:
            for block in iter(lambda: f.read(1 << 20), b""):
                found.update(block)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return ""
    return found.hexdigest()


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as f:
            return f.read()
    except FileNotFoundError:
        return ""


def _write(path: str, text: str, mode: int = 0o644) -> None:
    """Write a file aside, then rename it."""
    part = path + ".part"
    with open(part, "w", encoding="utf-8") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.chmod(part, mode)
    os.replace(part, path)


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB"
