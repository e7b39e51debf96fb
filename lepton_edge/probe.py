"""What a device is, asked of the device itself; and the TOML file that says so from then on."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from lepton_edge import device, registry
from lepton_edge.benching import HOST
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.remote import Remote

ARCH = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64", "armv7l": "armv7l"}
ARCH |= {"armv6l": "armv7l", "armv8l": "armv7l", "AMD64": "x86_64"}
FORMATS = ("tflite", "onnx", "openvino")


def probe(name: str) -> dict[str, Any]:
    """Ask a known device what it is: its facts now, and what its file says otherwise. Raises LeptonError."""
    known = device.get_device(name)
    if not known.is_reached:
        raise UsageError(
            f"'{name}' has no transport, so it cannot be asked", "add a board: lepton-edge devices add user@host"
        )
    facts = ask(known)
    says = known.to_dict()
    now = described(facts)
    changed = {k: {"file": says[k], "device": v} for k, v in now.items() if k in DIFFER and says[k] and says[k] != v}
    return {"name": known.name, "facts": facts, "changed": changed}


DIFFER = ("arch", "cpu", "cores", "memory_mb", "isa")


def add(
    address: str, name: str | None, transport: str, reach: dict[str, Any], *, replace: bool = False
) -> dict[str, Any]:
    """Reach a board, ask what it is, and write its TOML into the user's folder of devices; what was written, and where.

    Raises LeptonError when it cannot be reached, UsageError when its name is taken.
    """
    host = re.sub(r":\d+$", "", address.rpartition("@")[2])
    title = name or re.sub(r"[^a-z0-9]+", "-", host.lower()).strip("-")
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", title):
        raise UsageError(f"'{title}' cannot be the name of a device", "choose one of a-z, 0-9 and '-' with --name")
    path = device.own_folder() / f"{title}.toml"
    if title in device.load_devices() and not (replace and path.exists()):
        raise UsageError(f"there is a device '{title}' already", "choose another --name, or --replace what you added")
    options = {("serial" if transport == "adb" else "address"): address, **reach}
    board = Device(title, address, "measured", transport, "host", reach=options)
    facts = ask(board)
    text = toml(described(facts), transport, options, facts)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return {"name": title, "path": str(path), "facts": facts, **described(facts)}


def ask(board: Device) -> dict[str, Any]:
    """The facts of a device, as host.py finds them there. Raises LeptonError."""
    place = Remote(board)
    try:
        return place.call(HOST, "host_info") | {"swept": place.link.hello["swept"]}
    finally:
        place.close()


def described(facts: dict[str, Any]) -> dict[str, Any]:
    """The keys of a device's file that follow from its facts."""
    arch = ARCH.get(facts["machine"])
    if arch is None:
        raise LeptonError(
            f"its processor is '{facts['machine']}', which is not known here", f"known: {', '.join(ARCH)}"
        )
    there = {name.lower() for name in facts["packages"]}
    ready = [r for r in registry.runtimes() if set(r.formats) & set(FORMATS)]
    ready = [r for r in ready if all(Requirement(q).name.lower() in there for q in r.requires)]
    runnable = [f for f in FORMATS if any(f in r.formats for r in ready)]
    isa, memory = facts["isa"], facts["memory_gb"]
    return {
        "title": facts["board"] or facts["cpu"],
        "kind": "measured",
        "arch": arch,
        "cpu": facts["cpu"],
        "cores": facts["cores"],
        "memory_mb": round(memory * 1024) if memory else 0,
        "isa": isa,
        "formats": runnable or list(FORMATS),
        "runtimes": [r.name for r in ready],
        "scheme": scheme(arch, isa),
    }


def scheme(arch: str, isa: list[str]) -> str:
    """The int8 scheme whose kernels are exact and fastest with these instructions; see device.SCHEMES."""
    if arch != "x86_64":
        return "s8s8"
    return "u8s8" if {"avx512_vnni", "avx_vnni", "avx_vnni_int8"} & set(isa) else "u8s8-reduced"


def toml(keys: dict[str, Any], transport: str, reach: dict[str, Any], facts: dict[str, Any]) -> str:
    """The device file: JSON's texts, numbers and lists are TOML's as well."""
    keys = {**keys, "transport": transport, "sources": [f"the device itself, asked by lepton-edge ({facts['os']})"]}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in keys.items()]
    options = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in reach.items()]
    return "\n".join([*lines, "", "[reach]", *options]) + "\n"


def remove(name: str) -> Path:
    """Forget a device that was added. Raises UsageError for one that was not."""
    path = device.own_folder() / f"{name}.toml"
    if not path.is_file():
        raise UsageError(f"'{name}' is not a device that you added", "see 'lepton-edge devices list'")
    path.unlink()
    return path
