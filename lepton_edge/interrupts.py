"""Ctrl-C and its kin: heard at once, but not in the middle of what must happen whole.

Standard library only, and little of it: this is imported at every start.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_last = -math.inf
_depth = 0
_waiting = False


def listen() -> None:
    """Treat a kill like Ctrl-C: workers end, half-written files go. What a parent ignores stays ignored (nohup)."""
    for name in SIGNALS:
        if signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, _heard)


def ignore() -> None:
    """The end is near: one more must not change the exit code."""
    for name in SIGNALS:
        signal.signal(name, signal.SIG_IGN)


def _heard(*_: object) -> None:
    # A second Ctrl-C right after the first must not cut the clearing up short.
    global _last, _waiting
    earlier, _last = _last, time.monotonic()
    if _last - earlier > 2:
        if _depth:
            _waiting = True
        else:
            raise KeyboardInterrupt


@contextmanager
def held() -> Iterator[None]:
    """An interrupt that comes within waits for the end of the block, and is raised there."""
    global _depth, _waiting
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are heard in the main thread, so nothing can come in between here
        return
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        if _waiting and not _depth:
            _waiting = False
            raise KeyboardInterrupt
