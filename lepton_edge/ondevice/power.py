"""Energy: the joules that a machine took over some seconds, from what its kernel can tell.

Self-contained (standard library, Python 3.9 or later): it is called at the place where models run (``place.call``).
Looked for in this order: RAPL counters of x86 packages; the input rail of an INA sensor (Jetson, hwmon); a battery
that is being emptied. Sources: Documentation/power/powercap/powercap.rst, hwmon/sysfs-interface.rst and
ABI/testing/sysfs-class-power of Linux; NVIDIA Jetson Developer Guide, "Power monitor" (what tegrastats prints).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Rails that feed the whole board, by the labels of Jetson boards.
INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "SYS_VIN_HV", "VDD_5V_IN", "VIN_SYS_5V0")


def probe(root: str = "/") -> dict[str, Any]:
    """{"source": "rapl" | "ina" | "battery" | None, "of": what it covers, "reason": why there is none}."""
    name, of, _, reason = _source(Path(root))
    return {"source": name, "of": of, "reason": reason}


def trace(seconds: float, root: str = "/", every: float = 0.05) -> dict[str, Any]:
    """Wait for ``seconds`` and tell the energy taken meanwhile: {"source", "of", "joules", "seconds"}, or "reason".

    A counter is read at both ends; a power sensor every ``every`` seconds, and its readings are added up.
    """
    name, of, read, reason = _source(Path(root))
    if read is None:
        return {"source": None, "of": of, "joules": None, "seconds": 0.0, "reason": reason}
    start = time.monotonic()
    if name == "rapl":
        before = read()
        time.sleep(seconds)
        after, passed = read(), time.monotonic() - start
        return {"source": name, "of": of, "joules": spent(before, after), "seconds": passed, "reason": ""}
    joules, last = 0.0, start
    watts = read()["watts"][0]
    while last - start < seconds:
        time.sleep(min(every, max(0.0, seconds - (last - start))))
        now, power = time.monotonic(), read()["watts"][0]
        joules += (watts + power) / 2 * (now - last)
        watts, last = power, now
    return {"source": name, "of": of, "joules": joules, "seconds": last - start, "reason": ""}


def spent(before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]]) -> float:
    """Joules between two readings {zone: (microjoules, where the counter starts again at 0)}."""
    total = 0
    for zone, (first, limit) in before.items():
        last = after[zone][0]
        total += last - first if last >= first else last + limit - first
    return total / 1e6


def _source(base: Path) -> tuple[str | None, str, Callable[[], dict[str, Any]] | None, str]:
    """The first source that can be read: its name, what it covers, how to read it; else the reasons why none can."""
    reasons = []
    for find in (_rapl, _ina, _battery):
        name, of, read, reason = find(base)
        if read is not None:
            return name, of, read, ""
        reasons.append(reason)
    return None, "", None, "; ".join(reasons)


def _rapl(base: Path) -> tuple[str, str, Callable[[], dict[str, Any]] | None, str]:
    zones = sorted(base.glob("sys/class/powercap/intel-rapl:[0-9]*"))
    packages = [z for z in zones if z.name.count(":") == 1 and (_text(z / "name") or "").startswith("package")]
    if not packages:
        return "rapl", "", None, "no RAPL counters (/sys/class/powercap)"

    def read() -> dict[str, Any]:
        found = {}
        for zone in packages:
            limit = _text(zone / "max_energy_range_uj") or "0"
            found[zone.name] = (int((zone / "energy_uj").read_text()), int(limit))
        return found

    try:
        read()
    except PermissionError:
        fix = "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj"
        return "rapl", "", None, f"RAPL counters can be read by root only (since CVE-2020-8694; {fix})"
    except (OSError, ValueError) as error:
        return "rapl", "", None, f"RAPL counters cannot be read ({error})"
    return "rapl", "the processor packages", read, ""


def _ina(base: Path) -> tuple[str, str, Callable[[], dict[str, Any]] | None, str]:
    """A power sensor on the board: INA2xx and INA3221 through hwmon, or through iio on older Jetsons."""
    rails: list[tuple[str, Callable[[], float]]] = []
    for chip in sorted(base.glob("sys/class/hwmon/hwmon*")):
        if not (_text(chip / "name") or "").startswith("ina"):
            continue
        for file in sorted(chip.glob("power[0-9]*_input")):
            rails.append((_label(chip, file.name[:-6]), lambda f=file: int(f.read_text()) / 1e6))  # type: ignore[misc]
        for file in sorted(chip.glob("curr[0-9]*_input")):
            volts = chip / file.name.replace("curr", "in")
            if volts.is_file():  # mA and mV
                rails.append((_label(chip, volts.name[:-6]), lambda c=file, v=volts: _product(c, v) / 1e6))  # type: ignore[misc]
    for file in sorted(base.glob("sys/bus/i2c/drivers/ina3221x/*/iio:device*/in_power[0-9]_input")):
        label = _text(file.with_name(f"rail_name_{file.name[8]}")) or ""
        rails.append((label, lambda f=file: int(f.read_text()) / 1e3))  # type: ignore[misc]
    if not rails:
        return "ina", "", None, "no INA power sensor (hwmon)"
    label, watts = next(((n, w) for n, w in rails if n in INPUT_RAILS), rails[0])
    try:
        watts()
    except (OSError, ValueError) as error:
        return "ina", "", None, f"the INA power sensor cannot be read ({error})"
    return "ina", f"the board (rail {label})" if label in INPUT_RAILS else f"the rail {label}", _watts(watts), ""


def _label(chip: Path, name: str) -> str:
    return _text(chip / f"{name}_label") or name


def _battery(base: Path) -> tuple[str, str, Callable[[], dict[str, Any]] | None, str]:
    for supply in sorted(base.glob("sys/class/power_supply/*")):
        if _text(supply / "type") != "Battery" or _text(supply / "scope") == "Device":
            continue
        if _text(supply / "status") != "Discharging":
            return "battery", "", None, "the battery is not being emptied, so its power is not the machine's"
        read = _watts(_drain(supply))
        try:
            read()
        except (OSError, ValueError) as error:
            return "battery", "", None, f"the battery's power cannot be read ({error})"
        return "battery", "the whole machine (battery)", read, ""
    return "battery", "", None, "no battery"


def _drain(supply: Path) -> Callable[[], float]:
    """Watts out of a battery: its own figure (uW), else current (uA) times voltage (uV)."""
    power, current, voltage = (supply / f"{name}_now" for name in ("power", "current", "voltage"))
    if power.is_file():
        return lambda: abs(int(power.read_text())) / 1e6
    return lambda: abs(_product(current, voltage)) / 1e12


def _watts(read: Callable[[], float]) -> Callable[[], dict[str, Any]]:
    return lambda: {"watts": (read(), 0)}


def _product(first: Path, second: Path) -> float:
    return float(int(first.read_text()) * int(second.read_text()))


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return None
