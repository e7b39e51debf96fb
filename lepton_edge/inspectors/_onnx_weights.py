"""The weights of an ONNX model: which constants are weights, of which layer, and what they hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.inspectors._common import Weights, count_nonzeros, damaged, size_of
from lepton_edge.inspectors._onnx_graph import graphs_of, key_of, kind_of, nodes_of
from lepton_edge.inspectors._onnx_macs import CONVOLUTIONS, GATES, GEMMS, PRODUCTS

# A weight keeps its owner through these; their own row would hide which layer it belongs to.
CARRIERS = ("DequantizeLinear", "QuantizeLinear", "Identity", "Cast", "Transpose", "Reshape", "Unsqueeze")
# Inputs that steer an operator and are no weights: {op: positions}; -1 means all but the first.
STEERING = {
    "Clip": (-1,),
    "Resize": (-1,),
    "Upsample": (-1,),
    "Pad": (-1,),
    "Dropout": (-1,),
    "Range": (0, 1, 2),
}


class Initializers:
    """The constants of a model by name, and the totals over those that are weights."""

    def __init__(self, path: str, graph: Any) -> None:
        self.path = path
        self.tensors = {t.name: t for g in graphs_of(graph) for t in g.initializer}
        for node in nodes_of(graph):
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    if attribute.HasField("t"):
                        self.tensors[node.output[0]] = attribute.t
        self.totals = Weights()
        self.per_layer: dict[str, tuple[int, int]] = {}
        self.kinds: Counter = Counter()
        self.notes: list[str] = []

    def owners(self, nodes: list) -> dict[str, list[str]]:
        """{key of a node: names of the weights it owns}; fills the totals. A shared weight counts once."""
        roles = _roles(nodes, self.tensors)
        owners: dict[str, list[str]] = {}
        for name, (owner, statistic, zero_point) in roles.items():
            self._count(name, statistic, zero_point)
            owners.setdefault(owner, []).append(name)
        return owners

    def _count(self, name: str, statistic: bool, zero_point: str | None) -> None:
        tensor = self.tensors[name]
        count = size_of([int(d) for d in tensor.dims]) or 0
        kind = kind_of(tensor)
        size = (count * _bits(kind) + 7) // 8
        self.kinds[kind] += 1
        self.per_layer[name] = (count, size)
        array = self._array(tensor, size)
        zero = self._zero(zero_point)
        nonzeros = None if zero is None else count_nonzeros(array, zero)
        self.totals.add(count, size, nonzeros, statistic)

    def _zero(self, zero_point: str | None) -> int | None:
        """The one value that stands for zero; None when channels differ in it."""
        if zero_point is None or zero_point not in self.tensors:
            return 0
        values = np.unique(self._array(self.tensors[zero_point], 0).astype(np.int64))
        return int(values[0]) if values.size == 1 else None

    def _array(self, tensor: Any, size: int) -> np.ndarray:
        from onnx import numpy_helper
        from onnx.checker import ValidationError

        external = {entry.key: entry.value for entry in tensor.external_data}
        if not external and tensor.raw_data and size and len(tensor.raw_data) != size:
            reason = f"tensor '{tensor.name}' holds {len(tensor.raw_data)} bytes where its shape needs {size}"
            raise damaged(self.path, "ONNX", reason)
        try:
            array = numpy_helper.to_array(_copy(tensor), base_dir=str(Path(self.path).resolve().parent))
        except (OSError, ValueError, TypeError, RuntimeError, ValidationError) as problem:
            # ValidationError: a path that leaves the folder
            raise self._unreadable(tensor.name, external.get("location"), problem) from problem
        return np.asarray(array)

    def _unreadable(self, name: str, location: str | None, problem: Exception) -> LeptonError:
        if location is None:
            return damaged(self.path, "ONNX", f"tensor '{name}': {problem}")
        return LeptonError(
            f"{self.path}: the weights of '{name}' cannot be read from '{location}' beside it",
            hint="an ONNX model with external data is two files: copy the data file into the same folder",
        )


def _copy(tensor: Any) -> Any:
    """External data is loaded into the tensor itself; a copy keeps memory bounded to one tensor."""
    from onnx import TensorProto

    if not tensor.external_data:
        return tensor
    twin = TensorProto()
    twin.CopyFrom(tensor)
    return twin


def _bits(kind: str) -> int:
    if kind in ("int4", "uint4", "float4e2m1"):
        return 4
    if kind in ("int2", "uint2"):
        return 2
    if kind.startswith("float8") or kind in ("int8", "uint8", "bool"):
        return 8
    return {
        "float16": 16,
        "bfloat16": 16,
        "int16": 16,
        "uint16": 16,
        "double": 64,
        "int64": 64,
        "uint64": 64,
    }.get(kind, 32)


def _roles(nodes: list, tensors: dict) -> dict[str, tuple[str, bool, str | None]]:
    """{weight: (owning node, is a running statistic, its zero point)}, following it through QDQ and casts."""
    consumers: dict[str, list[tuple[Any, int]]] = {}
    for node in nodes:
        for position, name in enumerate(node.input):
            consumers.setdefault(name, []).append((node, position))
    multiplied = {n.output[0] for n in nodes if n.output and n.op_type in (*CONVOLUTIONS, *PRODUCTS, "ConvTranspose")}
    roles = {}
    for name, tensor in tensors.items():
        role = _role(name, kind_of(tensor), consumers, tensor)
        if role and size_of([int(d) for d in tensor.dims]) == 1:
            role = role if _lone_weight(role[0], nodes, multiplied) else None
        if role:
            roles[name] = role
    return roles


def _lone_weight(owner: str, nodes: list, multiplied: set[str]) -> bool:
    """Whether a constant of one element is a bias; elsewhere it is a factor or an epsilon of the formula."""
    node = next(n for n in nodes if key_of(n) == owner)
    if node.op_type == "Add":
        return any(name in multiplied for name in node.input)
    return node.op_type in (
        *CONVOLUTIONS,
        *PRODUCTS,
        *GEMMS,
        *GATES,
        "ConvTranspose",
        "BatchNormalization",
        "PRelu",
    )


def _role(name: str, kind: str, consumers: dict, tensor: Any) -> tuple[str, bool, str | None] | None:
    floating = kind.startswith(("float", "bfloat", "double"))
    zero_point, seen, integer_weight = None, name, False
    for _ in range(8):  # a chain of carriers is short; a longer one is no weight
        uses = consumers.get(seen, [])
        if not uses:
            return None
        node, position = uses[0]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and position > 0:
            return None
        if node.op_type not in CARRIERS or position > 0:
            break
        if node.op_type == "DequantizeLinear":
            integer_weight = True
            zero_point = node.input[2] if len(node.input) > 2 else None
        seen = node.output[0]
    else:
        return None
    place = _quantized_place(node.op_type, position)
    if place is not None:
        integer_weight, zero_point = (
            place == "weight",
            _zero_input(node, position) if place == "weight" else None,
        )
    if not (floating and place != "scale") and not integer_weight:
        return None
    if not tensor.dims or _steers(node.op_type, position):
        return None
    return key_of(node), node.op_type == "BatchNormalization" and position in (3, 4), zero_point


def _quantized_place(op: str, position: int) -> str | None:
    """An input of an operator on integers: "weight", "scale" (or zero point), None for neither."""
    if op in ("QLinearConv", "QLinearMatMul", "QGemm"):
        bias = {"QLinearConv": 8, "QGemm": 6}.get(op)
        return "weight" if position in (3, bias) else "scale"
    if op in ("ConvInteger", "MatMulInteger"):
        return "weight" if position == 1 else "scale"
    if op in ("DynamicQuantizeMatMul", "MatMulNBits", "DynamicQuantizeLSTM", "MatMulIntegerToFloat"):
        return "weight" if position == 1 or (position == 2 and op == "DynamicQuantizeLSTM") else "scale"
    return "scale" if op.startswith("QLinear") else None


def _zero_input(node: Any, position: int) -> str | None:
    """The input with the zero point of the weight at `position`."""
    at = {("QLinearConv", 3): 5, ("QLinearMatMul", 3): 5, ("QGemm", 3): 5, ("DynamicQuantizeMatMul", 1): 3}
    at |= {("ConvInteger", 1): 3, ("MatMulInteger", 1): 3, ("MatMulIntegerToFloat", 1): 5}
    place = at.get((node.op_type, position))
    return node.input[place] if place is not None and len(node.input) > place and node.input[place] else None


def _steers(op: str, position: int) -> bool:
    places = STEERING.get(op, ())
    return position in places or (-1 in places and position > 0)
