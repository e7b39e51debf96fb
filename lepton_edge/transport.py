"""Transports: how a process is started in another place so that its pipes end here. A file each in ``transports/``."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from lepton_edge import registry
from lepton_edge.errors import LeptonError, UsageError, did_you_mean

#: Goes before a command on this machine that is to run in an environment of its own.
ALONE = ("env", "-u", "PYTHONPATH", "-u", "PYTHONHOME")
#: What ``explain`` answers: one line on what happened, and the fix.
Why = tuple[str, str]


@dataclass(frozen=True)
class Transport:
    """An open way to a place.

    ``wrap`` turns a command there into one here, whose pipes lead to it. ``explain(code, last words)`` says why that
    one ended, or None when it was the command and not the way that failed. ``python`` is the interpreter there,
    ``temp`` where its private folders are made ("": its temporary folder). A place that ``shares_host`` computes on
    this machine's processor; ``kind`` is what a latency taken there is called. ``ended(code)`` says why the place,
    which is still there, ended a process (a memory limit). ``site(requires)`` is a folder there with these packages,
    where the place has none of its own. ``notes`` is what a reader of its figures has to know.
    """

    wrap: Callable[[Sequence[str]], list[str]]
    explain: Callable[[int, str], Why | None]
    python: str = "python3"
    temp: str = ""
    shares_host: bool = False
    kind: str = "measured"
    close: Callable[[], None] = lambda: None
    ended: Callable[[int], Why | None] = lambda code: None
    site: Callable[[Sequence[str]], str] | None = None
    notes: tuple[str, ...] = ()


def names() -> list[str]:
    """The transports there are."""
    return [file.stem for file in registry._files("transports")]


@cache
def _files() -> dict[str, Path]:
    return {file.stem: file for file in registry._files("transports")}


def options(name: str) -> dict[str, Any]:
    """The options of a transport and their defaults, read without importing it. Raises UsageError for no such one."""
    if name not in _files():
        raise UsageError(f"unknown transport '{name}'", did_you_mean(name, list(_files())))
    return registry._read(_files()[name], "connect")["options"]


def connect(name: str, title: str, chosen: dict[str, Any]) -> Transport:
    """Open a transport with the options ``chosen``; ``title`` names the place in errors. Raises LeptonError."""
    known = options(name)
    for key in chosen:
        if key not in known:
            raise LeptonError(f"{title}: the transport '{name}' has no option '{key}'", did_you_mean(key, list(known)))
    for key, default in known.items():
        if default is registry.REQUIRED and key not in chosen:
            raise LeptonError(f"{title}: the transport '{name}' needs '{key}'", f"add {key} = … to its [reach] section")
    file = _files()[name]
    spec = importlib.util.spec_from_file_location(f"lepton_transport_{name}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.connect(title, **chosen)
