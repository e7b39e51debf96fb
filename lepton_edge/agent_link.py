"""The host's end of the agent on a device (ondevice/agent.py): requests with deadlines, files both ways."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, PlaceLost, WorkerError
from lepton_edge.interrupts import held
from lepton_edge.launch import Progress
from lepton_edge.registry import PACKAGE
from lepton_edge.texts import size
from lepton_edge.transport import Transport

AGENT = PACKAGE / "ondevice" / "agent.py"
BEAT, START_S, ANSWER_S, STALL_S = 5.0, 60.0, 60.0, 60.0
BOOT = (
    "import sys; s = sys.stdin.buffer; exec(compile(s.read(int(s.readline())), 'agent', 'exec'), {'__name__': 'agent'})"
)


class AgentLink:
    """An agent that runs in a place. Raises PlaceLost, from any method, when it cannot be reached (any more)."""

    def __init__(self, title: str, transport: Transport) -> None:
        self.title, self._transport = title, transport
        # One request at a time; the pen is for a message whole, so that a heartbeat never falls into a file.
        self._lock, self._pen, self._buffer, self._closed = threading.Lock(), threading.RLock(), b"", False
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the link
        with held():
            self._process = subprocess.Popen(
                transport.wrap([transport.python, "-c", BOOT]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                start_new_session=True,
            )
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin.fileno(), self._process.stdout.fileno()
        for pipe in (self._in, self._out):
            os.set_blocking(pipe, False)
        source = AGENT.read_bytes() + f"\nmain({transport.temp or None!r})\n".encode()
        self._write(f"{len(source)}\n".encode() + source)
        self.hello = self._hello()
        self.folder: str = self.hello["folder"]
        threading.Thread(target=self._beat, daemon=True).start()

    def request(self, op: str, timeout: float = ANSWER_S, **args: Any) -> Any:
        """One request's answer. Raises WorkerError when it fails there."""
        with self._lock:
            self._write(json.dumps({"op": op, "folder": self.folder, **args}, default=str).encode() + b"\n")
            return self._answer(timeout)["ok"]

    def put(self, file: Path, path: str, sha256: str, mode: int = 0o600, progress: Progress | None = None) -> None:
        """Write a file there, whole or not at all. Raises LeptonError when there is no room for it."""
        total, sent = file.stat().st_size, 0
        head = {"op": "put", "folder": self.folder, "path": path, "size": total, "sha256": sha256, "mode": mode}
        with self._lock, file.open("rb") as stream:
            with self._pen:
                self._write(json.dumps(head).encode() + b"\n")
                while block := stream.read(1 << 18):
                    self._write(block)
                    sent += len(block)
                    if progress:
                        progress(sent >> 10, (total >> 10) + 1, f"sending {file.name}")
            told = self._answer(STALL_S)["ok"]
        if told["problem"]:
            raise LeptonError(
                f"{self.title}: {file.name} ({size(total)}) cannot be written there: {told['problem']}, "
                f"{size(told['free'])} are free",
                'free some space on it, or name another folder there: temp = "…"',
            )

    def get(self, path: str, file: Path) -> None:
        """Read a file there into ``file``, which appears when it is whole."""
        part = file.with_name(file.name + ".part")
        with self._lock:
            self._write(json.dumps({"op": "get", "folder": self.folder, "path": path}).encode() + b"\n")
            left = self._answer(ANSWER_S)["size"]
            with part.open("wb") as out:
                while left:
                    if not self._buffer:
                        self._fill(time.monotonic() + STALL_S)
                    block, self._buffer = self._buffer[:left], self._buffer[left:]
                    out.write(block)
                    left -= len(block)
        part.replace(file)

    def lost(self) -> PlaceLost | None:
        """Why the agent is not there any more, None while it is."""
        return self._lost() if self._closed or self._process.poll() is not None else None

    def close(self) -> None:
        """Say goodbye, so that nothing is left there; a place that is lost sweeps up by itself."""
        if self._closed:
            return
        with contextlib.suppress(LeptonError):  # it is lost, which its caller knows
            self.request("bye", timeout=10.0)
        self._end()

    def _end(self) -> None:
        with held(), self._pen:
            self._closed = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]

    def _hello(self) -> dict:
        """The agent's first line; what a shell's start-up files print before it is passed over."""
        deadline = time.monotonic() + START_S
        while True:
            line = self._line(deadline)
            if line.startswith(b'{"ok": {"folder": '):
                return json.loads(line)["ok"]

    def _answer(self, timeout: float) -> dict:
        answer = json.loads(self._line(time.monotonic() + timeout))
        if "error" in answer:
            raise WorkerError(f"{self.title}: {answer['error']}", "run again with -v for more")
        return answer

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._buffer:
            self._fill(deadline)
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _fill(self, deadline: float) -> None:
        self._wait(self._out, selectors.EVENT_READ, deadline)
        block = os.read(self._out, 1 << 20)
        if not block:
            raise self._lost()
        self._buffer += block

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        with self._pen:
            while view:
                self._wait(self._in, selectors.EVENT_WRITE, time.monotonic() + STALL_S)
                try:
                    view = view[os.write(self._in, view) :]
                except BrokenPipeError:
                    raise self._lost() from None

    def _wait(self, pipe: int, event: int, deadline: float) -> None:
        if self._closed:
            raise self._lost()
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, event)
            if not selector.select(max(0.0, deadline - time.monotonic())):
                self._end()
                raise PlaceLost(
                    f"{self.title}: no answer from it", "is it overloaded? check its network, then run again"
                )

    def _lost(self) -> PlaceLost:
        if self._closed:
            return PlaceLost(f"{self.title}: the connection was lost before", "check its power and its network")
        try:
            code = self._process.wait(10)
        except subprocess.TimeoutExpired:
            code = 0
        self._log.seek(0)
        lines = [x.strip() for x in self._log.read().decode("utf-8", "replace").splitlines() if x.strip()]
        self._end()
        why = self._transport.explain(code, "\n".join(lines)[-2000:])
        if why is None:
            words = f": {lines[-1][:200]}" if lines else ""
            why = f"{self.title}: the agent there ended with exit code {code}{words}", "it needs Python 3.9 or later"
        return PlaceLost(*why)

    def _beat(self) -> None:
        """Tell the agent that this end is alive, also while nothing is asked of it: it leaves when it hears nothing."""
        while not self._closed:
            try:
                with self._pen:
                    if not self._closed:
                        self._write(b'{"op": "beat"}\n')
            except (LeptonError, OSError):
                return  # the next request tells it
            time.sleep(BEAT)
