"""The worker process: JSON lines in, JSON lines out, and the one timing loop.

Self-contained (standard library, and numpy inside functions; Python 3.9 or later), for it is also copied to
devices. Requests come on stdin; answers go to a private copy of stdout, while the real stdout is turned into
stderr so that a framework's chatter cannot break the protocol.
"""

from __future__ import annotations

import array
import gc
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
        with open(f"/proc/self/task/{os.getpid()}/stat", encoding="utf-8") as f:  # noqa: PTH123
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


def _estimate(state: dict, request: dict, progress) -> dict:
    function = _module(request["file"]).estimate
    options = dict(request["options"])
    if "progress" in inspect.signature(function).parameters:
        options["progress"] = progress
    return function(request["model"], **options)


def _inspect(state: dict, request: dict, progress) -> dict:
    return _module(request["file"]).inspect(request["path"])


def _unusable(state: dict, request: dict, progress) -> dict:
    """Why a runtime cannot use a device here, and the fix; both empty where it can."""
    reason, fix = _module(request["file"]).unusable(request["device"]) or ("", "")
    return {"reason": reason, "fix": fix}


def _load(state: dict, request: dict, progress) -> dict:
    """Load a model in a runtime; with ``cpus`` on those processors only, so that its threads start there."""
    if request.get("cpus"):
        _keep_to(request["cpus"])
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


def _keep_to(cpus: list) -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError(f"{sys.platform} cannot bind a process to processors")
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as e:
        usable = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
        raise ValueError(f"processors {cpus} cannot be used here; usable are {usable}") from e


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
    """First inference, then warm up until steady or until ``warmup_s`` are over; samples are kept in memory before.

    ``batch`` samples are run at once. Warmed up is what shows no trend any more: the medians of the last windows
    neither rise nor fall (``_is_steady``).
    """
    batch = request.get("batch", 1)
    count, arrays, whole = _open_feed(request["feed"])
    made = max(1, min(count, request["keep"]) // batch)
    state["samples"] = [_batch(state["session"], arrays, whole, count, i * batch, batch) for i in range(made)]
    state["next"] = 0
    first = _timed(state, 1, 1, 0)[0]
    start = _clock()
    deadline, medians, runs, size, settled = start + int(request["warmup_s"] * 1e9), [], 1, 1, False
    while not settled and _clock() < deadline:
        times = _timed(state, size, 1, deadline)
        runs += len(times)
        medians.append(sorted(times)[len(times) // 2])
        settled = _is_steady(medians[-WINDOWS:])
        size = max(1, min(1000, int(WINDOW_NS / max(1, medians[-1]))))
    return {
        "first_ns": first,
        "warmup": {"runs": runs, "seconds": (_clock() - start) / 1e9, "settled": settled},
        "pid": os.getpid(),
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
    }


#: Warm-up is looked at in windows of this length; so many of them without a trend are steady.
WINDOW_NS, WINDOWS = 10_000_000, 8


def _is_steady(medians: list) -> bool:
    """Whether windows have no trend: Kendall's S (Mann, Econometrica 13, 1945) is within what chance gives it, or
    from the first half to the second their median changes by less than 1 %.

    Where there is no trend, |S| of eight values is above 14 with a probability of 6 %.
    """
    n = len(medians)
    if n < WINDOWS:
        return False
    s = sum((b > a) - (b < a) for i, a in enumerate(medians) for b in medians[i + 1 :])
    early, late = sorted(medians[: n // 2])[n // 4], sorted(medians[n // 2 :])[n // 4]
    return abs(s) <= 14 or abs(late - early) < 0.01 * early


def _batch(session, arrays: dict, whole, count: int, at: int, batch: int) -> dict:
    """``batch`` samples from ``at`` on, round and round, as the session takes them."""
    import numpy as np

    parts = [_sample(session, arrays, whole, (at + k) % count) for k in range(batch)]
    return parts[0] if batch == 1 else {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def _bench_round(state: dict, request: dict, progress) -> dict:
    """Time single inferences for ``seconds``, at least ``minimum`` and at most ``maximum`` of them (nanoseconds).

    Others ran since the last turn: inferences for 2 ms, one at least, first bring the caches and the clock back,
    untimed. ``started_ns`` and ``ended_ns`` are of one clock for all processes of a machine.
    "involuntary": how often the scheduler took the processor away meanwhile.
    """
    start = _clock()
    for k in range(1000):
        if k and _clock() - start >= 2_000_000:
            break
        _timed(state, 1, 1, 0)
    taken = _involuntary()
    started = _clock()
    times = _timed(state, request["maximum"], request["minimum"], started + int(request["seconds"] * 1e9))
    taken = _involuntary() - taken
    return {"ns": list(times), "started_ns": started, "ended_ns": state["ended"], "involuntary": taken}


def _timed(state: dict, most: int, least: int, deadline: int):
    """Nanoseconds of up to ``most`` inferences, ended early at ``deadline`` of the clock once there are ``least``.

    The one timing loop. Between the two readings of the clock there is nothing but the call: the array is there
    before, samples are looked up before, and the garbage collector waits.
    """
    run, samples, at, clock = state["session"].run, state["samples"], state["next"], _clock
    times, n, done, end = array.array("q", bytes(8 * most)), len(samples), 0, 0
    collecting = gc.isenabled()
    gc.disable()
    try:
        for k in range(most):
            feeds = samples[(at + k) % n]
            start = clock()
            run(feeds)
            end = clock()
            times[k] = end - start
            done = k + 1
            if end >= deadline and done >= least:
                break
    finally:
        if collecting:
            gc.enable()
    state["next"], state["ended"] = at + done, end
    return times[:done]


def _involuntary() -> int:
    """Involuntary context switches of this process so far; 0 where the system does not count them."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _usage(state: dict, request: dict, progress) -> dict:
    """Peak resident memory in MB (10^6 bytes).

    Linux keeps the parent's peak in ru_maxrss over fork and exec, so not that there.
    """
    if os.path.exists("/proc/self/status"):  # noqa: PTH110
        with open("/proc/self/status", encoding="utf-8") as f:  # noqa: PTH123
            peaks = [int(line.split()[1]) for line in f if line.startswith("VmHWM:")]
        if peaks:
            return {"peak_rss_mb": peaks[0] * 1024 / 1e6}
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"peak_rss_mb": peak * (1 if sys.platform == "darwin" else 1024) / 1e6}


OPS = {
    "step": _step,
    "estimate": _estimate,
    "inspect": _inspect,
    "unusable": _unusable,
    "load": _load,
    "predict": _predict,
    "bench_start": _bench_start,
    "bench_round": _bench_round,
    "usage": _usage,
}

if __name__ == "__main__":
    sys.exit(main())
