"""What this machine is, and what is installed: facts for run.json.

Self-contained (standard library, Python 3.9 or later), for it is also called on devices; milliseconds, and nothing is
imported to find out its version.
What cannot be read is None, and the reason stands beside it under "unknown".
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "numpy", "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert", "ai-edge-quantizer", "tflite-runtime",
    "tensorflow", "keras", "tf-keras", "tensorflow-model-optimization", "tf2onnx", "torch", "litert-torch",
    "h5py", "protobuf",
)  # fmt: skip

# /proc/cpuinfo's word (x86 "flags", Arm "Features") -> ours: what decides how int8 and bf16 are computed.
ISA_WORDS = {
    "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx512f": "avx512f", "avx512bw": "avx512bw",
    "avx512_vnni": "avx512_vnni", "avx_vnni": "avx_vnni", "avx_vnni_int8": "avx_vnni_int8",
    "avx512_bf16": "avx512_bf16", "avx512_fp16": "avx512_fp16", "amx_int8": "amx_int8", "amx_bf16": "amx_bf16",
    "neon": "neon", "asimd": "neon", "asimdhp": "fp16", "asimddp": "dotprod",
    "i8mm": "i8mm", "bf16": "bf16", "sve": "sve", "sve2": "sve2", "svei8mm": "sve_i8mm",
}  # fmt: skip
ISA_NAMES = tuple(dict.fromkeys(ISA_WORDS.values()))
# sysctl's names on macOS, for the same words.
MAC_ISA = {"FEAT_DotProd": "dotprod", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16", "FEAT_FP16": "fp16"}
# Part numbers of Arm's own cores, for machines whose /proc/cpuinfo has no model name.
ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1", "0xd40": "Neoverse-V1", "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2", "0xc07": "Cortex-A7", "0xc0f": "Cortex-A15",
}  # fmt: skip


def host_info(root: str | Path = "/") -> dict[str, Any]:
    """The "host" object of run.json. `root` is where /proc and /sys are found (tests give one of their own).

    Keys: machine_id (see there), cpu, board, machine, cores (usable), cores_total, isa, governor, frequency_mhz,
    temperature_c, memory_gb, available_gb, cgroup {version, cpus, memory_gb}, load_average (1, 5, 15 minutes), os,
    python, packages, and unknown {key: why it is None}.
    """
    base = Path(root)
    unknown: dict[str, str] = {}
    memory = memory_bytes(base)
    info = {
        "machine_id": machine_id(base),
        "cpu": cpu_name(base),
        "board": _board(base),
        "machine": platform.machine(),
        "cores": usable_cores(),
        "cores_total": os.cpu_count() or 1,
        "isa": isa_features(base),
        "governor": _cpufreq(base, "scaling_governor", unknown, "governor"),
        "frequency_mhz": _mhz(base, unknown),
        "temperature_c": _temperature(base, unknown),
        "memory_gb": gigabytes(memory.get("MemTotal")),
        "available_gb": gigabytes(memory.get("MemAvailable")),
        "cgroup": cgroup_limits(base),
        "load_average": _load(unknown),
        "os": _os_name(base),
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
    }
    return info | {"unknown": unknown}


def _board(base: Path) -> str | None:
    """The board or computer, by its device tree or its firmware; None where neither tells."""
    for file in ("proc/device-tree/model", "sys/class/dmi/id/product_name"):
        if text := (_read(base / file) or "").strip("\0 \n"):
            return text
    return None


def machine_id(root: str | Path = "/") -> str:
    """A hash that tells machines apart, and nothing else of them: of the system's id, the board's serial and the CPU.

    Copies of one container image or memory card share the system's id, so it does not stand alone.
    """
    base = Path(root)
    system = _read(base / "etc/machine-id") or _read(base / "var/lib/dbus/machine-id") or platform.node()
    serial = _read(base / "proc/device-tree/serial-number") or _cpuinfo(base).get("Serial", "")
    text = "\n".join((system.strip(), serial.strip("\0 "), cpu_name(base), str(os.cpu_count())))
    return hashlib.sha256(f"lepton-edge\n{text}".encode()).hexdigest()[:16]


def usable_cores() -> int:
    """Cores this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """{distribution: version} of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_name(root: str | Path = "/") -> str:
    """The processor as its owner would name it; on boards, the board's core type."""
    fields = _cpuinfo(Path(root))
    if name := fields.get("model name") or fields.get("Processor"):
        return name
    part = ARM_PARTS.get(fields.get("CPU part", ""))
    board = _read(Path(root) / "proc/device-tree/model") or fields.get("Model")
    named = " ".join(text.strip("\0 ") for text in (board, part) if text)
    return named or _mac("machdep.cpu.brand_string") or platform.processor() or platform.machine()


def isa_features(root: str | Path = "/") -> list[str]:
    """Instruction set extensions that matter for int8, bf16 and fp16, in the order of ISA_NAMES."""
    fields = _cpuinfo(Path(root))
    words = (fields.get("flags") or fields.get("Features") or "").split()
    found = {ISA_WORDS[word] for word in words if word in ISA_WORDS}
    if sys.platform == "darwin" and not words:
        found = {name for key, name in MAC_ISA.items() if _mac(f"hw.optional.arm.{key}") == "1"}
        found |= {"neon"} if platform.machine() == "arm64" else set()
    return [name for name in ISA_NAMES if name in found]


def cgroup_limits(root: str | Path = "/") -> dict[str, Any]:
    """{"version": 1 | 2 | None, "cpus": float | None, "memory_gb": float | None}; None: not limited.

    Every level from the process's own group up to the root counts; the tightest limit holds.
    """
    base = Path(root)
    groups = _own_groups(base)
    unified = base / "sys/fs/cgroup"
    if (unified / "cgroup.controllers").is_file():
        folders = _upwards(unified, groups.get("", "/"))
        return _limits(2, [_cpu_v2(f) for f in folders], [_number(f / "memory.max") for f in folders])
    cpu = _upwards(unified / "cpu", groups.get("cpu", "/"))
    memory = _upwards(unified / "memory", groups.get("memory", "/"))
    if not (unified / "cpu").is_dir() and not (unified / "memory").is_dir():
        return _limits(None, [], [])
    sizes = [_number(folder / "memory.limit_in_bytes") for folder in memory]
    return _limits(1, [_cpu_v1(folder) for folder in cpu], sizes)


def _limits(version: int | None, cpus: list[float | None], sizes: list[float | None]) -> dict[str, Any]:
    cpu = min((value for value in cpus if value is not None), default=None)
    size = min((value for value in sizes if value is not None and value < 1 << 60), default=None)
    return {"version": version, "cpus": cpu, "memory_gb": None if size is None else round(size / 2**30, 3)}


def _own_groups(base: Path) -> dict[str, str]:
    """{controller: path} of /proc/self/cgroup; the unified hierarchy is ""."""
    groups = {}
    for line in (_read(base / "proc/self/cgroup") or "").splitlines():
        _, names, path = line.split(":", 2)
        groups.update({name: path for name in names.split(",")})
    return groups


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and of all above it; inside a container the path may not exist, the root does."""
    parts = [part for part in path.split("/") if part and part != ".."]
    folders = [root.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]
    return [folder for folder in folders if folder.is_dir()]


def _cpu_v2(folder: Path) -> float | None:
    quota, _, period = (_read(folder / "cpu.max") or "max").strip().partition(" ")
    return round(int(quota) / int(period), 3) if quota.isdigit() and period.isdigit() else None


def _cpu_v1(folder: Path) -> float | None:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return round(quota / period, 3) if quota is not None and quota > 0 and period else None


def _number(path: Path) -> float | None:
    text = (_read(path) or "").strip()
    return float(text) if text.lstrip("-").isdigit() else None


def _read(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def _cpuinfo(base: Path) -> dict[str, str]:
    """The first processor's fields (and the fields that stand once, at the end)."""
    fields: dict[str, str] = {}
    for line in (_read(base / "proc/cpuinfo") or "").splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _mac(key: str) -> str:
    """One sysctl on macOS, "" elsewhere."""
    if sys.platform != "darwin":
        return ""
    import subprocess

    done = subprocess.run(["/usr/sbin/sysctl", "-n", key], capture_output=True, text=True, timeout=5, check=False)
    return done.stdout.strip()


def memory_bytes(root: str | Path = "/") -> dict[str, int]:
    """What the kernel says of its memory: bytes by the names of /proc/meminfo (MemTotal alone elsewhere)."""
    found = {}
    for line in (_read(Path(root) / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["MemTotal"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found


def gigabytes(size: int | None) -> float | None:
    """Bytes as GiB with two decimals."""
    return None if size is None else round(size / 2**30, 2)


def _cpufreq(base: Path, name: str, unknown: dict[str, str], key: str) -> str | None:
    folder = base / "sys/devices/system/cpu/cpu0/cpufreq"
    text = _read(folder / name)
    if text is None:
        unknown[key] = "this kernel gives no cpufreq (a virtual machine or container usually has none)"
    return None if text is None else text.strip()


def _mhz(base: Path, unknown: dict[str, str]) -> float | None:
    text = _cpufreq(base, "scaling_cur_freq", {}, "")
    if text and text.isdigit():
        return round(int(text) / 1000, 1)
    text = _cpuinfo(base).get("cpu MHz")
    if text:
        return round(float(text), 1)
    unknown["frequency_mhz"] = "neither cpufreq nor /proc/cpuinfo tells it"
    return None


def _temperature(base: Path, unknown: dict[str, str]) -> float | None:
    """The hottest thermal zone, in degrees Celsius."""
    zones = [_number(zone / "temp") for zone in sorted((base / "sys/class/thermal").glob("thermal_zone*"))]
    readings = [value / 1000 for value in zones if value is not None]
    if not readings:
        unknown["temperature_c"] = "no thermal zone can be read"
    return round(max(readings), 1) if readings else None


def _load(unknown: dict[str, str]) -> list[float] | None:
    try:
        return [round(value, 2) for value in os.getloadavg()]
    except (AttributeError, OSError):
        unknown["load_average"] = "this system has no load average"
        return None


def _os_name(base: Path) -> str:
    for line in (_read(base / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return f"{line.split('=', 1)[1].strip().strip(chr(34))}, {platform.system()} {platform.release()}"
    return f"{platform.system()} {platform.release()}"
