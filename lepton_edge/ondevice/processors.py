"""Which processors a place has, how strong they are, and how idle they are at the moment.

Self-contained (standard library, Python 3.9 or later): called at the place where models run (``place.call``).
"""

from __future__ import annotations

import os
import time
from pathlib import Path

# The kernel counts idle time in ticks: so many of them fewer than the idlest one's are chance.
LOOK_S, CHANCE_TICKS = 0.1, 2


def quietest(turn: int = 0, root: str = "/") -> int | None:
    """A processor that this process may use, of the strongest kind and idle at the moment; None: none can be chosen.

    Where several are so, ``turn`` takes them in turn. Strong is what the scheduler calls it (cpu_capacity of arm64's
    big and little cores), else the highest clock. Sources: Documentation/ABI/testing/sysfs-devices-system-cpu, proc(5).
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    base = Path(root)
    usable = sorted(os.sched_getaffinity(0))
    strength = {cpu: _strength(base, cpu) for cpu in usable}
    strongest = [cpu for cpu in usable if strength[cpu] == max(strength.values())]
    before = _idle_ticks(base)
    time.sleep(LOOK_S if before else 0)
    after = _idle_ticks(base)
    rest = {cpu: after.get(cpu, 0) - before.get(cpu, 0) for cpu in strongest}
    idle = [cpu for cpu in strongest if rest[cpu] >= max(rest.values()) - CHANCE_TICKS]
    return idle[turn % len(idle)]


def _strength(base: Path, cpu: int) -> int:
    folder = base / f"sys/devices/system/cpu/cpu{cpu}"
    for file in (folder / "cpu_capacity", folder / "cpufreq/cpuinfo_max_freq"):
        text = _read(file).strip()
        if text.isdigit():
            return int(text)
    return 0


def _idle_ticks(base: Path) -> dict[int, int]:
    """Ticks that each processor was idle since the boot; empty where the system does not tell."""
    found: dict[int, int] = {}
    for line in _read(base / "proc/stat").splitlines():
        name, *words = line.split() or [""]
        if name.startswith("cpu") and name[3:].isdigit() and len(words) > 4:
            found[int(name[3:])] = int(words[3]) + int(words[4])  # idle, iowait
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
