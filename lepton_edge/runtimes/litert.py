"""LiteRT (TensorFlow Lite) through ai-edge-litert."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

REQUIRES = ("ai-edge-litert>=2.1",)
FORMATS = ("tflite",)
_DELEGATES = ("xnnpack", "none")


def load(model: str, *, threads: int = 1, delegate: str = "xnnpack") -> Session:
    """Open a .tflite file. `delegate` is "xnnpack" (LiteRT's default on a CPU) or "none" (its plain kernels).

    Raises ValueError for an unknown delegate, a file that is not TFLite, and an op that LiteRT does not have.
    """
    if delegate not in _DELEGATES:
        raise ValueError(f"unknown delegate '{delegate}'; known: {', '.join(_DELEGATES)}")
    _check_file(model)
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.AUTO if delegate == "xnnpack" else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    info = {
        "runtime": "ai-edge-litert",
        "version": metadata.version("ai-edge-litert"),
        "delegate": "none",
        "threads": threads,
    }
    try:
        interpreter = Interpreter(model_path=model, num_threads=threads, experimental_op_resolver_type=resolver)
        interpreter.allocate_tensors()
        session = Session(interpreter, info)
    except (ValueError, RuntimeError, KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{Path(model).name}: LiteRT cannot load it: {_one_line(error)}") from error
    if "DELEGATE" in session.ops:
        info["delegate"] = delegate
    return session


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
        self._shapes = {name: tuple(d["shape"]) for d, name in zip(ins, in_names)}
        self._dtypes = {name: np.dtype(d["dtype"]) for d, name in zip(ins, in_names)}
        self._free = any(None in spec["shape"][1:] for spec in self.inputs)
        self._single = all(shape[:1] == (1,) for shape in self._shapes.values())
        self.ops = {op["op_name"] for op in interpreter._get_ops_details()}
        self._stateful = any(_holds_state(op) for op in self.ops)

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, each with its batch axis. State is reset before every call."""
        interpreter = self._interpreter
        _check_feeds(feeds, self._dtypes)
        if self._single and _batch(feeds) != 1:
            return _one_by_one(self, feeds)
        if self._free:
            self._resize(feeds)
        if self._stateful:
            interpreter.reset_all_variables()
        for name, index in self._in:
            interpreter.set_tensor(index, feeds[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self._out}

    def _resize(self, feeds: dict[str, np.ndarray]) -> None:
        changed = False
        for name, index in self._in:
            if feeds[name].shape != self._shapes[name]:
                self._interpreter.resize_tensor_input(index, feeds[name].shape, strict=True)
                self._shapes[name] = feeds[name].shape
                changed = True
        if changed:
            self._interpreter.allocate_tensors()


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
