"""Environments of their own for steps whose packages do not go with ours: made on demand, kept in the store's folder.

A step asks for one with PYTHON ("3.12") beside its REQUIRES. LEPTON_EDGE_ENVS=off forbids making them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from lepton_edge import store
from lepton_edge.errors import LeptonError, MissingExtra


@cache
def interpreter(version: str) -> str | None:
    """A Python of that version ("3.12"): LEPTON_EDGE_PYTHON312, else one on the path or among pyenv's; None."""
    named = os.environ.get(f"LEPTON_EDGE_PYTHON{version.replace('.', '')}")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [named, shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]
    for candidate in filter(None, found):
        command = [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.stdout.strip() == version:
            return candidate
    return None


def available(version: str) -> bool:
    """Whether environments of that Python may and can be made here."""
    return os.environ.get("LEPTON_EDGE_ENVS", "").lower() != "off" and interpreter(version) is not None


def ensure(what: str, version: str, requires: tuple[str, ...]) -> str:
    """The Python of an environment that meets ``requires``, installed now when it is not there yet.

    Raises MissingExtra without such a Python, LeptonError when pip fails; half an environment is never left.
    """
    base = interpreter(version)
    if base is None or not available(version):
        raise MissingExtra(f"{what} needs Python {version} for an environment of its own, which is not to be had here",
                           f"install it, or name one in LEPTON_EDGE_PYTHON{version.replace('.', '')}")  # fmt: skip
    digest = hashlib.sha256("\n".join((version, *sorted(requires))).encode()).hexdigest()[:16]
    place = store.root() / "envs" / digest
    python = place / "bin" / "python"
    if (place / "ready").is_file():
        return str(python)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)  # left by a run that was killed
    with tempfile.TemporaryFile("w+") as log:
        for command in ([base, "-m", "venv", str(place)], [str(python), "-m", "pip", "install", "--quiet", *requires]):
            done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                log.seek(0)
                said = [line.strip() for line in log.read().splitlines() if line.strip()]
                shutil.rmtree(place, ignore_errors=True)
                raise LeptonError(f"{what}: its environment could not be made: {(said or ['pip failed'])[-1][:300]}",
                                  "check the network and the free space, and run again")  # fmt: skip
    (place / "ready").write_text("\n".join(requires))
    return str(python)
