"""Devices: what a target can run, from TOML files in devices/ (one a device; the folder is the registry).

A device steers defaults (formats, runtimes, int8 scheme, threads). Unless its transport reaches the board,
latency is measured on this machine, and every report says so: see `Device.latency_note`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lepton_edge import registry, transport
from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.host import ISA_NAMES, isa_features

PLUGINS = "LEPTON_EDGE_PLUGINS"
KINDS = ("measured", "emulated", "estimated")
ARCHITECTURES = ("x86_64", "aarch64", "armv7l", "cortex-m", "host")
SCHEMES = ("", "u8s8", "u8s8-reduced", "s8s8", "s8s8-integer")


@dataclass(frozen=True)
class Device:
    """One target. Empty tuples and zeros mean: not restricted, or not known."""

    name: str  # the file's stem
    title: str
    kind: str  # what its latency figures are: "measured" on it, "emulated" or "estimated"
    transport: str  # how it is reached: a file of transports/, "local", or "none": it is described only
    arch: str  # one of ARCHITECTURES
    cpu: str = ""
    cores: int = 0
    memory_mb: int = 0
    isa: tuple[str, ...] = ()  # names of host.ISA_NAMES
    formats: tuple[str, ...] = ()  # preferred first
    runtimes: tuple[str, ...] = ()  # files of lepton_edge/runtimes, preferred first
    scheme: str = ""  # the int8 scheme of its fastest exact kernels
    threads: int = 1
    accelerator: str = ""
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()  # public documents the facts come from
    installs: dict[str, str] = field(default_factory=dict)  # packages that install on it, and their last version
    estimators: tuple[str, ...] = ()  # files of lepton_edge/estimators
    estimate: dict[str, Any] = field(default_factory=dict)  # their options: accelerator, arena_kb ...
    reach: dict[str, Any] = field(default_factory=dict)  # the options of its transport: address, python ...
    path: str = field(default="", compare=False)  # the file it was read from

    @property
    def is_here(self) -> bool:
        """Whether figures taken on this machine are this device's own."""
        return self.transport == "local"

    @property
    def is_reached(self) -> bool:
        """Whether there is a way to it, so that models can be run there."""
        return self.transport not in ("local", "none")

    def latency_note(self) -> str:
        """What to print beside a latency in a report for this device; "" when the number is its own."""
        if self.is_here or self.is_reached:
            return ""
        return f"latency was measured on this machine, not on {self.title}"

    def features(self) -> tuple[str, ...]:
        """The device's instruction set extensions; for this machine they are read off it."""
        return tuple(isa_features()) if self.is_here and not self.isa else self.isa

    def quantize_options(self) -> dict[str, Any]:
        """Options of the quantize pass that its instruction set asks for: see ``scheme``."""
        known: dict[str, dict[str, Any]] = {
            "u8s8": {"reduce_range": "off"},
            "u8s8-reduced": {"reduce_range": "on"},
            "s8s8": {"reduce_range": "off", "signed": True},
            "s8s8-integer": {"reduce_range": "off", "signed": True, "integer": True},
        }
        return known.get(self.scheme, {})

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain data, and `latency_note`."""
        data = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return data | {"latency_note": self.latency_note()}


@dataclass(frozen=True)
class DeviceList(Mapping[str, Device]):
    """Devices by name, and {file: problem} for the files that could not be read."""

    devices: dict[str, Device]
    broken: dict[str, str]

    def __getitem__(self, name: str) -> Device:
        return self.devices[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.devices)

    def __len__(self) -> int:
        return len(self.devices)


def own_folder() -> Path:
    """Where the user's own devices are kept: LEPTON_EDGE_DEVICES, else lepton-edge/devices among the settings."""
    if chosen := os.environ.get("LEPTON_EDGE_DEVICES"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "lepton-edge" / "devices"


def device_folders(extra_dirs: Iterable[str | Path] = ()) -> list[Path]:
    """Where devices are read from: the package's own folder, the user's, plugins, then `extra_dirs`; later ones win."""
    here = Path(__file__).parent
    shipped = here / "devices" if (here / "devices").is_dir() else here.parent / "devices"
    # An own device may not take the name of a shipped one: see probe.add.
    plugins = [own_folder(), *(Path(p) / "devices" for p in os.environ.get(PLUGINS, "").split(os.pathsep) if p)]
    return [shipped, *plugins, *(Path(folder) for folder in extra_dirs)]


def load_devices(extra_dirs: Iterable[str | Path] = ()) -> DeviceList:
    """Every device that can be read, sorted by name; a broken file is reported and hides no other."""
    devices: dict[str, Device] = {}
    broken: dict[str, str] = {}
    for folder in device_folders(extra_dirs):
        for path in sorted(folder.glob("*.toml")):
            try:
                device = read_device(path)
            except LeptonError as problem:
                broken[str(path)] = problem.message
                continue
            devices[device.name] = device
    return DeviceList(dict(sorted(devices.items())), broken)


def get_device(name: str, extra_dirs: Iterable[str | Path] = ()) -> Device:
    """One device by name, or from a path that ends in .toml.

    Raises UsageError for an unknown name, LeptonError for a file that is not a device.
    """
    if name.endswith(".toml"):
        return read_device(Path(name))
    known = load_devices(extra_dirs)
    if name in known:
        return known[name]
    for path, problem in known.broken.items():
        if Path(path).stem == name:
            raise LeptonError(problem, hint=f"mend {path}")
    hint = did_you_mean(name, list(known))
    listed = f"known devices: {', '.join(known)}"
    raise UsageError(f"unknown device '{name}'", hint=hint if hint.startswith("known") else f"{hint} {listed}")


def read_device(path: str | Path) -> Device:
    """Reads and checks one TOML file. Raises LeptonError naming the file, the key and what is allowed."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise LeptonError(f"{path}: not valid TOML: {problem}", hint="mend the line it names") from problem
    except OSError as problem:
        raise LeptonError(f"{path}: cannot be read: {problem.strerror}", hint="check the path") from problem
    return _device(path, table)


def _device(path: Path, table: dict[str, Any]) -> Device:
    allowed = {f.name: f for f in fields(Device) if f.name not in ("name", "path")}
    for key in table:
        if key not in allowed:
            raise LeptonError(f"{path}: unknown key '{key}'", hint=did_you_mean(key, list(allowed)))
    missing = [key for key in ("title", "kind", "transport", "arch") if key not in table]
    if missing:
        raise LeptonError(f"{path}: the key '{missing[0]}' is missing", hint=f"add {missing[0]} = ...")
    values = {key: _value(path, key, value) for key, value in table.items()}
    device = Device(name=path.stem, path=str(path), **values)
    _check(path, device)
    return device


TEXTS = ("title", "kind", "transport", "arch", "cpu", "scheme", "accelerator")
NUMBERS = ("cores", "memory_mb", "threads")
CHOICES = {"kind": KINDS, "arch": ARCHITECTURES, "scheme": SCHEMES}
LISTS = {"isa": ISA_NAMES, "formats": None, "runtimes": None, "notes": None, "sources": None, "estimators": None}


def _value(path: Path, key: str, value: Any) -> Any:
    if key in ("reach", "estimate"):
        if not isinstance(value, dict) or not all(isinstance(v, str | int | float) for v in value.values()):
            raise _wrong(path, key, value, "a section of texts and numbers")
        return value
    if key == "installs":
        if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
            raise _wrong(path, key, value, "a section of versions in quotes")
        return value
    if key in TEXTS:
        if not isinstance(value, str):
            raise _wrong(path, key, value, "a text in quotes")
        return _choice(path, key, value, CHOICES.get(key))
    if key in NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise _wrong(path, key, value, "a whole number, 0 or more")
        return value
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise _wrong(path, key, value, "a list of texts")
    return tuple(_choice(path, key, entry, LISTS[key]) for entry in value)


def _choice(path: Path, key: str, value: str, allowed: tuple[str, ...] | None) -> str:
    if allowed is not None and value not in allowed:
        known = [name for name in allowed if name]
        raise LeptonError(f"{path}: {key} = '{value}' is not known", hint=did_you_mean(value, known))
    return value


def _wrong(path: Path, key: str, value: Any, wanted: str) -> LeptonError:
    return LeptonError(f"{path}: {key} = {value!r} should be {wanted}", hint=f"write {key} as {wanted}")


def _check(path: Path, device: Device) -> None:
    """Rules between keys."""
    _choice(path, "transport", device.transport, ("local", "none", *transport.names()))
    for key in device.reach:
        if not device.is_reached or key not in transport.options(device.transport):
            known = list(transport.options(device.transport)) if device.is_reached else []
            raise LeptonError(
                f"{path}: the transport '{device.transport}' has no option '{key}'", did_you_mean(key, known)
            )
    options = {e.name: list(e.options) for e in registry.estimators()}
    for name in device.estimators:
        _choice(path, "estimators", name, tuple(options))
    taken = [option for name in device.estimators for option in options[name] if option not in ("data", "keep")]
    for key in device.estimate:
        if key not in taken:
            raise LeptonError(f"{path}: no estimator of it has an option '{key}'", did_you_mean(key, taken))
    for name in device.formats:
        _choice(path, "formats", name, tuple(registry.formats()))
    if device.threads < 1:
        raise LeptonError(f"{path}: threads = 0", hint="give at least one thread")
    if device.cores and device.threads > device.cores:
        raise LeptonError(
            f"{path}: threads = {device.threads} on a device of {device.cores} cores", hint="lower threads"
        )
    if device.transport == "local" and device.kind != "measured":
        raise LeptonError(f"{path}: a local device is always measured", hint='write kind = "measured"')
    if not device.title.strip():
        raise LeptonError(f"{path}: the title is empty", hint="say what the device is")
