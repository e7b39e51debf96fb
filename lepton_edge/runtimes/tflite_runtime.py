"""tflite-runtime, the older TensorFlow Lite package that fielded devices run."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("tflite-runtime>=2.14", "numpy<2")
FORMATS = ("tflite",)
COST = 2.0  # only where it is asked for: ai-edge-litert is the default
DEVICES = {"cpu": {}, "xnnpack-off": {"options": {"delegate": "none"}}}
_DELEGATES = ("xnnpack", "none")


def unusable(device: str) -> tuple[str, str] | None:
    """None: both run on every CPU."""
    return None


def load(model: str, *, threads: int = 1, delegate: str = "xnnpack") -> Session:
    """Open a .tflite file. `delegate` is "xnnpack" (the default on a CPU, float only) or "none".

    Raises ValueError for an unknown delegate, a damaged file, an op or an op version this package does not
    have, and numpy 2, under which the package crashes.
    """
    if delegate not in _DELEGATES:
        raise ValueError(f"unknown delegate '{delegate}'; known: {', '.join(_DELEGATES)}")
    if int(np.__version__.split(".")[0]) >= 2:
        raise ValueError(f"tflite-runtime needs numpy < 2 (it crashes under {np.__version__})")
    _check_file(model)
    from tflite_runtime.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if delegate == "xnnpack" else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    info: dict[str, Any] = {
        "runtime": "tflite-runtime",
        "version": metadata.version("tflite-runtime"),
        "delegate": "none",
        "device": "cpu",
        "precision": "f32",
        "threads": threads,
    }
    try:
        interpreter = Interpreter(model_path=model, num_threads=threads, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        session = Session(interpreter, info)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{Path(model).name}: tflite-runtime cannot load it: {_one_line(error)}") from error
    if "DELEGATE" in session.ops:
        info["delegate"] = delegate
    return session


def _check_file(model: str) -> None:
    """Walk the flatbuffer: this package does not, and a damaged file kills the process with a segfault.

    Field numbers are those of TensorFlow's schema.fbs (v3).
    """
    name = Path(model).name
    if not Path(model).is_file():
        raise ValueError(f"{name}: no such file")
    data = Path(model).read_bytes()
    if len(data) < 32 or data[4:8] != b"TFL3":
        raise ValueError(f"{name}: not a TFLite file (no 'TFL3' identifier in its {len(data)} bytes)")
    try:
        _walk_model(data)
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError(f"{name}: damaged or truncated TFLite file ({error})") from error


_BYTES = {0: 4, 1: 2, 2: 4, 3: 1, 4: 8, 6: 1, 7: 2, 8: 8, 9: 1, 10: 8, 11: 16, 12: 8, 15: 4, 16: 2}


def _walk_model(data: bytes) -> None:
    root = _table(data, _u32(data, 0))
    codes = list(_tables(data, root.get(1)))
    for code in codes:
        _vector(data, code.get(1), 1)
    sizes = []
    for buffer in _tables(data, root.get(4)):
        sizes.append(_vector(data, buffer.get(0), 1)[1])
    graphs = list(_tables(data, root.get(2)))
    if not graphs or not codes or not sizes:
        raise ValueError("no subgraph, operator or buffer in it")
    for graph in graphs:
        tensors = list(_tables(data, graph.get(0)))
        for tensor in tensors:
            _check_tensor(data, tensor, sizes)
        for field in (1, 2):
            _check_indices(data, graph.get(field), len(tensors), 0)
        for op in _tables(data, graph.get(3)):
            opcode = _u32(data, op[0]) if 0 in op else 0
            if opcode >= len(codes):
                raise ValueError(f"operator code {opcode} of {len(codes)}")
            _check_indices(data, op.get(1), len(tensors), -1)
            _check_indices(data, op.get(2), len(tensors), -1)
            _vector(data, op.get(5), 1)
            if 4 in op:
                _table(data, op[4] + _u32(data, op[4]))
    for signature in _tables(data, root.get(7)):
        for field in (0, 1):
            for entry in _tables(data, signature.get(field)):
                _vector(data, entry.get(0), 1)
        _vector(data, signature.get(2), 1)


def _check_tensor(data: bytes, tensor: dict[int, int], sizes: list[int]) -> None:
    start, rank = _vector(data, tensor.get(0), 4)
    shape = struct.unpack_from(f"<{rank}i", data, start)
    _vector(data, tensor.get(3), 1)
    buffer = _u32(data, tensor[2]) if 2 in tensor else 0
    if buffer >= len(sizes):
        raise ValueError(f"buffer {buffer} of {len(sizes)}")
    kind = data[tensor[1]] if 1 in tensor else 0
    if sizes[buffer] and kind in _BYTES and 6 not in tensor:
        need = _BYTES[kind] * int(np.prod([max(d, 0) for d in shape], dtype=np.int64))
        if need > sizes[buffer]:
            raise ValueError(f"a constant of {need} bytes has a buffer of {sizes[buffer]}")
    if 4 in tensor:
        quantization = _table(data, tensor[4] + _u32(data, tensor[4]))
        for field, width in ((0, 4), (1, 4), (2, 4), (3, 8)):
            _vector(data, quantization.get(field), width)


def _check_indices(data: bytes, at: int | None, count: int, least: int) -> None:
    start, length = _vector(data, at, 4)
    for index in struct.unpack_from(f"<{length}i", data, start):
        if not least <= index < count:
            raise ValueError(f"tensor {index} of {count}")


def _u32(data: bytes, at: int) -> int:
    return struct.unpack_from("<I", data, at)[0]


def _table(data: bytes, at: int) -> dict[int, int]:
    """Absolute positions of the fields of the table at `at`, by field number."""
    vtable = at - struct.unpack_from("<i", data, at)[0]
    if vtable < 0:
        raise ValueError("offset outside of the file")
    vsize, size = struct.unpack_from("<HH", data, vtable)
    if vsize < 4 or vtable + vsize > len(data) or at + size > len(data):
        raise ValueError("table outside of the file")
    slots = struct.unpack_from(f"<{vsize // 2 - 2}H", data, vtable + 4)
    if any(slot >= size for slot in slots if slot):
        raise ValueError("field outside of its table")
    return {number: at + slot for number, slot in enumerate(slots) if slot}


def _vector(data: bytes, at: int | None, width: int) -> tuple[int, int]:
    """Start and length of the vector that the offset at `at` points to ((0, 0) if the field is absent)."""
    if at is None:
        return 0, 0
    start = at + _u32(data, at)
    length = _u32(data, start)
    if start + 4 + length * width > len(data):
        raise ValueError("vector reaches past the end of the file")
    return start + 4, length


def _tables(data: bytes, at: int | None) -> Iterator[dict[int, int]]:
    start, length = _vector(data, at, 4)
    for i in range(length):
        yield _table(data, start + 4 * i + _u32(data, start + 4 * i))


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
