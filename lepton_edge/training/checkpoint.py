"""Checkpoints of a training run: one .npz a run, written aside and put in place whole, found again by what went in.

They lie in the ``training`` folder of the store under a key, the hash of model, samples, options and code, so that the
same command goes on where it was interrupted (a kill -9 or a power cut included) and another one starts afresh. They
hold arrays and one JSON text; nothing is pickled. A finished run removes its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge import store
from lepton_edge.interrupts import held

EVERY_S = 30.0  # between checkpoints within an epoch
OLD_S = 14 * 86400.0  # what was left for longer is not taken up again
SCHEMA = "lepton-edge.checkpoint/1"


@dataclass(frozen=True)
class Snapshot:
    """Where a run is: ``facts`` that JSON can hold, the arrays to go on from, and the best weights so far."""

    facts: dict[str, Any]
    state: dict[str, np.ndarray]
    best: dict[str, np.ndarray]


@dataclass
class Checkpoint:
    """The file of one run. ``every`` is in seconds; ``notes`` say what became of it."""

    path: Path
    every: float = EVERY_S
    notes: list[str] = field(default_factory=list)
    _last: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        """Whether the last one is long enough ago."""
        return time.monotonic() - self._last >= self.every

    def save(self, snapshot: Snapshot) -> None:
        """Put a snapshot in the place of the one before it: aside, on disk, then in one rename."""
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        names = {"state": list(snapshot.state), "best": list(snapshot.best)}
        head = json.dumps({"schema": SCHEMA, "facts": snapshot.facts, "names": names})
        arrays: dict[str, np.ndarray] = {"head": np.array(head)}
        for kind, values in (("state", snapshot.state), ("best", snapshot.best)):
            arrays |= {f"{kind}_{i}": np.asarray(v) for i, v in enumerate(values.values())}
        try:
            with part.open("wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(self.path)
        finally:
            part.unlink(missing_ok=True)
        self._last = time.monotonic()

    def load(self) -> Snapshot | None:
        """The snapshot, or None where there is none; a damaged one is left out, and ``notes`` say so."""
        try:
            with np.load(self.path, allow_pickle=False) as file:
                head = json.loads(str(file["head"]))
                if head["schema"] != SCHEMA:
                    raise ValueError(f"it is {head['schema']}")
                read = {
                    kind: {name: file[f"{kind}_{i}"] for i, name in enumerate(names)}
                    for kind, names in head["names"].items()
                }
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            self.notes.append(f"a damaged checkpoint was left out ({str(error)[:80]}): training started afresh")
            return None
        return Snapshot(head["facts"], read["state"], read["best"])


def key(file: str | Path, model: str | Path, parts: Mapping[str, Any]) -> str:
    """The key of a run: the pass ``file`` and all it imports, the bytes of the ``model`` file, and ``parts``
    (values that JSON can hold: the digest of the samples, the options)."""
    digest = hashlib.sha256(store.code(Path(file)).encode())
    with Path(model).open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    digest.update(json.dumps(dict(parts), sort_keys=True).encode())
    return digest.hexdigest()


@contextlib.contextmanager
def opened(key_: str) -> Iterator[Checkpoint | None]:
    """The checkpoint of a run, removed when the block ends well and kept when it does not.

    None while another process trains the same thing: two writers would undo each other's work.
    """
    home = store.root() / "training"
    home.mkdir(parents=True, exist_ok=True)
    _clear_old(home)
    folder = home / key_[:40]
    folder.mkdir(exist_ok=True)
    with _lock(folder / "lock") as mine:
        if not mine:
            yield None
            return
        for left in folder.glob(".*.part"):  # of a process that was killed while it wrote
            left.unlink(missing_ok=True)
        yield Checkpoint(folder / "state.npz")
        with held():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Whether this process is the only one that holds ``path``; the system lets go of it when the process ends."""
    with path.open("a") as stream:
        try:
            import fcntl
        except ImportError:  # a system without it: the last writer wins
            yield True
            return
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def _clear_old(home: Path) -> None:
    now = time.time()
    for folder in home.iterdir():
        newest = max((f.stat().st_mtime for f in folder.glob("*")), default=now)
        if now - newest > OLD_S:
            shutil.rmtree(folder, ignore_errors=True)
