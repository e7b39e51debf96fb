"""ONNX Runtime, one execution provider, no silent fallback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("onnxruntime>=1.20",)
FORMATS = ("onnx",)
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "string": "str",
    **{k: k for k in ("float16", "bool", "int8", "int16", "int32", "int64")},
    **{k: k for k in ("uint8", "uint16", "uint32", "uint64")},
}


def load(
    model: str,
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    inter_threads: int = 1,
    spinning: bool = False,
) -> Session:
    """Open an .onnx file with all graph optimisations. Threads wait without spinning unless `spinning`.

    Raises ValueError for a provider this build does not have, or a model it cannot load.
    """
    import onnxruntime as ort

    name = Path(model).name
    if not Path(model).is_file():
        raise ValueError(f"{name}: no such file")
    if provider not in ort.get_available_providers():
        raise ValueError(
            f"execution provider '{provider}' is not available here; available: "
            + ", ".join(ort.get_available_providers())
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = inter_threads
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL if inter_threads > 1 else ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "1" if spinning else "0")
    refusals: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_errors())
    try:
        session = ort.InferenceSession(model, options, providers=[provider])
    except refusals as error:
        raise ValueError(f"{name}: ONNX Runtime cannot load it: {_one_line(error)}") from error
    session.disable_fallback()
    if session.get_providers()[0] != provider:
        raise ValueError(f"{name}: ONNX Runtime fell back from '{provider}' to {session.get_providers()[0]}")
    info = {
        "runtime": "onnxruntime",
        "version": ort.__version__,
        "provider": provider,
        "threads": threads,
        "spinning": spinning,
    }
    return Session(session, info)


def _errors() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions: they derive straight from Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return tuple(e for e in vars(state).values() if isinstance(e, type) and issubclass(e, Exception))


class Session:
    """A loaded model: `inputs`, `outputs` (name, shape, dtype), `info` and `run`.

    A model made for one sample is run sample by sample when it is fed a batch.
    """

    def __init__(self, session: Any, info: dict[str, Any]) -> None:
        self._run = session.run
        self._errors = _errors()
        self.inputs = [_spec(arg) for arg in session.get_inputs()]
        self.outputs = [_spec(arg) for arg in session.get_outputs()]
        self.info = info
        self._names = [spec["name"] for spec in self.outputs]
        self._keys = {spec["name"] for spec in self.inputs}
        self._single = bool(self.inputs) and all(spec["shape"][:1] == [1] for spec in self.inputs)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis.

        Raises ValueError for missing, unknown or misshapen inputs.
        """
        if feeds.keys() != self._keys:
            raise ValueError(f"the model's inputs are {sorted(self._keys)}, got {sorted(feeds)}")
        if self._single and next(iter(feeds.values())).shape[0] != 1:
            return _one_by_one(self, feeds)
        try:
            return dict(zip(self._names, self._run(self._names, feeds)))
        except self._errors as error:
            raise ValueError(f"ONNX Runtime: {_one_line(error)}") from error


def _spec(arg: Any) -> dict[str, Any]:
    kind = arg.type.removeprefix("tensor(").removesuffix(")")
    shape = [d if isinstance(d, int) and d >= 0 else None for d in arg.shape]
    return {"name": arg.name, "shape": shape, "dtype": _DTYPES.get(kind, kind)}


def _one_by_one(session: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a batch through a model made for one sample: outputs have the samples on their first axis."""
    count = next(iter(feeds.values())).shape[0]
    if count == 0 or any(array.shape[0] != count for array in feeds.values()):
        raise ValueError(f"inputs differ in their number of samples: {[a.shape[0] for a in feeds.values()]}")
    rows = [session.run({k: a[i : i + 1] for k, a in feeds.items()}) for i in range(count)]
    joined = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        is_batched = parts[0].ndim > 0 and parts[0].shape[0] == 1
        joined[name] = np.concatenate(parts) if is_batched else np.stack(parts)
    return joined


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__
