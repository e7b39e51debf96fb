"""A place that is reached through a transport: a board, an emulator, another environment; an agent there helps."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_edge import transport as transports
from lepton_edge.agent_link import AgentLink
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError, PlaceLost, WorkerError
from lepton_edge.launch import Progress, Way, Worker
from lepton_edge.registry import PACKAGE, Runtime

WORKER = PACKAGE / "worker.py"


class Remote:
    """A device that is reached through its transport; see ``place.Place``. What is brought there goes with it."""

    def __init__(self, device: Device, progress: Progress | None = None) -> None:
        """Connect; ``progress`` is told of files on their way. Raises LeptonError, saying why and what to do."""
        self.name, self.device, self._progress = device.name, device, progress
        self.title = device.reach.get("address") or device.name
        self._transport = transports.connect(device.transport, self.title, device.reach)
        self.kind, self.shares_host = self._transport.kind, self._transport.shares_host
        self.notes, self.provides = self._transport.notes, self._transport.site is not None
        try:
            self.link = AgentLink(self.title, self._transport)
        except BaseException:  # an interrupt too: it goes on, without a socket left behind
            self._transport.close()
            raise
        self._sent: dict[tuple, str] = {}
        self._numbers = itertools.count()
        self._site = ""

    @property
    def python(self) -> str:
        """The interpreter there."""
        return self._transport.python

    def worker(self, what: str, runtime: Runtime) -> Worker:
        mark = f"worker-{next(self._numbers)}"
        own = self._transport.site
        sites = [site for site in (self._site, own(runtime.requires) if own else "") if site]
        environ = {
            "LEPTON_EDGE_PID_FILE": f"{self.link.folder}/pids/{mark}",
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "TMPDIR": self.link.request("mkdir", path=f"{self.link.folder}/tmp-{mark}"),
            **({"PYTHONPATH": ":".join(sites)} if sites else {}),
            **runtime.environ,
        }
        pairs = [f"{key}={value}" for key, value in environ.items()]
        argv = ["env", *pairs, self.python, "-X", "faulthandler", self.send(WORKER)]

        def explain(code: int, words: str) -> WorkerError | None:
            if ended := self._transport.ended(code):
                return WorkerError(*ended)
            # A worker may outlive the agent for a moment, and then miss what went with it.
            why = self._transport.explain(code, words)
            return PlaceLost(*why) if why else self.link.lost()

        def end() -> None:
            with contextlib.suppress(LeptonError):  # when the place is lost, its agent ends the worker
                self.link.request("end", name=mark)

        return Worker(f"{what} on {self.title}", way=Way(self._transport.wrap(argv), explain, end))

    def send(self, path: Path, files: Sequence[Path] = ()) -> str:
        base = path if path.is_dir() else path.parent
        parts = [*(sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]), *files]
        parts = list(dict.fromkeys(f.resolve() for f in parts))
        sums = {f: sha256(f) for f in parts}
        name = "" if path.is_dir() else path.name
        key = (name, *(sums[f] for f in parts))
        if key not in self._sent:
            folder = f"{self.link.folder}/files-{next(self._numbers)}"
            for file in parts:
                place = f"{folder}/{file.relative_to(base.resolve()).as_posix()}"
                self.link.put(file, place, sums[file], progress=self._progress)
            self._sent[key] = f"{folder}/{name}".rstrip("/")
        return self._sent[key]

    def folder(self) -> str:
        return self.link.request("mkdir", path=f"{self.link.folder}/out-{next(self._numbers)}")

    def fetch(self, path: str, folder: Path) -> None:
        for name in self.link.request("list", path=path):
            self.link.get(f"{path}/{name}", folder / Path(name).name)

    def call(self, file: Path, function: str, **args: Any) -> Any:
        return self.link.request("call", file=self.send(file), function=function, args=args)

    def run(self, argv: Sequence[str], *, timeout: float = 600.0, environ: dict[str, str] | None = None) -> dict:
        """Run a command there: {"code", "out", "err"}; code None when its time (seconds) was over."""
        return self.link.request("run", timeout + 30, argv=list(argv), environ=environ or {}, limit=timeout)

    def install(self, wheels: Sequence[Path]) -> None:
        """Unpack wheels into the private folder, for workers to import: nothing is installed on the device."""
        if wheels:
            site = f"{self.link.folder}/site"
            for wheel in wheels:
                sent = self.send(wheel)
                self.call(PACKAGE / "ondevice" / "wheels.py", "unpack", wheel=sent, folder=site)
            self._site = site

    def close(self) -> None:
        self.link.close()
        self._transport.close()


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
