"""What a machine's sensors and counters say at a moment: load, clocks, heat, throttling, quota, power supply.

Self-contained (standard library, Python 3.9 or later): it is called at the place where models run, before and after
they are timed (``place.call``). What cannot be read is None, with the reason beside it under "unknown".
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

# Bits of the Raspberry Pi firmware's get_throttled: what is so now, and 16 bits higher what was so since the boot.
PI_FLAGS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
PI_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def snapshot(pids: list[int] | None = None, root: str = "/") -> dict[str, Any]:
    """Readings of this moment; ``pids`` are processes of ours here, ``root`` is where /proc and /sys are found.

    Counters (``*_s``, ``throttle_events``, ``quota``, ``switches``) only mean something as differences of two
    snapshots. Sources: proc(5), Documentation/admin-guide/cgroup-v2.rst and ABI/testing/sysfs-class-* of Linux.
    """
    base, unknown = Path(root), {}  # type: Path, dict[str, str]
    busy, steal = _cpu_seconds(base, unknown)
    ours = [*(pids or []), os.getpid()]
    return {
        "wall_s": time.monotonic(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "busy_cpu_s": busy,
        "steal_cpu_s": steal,
        "ours_cpu_s": sum(_used(base, pid) for pid in ours),
        "switches": _switches(base, pids or []),
        "load_average": _load(unknown),
        "governor": _governor(base, unknown),
        "frequency_mhz": _frequencies(base, unknown),
        "temperature_c": _temperature(base, unknown),
        "throttle_events": _throttle_events(base, unknown),
        "throttle_flags": _pi_flags(base),
        "cooling": _cooling(base),
        "quota": _quota(base, unknown),
        "on_battery": _on_battery(base),
        "unknown": unknown,
    }


def _cpu_seconds(base: Path, unknown: dict[str, str]) -> tuple[float | None, float | None]:
    """CPU seconds used by everything since the boot, and those of them that the hypervisor took (steal)."""
    words = (_read(base / "proc/stat") or "").split("\n", 1)[0].split()[1:]
    if len(words) < 8 or not all(w.isdigit() for w in words[:8]):
        unknown["busy_cpu_s"] = f"{platform.system()} has no /proc/stat, or it is closed to us"
        return None, None
    tick = os.sysconf("SC_CLK_TCK")
    # user nice system idle iowait irq softirq steal
    return sum(int(words[i]) for i in (0, 1, 2, 5, 6, 7)) / tick, int(words[7]) / tick


def _used(base: Path, pid: int) -> float:
    """CPU seconds of a process; one that has ended counts as others' use, which errs on the side of a warning."""
    words = (_read(base / f"proc/{pid}/stat") or "").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK") if len(words) > 12 else 0.0


def _switches(base: Path, pids: list[int]) -> dict[str, int]:
    """Context switches of all threads of the processes: given up, and taken by the scheduler."""
    found = {"voluntary": 0, "involuntary": 0}
    for pid in pids:
        for task in (base / f"proc/{pid}/task").glob("*"):
            for line in (_read(task / "status") or "").splitlines():
                name, _, count = line.partition("_ctxt_switches:")
                key = {"voluntary": "voluntary", "nonvoluntary": "involuntary"}.get(name)
                if key and count.strip().isdigit():
                    found[key] += int(count)
    return found


def _load(unknown: dict[str, str]) -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        unknown["load_average"] = f"{platform.system()} has no load average"
        return None


def _policies(base: Path) -> list[Path]:
    folder = base / "sys/devices/system/cpu"
    return sorted(folder.glob("cpu[0-9]*/cpufreq"), key=lambda p: int(p.parent.name[3:]))


def _governor(base: Path, unknown: dict[str, str]) -> dict[str, str] | None:
    """The governors and drivers in use, as words: {"governor": "powersave", "driver": "intel_pstate"}."""
    found: dict[str, list[str]] = {"governor": [], "driver": []}
    for policy in _policies(base):
        for key in found:
            found[key].append((_read(policy / f"scaling_{key}") or "").strip())
    names = {key: "/".join(sorted({v for v in values if v})) for key, values in found.items()}
    if not names["governor"]:
        unknown["governor"] = "this kernel gives no cpufreq (a virtual machine or container usually has none)"
        return None
    return names


def _frequencies(base: Path, unknown: dict[str, str]) -> list[float] | None:
    """MHz of each core that tells it."""
    texts = [(_read(policy / "scaling_cur_freq") or "").strip() for policy in _policies(base)]
    found = [round(int(text) / 1000, 1) for text in texts if text.isdigit()]
    if not found:
        lines = (_read(base / "proc/cpuinfo") or "").splitlines()
        found = [round(float(line.partition(":")[2]), 1) for line in lines if line.startswith("cpu MHz")]
    if not found:
        unknown["frequency_mhz"] = "neither cpufreq nor /proc/cpuinfo tells it"
    return found or None


def _temperature(base: Path, unknown: dict[str, str]) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    zones = [_integer(zone / "temp") for zone in sorted((base / "sys/class/thermal").glob("thermal_zone*"))]
    readings = [value / 1000 for value in zones if value is not None]
    if not readings:
        unknown["temperature_c"] = "no thermal zone can be read"
        return None
    return round(max(readings), 1)


def _throttle_events(base: Path, unknown: dict[str, str]) -> int | None:
    """How often the processor slowed itself down for heat since the boot (x86), all cores and packages."""
    folder = base / "sys/devices/system/cpu"
    counts = [_integer(f) for f in folder.glob("cpu[0-9]*/thermal_throttle/*_throttle_count")]
    known = [c for c in counts if c is not None]
    if not known and _read(base / PI_FILE) is None:
        unknown["throttle_events"] = "neither thermal_throttle counters (x86) nor get_throttled (Raspberry Pi) are here"
    return sum(known) if known else None


def _pi_flags(base: Path) -> dict[str, list[str]] | None:
    """What the Raspberry Pi's firmware says of its supply and heat, now and since the boot; None on other machines."""
    text = (_read(base / PI_FILE) or "").strip()
    try:
        bits = int(text, 16)
    except ValueError:
        return None
    return {
        "now": [name for bit, name in PI_FLAGS.items() if bits >> bit & 1],
        "since_boot": [name for bit, name in PI_FLAGS.items() if bits >> (bit + 16) & 1],
    }


def _cooling(base: Path) -> int | None:
    """The sum of the states of the cooling devices that slow processors down; 0: none of them does."""
    states = [
        _integer(device / "cur_state")
        for device in (base / "sys/class/thermal").glob("cooling_device*")
        if any(word in (_read(device / "type") or "").lower() for word in ("cpufreq", "processor", "cpu-"))
    ]
    known = [s for s in states if s is not None]
    return sum(known) if known else None


def _quota(base: Path, unknown: dict[str, str]) -> dict[str, float] | None:
    """How often and how long a CPU quota (a container's limit) stopped our group: {"throttled", "seconds"}."""
    for line in (_read(base / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        if "cpu" not in names.split(",") and names:
            continue
        top = base / ("sys/fs/cgroup/cpu" if names else "sys/fs/cgroup")
        for folder in (top / path.strip("/"), top):
            words = dict(line.split() for line in (_read(folder / "cpu.stat") or "").splitlines())
            if "nr_throttled" in words:
                seconds = int(words.get("throttled_usec", 0)) / 1e6 + int(words.get("throttled_time", 0)) / 1e9
                return {"throttled": int(words["nr_throttled"]), "seconds": seconds}
    unknown["quota"] = "no cgroup of ours has a cpu.stat with nr_throttled"
    return None


def _on_battery(base: Path) -> bool | None:
    """Whether a battery is being emptied; None on a machine without one."""
    found = None
    for supply in (base / "sys/class/power_supply").glob("*"):
        if (_read(supply / "type") or "").strip() == "Battery" and (_read(supply / "scope") or "").strip() != "Device":
            found = bool(found) or (_read(supply / "status") or "").strip() == "Discharging"
    return found


def _integer(path: Path) -> int | None:
    text = (_read(path) or "").strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None
