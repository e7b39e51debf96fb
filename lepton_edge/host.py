"""What this machine is, and what is installed: facts for run.json, and the checks of `lepton-edge doctor`.

Standard library (and packaging) only, milliseconds, and nothing is imported to find out its version.
What cannot be read is None, and the reason stands beside it under "unknown".
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
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

    Keys: cpu, machine, cores (usable), cores_total, isa, governor, frequency_mhz, temperature_c, memory_gb,
    available_gb, cgroup {version, cpus, memory_gb}, load_average (1, 5, 15 minutes), os, python, packages, and
    unknown {key: why it is None}.
    """
    base = Path(root)
    unknown: dict[str, str] = {}
    memory = _meminfo(base)
    info = {
        "cpu": cpu_name(base),
        "machine": platform.machine(),
        "cores": usable_cores(),
        "cores_total": os.cpu_count() or 1,
        "isa": isa_features(base),
        "governor": _cpufreq(base, "scaling_governor", unknown, "governor"),
        "frequency_mhz": _mhz(base, unknown),
        "temperature_c": _temperature(base, unknown),
        "memory_gb": _gb(memory.get("MemTotal")),
        "available_gb": _gb(memory.get("MemAvailable")),
        "cgroup": cgroup_limits(base),
        "load_average": _load(unknown),
        "os": _os_name(base),
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
    }
    return info | {"unknown": unknown}


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


def int8_advice(isa: Iterable[str]) -> str:
    """Which int8 scheme is right and fast on a processor with these features (names of ISA_NAMES).

    Source: onnxruntime.ai, "Quantize ONNX models", on U8S8 saturation; Arm's and Intel's instruction manuals.
    """
    have = set(isa)
    if "amx_int8" in have:
        return "AMX int8: U8S8 at full range is exact (32-bit accumulation) and the fastest int8 here"
    if have & {"avx512_vnni", "avx_vnni", "avx_vnni_int8"}:
        return "VNNI: U8S8 at full range is exact (32-bit accumulation) and the fastest int8 here"
    if have & {"avx512f", "avx2"}:
        width = "AVX-512" if "avx512f" in have else "AVX2"
        return (
            f"{width} without VNNI: U8S8 saturates (pairs are added in 16 bits) and silently loses accuracy; "
            "use reduced-range (7-bit) weights, or U8U8, where the kernels are ONNX Runtime's or OpenVINO's"
        )
    if "i8mm" in have:
        return "i8mm: S8S8 and U8S8 are exact (32-bit accumulation); prefer S8S8 with per-channel weights"
    if "dotprod" in have:
        return "dotprod: S8S8 is exact (32-bit accumulation); prefer S8S8 with per-channel weights"
    if "neon" in have:
        return "NEON without dotprod: S8S8 is exact, and gains less over float32 than with dotprod"
    if have:
        return "no int8 instructions known: int8 saves size and memory traffic; measure whether it is faster"
    return "the instruction set is unknown: measure int8 and compare its accuracy on the device"


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


def _meminfo(base: Path) -> dict[str, int]:
    """Bytes by name."""
    found = {}
    for line in (_read(base / "proc/meminfo") or "").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    if not found and hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["MemTotal"] = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return found


def _gb(size: int | None) -> float | None:
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


# ---- doctor ----------------------------------------------------------------------------------------------


def doctor_checks(cache: str | Path | None = None) -> list[dict[str, str]]:
    """For `lepton-edge doctor`: [{"check", "status": "ok"|"warn"|"missing"|"error", "detail", "fix"}].

    `cache` is the folder of the store (default: where this package keeps it). Reads only; never raises for a
    missing package: that is an answer.
    """
    versions = package_versions([*PACKAGES, "packaging"])
    checks: list[Callable[[], list[dict[str, str]]]] = [
        _check_python,
        _check_extras,
        lambda: _check_numpy(versions),
        lambda: _check_tflite_runtime(versions),
        lambda: _check_keras(versions),
        _check_cpu,
        _check_limits,
        lambda: _check_cache(_cache_folder(cache)),
    ]
    return [entry for check in checks for entry in check()]


def _entry(check: str, status: str, detail: str, fix: str = "") -> dict[str, str]:
    return {"check": check, "status": status, "detail": detail, "fix": fix}


def _check_python() -> list[dict[str, str]]:
    version = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 - the doctor must be able to say so
        return [_entry("python", "error", f"Python {version} is too old", "install Python 3.11 or newer")]
    return [_entry("python", "ok", f"Python {version} at {sys.executable}")]


def extras_of(distribution: str = "lepton-edge") -> dict[str, list[str]]:
    """{extra: requirements that hold on this machine}, from the installed package's own metadata."""
    from packaging.requirements import Requirement

    try:
        names = metadata.metadata(distribution).get_all("Provides-Extra") or []
        listed = [Requirement(text) for text in metadata.requires(distribution) or []]
    except metadata.PackageNotFoundError:
        return {}
    table: dict[str, list[str]] = {name: [] for name in names}
    for requirement in listed:
        for name in names:
            marker = requirement.marker
            if marker and not marker.evaluate({"extra": ""}) and marker.evaluate({"extra": name}):
                table[name].append(f"{requirement.name}{_bracket(requirement.extras)}{requirement.specifier}")
    return table


def _bracket(extras: set[str]) -> str:
    return f"[{','.join(sorted(extras))}]" if extras else ""


def _check_extras() -> list[dict[str, str]]:
    table = extras_of()
    if not table:
        return [_entry("extras", "warn", "lepton-edge itself is not installed", "pip install -e .")]
    return [_check_extra(name, needs) for name, needs in table.items() if not _is_collection(needs)]


def _is_collection(needs: list[str]) -> bool:
    """Extras such as [all] only name others."""
    return bool(needs) and all(need.startswith("lepton-edge[") for need in needs)


def _check_extra(name: str, needs: list[str]) -> dict[str, str]:
    lacking, wrong = missing_of(needs)
    command = f"pip install 'lepton-edge[{name}]'"
    check = f"extra {name}"
    if lacking:
        return _entry(check, "missing", f"not installed: {', '.join(lacking)}", command)
    if wrong:
        return _entry(check, "error", "; ".join(wrong), command)
    found = package_versions(_name(need) for need in needs)
    detail = ", ".join(f"{package} {version}" for package, version in found.items())
    return _entry(check, "ok", detail or "nothing is needed on this machine")


def missing_of(needs: Iterable[str]) -> tuple[list[str], list[str]]:
    """(requirements without a package, "numpy 2.1 is installed, <2 is needed" for wrong versions)."""
    from packaging.requirements import Requirement

    lacking, wrong = [], []
    for text in needs:
        need = Requirement(text)
        found = package_versions([need.name]).get(need.name)
        if found is None:
            lacking.append(text)
        elif not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} {found} is installed, {need.specifier} is needed")
    return lacking, wrong


def _name(requirement: str) -> str:
    from packaging.requirements import Requirement

    return Requirement(requirement).name


def _release(version: str | None) -> tuple[int, ...]:
    parts = [part for part in (version or "").split(".")[:2] if part.isdigit()]
    return tuple(int(part) for part in parts)


def _check_numpy(versions: dict[str, str]) -> list[dict[str, str]]:
    """tflite-runtime 2.14, the last one, was built for NumPy 1 and crashes under NumPy 2."""
    if "tflite-runtime" in versions and _release(versions.get("numpy")) >= (2, 0):
        detail = f"tflite-runtime {versions['tflite-runtime']} crashes under numpy {versions['numpy']}"
        fix = "pip install 'numpy<2', or pip uninstall tflite-runtime (ai-edge-litert replaces it)"
        return [_entry("numpy and tflite-runtime", "error", detail, fix)]
    return []


def _check_tflite_runtime(versions: dict[str, str], python: tuple[int, ...] = sys.version_info[:2]) -> list:
    if "tflite-runtime" in versions or python < (3, 12):
        return []
    detail = f"there is no tflite-runtime for Python {python[0]}.{python[1]}; LiteRT is used instead"
    return [_entry("tflite-runtime", "warn", detail, "only if you must test that runtime: use Python 3.11")]


def _check_keras(versions: dict[str, str]) -> list[dict[str, str]]:
    """tf-keras follows TensorFlow's minor version; TensorFlow 2.16 and newer bring Keras 3."""
    found = []
    tensorflow, legacy = versions.get("tensorflow"), versions.get("tf-keras")
    if tensorflow and legacy and _release(tensorflow) != _release(legacy):
        major, minor = (*_release(tensorflow), 0)[:2]
        detail = f"tensorflow {tensorflow} and tf-keras {legacy} do not match"
        found.append(_entry("tensorflow and tf-keras", "error", detail, f"pip install 'tf-keras~={major}.{minor}.0'"))
    keras = versions.get("keras")
    if tensorflow and keras and _release(tensorflow) >= (2, 16) and _release(keras) < (3, 0):
        detail = f"tensorflow {tensorflow} needs Keras 3, found keras {keras}"
        found.append(_entry("tensorflow and keras", "error", detail, "pip install 'keras>=3'"))
    if tensorflow and legacy and not found:
        found.append(_entry("tensorflow and tf-keras", "ok", f"{tensorflow} and {legacy} match"))
    return found


def _check_cpu() -> list[dict[str, str]]:
    isa = isa_features()
    risky = bool({"avx2", "avx512f"} & set(isa)) and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(isa)
    words = " ".join(isa) or "instruction set unknown"
    detail = f"{cpu_name()}, {usable_cores()} cores, {words}: {int8_advice(isa)}"
    fix = "let lepton-edge choose the scheme for the device, or pass one with reduced range" if risky else ""
    return [_entry("processor", "warn" if risky or not isa else "ok", detail, fix)]


def _check_limits(root: str | Path = "/") -> list[dict[str, str]]:
    limits, memory = cgroup_limits(root), _meminfo(Path(root))
    total, free = _gb(memory.get("MemTotal")), _gb(memory.get("MemAvailable"))
    room = min((value for value in (free, limits["memory_gb"]) if value is not None), default=None)
    words = [f"{total} GB of memory, {free} GB available" if free is not None else f"{total} GB of memory"]
    if limits["memory_gb"] is not None:
        words.append(f"cgroup v{limits['version']} allows {limits['memory_gb']} GB")
    if limits["cpus"] is not None:
        words.append(f"cgroup v{limits['version']} allows {limits['cpus']} CPUs")
    status, fix = "ok", ""
    if room is not None and room < 2:
        status, fix = (
            "warn",
            "TensorFlow and PyTorch steps want about 2 GB: raise the limit or close programs",
        )
    elif limits["cpus"] is not None and limits["cpus"] < usable_cores():
        status, fix = "warn", "a CPU quota stalls a process in bursts: latency is not what the hardware gives"
    return [_entry("memory and limits", status, ", ".join(words), fix)]


def _cache_folder(cache: str | Path | None) -> Path:
    from lepton_edge.store import root

    return root() if cache is None else Path(cache)


def folder_size(path: Path) -> int:
    """Bytes in a folder; files that vanish while looking count 0."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 - os.walk gives strings
            except OSError:
                continue
    return total


def _check_cache(path: Path) -> list[dict[str, str]]:
    exists = path
    while not exists.exists() and exists != exists.parent:
        exists = exists.parent
    free = shutil.disk_usage(exists).free / 2**30
    used = folder_size(path) / 2**30 if path.is_dir() else 0.0
    detail = f"{path} holds {used:.2f} GB, the disk has {free:.1f} GB free"
    if not os.access(exists, os.W_OK):
        return [_entry("cache", "error", f"{exists} cannot be written", "set LEPTON_EDGE_CACHE to a folder of yours")]
    if free < 2:
        return [_entry("cache", "warn", detail, "free some disk, or set LEPTON_EDGE_CACHE to another one")]
    return [_entry("cache", "ok", detail)]
