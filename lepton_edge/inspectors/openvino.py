"""OpenVINO IR: the .xml and the .bin beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
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

REQUIRES = ("openvino>=2026",)
EXTRA = "openvino"

DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "boolean": "bool"}
DTYPES |= {f"{k}{n}": f"{name}{n}" for k, name in (("i", "int"), ("u", "uint")) for n in (1, 2, 4, 8, 16, 32, 64)}
CONVOLUTIONS = ("Convolution", "DeformableConvolution", "BinaryConvolution")
SEQUENCES = {"LSTMSequence": 4, "GRUSequence": 3, "RNNSequence": 1}
CELLS = {"LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}
LOOPS = ("TensorIterator", "Loop", "If")
WORKING = {
    *CONVOLUTIONS,
    *SEQUENCES,
    *CELLS,
    "GroupConvolution",
    "ConvolutionBackpropData",
    "MatMul",
    "Einsum",
}
WORKING |= {"GroupConvolutionBackpropData", "ScaledDotProductAttention"}
QUIET = ("Parameter", "Result", "Constant", "ReadValue", "Assign")
CARRIERS = (
    "Convert",
    "Subtract",
    "Multiply",
    "Reshape",
    "Transpose",
    "Unsqueeze",
    "FakeQuantize",
    "FakeConvert",
)
STEERED = ("Clamp", "Pad", "Interpolate", "Power", "Range", "Select", "Tile", "Maximum", "Minimum", "PadV2")


def inspect(path: str) -> dict[str, Any]:
    """Reads the IR with OpenVINO itself, on the CPU, without compiling it."""
    model = _read(path)
    notes = _fix_batch(model)
    ops = model.get_ordered_ops()
    weights = _Constants(ops)
    layers = [_row(op, weights) for op in ops if op.get_type_name() not in (*QUIET,)]
    opsets = Counter(op.get_type_info().version_id or "custom" for op in ops)
    return assemble(
        format="openvino",
        producer=_producer(model),
        inputs=notes.inputs,
        outputs=notes.outputs,
        layers=layers,
        weights=weights.totals,
        versions={
            "ir": _ir_version(path),
            "opset": dict(sorted(opsets.items())),
            "written_by": _producer(model),
        },
        quantized=_quantized(ops),
        notes=notes.notes,
    )


def _read(path: str) -> Any:
    import openvino

    binary = Path(path).with_suffix(".bin")
    if not binary.is_file():
        raise LeptonError(
            f"{path}: the weights {binary.name} are missing beside it",
            hint="an OpenVINO model is two files: copy the .bin into the same folder",
        )
    try:
        return openvino.Core().read_model(path, str(binary))
    except (RuntimeError, UnicodeDecodeError) as problem:  # the latter for texts of the file that its own error holds
        lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
        raise damaged(path, "OpenVINO IR", lines[-1] if lines else problem) from problem


class _Ends:
    """The model's inputs and outputs as stored, before the batch is fixed."""

    def __init__(self, model: Any) -> None:
        self.inputs = _specs(model.inputs)
        self.outputs = _specs(model.outputs)
        self.notes: list[str] = []


def _fix_batch(model: Any) -> _Ends:
    """Sets free first dimensions to one, so that shapes behind them become known."""
    ends = _Ends(model)
    shapes = {}
    for port, entry in zip(model.inputs, ends.inputs, strict=True):
        if entry["shape"] and entry["shape"][0] is None:
            shape = port.get_partial_shape()
            shape[0] = 1
            shapes[port] = shape
    if shapes:
        try:
            model.reshape(shapes)
        except RuntimeError as problem:
            ends.notes.append(f"a batch of one does not fit this model: {str(problem).splitlines()[-1][:120]}")
    return ends


def _specs(ports: list) -> list[dict]:
    """Under a port's tensor name, else its layer's name; made unique by position where they collide."""
    names = [_name(port) for port in ports]
    if len(set(names)) != len(names):
        names = [f"{name}_{i}" for i, name in enumerate(names)]
    return [spec(name, _shape(port), _dtype(port)) for name, port in zip(names, ports, strict=True)]


def _name(port: Any) -> str:
    node = port.get_node()
    if port.get_names():
        return port.get_any_name()
    is_result = node.get_type_name() == "Result"
    return (node.input_value(0).get_node() if is_result else node).get_friendly_name()


def _shape(port: Any) -> list[int | None] | None:
    shape = port.get_partial_shape()
    if shape.rank.is_dynamic:
        return None
    return [dim.get_length() if dim.is_static else None for dim in shape]


def _dtype(port: Any) -> str:
    name = port.get_element_type().get_type_name()
    return DTYPES.get(name, name)


def _producer(model: Any) -> str:
    for key in ("Runtime_version", "MO_version"):
        if model.has_rt_info(key):
            return f"OpenVINO {model.get_rt_info(key).astype(str)}"
    return "OpenVINO"


def _ir_version(path: str) -> int | None:
    with Path(path).open("rb") as file:
        head = file.read(4096).decode("utf-8", "replace")
    tag = head[head.find("<net") :].split(">")[0]
    _, found, rest = tag.partition('version="')
    return int(rest.split('"')[0]) if found and rest.split('"')[0].isdigit() else None


class _Constants:
    """Which constants are weights, and which operator owns each."""

    def __init__(self, ops: list) -> None:
        self.totals = Weights()
        self.owned: dict[str, tuple[int, int]] = {}
        for op in ops:
            if op.get_type_name() == "Constant":
                self._take(op)

    def _take(self, constant: Any) -> None:
        owner, zero, dequantized = _owner(constant)
        shape = _shape(constant.output(0)) or []
        kind = _dtype(constant.output(0))
        floating = kind.startswith(("float", "bfloat", "nf4"))
        if owner is None or not shape or not (floating or dequantized):
            return
        if size_of(shape) == 1 and not _is_bias(owner):
            return
        count = prod(int(d) for d in shape if d is not None)
        size, nonzeros = _stored(constant, kind, zero)
        self.totals.add(count, size, nonzeros)
        key = owner.get_name()
        before = self.owned.get(key, (0, 0))
        self.owned[key] = (before[0] + count, before[1] + size)


def _owner(constant: Any) -> tuple[Any, int | None, bool]:
    """(the operator that uses a constant as a weight, its zero point, whether it is dequantized)."""
    at: Any = constant
    zero: int | None = 0
    dequantized = False
    for _ in range(8):
        uses = list(at.output(0).get_target_inputs())
        if not uses:
            return None, 0, False
        use = uses[0]
        user, position = use.get_node(), use.get_index()
        kind = user.get_type_name()
        if kind in ("FakeQuantize", "FakeConvert") and position > 0:
            return None, 0, False
        carried = position == 0 and kind in CARRIERS and all(_constant_behind(i) for i in user.input_values())
        if not carried:
            scaling = kind in ("Multiply", "Subtract") and _dequantizes(user, position)
            steers = kind in STEERED and position > 0
            return (None, 0, False) if scaling or steers else (user, zero, dequantized)
        dequantized = dequantized or kind == "Convert"
        if kind == "Subtract":
            zero = _single(user.input_value(1))
        at = user
    return None, 0, False


def _constant_behind(port: Any) -> bool:
    """Whether a value is fixed: a constant, possibly converted."""
    node = port.get_node()
    for _ in range(8):
        if node.get_type_name() == "Constant":
            return True
        if node.get_type_name() not in CARRIERS:
            return False
        node = node.input_value(0).get_node()
    return False


def _dequantizes(user: Any, position: int) -> bool:
    """Whether this input is the scale or zero point of a weight stored in integers."""
    if position == 0:
        return False
    node = user.input_value(0).get_node()
    while node.get_type_name() in ("Convert", "Subtract", "Multiply", "Reshape"):
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


def _single(port: Any) -> int | None:
    """A zero point that is the same for the whole tensor; None if channels differ."""
    node = port.get_node()
    while node.get_type_name() in ("Convert", "Reshape"):
        node = node.input_value(0).get_node()
    if node.get_type_name() != "Constant" or _dtype(node.output(0)) in ("uint4", "int4", "uint2"):
        return None
    values = np.unique(np.asarray(node.get_data()))
    return int(values[0]) if values.size == 1 else None


def _is_bias(owner: Any) -> bool:
    if owner.get_type_name() in WORKING:
        return True
    if owner.get_type_name() != "Add":
        return False
    return any(port.get_node().get_type_name() in WORKING for port in owner.input_values())


def _stored(constant: Any, kind: str, zero: int | None) -> tuple[int, int | None]:
    """(bytes, nonzeros) of a constant; packed types are read as their bytes and not counted."""
    count = size_of(_shape(constant.output(0))) or 0
    bits = int("".join(c for c in kind if c.isdigit()) or 4)
    size = (count * bits + 7) // 8
    if bits < 8 or kind.startswith(("bfloat", "nf4", "float8")):
        return size, None
    return size, None if zero is None else count_nonzeros(np.asarray(constant.get_data(dtype=_plain(kind))), zero)


def _plain(kind: str) -> type:
    return np.dtype(kind).type


def _row(op: Any, weights: _Constants) -> dict:
    count, size = weights.owned.get(op.get_name(), (0, 0))
    shape = _shape(op.output(0)) if op.get_output_size() else None
    return layer(op.get_friendly_name(), op.get_type_name(), shape, _macs(op), count, size)


def _macs(op: Any) -> int | None:
    kind = op.get_type_name()
    args = [_shape(port) for port in op.input_values()]
    output = _shape(op.output(0)) if op.get_output_size() else None
    if kind in CONVOLUTIONS:
        weight = args[2] if kind == "DeformableConvolution" else args[1]
        return times(size_of(output), size_of(weight[1:]) if weight else None)
    if kind == "GroupConvolution":
        return times(size_of(output), size_of(args[1][2:]) if args[1] else None)
    if kind in ("ConvolutionBackpropData", "GroupConvolutionBackpropData"):
        first = 1 if kind == "ConvolutionBackpropData" else 2
        return times(size_of(args[0]), size_of(args[1][first:]) if args[1] else None)
    if kind == "MatMul":
        transposed = op.get_attributes().get("transpose_a") and len(args[0] or ()) > 1
        return times(size_of(output), args[0][-2 if transposed else -1] if args[0] else None)
    if kind == "ScaledDotProductAttention":
        return _attention(args)
    if kind in SEQUENCES or kind in CELLS:
        return _recurrent(op, kind, args)
    if kind == "Einsum":
        return einsum_macs(op.get_attributes()["equation"], args)
    if kind in LOOPS:
        return None
    return 0 if (op.get_type_info().version_id or "").startswith("opset") else None


def _attention(args: Sequence[Shape | None]) -> int | None:
    """Scores and weighted values: query [.., L, E], key [.., S, E], value [.., S, V]."""
    query, key, value = args[:3]
    if not query or not key or not value:
        return None
    width = None if key[-1] is None or value[-1] is None else key[-1] + value[-1]
    return times(size_of(query[:-1]), key[-2], width)


def _recurrent(op: Any, kind: str, args: Sequence[Shape | None]) -> int | None:
    """Each step multiplies the input and the state by gates x hidden rows, in each direction."""
    data, attributes = args[0], op.get_attributes()
    hidden = int(attributes["hidden_size"])
    if not data or data[-1] is None:
        return None
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    gates = (SEQUENCES | CELLS)[kind]
    return times(size_of(data[:-1]), directions * gates * hidden, data[-1] + hidden)


def _quantized(ops: list) -> dict[str, int]:
    kinds = Counter(_dtype(op.output(0)) for op in ops if op.get_type_name() == "Constant")
    found = {f"{k}_tensors": kinds[k] for k in ("int8", "uint8", "int4", "uint4", "nf4", "float16", "bfloat16")}
    found["fake_quantize_nodes"] = sum(op.get_type_name() == "FakeQuantize" for op in ops)
    return found
