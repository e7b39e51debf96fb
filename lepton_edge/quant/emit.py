"""Write a QuantSpec into a graph as QuantizeLinear / DequantizeLinear pairs (QDQ), which every runtime reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_edge.quant.grid import Grid, activation_grid, quantize
from lepton_edge.quant.net import Net
from lepton_edge.quant.spec import QuantSpec

_TYPES = {(8, False): np.uint8, (8, True): np.int8, (16, False): np.uint16, (16, True): np.int16}


def emit(net: Net, spec: QuantSpec) -> Net:
    """A copy of `net` with QDQ pairs at the spec's sites, integer weights, and int32 biases on scale x * weight.

    Names of inputs and outputs stay. A quantized output is dequantized at the very end.
    """
    made = net.copy()
    for name in spec.placement.constants:
        _constant(made, name, _is_wide(made, name, spec))
    for site in spec.placement.sites:
        if (grid := spec.activations.get(site.name)) is not None:
            for tensor in site.tensors:
                _pair(made, tensor, grid, spec)
    for layer in spec.placement.layers:
        if layer.y in spec.weights and layer.weight in made.users:
            _weights(made, layer, spec)
    sort(made)
    made.base = _domain(made.base, spec)
    return made


def add(made: Net, kind: str, inputs: list[str], output: str | list[str], **attributes: Any) -> None:
    """Append a node; the order is put right at the end (`sort`), `made.link()` is left to the caller."""
    from onnx import helper

    outputs = [output] if isinstance(output, str) else output
    made.nodes.append(helper.make_node(kind, inputs, outputs, name=f"{outputs[0]}_{kind}", **attributes))


def _parameters(made: Net, stem: str, grid: Grid, dtype: type) -> list[str]:
    scale, zero = made.fresh(f"{stem}_scale"), made.fresh(f"{stem}_zero_point")
    made.consts[scale] = grid.scale if grid.axis is not None else grid.scale.reshape(())
    values: np.ndarray = grid.zero.astype(dtype)
    made.consts[zero] = values if grid.axis is not None else values.reshape(())
    return [scale, zero]


def _dtype(grid: Grid) -> type:
    return _TYPES[8 if grid.bits <= 8 else 16, grid.low < 0]


def _pair(made: Net, tensor: str, grid: Grid, spec: QuantSpec) -> None:
    local = spec.placement.local
    readers = [n for n in made.users.get(tensor, []) if not local or n.output[0] in spec.weights]
    is_output = tensor in made.outputs and tensor in made.makers and not local
    if not readers and not is_output:
        return
    source = tensor
    if is_output:
        source = made.fresh(f"{tensor}_float")
        maker = made.makers[tensor]
        maker.output[list(maker.output).index(tensor)] = source
    integer, back = made.fresh(f"{tensor}_quantized"), tensor if is_output else made.fresh(f"{tensor}_dequantized")
    parameters = _parameters(made, tensor, grid, _dtype(grid))
    for reader in readers:
        for k, name in enumerate(reader.input):
            if name == tensor and (not local or k == 0):
                reader.input[k] = back
    add(made, "QuantizeLinear", [source, *parameters], integer)
    add(made, "DequantizeLinear", [integer, *parameters], back)
    made.link()


def _is_wide(made: Net, name: str, spec: QuantSpec) -> bool:
    """Whether what a constant is summed or multiplied into has 16 bits."""
    results = [out for user in made.users.get(name, []) for out in user.output]
    results += [out for result in results for user in made.users.get(result, []) for out in user.output]
    return any(grid.bits > 8 for result in results if (grid := spec.grid_of(result)) is not None)


def _constant(made: Net, name: str, wide: bool) -> None:
    """A constant operand of an integer sum or product, on a grid of its own: 8 bits, or int16 (`wide`)."""
    value = made.consts[name]
    grid = activation_grid(float(value.min(initial=0)), float(value.max(initial=0)), 16 if wide else 8, wide, wide)
    _replace(made, name, quantize(value, grid).astype(_dtype(grid)), grid)


def _replace(made: Net, name: str, integers: np.ndarray, grid: Grid, readers: list[Any] | None = None) -> None:
    stored, back = made.fresh(f"{name}_quantized"), made.fresh(f"{name}_dequantized")
    made.consts[stored] = integers
    parameters = _parameters(made, name, grid, integers.dtype.type)
    for reader in made.users.get(name, []) if readers is None else readers:
        for k, read in enumerate(reader.input):
            if read == name:
                reader.input[k] = back
    add(made, "DequantizeLinear", [stored, *parameters], back, **({} if grid.axis is None else {"axis": grid.axis}))
    made.link()


def _weights(made: Net, layer: Any, spec: QuantSpec) -> None:
    node = next(n for n in made.nodes if n.name == layer.node)
    integers, grid = spec.weights[layer.y]
    _replace(made, layer.weight, integers.astype(np.int8), grid, [node])
    x_grid = spec.grid_of(layer.x)
    if layer.op == "MatMul":
        _lift_bias(made, layer.y)
    if not layer.bias or x_grid is None or layer.op == "MatMul":
        return
    scale = (grid.scale.astype(np.float64) * float(x_grid.scale[0])).astype(np.float32)
    bias = made.consts[layer.bias].astype(np.float64).reshape(-1)
    wide = 2**31 - 1
    steps = np.rint(bias / np.broadcast_to(scale.astype(np.float64), bias.shape))
    bias_grid = Grid(scale, np.zeros(len(scale), np.int64), -wide, wide, 0 if len(scale) > 1 else None)
    _replace(made, layer.bias, np.clip(steps, -wide, wide).astype(np.int32), bias_grid, [node])


def _lift_bias(made: Net, y: str) -> None:
    """Give the constant that a product's sum adds a rank of 3: ONNX Runtime makes a float Gemm of a sum with a vector,
    before it sees that the product is one of integers."""
    user = made.alone(y)
    if user is None or user.op_type != "Add" or len(made.shapes.get(y) or ()) < 3:
        return
    for k, name in enumerate(user.input):
        value = made.consts.get(name)
        if value is not None and value.ndim == 1 and value.size > 1:
            lifted = made.fresh(f"{name}_lifted")
            made.consts[lifted] = value.reshape(1, 1, -1)
            user.input[k] = lifted
            made.link()
            return


def sort(made: Net) -> None:
    """Topological order, stable."""
    known = set(made.consts) | set(made.inputs) | {""}
    left = list(made.nodes)
    ordered: list[Any] = []
    outer = {o for n in left for o in n.output}
    while left:
        rest = []
        for node in left:
            if all(name in known or name not in outer for name in node.input):
                ordered.append(node)
                known.update(node.output)
            else:
                rest.append(node)
        if len(rest) == len(left):
            raise ValueError("the graph has a cycle")
        left = rest
    made.nodes = ordered
    made.link()


def _domain(base: Any, spec: QuantSpec) -> Any:
    """16-bit QuantizeLinear needs opset 21."""
    if any(grid.bits > 8 for grid in spec.activations.values()):
        twin = type(base)()
        twin.CopyFrom(base)
        for item in twin.opset_import:
            if item.domain in ("", "ai.onnx"):
                item.version = max(item.version, 21)
        twin.ir_version = max(twin.ir_version, 10)
        return twin
    return base
