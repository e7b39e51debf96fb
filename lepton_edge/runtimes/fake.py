"""A deterministic stand-in for tests: a linear map described by a small JSON file, which can also fail."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("numpy",)
FORMATS = ("fake",)
DEVICES = {
    "cpu": {},
    "npu": {"options": {"device": "npu"}},
    "absent": {"options": {"device": "absent"}},
}
_FAILURES = ("crash", "hang", "oom", "error")


def unusable(device: str) -> tuple[str, str] | None:
    """None for "npu", which is always there; LEPTON_EDGE_FAKE_NPU makes asking for it fail or hang, as a model can."""
    if device == "absent":
        return "this machine has no such device", "use fake:npu"
    _fail(os.environ.get("LEPTON_EDGE_FAKE_NPU"))
    return None


def load(model: str, *, threads: int = 1, scale: float = 1.0, device: str = "cpu") -> Session:
    """Open a JSON model: {"inputs": [{"name", "shape", "dtype"}], "outputs": [...], "seed": 0}.

    Optional keys: "delay_ms" (each run), "load_delay_ms", "noise" (a relative error added to the weights),
    "fail": "crash" | "hang" | "oom" | "error", and "fail_at": "load" | "run" (default) | the number of the
    run, from 0, that fails; "nodes", {operator: count}, and "cpu_only", the operators that the device "npu" lacks.
    Each output is the flattened inputs of a sample times a fixed random matrix.
    `scale` multiplies the outputs. Raises ValueError for anything else in the file.
    """
    try:
        config = json.loads(Path(model).read_text("utf-8"))
        session = Session(config, {"runtime": "fake", "version": "1", "threads": threads}, scale)
        session.info |= {"device": device, "precision": "f32", "delegated": _placed(config, device)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{Path(model).name}: not a fake model: {error}") from error
    time.sleep(float(config.get("load_delay_ms", 0)) / 1e3)
    if config.get("fail_at") == "load":
        _fail(config.get("fail"))
    return session


class Session:
    """A loaded model: `inputs`, `outputs` (name, shape, dtype), `info` and `run`; any batch size is taken."""

    def __init__(self, config: dict[str, Any], info: dict[str, Any], scale: float) -> None:
        known = {
            "inputs", "outputs", "seed", "delay_ms", "load_delay_ms", "noise", "fail", "fail_at",
            "nodes", "cpu_only",
        }  # fmt: skip
        if unknown := config.keys() - known:
            raise ValueError(f"unknown key {sorted(unknown)[0]}")
        if config.get("fail") not in (None, *_FAILURES):
            raise ValueError(f"unknown failure {config['fail']}; known: {', '.join(_FAILURES)}")
        self.inputs = [_spec(s) for s in config["inputs"]]
        self.outputs = [_spec(s) for s in config["outputs"]]
        self.info = info
        self._delay = float(config.get("delay_ms", 0)) / 1e3
        self._fail, self._fail_at, self._runs = config.get("fail"), config.get("fail_at", "run"), 0
        rng = np.random.default_rng(int(config.get("seed", 0)))
        width = sum(_size(s) for s in self.inputs)
        noise = float(config.get("noise", 0.0))
        self._weights = []
        for spec in self.outputs:
            matrix = rng.standard_normal((width, _size(spec))) / math.sqrt(width)
            error = rng.standard_normal(matrix.shape)
            self._weights.append(scale * matrix * (1.0 + noise * error))

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis. Raises ValueError for odd inputs."""
        number, self._runs = self._runs, self._runs + 1
        if self._fail and self._fail_at in ("run", number):
            _fail(self._fail)
        names = [spec["name"] for spec in self.inputs]
        if feeds.keys() != set(names):
            raise ValueError(f"the model's inputs are {sorted(names)}, got {sorted(feeds)}")
        count = feeds[names[0]].shape[0]
        flat = []
        for spec in self.inputs:
            array = feeds[spec["name"]]
            if array.shape != (count, *spec["shape"][1:]):
                raise ValueError(f"input '{spec['name']}' has shape {array.shape}, takes {spec['shape']}")
            flat.append(array.reshape(count, -1).astype(np.float64))
        if self._delay:
            time.sleep(self._delay)
        x = np.concatenate(flat, axis=1)
        return {
            spec["name"]: (x @ w).reshape(count, *spec["shape"][1:]).astype(spec["dtype"])
            for spec, w in zip(self.outputs, self._weights)
        }


def _placed(config: dict[str, Any], device: str) -> dict[str, Any]:
    nodes = config.get("nodes", {"MatMul": 1})
    left = {op: n for op, n in nodes.items() if device != "cpu" and op in config.get("cpu_only", ())}
    count = sum(nodes.values()) - sum(left.values())
    return {"nodes": count, "of": sum(nodes.values()), "partitions": int(count > 0), "left": left}


def _spec(spec: dict[str, Any]) -> dict[str, Any]:
    shape = [None if d is None else int(d) for d in spec["shape"]]
    if not shape or None in shape[1:]:
        raise ValueError(f"shape {shape} of '{spec['name']}': only the first axis may be free")
    return {"name": str(spec["name"]), "shape": shape, "dtype": np.dtype(spec.get("dtype", "float32")).name}


def _size(spec: dict[str, Any]) -> int:
    return math.prod(spec["shape"][1:])


def _fail(how: str | None) -> None:
    """Die the way real runtimes do."""
    if how == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(3600)
    if how == "oom":
        raise MemoryError("the fake model asked for more memory than there is")
    if how:
        raise RuntimeError("the fake model was told to fail")
