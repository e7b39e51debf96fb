"""OpenVINO on one device, tuned for latency."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("openvino>=2026",)
FORMATS = ("openvino",)
DEVICES = {
    "cpu": {},
    "gpu": {"options": {"device": "GPU"}},
    "npu": {"options": {"device": "NPU"}},
    "auto": {"options": {"device": "AUTO"}},
}
_PRECISIONS = ("f32", "f16", "bf16", "default")


def _openvino() -> Any:
    """The package, imported as in CI: its telemetry is on by default otherwise, and starts with the import."""
    before = os.environ.get("CI")
    os.environ["CI"] = "true"
    try:
        import openvino
    finally:
        if before is None:
            del os.environ["CI"]
        else:
            os.environ["CI"] = before
    return openvino


def unusable(device: str) -> tuple[str, str] | None:
    """Why OpenVINO cannot use a device, and the fix; None where it can. AUTO takes the best there is."""
    wanted = DEVICES[device]["options"]["device"]
    ov = _openvino()
    core = ov.Core()
    there = core.available_devices
    if wanted == "AUTO" or any(name.split(".")[0] == wanted for name in there):
        return None
    what = {
        "GPU": "an Intel GPU and its driver (intel-opencl-icd on Linux)",
        "NPU": "an Intel NPU and its driver (linux-npu-driver on Linux)",
    }
    reason = f"OpenVINO {ov.__version__.split('-')[0]} finds no {wanted} here; it finds {', '.join(there) or 'nothing'}"
    return reason, f"it needs {what[wanted]}"


def load(model: str, *, threads: int = 1, device: str = "CPU", precision: str = "f32") -> Session:
    """Open an IR (.xml with its .bin beside it).

    `precision` is what floating-point parts are computed in: "f32" is exact; "default" leaves the plugin its
    choice, which is bf16 on a CPU that has it. `info["precision"]` is what the compiled model really uses.
    Raises ValueError for an unknown device or precision, and a model OpenVINO cannot read.
    """
    ov = _openvino()
    if precision not in _PRECISIONS:
        raise ValueError(f"unknown precision '{precision}'; known: {', '.join(_PRECISIONS)}")
    path = Path(model)
    _check_files(path)
    core = ov.Core()
    if device != "AUTO" and device not in {d.split(".")[0] for d in core.available_devices} | {*core.available_devices}:
        raise ValueError(f"device '{device}' is not available; available: {', '.join(core.available_devices)}")
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        config["INFERENCE_NUM_THREADS"] = threads
    elif device == "AUTO":
        config["DEVICE_PROPERTIES"] = {"CPU": {"INFERENCE_NUM_THREADS": threads}}
    if precision != "default" and device != "NPU":  # an NPU computes in half precision, and refuses the hint
        config["INFERENCE_PRECISION_HINT"] = precision
    try:
        compiled = core.compile_model(core.read_model(path), device, config)
    except (RuntimeError, UnicodeDecodeError) as error:  # the latter for texts of the file that its own error holds
        raise ValueError(f"{path.name}: OpenVINO cannot load it: {_one_line(error)}") from error
    info = {
        "runtime": "openvino",
        "version": ov.__version__.split("-")[0],
        "threads": threads,
        **_placed(compiled),
    }
    return Session(compiled, info)


def _placed(compiled: Any) -> dict[str, Any]:
    """Where the compiled model runs and in which precision, as it says itself.

    Only HETERO cuts a model between devices, so all nodes of the executed graph run on the device named.
    """
    executed = [d.strip("()") for d in compiled.get_property("EXECUTION_DEVICES")]
    layers = [dict(op.get_rt_info())["layerType"] for op in compiled.get_runtime_model().get_ops()]
    count = sum(getattr(kind, "value", kind) not in ("Input", "Output", "Const") for kind in layers)
    device = "+".join(d.split(".")[0].lower() for d in executed)
    supported = list(compiled.get_property("SUPPORTED_PROPERTIES"))
    if "INFERENCE_PRECISION_HINT" in supported:
        precision = _type_name(compiled.get_property("INFERENCE_PRECISION_HINT"))
    else:  # AUTO tells what the plugin that it chose is set to
        own = dict(compiled.get_property("DEVICE_PROPERTIES")) if "DEVICE_PROPERTIES" in supported else {}
        precision = _type_name(own.get(executed[0], {}).get("INFERENCE_PRECISION_HINT", "the device's choice"))
    return {
        "device": device,
        "precision": precision,
        "delegated": {"nodes": count, "of": count, "partitions": 1, "left": {}},
    }


def _check_files(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path.name}: no such file")
    if path.suffix == ".xml":
        with path.open("rb") as file:
            if b"<net" not in file.read(4096):
                raise ValueError(f"{path.name}: not an OpenVINO IR (no <net> element)")
        if not path.with_suffix(".bin").is_file():
            raise ValueError(f"{path.name}: its weights file {path.with_suffix('.bin').name} is missing")


class Session:
    """A loaded model: `inputs`, `outputs` (name, shape, dtype), `info` and `run`.

    A model made for one sample is run sample by sample when it is fed a batch.
    """

    def __init__(self, compiled: Any, info: dict[str, Any]) -> None:
        self._request = compiled.create_infer_request()
        ins, outs = list(compiled.inputs), list(compiled.outputs)
        self.inputs = [_spec(port, name) for port, name in zip(ins, _port_names(ins))]
        self.outputs = [_spec(port, name) for port, name in zip(outs, _port_names(outs))]
        self.info = info
        self._index = {spec["name"]: i for i, spec in enumerate(self.inputs)}
        self._dtypes = {spec["name"]: np.dtype(spec["dtype"]) for spec in self.inputs}
        self._names = [spec["name"] for spec in self.outputs]
        self._single = bool(self.inputs) and all(spec["shape"][:1] == [1] for spec in self.inputs)
        # Where all sizes are fixed, values are copied into the request's own tensors: handing it arrays takes as long
        # as a small model does.
        specs = [*self.inputs, *self.outputs]
        fixed = all(spec["dtype"] != "str" and None not in spec["shape"] for spec in specs)
        self._own: dict[str, np.ndarray] = {}
        if fixed and all(spec["shape"] for spec in self.inputs):
            self._own = {name: self._request.get_input_tensor(i).data for name, i in self._index.items()}

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis.

        Raises ValueError for missing, unknown, mistyped or misshapen inputs.
        """
        if feeds.keys() != self._index.keys():
            raise ValueError(f"the model's inputs are {sorted(self._index)}, got {sorted(feeds)}")
        if self._single and next(iter(feeds.values())).shape[0] != 1:
            return _one_by_one(self, feeds)
        for name, dtype in self._dtypes.items():
            if feeds[name].dtype != dtype:
                raise ValueError(f"input '{name}' takes {dtype}, got {feeds[name].dtype}")
        return self._run_own(feeds) if self._own else self._run_given(feeds)

    def _run_own(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        for name, own in self._own.items():
            if feeds[name].shape != own.shape:
                raise ValueError(f"input '{name}' takes the shape {list(own.shape)}, got {list(feeds[name].shape)}")
            own[...] = feeds[name]
        try:
            self._request.infer(None, share_outputs=True)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO: {_one_line(error)}") from error
        return {name: self._request.get_output_tensor(i).data.copy() for i, name in enumerate(self._names)}

    def _run_given(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {}
        for name, index in self._index.items():
            # OpenVINO writes to a scalar that it is given.
            arrays[index] = np.ascontiguousarray(feeds[name]) if feeds[name].ndim else feeds[name].copy()
        try:
            results = self._request.infer(arrays, share_inputs=True, share_outputs=False)
        except RuntimeError as error:
            raise ValueError(f"OpenVINO: {_one_line(error)}") from error
        if len(results) != len(self._names):
            raise ValueError(f"OpenVINO gave {len(results)} outputs where {len(self._names)} are declared")
        return dict(zip(self._names, results.values()))


def _port_names(ports: list[Any]) -> list[str]:
    """A port's tensor name, else its layer's friendly name; made unique by position where they collide."""
    names = []
    for port in ports:
        node = port.get_node()
        if port.names:
            names.append(port.get_any_name())
        elif node.get_type_name() == "Result":
            names.append(node.input_value(0).get_node().get_friendly_name())
        else:
            names.append(node.get_friendly_name())
    return names if len(set(names)) == len(names) else [f"{name}_{i}" for i, name in enumerate(names)]


def _spec(port: Any, name: str) -> dict[str, Any]:
    shape = [dim.get_length() if dim.is_static else None for dim in port.get_partial_shape()]
    kind = port.get_element_type()
    dtype = "str" if kind.get_type_name() == "string" else np.dtype(kind.to_dtype()).name
    return {"name": name, "shape": shape, "dtype": dtype}


def _type_name(kind: Any) -> str:
    return kind.get_type_name() if hasattr(kind, "get_type_name") else str(kind)


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
