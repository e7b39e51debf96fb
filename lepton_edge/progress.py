"""What the user sees while work goes on: a live bar on a terminal, plain lines in a log, nothing with --json or -q."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any


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
    """A line a stage, and one every 30 seconds of a long one, with the seconds since the start: for logs and pipes."""

    EVERY_S = 30.0

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def stage(self, text: str) -> None:
        self._last = time.monotonic()
        print(f"[{self._last - self._start:7.1f} s] {text}", file=sys.stderr, flush=True)

    def update(self, done: int, total: int, what: str = "") -> None:
        if time.monotonic() - self._last >= self.EVERY_S:
            self.stage(f"  {done} of {total}" + (f" ({what})" if what else ""))


class Live(Silent):
    """A spinner with the stage, a bar while parts are counted, and the seconds since the start."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        self._start = time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[what]}", style="dim", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[clock]}", table_column=Column(no_wrap=True, min_width=5)),
            console=Console(stderr=True),
            transient=True,
            get_time=time.monotonic,
        )
        self._text = "starting"
        self._task = self._add()

    def stage(self, text: str) -> None:
        room = max(20, self._progress.console.width - 48)  # a narrow terminal cuts the stage short, not the bar
        self._text = text if len(text) <= room else text[: room - 1] + "…"
        self._busy()

    def update(self, done: int, total: int, what: str = "") -> None:
        if done < total:
            self._progress.update(self._task, total=total, completed=done, what=what)
        else:
            self._busy()  # all parts are ready, and what follows them is not counted

    def _busy(self) -> None:
        # rich keeps a task's total and its end for good, so each stage is a task of its own.
        self._progress.remove_task(self._task)
        self._task = self._add()

    def _add(self) -> Any:
        return self._progress.add_task(self._text, total=None, what="", clock=_Clock(self._start))

    def __enter__(self) -> Live:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()


class _Clock:
    """Reads as the seconds since ``start`` whenever it is shown."""

    def __init__(self, start: float) -> None:
        self._start = start

    def __str__(self) -> str:
        return f"{time.monotonic() - self._start:.0f} s"


def progress_for(*, quiet: bool) -> Silent:
    """The display that fits where stderr goes."""
    if quiet:
        return Silent()
    return Live() if sys.stderr.isatty() else Lines()
