"""What the user sees while work goes on: a live bar on a terminal, plain lines in a log, nothing with --json or -q."""

from __future__ import annotations

import sys
import time
from types import TracebackType


class Silent:
    """Shows nothing; the interface of the other two."""

    def stage(self, text: str) -> None:
        """A new stage of the work begins."""

    def update(self, done: int, total: int, what: str = "") -> None:
        """``done`` of ``total`` parts of the stage are ready."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Remove what is on the screen."""


class Lines(Silent):
    """A line a stage, with the seconds since the start: for logs and pipes."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def stage(self, text: str) -> None:
        print(f"[{time.monotonic() - self._start:7.1f} s] {text}", file=sys.stderr, flush=True)


class Live(Silent):
    """A spinner with the stage, and a bar while parts are counted."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[what]}", style="dim", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, what="")

    def stage(self, text: str) -> None:
        self._progress.update(self._task, description=text, total=None, completed=0, what="")

    def update(self, done: int, total: int, what: str = "") -> None:
        self._progress.update(self._task, total=total, completed=done, what=what)

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()


def progress_for(*, quiet: bool) -> Silent:
    """The display that fits where stderr goes."""
    if quiet:
        return Silent()
    return Live() if sys.stderr.isatty() else Lines()
