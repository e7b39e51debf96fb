"""ONNX Runtime, on the CPU or through an execution provider."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("onnxruntime>=1.20",)
FORMATS = ("onnx",)
# TF32 would round the inputs of float products to 10 bits: off, so that what is timed is what was verified.
DEVICES = {
    "cpu": {},
    "cuda": {
        "options": {"provider": "CUDAExecutionProvider"},
        "environ": {"LEPTON_EDGE_GPU": "1", "NVIDIA_TF32_OVERRIDE": "0"},
    },
    "tensorrt": {
        "options": {"provider": "TensorrtExecutionProvider"},
        "environ": {"LEPTON_EDGE_GPU": "1", "NVIDIA_TF32_OVERRIDE": "0"},
    },
    "directml": {"options": {"provider": "DmlExecutionProvider"}},
    "coreml": {"options": {"provider": "CoreMLExecutionProvider"}},
    "qnn": {"options": {"provider": "QNNExecutionProvider"}},
    "openvino": {"options": {"provider": "OpenVINOExecutionProvider"}},
}
# Where the package with a provider is another one than onnxruntime, and where it exists at all.
_PACKAGES = {
    "cuda": "onnxruntime-gpu, on a machine with an NVIDIA GPU",
    "tensorrt": "onnxruntime-gpu and tensorrt, on a machine with an NVIDIA GPU",
    "directml": "onnxruntime-directml, on Windows",
    "coreml": "onnxruntime, on macOS",
    "qnn": "onnxruntime-qnn, on a machine with a Qualcomm NPU",
    "openvino": "onnxruntime-openvino",
}
# What a provider is told, and what it then computes float models in.
_OPTIONS = {
    "CUDAExecutionProvider": {"use_tf32": "0"},
    "CoreMLExecutionProvider": {"ModelFormat": "MLProgram"},
    "QNNExecutionProvider": {"backend_path": "QnnHtp.dll" if sys.platform == "win32" else "libQnnHtp.so"},
    "OpenVINOExecutionProvider": {"device_type": "CPU", "precision": "FP32"},
}
# y = max(x, 0) as an ONNX file, to start a provider with.
_RELU = (
    b'\x08\x07\x12\x00:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
_PRECISIONS = {
    "CPUExecutionProvider": "f32",
    "CUDAExecutionProvider": "f32",
    "TensorrtExecutionProvider": "f32",
    "OpenVINOExecutionProvider": "f32",
}
_DTYPES = {
    "float": "float32",
    "double": "float64",
    "string": "str",
    **{k: k for k in ("float16", "bool", "int8", "int16", "int32", "int64")},
    **{k: k for k in ("uint8", "uint16", "uint32", "uint64")},
}


def unusable(device: str) -> tuple[str, str] | None:
    """Why this build cannot use a device, and the fix; None where it has the provider and that finds its device."""
    import onnxruntime as ort

    provider, there = DEVICES[device]["options"]["provider"], ort.get_available_providers()
    if provider not in there:
        build = f"this build of ONNX Runtime ({ort.__version__}) has no {provider}; it has {', '.join(there)}"
        return build, f"install {_PACKAGES[device]}, in an environment of its own"
    if device not in ("cuda", "tensorrt"):
        return None
    # The provider's library is there; whether what it needs is there too shows only when a session is made.
    if _opened(ort, _RELU, provider).get_providers()[0] != provider:
        return (
            f"{provider} does not start",
            "check nvidia-smi, and the versions of CUDA and cuDNN; -v shows its own words",
        )
    return None


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
    # Which provider takes which nodes; versions before 1.24 cannot tell, and ignore the entry.
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    try:
        session = _opened(ort, model, provider, options)
    except refusals as error:
        raise ValueError(f"{name}: ONNX Runtime cannot load it: {_one_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise ValueError(f"{name}: ONNX Runtime fell back from '{provider}' to {session.get_providers()[0]}")
    info = {
        "runtime": "onnxruntime",
        "version": ort.__version__,
        "provider": provider,
        "device": _device(provider),
        "precision": _PRECISIONS.get(provider, "the provider's choice"),
        "threads": threads,
        "spinning": spinning,
    }
    if hasattr(session, "get_provider_graph_assignment_info"):
        info["delegated"] = _placed(session.get_provider_graph_assignment_info(), provider)
    return Session(session, info)


def _opened(ort: Any, model: Any, provider: str, options: Any = None) -> Any:
    """A session of a file's path or bytes. What TensorRT lacks goes to CUDA; what no provider has goes to the CPU."""
    if provider in ("CUDAExecutionProvider", "TensorrtExecutionProvider") and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # CUDA and cuDNN as pip installs them, which no loader looks for
    beside = ["CUDAExecutionProvider"] if provider == "TensorrtExecutionProvider" else []
    wanted = [(name, _OPTIONS.get(name, {})) for name in (provider, *beside)]
    session = ort.InferenceSession(model, options, providers=wanted)
    session.disable_fallback()
    return session


def _device(provider: str) -> str:
    """The name that DEVICES has for a provider."""
    return next((d for d, e in DEVICES.items() if e.get("options", {}).get("provider") == provider), "cpu")


def _placed(parts: list[Any], provider: str) -> dict[str, Any]:
    """How many nodes (before fusion) run on an accelerator, in how many parts, and which are left to the CPU.

    For the CPU's own provider: how many run there, all of them.
    """
    cpu = "CPUExecutionProvider"
    nodes = [(part.ep_name, node.op_type) for part in parts for node in part.get_nodes()]
    left = Counter(op for where, op in nodes if where == cpu != provider)
    return {
        "nodes": len(nodes) - sum(left.values()),
        "of": len(nodes),
        "partitions": sum(part.ep_name != cpu for part in parts) if provider != cpu else 1,
        "left": dict(left.most_common()),
    }


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
