"""TensorFlow SavedModel folders, read without TensorFlow."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.inspectors._checkpoint import DTYPES, Checkpoint
from lepton_edge.inspectors._common import (
    Shape,
    Weights,
    assemble,
    count_nonzeros,
    damaged,
    einsum_macs,
    layer,
    size_of,
    spec,
    times,
)
from lepton_edge.inspectors._flow import Flow
from lepton_edge.inspectors._tfgraph import SAME, SAVED_MODEL, Op, attr_of, bodies, flatten, shape_of
from lepton_edge.inspectors._wire import parse

REQUIRES = ("numpy",)
EXTRA = "tensorflow"

VARIABLES = ("VarHandleOp", "VariableV2", "Variable")
CALL_PREFIX = re.compile(r"^((Stateful)?PartitionedCall(_\d+)?/)+")
QUIET = (*SAME, *VARIABLES, "Const", "Placeholder", "NoOp", "Assert")
MATRIX = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "_FusedMatMul", "SparseMatMul")
CONVOLUTIONS = ("Conv2D", "Conv3D", "_FusedConv2D")
TRANSPOSED = ("Conv2DBackpropInput", "Conv3DBackpropInputV2")
LOOPS = ("While", "StatelessWhile", "If", "StatelessIf", "Case", "StatelessCase", "MapDefun")
UNCOUNTED = (
    "XlaConv",
    "XlaConvV2",
    "XlaDot",
    "XlaDotV2",
    "XlaCallModule",
    "CudnnRNNV3",
    "PyFunc",
    "EagerPyFunc",
)
HEAVY = {*MATRIX, *CONVOLUTIONS, *TRANSPOSED, *UNCOUNTED, "DepthwiseConv2dNative", "Einsum"}
RESHAPING = ("Reshape", "Squeeze", "ExpandDims", "EnsureShape")
FLOATS = ("float32", "float64", "float16", "bfloat16", "int8", "qint8")
STEERED = ("Reshape", "Pad", "PadV2", "ConcatV2", "Pow", "Fill", "Tile", "Transpose")


def inspect(path: str) -> dict[str, Any]:
    """Reads saved_model.pb and the checkpoint beside it; only what the serving signature uses is counted."""
    folder = Path(path)
    file = folder / "saved_model.pb"
    if not file.is_file():
        raise LeptonError(f"{path}: no saved_model.pb in this folder", hint="give the folder that holds it")
    try:
        model = parse(file.read_bytes(), SAVED_MODEL)
        meta = _meta(path, model)
        checkpoint = Checkpoint(folder / "variables" / "variables")
        return _report(path, meta, checkpoint)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, struct.error) as problem:
        raise damaged(path, "SavedModel", problem) from problem


def _meta(path: str, model: dict) -> dict:
    """The graph tagged for serving."""
    graphs = [g for g in model["graphs"] if g["graph"] and g["signatures"]]
    if not graphs:
        raise LeptonError(
            f"{path}: this SavedModel has no signature",
            hint="save it with signatures, or with Keras' model.export",
        )
    return next((g for g in graphs if g["info"] and "serve" in g["info"]["tags"]), graphs[0])


def _report(path: str, meta: dict, checkpoint: Checkpoint) -> dict[str, Any]:
    key, signature, notes = _signature(path, meta["signatures"])
    ops = flatten(meta["graph"], [info["name"] for info in signature["outputs"].values()])
    weights = _Stored(checkpoint, variable_keys(meta))
    layers = _layers(ops, meta["graph"], weights)
    version = meta["info"]["tensorflow"] if meta["info"] else ""
    producer = (meta["graph"]["versions"] or {"producer": None})["producer"]
    return assemble(
        format="savedmodel",
        producer=f"TensorFlow {version}".strip(),
        inputs=[_spec(name, info) for name, info in sorted(signature["inputs"].items())],
        outputs=[_spec(name, info) for name, info in sorted(signature["outputs"].items())],
        layers=layers,
        weights=weights.totals,
        versions={"tensorflow": version, "graph_producer": producer, "signature": key},
        notes=notes + weights.notes(),
    )


def _signature(path: str, signatures: dict) -> tuple[str, dict, list[str]]:
    usable = {k: s for k, s in signatures.items() if s["outputs"] and not k.startswith("__saved_model")}
    if not usable:
        raise LeptonError(f"{path}: this SavedModel has no signature with outputs", hint="save it with signatures")
    key = "serving_default" if "serving_default" in usable else sorted(usable)[0]
    notes = [] if key == "serving_default" else [f"no serving_default signature: '{key}' is described"]
    others = sorted(set(usable) - {key, "serve"})
    return key, usable[key], notes + ([f"other signatures: {', '.join(others)}"] if others else [])


def _spec(name: str, info: dict) -> dict:
    return spec(name, shape_of(info["shape"]), DTYPES.get(info["dtype"], (f"type{info['dtype']}",))[0])


def variable_keys(meta: dict) -> dict[str, str]:
    """{variable node: checkpoint key}, read off the restore function, which is what loading itself uses."""
    restore = meta["saver"]["restore"].split(":")[0] if meta["saver"] else ""
    nodes = {n["name"]: n for n in meta["graph"]["node"]}
    functions = {f["signature"]["name"]: f for f in (meta["graph"]["library"] or {"function": []})["function"]}
    call = nodes.get(restore)
    function = functions.get(call["attr"]["f"]["func"]["name"]) if call and call["attr"].get("f") else None
    if call is None or function is None:
        return _flat_keys(nodes)
    arguments = dict(zip([a["name"] for a in function["signature"]["inputs"]], call["input"], strict=False))
    inner = {n["name"]: n for n in function["node"]}
    return {arguments[a]: key for a, key in _assignments(inner) if a in arguments}


def _flat_keys(nodes: dict) -> dict[str, str]:
    """TensorFlow 1 restores in the main graph; its variables are stored under their own names."""
    return {a.split(":")[0]: key for a, key in _assignments(nodes)}


def _assignments(nodes: dict) -> list[tuple[str, str]]:
    """(what is assigned to, checkpoint key) for every Assign fed by a RestoreV2."""
    found = []
    for node in nodes.values():
        if node["op"] not in ("AssignVariableOp", "Assign"):
            continue
        source, number = _origin(nodes, node["input"][1])
        if source is None or source["op"] != "RestoreV2":
            continue
        names = nodes[source["input"][1].split(":")[0]]["attr"]["value"]["tensor"]["strings"]
        found.append((node["input"][0], names[number]))
    return found


def _origin(nodes: dict, reference: str) -> tuple[dict | None, int]:
    for _ in range(8):
        parts = reference.split(":")
        node = nodes.get(parts[0])
        if node is None or node["op"] != "Identity":
            return node, int(parts[-1]) if len(parts) > 1 else 0
        reference = node["input"][0]
    return None, 0


class _Stored:
    """Weights of the signature: variables, and constants of frozen graphs."""

    def __init__(self, checkpoint: Checkpoint, keys: dict[str, str]) -> None:
        self.checkpoint, self.keys = checkpoint, keys
        self.full_names = checkpoint.full_names()
        self.totals = Weights()
        self.counted: set[str] = set()
        self.missing: list[str] = []

    def variable(self, op: Op) -> tuple[int, int]:
        """Counts a variable the first time it is met; (elements, bytes), zeros if it holds no weights."""
        key = self.keys.get(op.name, op.name)
        if op.name in self.counted or key in self.counted:
            return 0, 0
        self.counted |= {op.name, key}
        entry = self.checkpoint.entries.get(key)
        if entry is None:
            self.missing.append(op.name)
            return self._unstored(op)
        if DTYPES.get(entry["dtype"], ("",))[0] not in FLOATS:
            return 0, 0
        count = size_of(shape_of(entry["shape"]) or []) or 0
        name = self.full_names.get(key, key)
        statistic = name.split(":")[0].rsplit("/", 1)[-1].startswith("moving_")
        self.totals.add(count, entry["size"], self.checkpoint.nonzeros(key), statistic)
        return count, entry["size"]

    def _unstored(self, op: Op) -> tuple[int, int]:
        """A variable without a stored value: its declared shape still counts, its zeros do not."""
        count = size_of(shape_of(attr_of(op, "shape", "shape"))) or 0
        self.totals.add(count, 0, None)
        return count, 0

    def constant(self, op: Op) -> tuple[int, int]:
        """Counts a constant of more than one element that a layer reads as a weight."""
        tensor = attr_of(op, "value", "tensor")
        name, code = DTYPES.get(tensor["dtype"], ("", "")) if tensor else ("", "")
        count = size_of(shape_of(tensor["shape"]) or []) if tensor else 0
        if op.name in self.counted or name not in FLOATS or not count or count == 1:
            return 0, 0
        self.counted.add(op.name)
        raw = np.frombuffer(tensor["content"], code) if tensor["content"] else None
        nonzeros = count_nonzeros(raw) if raw is not None and name != "bfloat16" and raw.size == count else None
        self.totals.add(count, count * np.dtype(code).itemsize, nonzeros)
        return count, count * np.dtype(code).itemsize

    def notes(self) -> list[str]:
        if not self.missing:
            return []
        return [f"{len(self.missing)} variables have no stored value (first: '{self.missing[0]}')"]


def _layers(ops: list[Op], graph: dict, weights: _Stored) -> list[dict]:
    makers = {op.name: op for op in ops}
    flow, rows = Flow(RESHAPING), []
    for op in ops:
        if op.op in ("Placeholder", "Const", *VARIABLES):
            for number, shape in enumerate(op.shapes or [None]):
                flow.feed((op.name, number), _constant_shape(op) or shape)
        else:
            flow.step(op.op, op.inputs, [((op.name, i), s) for i, s in enumerate(op.shapes)])
        if op.op in QUIET:
            continue
        macs = _macs(op, graph, flow)
        owned = [_own(makers, key, op, weights) for key in op.inputs]
        shape = op.shapes[0] if op.shapes else None
        name = CALL_PREFIX.sub("", op.name)
        rows.append(layer(name, op.op, shape, macs, sum(c for c, _ in owned), sum(s for _, s in owned)))
    return rows


def _constant_shape(op: Op) -> list[int | None] | None:
    tensor = attr_of(op, "value", "tensor") if op.op == "Const" else None
    return shape_of(tensor["shape"]) if tensor else None


def _own(makers: dict[str, Op], key: tuple, user: Op, weights: _Stored) -> tuple[int, int]:
    """Follows an input back through reads and casts to the variable or constant behind it."""
    op = makers.get(key[0])
    while op is not None and op.op in (*SAME, "Cast", "Enter") and op.inputs:
        op = makers.get(op.inputs[0][0])
    if op is None or op.op not in (*VARIABLES, "Const"):
        return 0, 0
    if op.op == "Const":
        return (0, 0) if user.op in STEERED else weights.constant(op)
    return weights.variable(op)


def _macs(op: Op, graph: dict, flow: Flow) -> int | None:
    args = [flow.shape(key) for key in op.inputs]
    output = flow.shape((op.name, 0))
    kind = op.op
    if kind in MATRIX:
        return _product(op, args, flow)
    if kind in CONVOLUTIONS:
        channels = args[1][-1] if args[1] else None
        each = size_of(args[1])
        return times(size_of(output), each // channels if each is not None and channels else None)
    if kind == "DepthwiseConv2dNative":
        return times(size_of(output), size_of(args[1][:2]) if args[1] else None)
    if kind in TRANSPOSED:
        return times(size_of(args[2]), size_of(args[1][:-1]) if args[1] else None)
    if kind == "Einsum":
        return einsum_macs(attr_of(op, "equation", "s", b"...").decode(), args)
    if kind in LOOPS:
        return None if any(node["op"] in HEAVY for node in bodies(op, graph)) else 0
    return None if kind in UNCOUNTED else 0


def _product(op: Op, args: list[Shape | None], flow: Flow) -> int | None:
    """Rows times columns times depth; rows come from the size of the input, which a reshape may hide."""
    transposed = attr_of(op, "transpose_a", "b", 0) or attr_of(op, "adj_x", "b", 0)
    output = flow.shape((op.name, 0))
    if not args[0] or len(args[0]) < 2 or transposed or op.op != "MatMul":
        width = args[0][-2 if transposed else -1] if args[0] and len(args[0]) > 1 else None
        return times(size_of(output), width)
    swapped = attr_of(op, "transpose_b", "b", 0)
    width, columns = (args[1][-1 if swapped else 0], args[1][0 if swapped else -1]) if args[1] else (None, None)
    total = flow.size(op.inputs[0])
    if total is None or not width:
        return None
    flow.settle((op.name, 0), total // width)
    return times(total, columns)
