"""The checks of `lepton-edge doctor`: what is installed, what clashes, what this machine can do.

Standard library and packaging only; nothing is imported to find out its version, and runtimes are asked in workers.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path

from lepton_edge.host import (
    PACKAGES,
    cgroup_limits,
    cpu_name,
    gigabytes,
    isa_features,
    memory_bytes,
    package_versions,
    usable_cores,
)


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
        _check_accelerators,
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


def _check_cpu() -> list[dict[str, str]]:
    isa = isa_features()
    risky = bool({"avx2", "avx512f"} & set(isa)) and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(isa)
    words = " ".join(isa) or "instruction set unknown"
    detail = f"{cpu_name()}, {usable_cores()} cores, {words}: {int8_advice(isa)}"
    fix = "let lepton-edge choose the scheme for the device, or pass one with reduced range" if risky else ""
    return [_entry("processor", "warn" if risky or not isa else "ok", detail, fix)]


def _check_accelerators() -> list[dict[str, str]]:
    """What each installed runtime says of the devices that it can use besides its default one."""
    from lepton_edge import availability, registry

    known = set(registry.formats())  # without those of the stand-in for tests
    told = [t for t in availability.survey() if ":" in t.runtime.name and known & {*t.runtime.formats}]
    return [
        _entry(f"runtime {t.runtime.name}", "missing" if t.reason else "ok", t.reason or "usable here", t.fix)
        for t in told
        if not t.runtime.broken and not registry.missing(t.runtime.requires)
    ]


def _check_limits(root: str | Path = "/") -> list[dict[str, str]]:
    limits, memory = cgroup_limits(root), memory_bytes(root)
    total, free = gigabytes(memory.get("MemTotal")), gigabytes(memory.get("MemAvailable"))
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
