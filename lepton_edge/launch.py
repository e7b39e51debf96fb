"""Starting workers and talking to them: a crash, a hang or an out-of-memory kill is one clear error."""

from __future__ import annotations

import atexit
import contextlib
import errno
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_edge import settings
from lepton_edge.errors import LeptonError, NoWay, WorkerError
from lepton_edge.interrupts import held
from lepton_edge.registry import PACKAGE

Progress = Callable[[int, int, str], None]
#: Seconds of silence after which a worker counts as hung; a step's own progress messages reset it.
SILENCE = 1800.0
_live: set[Worker] = set()


@dataclass(frozen=True)
class Way:
    """How a worker is started somewhere else: ``argv`` of a local process whose pipes lead to it.

    ``explain(code, last words)`` tells why that process ended, where it is the way and not the worker that failed;
    ``end()`` ends the worker itself.
    """

    argv: Sequence[str]
    explain: Callable[[int, str], WorkerError | None]
    end: Callable[[], None]
    silence: float = 300.0  # seconds; what runs there tells of every sample


class Worker:
    """One worker process. ``call`` sends a request and waits for its answer; ``close`` ends the process.

    With ``way`` it runs somewhere else, and ``python`` and ``environ`` are those of the process that leads there.
    """

    def __init__(
        self,
        what: str,
        python: str = sys.executable,
        environ: dict[str, str] | None = None,
        way: Way | None = None,
    ) -> None:
        self.what = what
        self._way = way
        with held():
            self._start(python, environ or {})

    def _start(self, python: str, environ: dict[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        # What frameworks leave in the temporary folder goes with the worker, which is always ended by a kill.
        self._temp = tempfile.mkdtemp(prefix="lepton-edge-")
        env = os.environ | {
            "PYTHONPATH": str(PACKAGE.parent),
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            "LEPTON_EDGE_PARENT": str(os.getpid()),
            "TF_CPP_MIN_LOG_LEVEL": "2",
            "TF_ENABLE_ONEDNN_OPTS": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "0"),
            # OpenVINO and NNCF send usage data to their makers from the first import on, unless in a CI job.
            "CI": "true",
            "NNCF_CI": "1",
            **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), self._temp),
            **environ,
        }
        if "LEPTON_EDGE_GPU" not in environ:  # only what is meant for a GPU sees one
            env.setdefault("CUDA_VISIBLE_DEVICES", "")
        # A session of its own: Ctrl-C reaches the tool alone, which then ends its workers in order.
        self._process = subprocess.Popen(
            self._way.argv if self._way else [python, "-X", "faulthandler", str(PACKAGE / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=env,
            start_new_session=True,
        )
        _live.add(self)
        assert self._process.stdout is not None
        self._buffer = b""
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def call(self, op: str, progress: Progress | None = None, silence: float | None = None, **args: Any) -> dict:
        """Run one operation and return its result.

        Raises LeptonError with the step's own words when the input is at fault, WorkerError when the worker
        fails, dies, or says nothing for ``silence`` seconds.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"op": op, **args}, default=str).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._died() from None
        silence = silence or settings.number("LEPTON_EDGE_TIMEOUT", self._way.silence if self._way else SILENCE)
        while True:
            line = self._read_line(silence)
            try:
                answer = json.loads(line)
            except json.JSONDecodeError as e:
                self.kill()
                raise WorkerError(f"{self.what}: the worker answered {line[:80]!r}, which is not JSON ({e})") from e
            if "progress" in answer:
                if progress:
                    progress(*answer["progress"])
            elif "ok" in answer:
                return answer["ok"]
            else:
                raise self._failed(answer["error"])

    def _read_line(self, silence: float) -> bytes:
        deadline = time.monotonic() + silence
        while b"\n" not in self._buffer:
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                self.kill()
                raise WorkerError(
                    f"{self.what}: no sign of life for {silence:g} s, so the worker was ended",
                    "set LEPTON_EDGE_TIMEOUT (seconds) higher if the work is really that slow",
                )
            block = os.read(self._process.stdout.fileno(), 65536)  # type: ignore[union-attr]
            if not block:
                raise self._died()
            self._buffer += block
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line

    def _failed(self, error: dict) -> LeptonError:
        message = " ".join(error["message"].split())
        if len(message) > 400:
            message = message[:400] + " …"
        if error["user"]:
            kind = NoWay if error["type"] in ("NoWay", "Unsupported") else LeptonError
            return kind(error["message"], error["hint"])
        if error["type"] == "MemoryError":
            return WorkerError(
                f"{self.what}: out of memory", "use fewer or smaller samples, or a machine with more memory"
            )
        if os.strerror(errno.ENOSPC) in message:
            return WorkerError(
                f"{self.what}: the disk is full", "free some space, or choose another --out or LEPTON_EDGE_CACHE"
            )
        name = "" if error["type"] in ("ValueError", "RuntimeError") else f"{error['type']}: "
        return WorkerError(f"{self.what}: {name}{message}", "run again with -v for the worker's log")

    def _died(self) -> WorkerError:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            self.kill()
            code = self._process.wait()
        words = self.last_words()
        self.close()
        if self._way and (lost := self._way.explain(code, words)):
            return lost
        if code == -signal.SIGKILL:
            how, hint = (
                "was killed (SIGKILL)",
                "most often the system ran out of memory: use fewer samples or smaller batches, or free some memory",
            )
        elif code < 0:
            how, hint = f"crashed ({signal.Signals(-code).name})", "run again with -v for the worker's log"
        else:
            how, hint = f"ended with exit code {code}", "run again with -v for the worker's log"
        return WorkerError(f"{self.what}: the worker {how}" + (f"; its last words: {words}" if words else ""), hint)

    def log(self) -> str:
        """All that the worker wrote on stderr."""
        if self._log.closed:
            return ""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    def last_words(self) -> str:
        """The last telling line of the log, shortened."""
        lines = [line.strip() for line in self.log().splitlines() if line.strip()]
        telling = [x for x in lines if not x.startswith(("File ", "Extension modules", "Thread ", "Current thread"))]
        return telling[-1][:200] if telling else ""

    def kill(self) -> None:
        """End the process and all of its children at once."""
        with contextlib.suppress(ProcessLookupError):  # it may be gone already, which is what is wanted
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process. It holds no state worth saving, so it is not asked to finish."""
        with held():
            self._close()

    def _close(self) -> None:
        if self in _live:
            _live.discard(self)
            if os.environ.get("LEPTON_EDGE_VERBOSE") and (log := self.log()):
                print(f"--- log of {self.what} ---\n{log}--- end ---", file=sys.stderr)
            self.kill()
            self._process.wait()
            if self._way:
                self._way.end()
            self._selector.close()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):  # an unsent request to a dead worker
                        pipe.close()
            self._log.close()
            shutil.rmtree(self._temp, ignore_errors=True)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


#: PyTorch's threads wait without spinning: beside other work, spinning makes a training ten times slower.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


class Workers:
    """Steps that share an environment share a worker: it loads a framework once."""

    def __init__(self) -> None:
        self._open: dict[tuple, Worker] = {}

    def get(self, what: str, python: str = sys.executable, environ: dict[str, str] | None = None) -> Worker:
        """The worker of that environment, started when there is none (or it has died)."""
        key = (python, tuple(sorted((environ or {}).items())))
        worker = self._open.get(key)
        if worker is None or worker not in _live:
            patient = {name: os.environ.get(name, value) for name, value in PATIENT.items()}
            worker = self._open[key] = Worker(what, python, {**patient, **(environ or {})})
        worker.what = what
        return worker

    def drop(self) -> None:
        """End them all, so that nothing of them disturbs a measurement."""
        for worker in self._open.values():
            worker.close()
        self._open.clear()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop()


@atexit.register
def close_all() -> None:
    """End every worker still alive."""
    for worker in list(_live):
        worker.close()


def python_path(path: Path | str) -> str:
    """A path as the worker needs it: absolute."""
    return str(Path(path).resolve())
