"""Control groups of the kernel, version 1 and 2: a share of the processor and a limit of memory for some processes."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import signal
import time
from pathlib import Path

from lepton_edge.ondevice.agent import started

PREFIX = "lepton-edge-"
# Shorter than the kernel's 100 ms: a model that takes 2 ms would otherwise run 50 times at full speed, then wait.
PERIOD_US = 10_000
_numbers = itertools.count()


class Group:
    """A new group with these limits (0: none); ``doors`` are the files a process writes its pid to in order to join.

    Raises OSError where control groups cannot be written. Groups of processes that are gone are removed first.
    """

    def __init__(
        self, cpus: float, memory_mb: int, mounts: str = "/proc/self/mounts", mine: str = "/proc/self/cgroup"
    ) -> None:
        self.folders: list[Path] = []
        self.memory: Path | None = None
        self._seen = 0
        name = f"{PREFIX}{os.getpid()}-{started(os.getpid())}-{next(_numbers)}"
        limits = {"cpu": cpus, "memory": float(memory_mb)}
        try:
            for version, part, parents in _hierarchies({c: v for c, v in limits.items() if v}, mounts, mine):
                self._open(name, version, part, parents)
        except OSError:
            self.close()
            raise

    @property
    def doors(self) -> list[Path]:
        """The files to write a pid to."""
        return [folder / "cgroup.procs" for folder in self.folders]

    def kills(self) -> bool:
        """Whether the kernel has killed something in the group for want of memory since this was last asked."""
        if self.memory is None:
            return False
        file = next(f for n in ("memory.events", "memory.oom_control") if (f := self.memory / n).exists())
        counts = dict(line.split() for line in file.read_text().splitlines())
        count = int(counts.get("oom_kill", 0))
        new, self._seen = count > self._seen, count
        return new

    def close(self) -> None:
        """End what is left in the group, and remove it."""
        for folder in self.folders:
            remove(folder)
        self.folders.clear()

    def _open(self, name: str, version: int, limits: dict[str, float], parents: list[Path]) -> None:
        """A group below the first of ``parents`` that takes all of these limits: a process is in one group only."""
        problem: OSError = OSError(errno.ENOENT, f"there are no control groups for {' and '.join(limits)}")
        for parent in parents:
            _sweep(parent)
            folder = parent / name
            try:
                folder.mkdir()
                try:
                    for controller, limit in limits.items():
                        LIMITS[controller](folder, version, limit)
                except OSError:
                    folder.rmdir()
                    raise
            except OSError as e:
                problem = e
                continue
            self.folders.append(folder)
            self.memory = folder if "memory" in limits else self.memory
            return
        raise problem


def _limit_cpu(folder: Path, version: int, cpus: float) -> None:
    quota = max(1000, round(cpus * PERIOD_US))
    if version == 2:
        (folder / "cpu.max").write_text(f"{quota} {PERIOD_US}")
    else:
        (folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (folder / "cpu.cfs_quota_us").write_text(str(quota))


def _limit_memory(folder: Path, version: int, megabytes: float) -> None:
    size = int(megabytes * 2**20)
    if version == 2:
        (folder / "memory.max").write_text(str(size))
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap
            (folder / "memory.swap.max").write_text("0")
    else:
        (folder / "memory.limit_in_bytes").write_text(str(size))
        with contextlib.suppress(OSError):  # a kernel that does not count swap
            (folder / "memory.memsw.limit_in_bytes").write_text(str(size))


LIMITS = {"cpu": _limit_cpu, "memory": _limit_memory}


def _hierarchies(limits: dict[str, float], mounts: str, mine: str) -> list[tuple[int, dict[str, float], list[Path]]]:
    """Which limits go where: (version, those limits, the groups to try as parents: our own, then those above)."""
    tables = [line.split() for line in Path(mounts).read_text().splitlines()]
    first = {c: t[1] for t in tables if t[2] == "cgroup" for c in t[3].split(",") if c in limits}
    found = [(1, {c: limits[c]}, _parents(top, c, mine)) for c, top in first.items()]
    rest = {c: v for c, v in limits.items() if c not in first}
    if rest:
        top = next((t[1] for t in tables if t[2] == "cgroup2"), "")
        found.append((2, rest, _parents(top, "", mine) if top else []))
    return found


def _parents(top: str, controller: str, mine: str) -> list[Path]:
    inside = "/"
    for line in Path(mine).read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            inside = path
    own = Path(top) / inside.lstrip("/")
    above = [own, *own.parents]
    return [p for p in above[: above.index(Path(top)) + 1] if p.is_dir()]


def _sweep(parent: Path) -> None:
    """Remove the groups whose makers are gone: killed with -9."""
    for folder in parent.glob(f"{PREFIX}*"):
        pid, _, since = folder.name.removeprefix(PREFIX).rpartition("-")[0].partition("-")
        if pid.isdecimal() and started(int(pid)) != since:
            remove(folder)


def remove(folder: Path, seconds: float = 5.0) -> None:
    """Kill the processes of a group, and remove it. One that does not go in time stays for the next sweep."""
    deadline = time.monotonic() + seconds
    while folder.is_dir() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # gone meanwhile
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
        except OSError:  # its processes take a moment to end
            time.sleep(0.02)
