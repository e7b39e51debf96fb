"""PyTorch exported programs (.pt2), read from their JSON: no torch, no unpickling."""

from __future__ import annotations

import ast
import json
import zipfile
from collections import Counter
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.inspectors._common import (
    Shape,
    Weights,
    assemble,
    count_nonzero_bits,
    count_nonzeros,
    damaged,
    einsum_macs,
    layer,
    size_of,
    spec,
    times,
)

REQUIRES = ("numpy",)
EXTRA = "torch"

# torch/_export/serde/schema.py, ScalarType: number -> (name, NumPy type of the stored bytes)
DTYPES = {
    1: ("uint8", "u1"),
    2: ("int8", "i1"),
    3: ("int16", "<i2"),
    4: ("int32", "<i4"),
    5: ("int64", "<i8"),
}
DTYPES |= {6: ("float16", "<f2"), 7: ("float32", "<f4"), 8: ("float64", "<f8"), 9: ("complex32", "")}
DTYPES |= {10: ("complex64", "<c8"), 11: ("complex128", "<c16"), 12: ("bool", "?"), 13: ("bfloat16", "<u2")}
DTYPES |= {28: ("uint16", "<u2"), 29: ("float8_e4m3fn", "u1"), 30: ("float8_e5m2", "u1")}
SCHEMA_MAJOR = 8
GRAPHS = ("models/model.json", "serialized_exported_program.json")
WORK_HINTS = (
    "conv",
    "mm",
    "matmul",
    "linear",
    "lstm",
    "gru",
    "rnn",
    "attention",
    "einsum",
    "dot",
    "bilinear",
)


def inspect(path: str) -> dict[str, Any]:
    """Reads the archive's JSON and the raw weights; pickled members are left alone."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = _member(archive, GRAPHS)
            if name is None:
                raise ValueError("no exported program inside (models/model.json)")
            program = json.loads(archive.read(name))
            return _report(path, archive, program)
    except (
        zipfile.BadZipFile,
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        AttributeError,
        OSError,
        EOFError,
        RuntimeError,
    ) as problem:
        raise damaged(path, "PT2", problem) from problem


def _member(archive: zipfile.ZipFile, endings: tuple[str, ...]) -> str | None:
    return next((n for n in archive.namelist() for e in endings if n == e or n.endswith("/" + e)), None)


def _report(path: str, archive: zipfile.ZipFile, program: dict) -> dict[str, Any]:
    version = program.get("schema_version") or {}
    if version.get("major") != SCHEMA_MAJOR:
        raise LeptonError(
            f"{path}: written in schema {version.get('major')}, this reads schema {SCHEMA_MAJOR}",
            hint="export it again with torch 2.5 or newer (torch.export.save)",
        )
    graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
    sizes = _Sizes(graph, signature)
    weights = _Stored(archive, graph, signature)
    layers = [_row(node, sizes, weights) for node in graph["nodes"] if not _is_python(node["target"])]
    return assemble(
        format="pt2",
        producer=f"PyTorch {program.get('torch_version', '')}".strip(),
        inputs=_ports(signature["input_specs"], "user_input", graph),
        outputs=_ports(signature["output_specs"], "user_output", graph),
        layers=layers,
        weights=weights.totals,
        versions={
            "schema": f"{version.get('major')}.{version.get('minor')}",
            "torch": program.get("torch_version"),
            "opset": program.get("opset_version"),
        },
        quantized=_quantized(graph, weights),
        notes=weights.notes,
    )


def _ports(specs: list[dict], kind: str, graph: dict) -> list[dict]:
    """The tensors among the arguments or results; numbered if one is returned twice, as the runtime does."""
    arguments = [entry[kind]["arg"] for entry in specs if kind in entry]
    names = [arg["as_tensor"]["name"] for arg in arguments if "as_tensor" in arg]
    ports = [_spec(name, graph) for name in names]
    if len(set(names)) != len(names):
        ports = [port | {"name": f"{port['name']}_{i}"} for i, port in enumerate(ports)]
    return ports


def _spec(name: str, graph: dict) -> dict:
    meta = graph["tensor_values"][name]
    shape = [size.get("as_int") for size in meta["sizes"]]
    return spec(name, shape, DTYPES.get(meta["dtype"], (f"type{meta['dtype']}",))[0])


def _is_python(target: str) -> bool:
    """Arithmetic on sizes and picking of tuple entries, not operators on tensors."""
    return target.startswith(("_operator.", "math.", "torch.sym_")) or "sym_size" in target


class _Sizes:
    """Shapes of tensors for a batch of one."""

    def __init__(self, graph: dict, signature: dict) -> None:
        self.values = graph["tensor_values"]
        self.batch = {name for s in signature["input_specs"] if (name := self._batch(s))}

    def _batch(self, spec: dict) -> str | None:
        """The symbol of a user input's first dimension."""
        arg = spec.get("user_input", {}).get("arg", {})
        meta = self.values.get(arg.get("as_tensor", {}).get("name"))
        first = (meta["sizes"] or [{}])[0] if meta else {}
        if "as_expr" not in first:
            return None
        names = _symbols(ast.parse(first["as_expr"]["expr_str"], mode="eval"))
        return names.pop() if len(names) == 1 else None

    def of(self, name: str | None) -> list[int | None] | None:
        """The shape of a tensor, None for a dimension that depends on more than the batch."""
        meta = self.values.get(name)
        return None if meta is None else [self._size(size) for size in meta["sizes"]]

    def _size(self, size: dict) -> int | None:
        if "as_int" in size:
            return int(size["as_int"])
        return _evaluate(ast.parse(size["as_expr"]["expr_str"], mode="eval").body, self.batch)


def _symbols(tree: ast.AST) -> set[str]:
    """Free symbols of a size: Symbol('s0', ...) in the new notation, s0 in the old."""
    found = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id[0] in "su" and n.id[1:].isdigit()}
    for node in ast.walk(tree):
        if _called(node) == "Symbol" and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Constant):
            found.add(str(node.args[0].value))
    return found


def _called(node: ast.AST) -> str:
    return node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""


def _evaluate(node: ast.AST, batch: set[str]) -> int | None:
    """A size expression with the batch at one: sums, products and whole divisions, nothing else is run."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int) else None
    if isinstance(node, ast.Name):
        return 1 if node.id in batch else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return times(-1, _evaluate(node.operand, batch))
    if isinstance(node, ast.BinOp):
        return _binary(type(node.op).__name__, _evaluate(node.left, batch), _evaluate(node.right, batch))
    kind = _called(node)
    if not kind or not isinstance(node, ast.Call):
        return None
    if kind == "Symbol":
        return 1 if isinstance(node.args[0], ast.Constant) and node.args[0].value in batch else None
    values = [_evaluate(arg, batch) for arg in node.args]
    return _function(kind, values)


def _function(kind: str, values: list[int | None]) -> int | None:
    if any(value is None for value in values):
        return None
    known = [value for value in values if value is not None]
    if kind == "Integer":
        return known[0]
    if kind in ("Add", "Mul", "Max", "Min"):
        reduce: dict[str, Callable[[list[int]], int]] = {"Add": sum, "Mul": prod, "Max": max, "Min": min}
        return reduce[kind](known)
    names = {"FloorDiv": "FloorDiv", "CleanDiv": "FloorDiv", "Mod": "Mod", "PythonMod": "Mod", "Pow": "Pow"}
    return _binary(names[kind], *known) if kind in names and len(known) == 2 else None


def _binary(kind: str, left: int | None, right: int | None) -> int | None:
    if left is None or right is None or (kind in ("FloorDiv", "Mod") and right == 0):
        return None
    if kind == "Pow":
        return left**right if 0 <= right <= 8 else None
    table = {"Add": left + right, "Sub": left - right, "Mult": left * right}
    if kind in ("FloorDiv", "Mod"):
        table |= {"FloorDiv": left // right, "Mod": left % right}
    return table.get(kind)


class _Stored:
    """Parameters, buffers and constants of the program, and who uses each first."""

    def __init__(self, archive: zipfile.ZipFile, graph: dict, signature: dict) -> None:
        self.archive = archive
        self.totals = Weights()
        self.kinds: Counter = Counter()
        self.notes: list[str] = []
        self.stored = {**_config(archive, "weights"), **_config(archive, "constants")}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.taken: set[str] = set()
        read: dict[str, int | None] = {}
        for entry in signature["input_specs"]:
            self._take(entry, graph["tensor_values"], read)
        if self.totals.nonzeros is None:
            self.notes.append("weights are pickled in this file and are not unpickled: zeros were not counted")

    def _take(self, entry: dict, values: dict, read: dict[str, int | None]) -> None:
        kind = next((k for k in ("parameter", "buffer", "tensor_constant") if k in entry), None)
        if kind is None:
            return
        name = entry[kind]["arg"]["name"]
        (full,) = (value for key, value in entry[kind].items() if key.endswith("_name"))
        meta = values[name]
        dtype, code = DTYPES.get(meta["dtype"], ("", ""))
        count = prod(int(size["as_int"]) for size in meta["sizes"])
        if not (dtype.startswith(("float", "bfloat")) or dtype in ("int8", "uint8")) or not meta["sizes"]:
            return
        size = count * (np.dtype(code).itemsize if code else 4)
        self.kinds[dtype] += 1
        self.sizes[name] = (count, size)
        path = (self.stored.get(full) or {}).get("path_name") or full
        if path in read:  # tied weights are stored once and counted once
            return
        read[path] = self._nonzeros(full, dtype, code, count)
        statistic = kind == "buffer" and full.rsplit(".", 1)[-1] in ("running_mean", "running_var")
        self.totals.add(count, size, read[path], statistic)

    def _nonzeros(self, full: str, dtype: str, code: str, count: int) -> int | None:
        entry = self.stored.get(full)
        if entry is None or entry.get("use_pickle") or not code:
            return None
        member = _member(self.archive, (f"data/weights/{entry['path_name']}", f"data/constants/{entry['path_name']}"))
        if member is None:
            raise ValueError(f"the weight '{full}' ({entry['path_name']}) is missing in the archive")
        raw = self.archive.read(member)
        width = np.dtype(code).itemsize
        if len(raw) < count * width:
            raise ValueError(f"the weight '{full}' holds {len(raw)} bytes where it needs {count * width}")
        strided = len(raw) != count * width  # a view into a larger storage
        if strided:
            return None
        array = np.frombuffer(raw, code)
        odd = dtype == "bfloat16" or dtype.startswith("float8")
        return count_nonzero_bits(array, 8 * width) if odd else count_nonzeros(array)

    def own(self, names: list[str]) -> tuple[int, int]:
        """What a node reads that no node before it has read."""
        fresh = [n for n in dict.fromkeys(names) if n in self.sizes and n not in self.taken]
        self.taken.update(fresh)
        return sum(self.sizes[n][0] for n in fresh), sum(self.sizes[n][1] for n in fresh)


def _config(archive: zipfile.ZipFile, kind: str) -> dict:
    member = _member(archive, (f"data/{kind}/model_{kind}_config.json",))
    return json.loads(archive.read(member))["config"] if member else {}


def _arguments(node: dict) -> dict[str, Any]:
    return {entry["name"]: entry["arg"] for entry in node["inputs"]}


def _tensors(arg: Any) -> list[str]:
    """Names of all tensors in an argument."""
    if "as_tensor" in arg:
        return [arg["as_tensor"]["name"]]
    if "as_tensors" in arg:
        return [entry["name"] for entry in arg["as_tensors"]]
    if "as_optional_tensors" in arg:
        return [n for entry in arg["as_optional_tensors"] for n in _tensors(entry)]
    return _tensors(arg["as_optional_tensor"]) if isinstance(arg.get("as_optional_tensor"), dict) else []


def _row(node: dict, sizes: _Sizes, weights: _Stored) -> dict:
    arguments = _arguments(node)
    target = node["target"].removeprefix("torch.ops.")
    names = [name for arg in arguments.values() for name in _tensors(arg)]
    outputs = [name for arg in node["outputs"] for name in _tensors(arg)]
    output = sizes.of(outputs[0]) if outputs else None
    shape = None if not outputs else [s.get("as_int") for s in sizes.values[outputs[0]]["sizes"]]
    count, size = weights.own(names)
    macs = _macs(target, arguments, [sizes.of(name) for name in names], output)
    return layer(outputs[0] if outputs else target, target, shape, macs, count, size)


def _macs(target: str, arguments: dict, shapes: list[Shape | None], output: Shape | None) -> int | None:
    space, _, rest = target.partition(".")
    op = rest.split(".")[0]
    first = shapes[0] if shapes else None
    second = shapes[1] if len(shapes) > 1 else None
    if op == "convolution" and (arguments.get("transposed") or {}).get("as_bool"):
        op = "conv_transpose2d"
    if op.startswith("conv_transpose"):
        return times(size_of(first), size_of(second[1:]) if second else None)
    if op in ("conv1d", "conv2d", "conv3d", "convolution", "_convolution"):
        return times(size_of(output), size_of(second[1:]) if second else None)
    if op in ("linear", "mm", "bmm", "matmul", "mv", "dot"):
        return times(size_of(output), first[-1] if first else None)
    if op in ("addmm", "baddbmm", "addmv"):
        return times(size_of(output), second[-1] if second else None)
    if op == "scaled_dot_product_attention":
        return _attention(shapes)
    if op in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
        return _recurrent(arguments, first, shapes)
    if op == "einsum":
        return einsum_macs(arguments["equation"]["as_string"], shapes)
    known = space in ("aten", "prims", "quantized_decomposed") and not any(hint in op for hint in WORK_HINTS)
    return 0 if known else None


def _attention(shapes: list[Shape | None]) -> int | None:
    query, key, value = (*shapes[:3], None, None, None)[:3]
    if not query or not key or not value:
        return None
    width = None if key[-1] is None or value[-1] is None else key[-1] + value[-1]
    return times(size_of(query[:-1]), key[-2], width)


def _recurrent(arguments: dict, data: Shape | None, shapes: list[Shape | None]) -> int | None:
    """Every matrix among the weights is used once for each step of each sample."""
    params = len(_tensors(arguments.get("params", {})))
    matrices = [shape for shape in shapes[-params:] if shape and len(shape) == 2] if params else []
    if not data or len(data) != 3 or not matrices:
        return None
    return times(data[0], data[1], sum(size_of(shape) or 0 for shape in matrices))


def _quantized(graph: dict, weights: _Stored) -> dict[str, int]:
    targets = Counter(node["target"].split(".")[-2] for node in graph["nodes"] if node["target"].count(".") > 2)
    found = {f"{kind}_tensors": weights.kinds[kind] for kind in ("int8", "uint8", "float16", "bfloat16")}
    found["quantize_nodes"] = sum(n for t, n in targets.items() if t.startswith("quantize"))
    found["dequantize_nodes"] = sum(n for t, n in targets.items() if t.startswith("dequantize"))
    return found
