"""Where results go: a run folder or a model file appears whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lepton_edge.errors import UsageError
from lepton_edge.interrupts import held
from lepton_edge.store import aside


def check(out: Path, mark: str = "run.json") -> None:
    """Refuse a run folder that holds something other than an earlier run, known by ``mark``. Raises UsageError."""
    if out.is_dir() and any(out.iterdir()) and not (out / mark).is_file():
        raise UsageError(f"{out}: the folder is not empty and holds no earlier run", "choose a new folder with --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file, and a folder is needed", "choose a folder with --out")


@contextmanager
def publishing(out: Path, mark: str = "run.json") -> Iterator[Path]:
    """A new folder to build a run in; on success it takes the place of ``out``, on failure it is gone."""
    check(out, mark)
    with aside(out.absolute().parent) as scratch:
        build = scratch / "run"
        build.mkdir()
        yield build
        with held():  # else an interrupt in between would lose the earlier run
            if out.exists():
                out.replace(scratch / "old")
            build.replace(out)
        shutil.rmtree(scratch / "old", ignore_errors=True)
