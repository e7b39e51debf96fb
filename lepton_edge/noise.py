"""How much of the machine other processes used while something was measured (Linux; None elsewhere)."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Moment:
    """CPU seconds used up to a moment: by the whole machine, and by the processes of ours."""

    wall: float
    all: float | None
    ours: float


def moment(pids: Sequence[int]) -> Moment:
    """Take the readings of /proc/stat and /proc/PID/stat (proc(5)); steal counts as use by others."""
    tick = os.sysconf("SC_CLK_TCK")
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        # user nice system idle iowait irq softirq steal
        busy = sum(int(fields[i]) for i in (0, 1, 2, 5, 6, 7)) / tick
    except (OSError, ValueError, IndexError):
        return Moment(time.monotonic(), None, 0.0)
    return Moment(time.monotonic(), busy, sum(_used(p) for p in (*pids, os.getpid())) / tick)


def _used(pid: int) -> int:
    try:
        rest = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(rest[11]) + int(rest[12])
    except (OSError, ValueError, IndexError):
        return 0  # it has ended: what it used counts as others', which errs on the side of a warning


def others(before: Moment, after: Moment) -> float | None:
    """Cores that other processes kept busy between two moments, on average."""
    if before.all is None or after.all is None or after.wall <= before.wall:
        return None
    return max(0.0, (after.all - before.all - (after.ours - before.ours)) / (after.wall - before.wall))
