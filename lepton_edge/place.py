"""Where models run: this machine, another environment, an emulator or a board. A place starts workers and takes files.

Everything else is the same everywhere: the worker's protocol, the runtimes, the one timing loop.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from lepton_edge.device import Device
from lepton_edge.errors import UsageError
from lepton_edge.launch import Progress, Worker, python_path
from lepton_edge.registry import Runtime


class Place(Protocol):
    """What the stages need of a place. Methods that reach it raise PlaceLost when it cannot be reached any more."""

    @property
    def name(self) -> str:
        """How people name it: the name of a device."""

    @property
    def kind(self) -> str:
        """What a latency taken there is: measured, emulated."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its figures has to know."""

    @property
    def shares_host(self) -> bool:
        """Whether it computes on this machine's processor, so that nothing else may be timed meanwhile."""

    @property
    def provides(self) -> bool:
        """Whether its workers find the packages of any runtime, fetched when they are first needed."""

    def worker(self, what: str, runtime: Runtime) -> Worker:
        """A fresh worker for one runtime; ``what`` names its work in errors."""

    def send(self, path: Path, files: Sequence[Path] = ()) -> str:
        """Bring a file or folder there, with the ``files`` that lie beside it and belong to it; its path there."""

    def folder(self) -> str:
        """A new, empty folder there, for what a worker writes."""

    def fetch(self, path: str, folder: Path) -> None:
        """Bring all files of a folder there into a folder here."""

    def call(self, file: Path, function: str, **args: Any) -> Any:
        """Run a function of a self-contained file there (Python 3.9, standard library); JSON goes in and comes out."""

    def install(self, wheels: Sequence[Path]) -> None:
        """Make the packages in wheels importable for the workers to come, without installing them."""

    def close(self) -> None:
        """Leave it as it was found."""


class Here:
    """This machine, this environment."""

    name, kind, shares_host, provides = "local", "measured", True, False
    notes: tuple[str, ...] = ()

    def __init__(self, scratch: Callable[[], Path] | None = None) -> None:
        self._scratch = scratch

    def worker(self, what: str, runtime: Runtime) -> Worker:
        return Worker(what, environ=runtime.environ)

    def send(self, path: Path, files: Sequence[Path] = ()) -> str:
        return python_path(path)

    def folder(self) -> str:
        assert self._scratch is not None, "made without a place for what workers write"
        return python_path(self._scratch())

    def fetch(self, path: str, folder: Path) -> None:
        for file in Path(path).iterdir():
            file.replace(folder / file.name)

    def call(self, file: Path, function: str, **args: Any) -> Any:
        return getattr(_module(file), function)(**args)

    def install(self, wheels: Sequence[Path]) -> None:
        if wheels:
            raise UsageError("this machine has what is installed in it: wheels are for other devices", "leave them out")

    def close(self) -> None:
        pass


@cache
def _module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"lepton_there_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_place(device: Device, scratch: Callable[[], Path] | None = None, progress: Progress | None = None) -> Place:
    """The place that a device is: this machine for one that is local or only described. Raises LeptonError.

    ``scratch`` makes the folders that workers on this machine write to; ``progress`` is told of files on their way.
    """
    if not device.is_reached:
        return Here(scratch)
    from lepton_edge.remote import Remote

    return Remote(device, progress)
