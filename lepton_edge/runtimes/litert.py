"""LiteRT (TensorFlow Lite) through ai-edge-litert: XNNPACK, plain kernels, or a GPU through WebGPU."""

from __future__ import annotations

import base64
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("ai-edge-litert>=2.1",)
FORMATS = ("tflite",)
DEVICES = {
    "cpu": {},
    "xnnpack-off": {"options": {"delegate": "none"}},
    "webgpu": {"options": {"delegate": "webgpu"}, "environ": {"LEPTON_EDGE_GPU": "1"}},
}
_DELEGATES = ("xnnpack", "none", "webgpu")
# y = |x| as a TFLite file, to start a GPU with.
_ABS = (
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAcAAAA2AAAAAMAAAABAAAACAAAAAQABAAEAAAAAQAAABAAAAAMABQAEAAMAAgA"
    "BAAMAAAAEAAAADwAAABAAAAARAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAMAAAAAQAAAAEAAAABAAAAAAAAAAEAAAABAAAA"
    "AQAAAAAAAAACAAAANAAAAAQAAADg////CAAAAAwAAAABAAAAeQAAAAIAAAABAAAABAAAAAwADAAIAAAAAAAEAAwAAAAIAAAADAAAAAEA"
    "AAB4AAAAAgAAAAEAAAAEAAAAAQAAABAAAAAMAAwACwAAAAAABAAMAAAAZQAAAAAAAGU="
)


def unusable(device: str) -> tuple[str, str] | None:
    """Why LiteRT cannot use a device, and the fix; None where it can: a model of one operator is put on it."""
    if device != "webgpu":
        return None
    with _heard() as said:
        try:
            _compiled(1, gpu_only=True, data=base64.b64decode(_ABS))
            return None
        except RuntimeError as error:
            failed = _one_line(error)
    told = [line.partition(": ")[2] for line in said if line.startswith(("Warning: ", "ERROR: [delegate_webgpu"))]
    reason = f"WebGPU finds no GPU: {'; '.join(told) or failed}"
    return (
        reason,
        "install a Vulkan driver and loader (libvulkan1, mesa-vulkan-drivers), or name one in VK_ICD_FILENAMES",
    )


def load(model: str, *, threads: int = 1, delegate: str = "xnnpack") -> Session | GpuSession:
    """Open a .tflite file.

    `delegate` is "xnnpack" (LiteRT's default on a CPU), "none" (its plain kernels), or "webgpu" (a GPU, in float32;
    what that lacks runs in XNNPACK, and `info["delegated"]` says how much). Raises ValueError for an unknown delegate,
    a file that is not TFLite, an op that LiteRT does not have, and a GPU that does not start.
    """
    if delegate not in _DELEGATES:
        raise ValueError(f"unknown delegate '{delegate}'; known: {', '.join(_DELEGATES)}")
    _check_file(model)
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if delegate == "xnnpack" else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    info: dict[str, Any] = {
        "runtime": "ai-edge-litert",
        "version": metadata.version("ai-edge-litert"),
        "delegate": "none",
        "device": "cpu",
        "precision": "f32",
        "threads": threads,
    }
    try:
        interpreter = Interpreter(model_path=model, num_threads=threads, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        session = Session(interpreter, info)
        if delegate == "webgpu":
            return _on_gpu(model, threads, session)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{Path(model).name}: LiteRT cannot load it: {_one_line(error)}") from error
    if "DELEGATE" in session.ops:
        info["delegate"] = delegate
    return session


def _on_gpu(model: str, threads: int, plain: Session) -> GpuSession:
    """The model compiled for a GPU alone, or, where that lacks operators, for a GPU and XNNPACK.

    Only the log says how many nodes go where: see "operations will run on the GPU" in LiteRT's delegates.
    """
    if plain.stateful or any(None in spec["shape"][1:] for spec in (*plain.inputs, *plain.outputs)):
        raise ValueError("on a GPU it runs models of fixed sizes that keep no state between runs")
    nodes = plain.info["delegated"]["of"]
    placed: dict[str, Any] = {"nodes": nodes, "of": nodes, "partitions": 1, "left": {}}
    with _heard() as said:
        try:
            compiled = _compiled(threads, gpu_only=True, model=model)
        except RuntimeError as error:
            if "not accelerated" not in str(error):
                raise
            compiled = _compiled(threads, gpu_only=False, model=model)
    split = r"(\d+|No) operations will run on the GPU, and (?:all|the remaining) (\d+) operations will run on the CPU"
    if found := re.search(split, "\n".join(said)):
        on_gpu, on_cpu = (0 if n == "No" else int(n) for n in found.groups())
        named = {op for op in plain.info["delegated"]["left"] if any(line.startswith(f"{op}: ") for line in said)}
        left = {op: count for op, count in plain.info["delegated"]["left"].items() if op in named}
        # What lies behind an operator that the GPU lacks stays with it: one part of the graph goes to the GPU.
        if on_cpu > sum(left.values()):
            left["others cut off by them" if left else "others"] = on_cpu - sum(left.values())
        placed = {"nodes": on_gpu, "of": on_gpu + on_cpu, "partitions": int(on_gpu > 0), "left": left}
    elif not compiled.is_fully_accelerated():
        raise ValueError("LiteRT does not say which of its operators the GPU takes")
    adapter = re.search(r"Selected adapter: ([^\n]*)", "\n".join(said))
    info = {
        "delegate": "webgpu",
        "device": "webgpu",
        "adapter": adapter.group(1) if adapter else "",
        "delegated": placed,
    }
    return GpuSession(compiled, plain, {**plain.info, **info})


def _compiled(threads: int, *, gpu_only: bool, model: str = "", data: bytes = b"") -> Any:
    from ai_edge_litert.compiled_model import CompiledModel, CpuOptions, GpuOptions, HardwareAccelerator, Options

    gpu, cpu = HardwareAccelerator.GPU, HardwareAccelerator.CPU
    options = Options(
        hardware_accelerators=gpu if gpu_only else gpu | cpu,
        cpu_options=CpuOptions(num_threads=threads),
        gpu_options=GpuOptions(enforce_f32=True),  # its own choice is float16
    )
    if data:
        return CompiledModel.from_buffer(data, options=options)
    return CompiledModel.from_file(model, options=options)


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The lines that native code writes on the standard error within; they still get there, afterwards."""
    lines: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read()
            lines += text.decode("utf-8", "replace").splitlines()
            os.write(2, text)


class GpuSession:
    """A model on a GPU, as Session. Outputs are copied to the host, so a run ends when the GPU has finished."""

    def __init__(self, compiled: Any, plain: Session, info: dict[str, Any]) -> None:
        self.inputs, self.outputs, self.info = plain.inputs, plain.outputs, info
        self._compiled = compiled
        self._dtypes = {spec["name"]: np.dtype(spec["dtype"]) for spec in self.inputs}
        key, names = next(iter(compiled.get_signature_list().items()))
        found = compiled.get_input_tensor_details(key), compiled.get_output_tensor_details(key)
        self._buffers = compiled.create_input_buffers(0), compiled.create_output_buffers(0)
        by_index = [
            {details[name]["index"]: buffer for name, buffer in zip(names[side], buffers)}
            for side, details, buffers in zip(("inputs", "outputs"), found, self._buffers)
        ]
        self._in, self._out = (  # a free batch is 1 there
            [(spec, [d or 1 for d in spec["shape"]], buffers[i]) for spec, (_, i) in zip(specs, ports)]
            for specs, ports, buffers in zip((self.inputs, self.outputs), plain.ports, by_index)
        )

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis; a batch is run sample by sample."""
        _check_feeds(feeds, self._dtypes)
        if all(shape[:1] == [1] for _, shape, _ in self._in) and _batch(feeds) != 1:
            return _one_by_one(self, feeds)
        for spec, shape, buffer in self._in:
            array = feeds[spec["name"]]
            if list(array.shape) != shape:
                raise ValueError(f"input '{spec['name']}' has shape {list(array.shape)}, takes {shape}")
            buffer.write(np.ascontiguousarray(array))
        self._compiled.run_by_index(0, *self._buffers)
        return {
            spec["name"]: buffer.read(int(np.prod(shape)), np.dtype(spec["dtype"]).type).reshape(shape)
            for spec, shape, buffer in self._out
        }


def _check_file(model: str) -> None:
    """The flatbuffer identifier; LiteRT itself verifies the rest of the file before it reads it."""
    name = Path(model).name
    if not Path(model).is_file():
        raise ValueError(f"{name}: no such file")
    size = Path(model).stat().st_size
    with Path(model).open("rb") as file:
        head = file.read(8)
    if size < 32 or head[4:8] != b"TFL3":
        raise ValueError(f"{name}: not a TFLite file (no 'TFL3' identifier in its {size} bytes)")


class Session:
    """A loaded model: `inputs`, `outputs` (name, shape, dtype, quantization), `info` and `run`.

    A model made for one sample is run sample by sample when it is fed a batch.
    """

    def __init__(self, interpreter: Any, info: dict[str, Any]) -> None:
        self._interpreter = interpreter
        ins, outs = interpreter.get_input_details(), interpreter.get_output_details()
        in_names, out_names = _names(interpreter, ins, outs)
        self.inputs = [_spec(d, name) for d, name in zip(ins, in_names)]
        self.outputs = [_spec(d, name) for d, name in zip(outs, out_names)]
        self.info = info
        self._in = [(name, d["index"]) for d, name in zip(ins, in_names)]
        self._out = [(name, d["index"]) for d, name in zip(outs, out_names)]
        self.ports = self._in, self._out
        self._shapes = {name: tuple(d["shape"]) for d, name in zip(ins, in_names)}
        self._dtypes = {name: np.dtype(d["dtype"]) for d, name in zip(ins, in_names)}
        self._free = any(None in spec["shape"] for spec in self.inputs)
        self._single = all(spec["shape"][:1] == [1] for spec in self.inputs)
        details = interpreter._get_ops_details()
        self.ops = {op["op_name"] for op in details}
        self.stateful = any(_holds_state(op) for op in self.ops)
        self.info["delegated"] = _delegated(details)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis. State is reset before every call."""
        interpreter = self._interpreter
        _check_feeds(feeds, self._dtypes)
        if self._single and _batch(feeds) != 1:
            return _one_by_one(self, feeds)
        if self._free:
            self._resize(feeds)
        if self.stateful:
            interpreter.reset_all_variables()
        for name, index in self._in:
            interpreter.set_tensor(index, feeds[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._out}

    def _resize(self, feeds: dict[str, np.ndarray]) -> None:
        """Fit the inputs to the sizes of ``feeds``. Raises ValueError, and goes back, where an operator refuses."""
        wanted = {name: feeds[name].shape for name, _ in self._in}
        if wanted == self._shapes:
            return
        before, self._shapes = self._shapes, wanted
        try:
            self._allocate(wanted)
        except (RuntimeError, ValueError) as error:
            self._shapes = before
            self._allocate(before)
            raise ValueError(f"the model does not take inputs of these sizes: {_one_line(error)}") from error

    def _allocate(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, index in self._in:
            self._interpreter.resize_tensor_input(index, shapes[name], strict=True)
        self._interpreter.allocate_tensors()


def _delegated(details: list[dict]) -> dict[str, Any]:
    """How many nodes the delegates took, in how many partitions, and which operators are left to plain kernels.

    The interpreter lists the file's nodes, then one called DELEGATE for each partition: that stands for the nodes
    which lead from its inputs to its outputs.
    """
    nodes = [op for op in details if op["op_name"] != "DELEGATE"]
    parts = [op for op in details if op["op_name"] == "DELEGATE"]
    maker = {int(t): k for k, op in enumerate(nodes) for t in op["outputs"]}
    taken: set[int] = set()
    for part in parts:
        given = {int(t) for t in part["inputs"]}
        pending = [int(t) for t in part["outputs"]]
        while pending:
            tensor = pending.pop()
            if tensor in maker and tensor not in given and maker[tensor] not in taken:
                taken.add(maker[tensor])
                pending += [int(t) for t in nodes[maker[tensor]]["inputs"]]
    left = Counter(op["op_name"] for k, op in enumerate(nodes) if k not in taken)
    return {"nodes": len(taken), "of": len(nodes), "partitions": len(parts), "left": dict(left.most_common())}


def _holds_state(op: str) -> bool:
    """Ops that carry tensors from one run to the next (LSTM and RNN cells, SVDF, resource variables)."""
    return op in {"SVDF", "READ_VARIABLE", "ASSIGN_VARIABLE"} or "LSTM" in op or "RNN" in op


def _names(interpreter: Any, ins: list[dict], outs: list[dict]) -> tuple[list[str], list[str]]:
    """Names from the only SignatureDef when it covers these very tensors, else tensor names, tidied."""
    signatures = list(interpreter._get_full_signature_list().values())
    found = []
    for key, details in (("inputs", ins), ("outputs", outs)):
        by_index = {i: name for name, i in signatures[0][key].items()} if len(signatures) == 1 else {}
        raw = [d["name"] for d in details]
        tidy = [n.removeprefix("serving_default_").removesuffix(":0") for n in raw]
        names = [by_index.get(d["index"], t) for d, t in zip(details, tidy)]
        names = names if len(set(names)) == len(names) else raw
        found.append(names if len(set(names)) == len(names) else [f"{n}_{i}" for i, n in enumerate(names)])
    return found[0], found[1]


def _spec(details: dict[str, Any], name: str) -> dict[str, Any]:
    signature = details.get("shape_signature")
    shape = signature if signature is not None and len(signature) else details["shape"]
    spec: dict[str, Any] = {
        "name": name,
        "shape": [None if d < 0 else int(d) for d in shape],
        "dtype": np.dtype(details["dtype"]).name if details["dtype"] is not np.bytes_ else "str",
    }
    scale, zero_point = details["quantization"]
    if scale:
        spec["quantization"] = [float(scale), int(zero_point)]
    return spec


def _batch(feeds: dict[str, np.ndarray]) -> int:
    return next(iter(feeds.values())).shape[0]


def _check_feeds(feeds: dict[str, np.ndarray], dtypes: dict[str, np.dtype]) -> None:
    if feeds.keys() != dtypes.keys():
        raise ValueError(f"the model's inputs are {sorted(dtypes)}, got {sorted(feeds)}")
    for name, dtype in dtypes.items():
        if feeds[name].dtype != dtype:
            raise ValueError(f"input '{name}' takes {dtype}, got {feeds[name].dtype}")


def _one_by_one(session: Any, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run a batch through a model made for one sample: outputs have the samples on their first axis."""
    count = _batch(feeds)
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
