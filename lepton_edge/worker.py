"""The worker process: JSON lines in, JSON lines out, and the one timing loop.

Self-contained (standard library, and numpy inside functions; Python 3.9 or later), for it is also copied to
devices. Requests come on stdin; answers go to a private copy of stdout, while the real stdout is turned into
stderr so that a framework's chatter cannot break the protocol.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import sys
import time
import traceback

_clock = time.perf_counter_ns


def main() -> int:
    """Serve requests until stdin closes."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    _die_with_parent()
    _register()
    _limit_memory()
    state: dict = {}

    def say(message: dict) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    for line in sys.stdin:
        request = json.loads(line)
        try:
            say({"ok": OPS[request["op"]](state, request, _progress(say))})
        except MemoryError:
            say({"error": {"type": "MemoryError", "message": "out of memory", "hint": "", "user": False}})
        except Exception as e:  # whatever a step or a runtime raises is an answer
            traceback.print_exc(file=sys.stderr)
            sys.stderr.flush()
            # LeptonError, known by its two texts, for this file imports nothing of the package.
            text, hint = getattr(e, "message", None), getattr(e, "hint", None)
            user = isinstance(text, str) and isinstance(hint, str)
            message = text if user else str(e).strip() or type(e).__name__
            say({"error": {"type": type(e).__name__, "message": message, "hint": hint if user else "", "user": user}})
    return 0


def _progress(say):
    last = [0.0]

    def progress(done: int, total: int, what: str = "") -> None:
        now = time.monotonic()
        if now - last[0] >= 0.1 or done >= total:
            last[0] = now
            say({"progress": [int(done), int(total), what]})

    return progress


def _die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, so that kill -9 of the tool leaves nothing behind."""
    if sys.platform.startswith("linux") and os.environ.get("LEPTON_EDGE_PARENT"):
        import ctypes
        import signal

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != int(os.environ["LEPTON_EDGE_PARENT"]):
            os._exit(1)


def _register() -> None:
    """Leave our pid where the agent of a device looks for it: a worker that hangs there is ended by it."""
    mark = os.environ.get("LEPTON_EDGE_PID_FILE")
    if mark:
        with open("/proc/self/stat", encoding="utf-8") as f:  # noqa: PTH123
            started = f.read().rsplit(")", 1)[1].split()[19]
        with open(mark, "w", encoding="utf-8") as f:  # noqa: PTH123
            f.write(f"{os.getpid()} {started}")


def _limit_memory() -> None:
    """Keep to LEPTON_EDGE_MEMORY_GB, where it is set: what asks for more is an error here, not the system's end."""
    limit = os.environ.get("LEPTON_EDGE_MEMORY_GB")
    if limit and sys.platform.startswith("linux"):
        import resource

        size = int(float(limit) * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def _module(path: str):
    name = "lepton_plugin_" + os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119,PTH122
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _step(state: dict, request: dict, progress) -> dict:
    function = _module(request["file"]).run
    options = dict(request["options"])
    if "progress" in inspect.signature(function).parameters:
        options["progress"] = progress
    return function(request["src"], request["dst"], **options) or {}


def _inspect(state: dict, request: dict, progress) -> dict:
    return _module(request["file"]).inspect(request["path"])


def _load(state: dict, request: dict, progress) -> dict:
    module = _module(request["file"])
    start = _clock()
    session = module.load(request["model"], **request["options"])
    state["session"] = session
    return {
        "load_ms": (_clock() - start) / 1e6,
        "inputs": [_real(spec) for spec in session.inputs],
        "outputs": [_real(spec) for spec in session.outputs],
        "info": session.info,
    }


def _real(spec: dict) -> dict:
    """A quantized port as users see it: real numbers go in and come out, whatever is stored."""
    return {**spec, "dtype": "float32", "stored": spec["dtype"]} if "quantization" in spec else spec


def _open_feed(folder: str):
    import numpy as np

    with open(os.path.join(folder, "feed.json"), encoding="utf-8") as f:  # noqa: PTH118,PTH123
        feed = json.load(f)
    arrays = {
        name: np.load(os.path.join(folder, feed["files"][name]), mmap_mode="r", allow_pickle=False)  # noqa: PTH118
        for name in feed["inputs"]
    }
    return feed["count"], arrays, feed.get("whole", ())


def _sample(session, arrays: dict, whole, i: int) -> dict:
    """Sample ``i`` as the session takes it: quantized where its input is, with a batch axis unless it is ``whole``."""
    import numpy as np

    feeds = {}
    for spec in session.inputs:
        value = np.ascontiguousarray(arrays[spec["name"]][i : i + 1])
        if spec["name"] in whole:
            value = value[0, ...]
        if "quantization" in spec:
            scale, zero_point = spec["quantization"]
            limits = np.iinfo(spec["dtype"])
            value = np.clip(np.round(value / scale) + zero_point, limits.min, limits.max).astype(spec["dtype"])
        feeds[spec["name"]] = np.asarray(value)
    return feeds


def _answers(session, feeds: dict) -> dict:
    """What the session answers, quantized outputs as the real numbers they stand for."""
    import numpy as np

    values = session.run(feeds)
    for spec in session.outputs:
        if "quantization" in spec:
            scale, zero_point = spec["quantization"]
            values[spec["name"]] = (values[spec["name"]].astype(np.float32) - zero_point) * np.float32(scale)
    return values


def _predict(state: dict, request: dict, progress) -> dict:
    """Run every sample of a feed folder, batch 1; write one .npy [count, ...] an output, in the order of outputs."""
    import numpy as np

    session = state["session"]
    count, arrays, whole = _open_feed(request["feed"])
    files: dict = {}
    for i in range(count):
        for k, (name, value) in enumerate(_answers(session, _sample(session, arrays, whole, i)).items()):
            value = np.asarray(value)
            value = value[0] if value.ndim and value.shape[0] == 1 else value
            if i == 0:
                path = os.path.join(request["out"], f"{k}.npy")  # noqa: PTH118
                files[name] = _create(path, value.dtype, (count, *value.shape))
            if value.shape != files[name].shape[1:]:
                raise ValueError(
                    f"output '{name}' changes shape from sample to sample "
                    f"({list(files[name].shape[1:])}, then {list(value.shape)} at sample {i})"
                )
            files[name][i] = value
        progress(i + 1, count, "samples")
    for f in files.values():
        f.flush()
    return {"outputs": list(files), "count": count}


def _create(path: str, dtype, shape: tuple):
    """A memory-mapped .npy with its blocks allocated: a full disk is an error here, not a SIGBUS later."""
    import numpy as np

    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as f:  # noqa: PTH123
            os.posix_fallocate(f.fileno(), 0, os.fstat(f.fileno()).st_size)
    return array


def _bench_start(state: dict, request: dict, progress) -> dict:
    """First inference, then warm up until the median of a window stops falling (or the time is up)."""
    count, arrays, whole = _open_feed(request["feed"])
    state["samples"] = [_sample(state["session"], arrays, whole, i) for i in range(min(count, request["keep"]))]
    state["next"] = 0
    first = _timed(state, 1)[0]
    window, best, warm = 5, None, [first]
    deadline = _clock() + int(request["warmup_s"] * 1e9)
    while _clock() < deadline:
        times = sorted(_timed(state, window))
        warm += times
        median = times[window // 2]
        if best is not None and median > 0.98 * best and len(warm) >= 3 * window:
            break
        best = median if best is None else min(best, median)
    return {"first_ns": first, "warmup_runs": len(warm)}


def _bench_round(state: dict, request: dict, progress) -> dict:
    """Time single inferences for ``seconds``, at least ``minimum`` and at most ``maximum`` of them (nanoseconds).

    Other workers ran since this one's last turn: a few inferences first bring its caches back, untimed.
    """
    _timed(state, 3)
    deadline = _clock() + int(request["seconds"] * 1e9)
    times = _timed(state, request["minimum"])
    while _clock() < deadline and len(times) < request["maximum"]:
        times += _timed(state, min(10, request["maximum"] - len(times)))
    return {"ns": times}


def _timed(state: dict, n: int) -> list:
    run, samples, at = state["session"].run, state["samples"], state["next"]
    times = []
    for _ in range(n):
        feeds = samples[at % len(samples)]
        at += 1
        start = _clock()
        run(feeds)
        times.append(_clock() - start)
    state["next"] = at
    return times


def _usage(state: dict, request: dict, progress) -> dict:
    """Peak resident memory in MiB. Linux keeps the parent's peak in ru_maxrss over fork and exec, so not that there."""
    if os.path.exists("/proc/self/status"):  # noqa: PTH110
        with open("/proc/self/status", encoding="utf-8") as f:  # noqa: PTH123
            peaks = [int(line.split()[1]) for line in f if line.startswith("VmHWM:")]
        if peaks:
            return {"peak_rss_mb": peaks[0] / 1024}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_mb": peak / (1024 * 1024 if sys.platform == "darwin" else 1024)}


OPS = {
    "step": _step,
    "inspect": _inspect,
    "load": _load,
    "predict": _predict,
    "bench_start": _bench_start,
    "bench_round": _bench_round,
    "usage": _usage,
}

if __name__ == "__main__":
    sys.exit(main())
