"""The agent on a device: takes files, runs what it is told to, and leaves nothing behind.

Requests come on stdin, a JSON line each, a file's bytes right behind its request; answers go to stdout the same way.
Everything lies in one private folder. It is removed, and every process registered in it is ended, when the host says
goodbye, closes the pipe, or has not been heard of for LEASE seconds (a cut cable closes no pipe). What a reboot or a
power cut leaves is removed by the next agent that starts on the device.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

PREFIX, OWNER, PIDS, LEASE = "lepton-edge-agent-", "owner.json", "pids", 30.0
OUTPUT = 1 << 20  # bytes of a command's output that are kept: its end


class Agent:
    """The private folder, and the pipe to the host."""

    def __init__(self, temp: str | None) -> None:
        base = temp or tempfile.gettempdir()
        self.swept = sweep(base)
        self.folder = tempfile.mkdtemp(prefix=PREFIX, dir=base)
        os.mkdir(os.path.join(self.folder, PIDS))
        with open(os.path.join(self.folder, OWNER), "w", encoding="utf-8") as f:
            json.dump({"pid": os.getpid(), "started": started(os.getpid()), "boot": boot_id()}, f)
        self.requests: queue.Queue = queue.Queue()
        self.heard = time.monotonic()
        self._leaving = threading.Lock()
        self._out = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)

    def answer(self, message: dict, payload: str | None = None) -> None:
        """One answer; ``payload`` is the path of a file whose bytes follow it."""
        try:
            if payload is None:
                self._out.write(json.dumps(message).encode() + b"\n")
            else:
                with open(payload, "rb") as f:
                    size = os.fstat(f.fileno()).st_size
                    self._out.write(json.dumps({**message, "size": size}).encode() + b"\n")
                    shutil.copyfileobj(f, self._out, 1 << 20)
            self._out.flush()
        except BrokenPipeError:
            self.leave()  # not by an error: the process must not end while another thread removes the folder

    def read(self) -> None:
        """Take requests off the pipe (a thread of its own, so that the pipe's end is noticed while work is done)."""
        stream = sys.stdin.buffer
        while True:
            line = stream.readline()
            if not line:
                self.leave()
            self.heard = time.monotonic()
            request = json.loads(line)
            if request["op"] == "put":
                request["problem"] = self._spool(stream, request)
            if request["op"] != "beat":
                self.requests.put(request)

    def _spool(self, stream, request: dict) -> str:
        """Write the bytes behind a ``put`` beside their place; what cannot be written is read all the same."""
        left, problem, out = request["size"], "", None
        try:
            os.makedirs(os.path.dirname(request["path"]), exist_ok=True)
            out = open(request["path"] + ".part", "wb")  # noqa: SIM115 - closed below, whatever happens
            if hasattr(os, "posix_fallocate") and left:
                os.posix_fallocate(out.fileno(), 0, left)
        except OSError as e:
            problem = e.strerror or str(e)
        while left:
            block = stream.read(min(left, 1 << 20))
            if not block:
                self.leave()
            self.heard = time.monotonic()
            left -= len(block)
            try:
                if out and not problem:
                    out.write(block)
            except OSError as e:
                problem = e.strerror or str(e)
        try:
            if out:
                out.close()
        except OSError as e:
            problem = problem or e.strerror or str(e)
        return problem

    def watch(self) -> None:
        """Leave when the host has been silent for too long."""
        while time.monotonic() - self.heard < LEASE:
            time.sleep(1)
        self.leave()

    def leave(self) -> None:
        """End everything that was started here, remove the folder, and go."""
        with self._leaving:
            remove(self.folder)
            os._exit(0)

    def serve(self) -> None:
        """Answer requests until the host says goodbye."""
        for target in (self.read, self.watch):
            threading.Thread(target=target, daemon=True).start()
        hello = {"folder": self.folder, "swept": self.swept, "python": platform.python_version()}
        self.answer({"ok": {**hello, "machine": platform.machine(), "system": platform.system(), "boot": boot_id()}})
        while True:
            request = self.requests.get()
            try:
                if request["op"] == "bye":
                    remove(self.folder)
                    self.answer({"ok": None})
                    return
                if request["op"] == "get":
                    self.answer({"ok": None}, request["path"])
                else:
                    self.answer({"ok": OPS[request["op"]](request)})
            except Exception as e:  # whatever fails is an answer
                self.answer({"error": f"{type(e).__name__}: {e}" if str(e) else type(e).__name__})


def _put(request: dict) -> dict:
    """Publish what was spooled, if it is whole. ``problem`` is the system's word on why it is not."""
    path, part = request["path"], request["path"] + ".part"
    problem = request["problem"]
    if not problem and digest(part) != request["sha256"]:
        problem = "its bytes were damaged on the way"
    if problem:
        with contextlib.suppress(OSError):  # nothing may have been written
            os.unlink(part)
        free = shutil.disk_usage(_existing(os.path.dirname(path))).free
        return {"problem": problem, "free": free}
    os.chmod(part, request.get("mode", 0o600))
    os.replace(part, path)
    return {"problem": ""}


def _call(request: dict):
    """Run a function of a self-contained file; what it prints is lost."""
    name = "lepton_there_" + os.path.splitext(os.path.basename(request["file"]))[0]
    module = sys.modules.get(name)
    if module is None or module.__file__ != request["file"]:
        spec = importlib.util.spec_from_file_location(name, request["file"])
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return getattr(module, request["function"])(**request["args"])


def _run(request: dict) -> dict:
    """Run a command to its end, or to the end of its time: {"code", "out", "err"}; code None when it was ended."""
    environ = {**os.environ, **request.get("environ", {})}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environ,
            cwd=request.get("cwd"),
            start_new_session=True,
        )
        mark = os.path.join(request["folder"], PIDS, f"run-{process.pid}")
        with open(mark, "w", encoding="utf-8") as f:
            f.write(f"{process.pid} {started(process.pid)}")
        try:
            code = process.wait(request.get("limit"))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        os.unlink(mark)
        return {"code": code, "out": _tail(out), "err": _tail(err)}


def _tail(stream) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - OUTPUT))
    return stream.read().decode("utf-8", "replace")


def _end(request: dict) -> None:
    """End the process that registered itself under a name."""
    end(os.path.join(request["folder"], PIDS, request["name"]))


def _list(request: dict) -> list:
    """The files in a folder, by name."""
    return sorted(name for name in os.listdir(request["path"]) if os.path.isfile(os.path.join(request["path"], name)))


def _mkdir(request: dict) -> str:
    os.makedirs(request["path"], mode=0o700, exist_ok=True)
    return request["path"]


OPS = {"put": _put, "call": _call, "run": _run, "end": _end, "list": _list, "mkdir": _mkdir}


def sweep(base: str) -> list:
    """Remove what agents left in ``base`` that are gone, with their processes; the folders removed."""
    gone = []
    for name in os.listdir(base):
        folder = os.path.join(base, name)
        if not name.startswith(PREFIX) or os.path.islink(folder) or not os.path.isdir(folder):
            continue
        try:
            if os.stat(folder).st_uid != os.getuid():
                continue
            with open(os.path.join(folder, OWNER), encoding="utf-8") as f:
                owner = json.load(f)
        except FileNotFoundError:
            if time.time() - os.stat(folder).st_mtime < 60:
                continue  # an agent that is just starting
            owner = {"pid": 0, "started": "", "boot": ""}
        except (OSError, ValueError):
            continue
        if owner["boot"] != boot_id() or not owner["pid"] or started(owner["pid"]) != owner["started"]:
            remove(folder)
            gone.append(folder)
    return gone


def remove(folder: str) -> None:
    """End the processes that are registered in a folder, and remove it."""
    pids = os.path.join(folder, PIDS)
    for name in os.listdir(pids) if os.path.isdir(pids) else ():
        end(os.path.join(pids, name))
    shutil.rmtree(folder, ignore_errors=True)


def end(mark: str) -> None:
    """Kill the process group, or the process, that a file tells ("PID STARTED"), if it is still that one."""
    try:
        with open(mark, encoding="utf-8") as f:
            pid, _, since = f.read().partition(" ")
        if since == started(int(pid)):
            if os.getpgid(int(pid)) == int(pid):
                os.killpg(int(pid), signal.SIGKILL)
            else:
                os.kill(int(pid), signal.SIGKILL)
    except (OSError, ValueError):
        pass  # it is gone already, which is what is wanted


def started(pid: int) -> str:
    """When a process started, in the kernel's ticks, "" when there is none: a pid alone may be another's by now.

    Its first thread's, for an emulator makes up /proc/PID/stat for the process itself, a tick off.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/stat", encoding="utf-8", errors="replace") as f:
            return f.read().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def boot_id() -> str:
    """A text that is another one after every boot; "" where the system has none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as f:
            return f.read().strip()
    except OSError:
        return ""


def digest(path: str) -> str:
    """The SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        for block in iter(lambda: f.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def main(temp: str | None = None) -> None:
    """Serve one host."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a lost terminal is told by the pipe, in order
    Agent(temp).serve()
