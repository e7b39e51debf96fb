"""Running a command and accounting for its whole process tree: wall time and peak memory, within limits."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_S = 0.1
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Run:
    """How a command ended: its exit code and output, wall seconds, and the peak resident memory of its tree in MiB.

    ``ended`` says why it was stopped, where it was ("memory" or "time").
    """

    code: int
    stdout: str
    stderr: str
    wall_s: float
    peak_mb: float
    ended: str = ""


def measured(
    command: Sequence[str],
    *,
    memory_mb: float | None = None,
    timeout_s: float | None = None,
    environ: dict[str, str] | None = None,
) -> Run:
    """Run ``command``; stop it, with all that it started, when its tree passes ``memory_mb`` or ``timeout_s``.

    Memory is the sum of the resident sizes in the tree, polled ten times a second, or the highest mark of any one
    process in it where that is more; pages that processes share count for each.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start, peak, ended = time.monotonic(), 0.0, ""
        process = subprocess.Popen(
            list(command), stdout=out, stderr=err, stdin=subprocess.DEVNULL, env=os.environ | (environ or {})
        )
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
                break
            members = tree(process.pid)
            peak = max(peak, sum(resident_mb(pid) for pid in members), *(peak_mb(pid) for pid in members))
            if memory_mb is not None and peak > memory_mb:
                ended = "memory"
            elif timeout_s is not None and time.monotonic() - start > timeout_s:
                ended = "time"
            if ended:
                for pid in members:
                    with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                        os.kill(pid, signal.SIGKILL)
                process.wait()
                break
        wall = time.monotonic() - start
        for stream in (out, err):
            stream.seek(0)
        return Run(process.returncode, out.read(), err.read(), round(wall, 2), round(peak, 1), ended)


def tree(root: int) -> list[int]:
    """``root`` and the processes below it, parents first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):  # gone while we look
                after_name = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                parents.setdefault(int(after_name[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:
        found.extend(parents.get(pid, ()))
    return found


def resident_mb(pid: int) -> float:
    """Resident memory of a process now, in MiB (0 when it is gone)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 2**20
    except (OSError, IndexError):
        return 0.0


def peak_mb(pid: int) -> float:
    """The highest resident memory a process has had, in MiB (0 when it is gone)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def available_mb() -> float:
    """Memory that the system could give without swapping, in MiB."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    return float("inf")
