"""Products whose activations are rounded to 8 bits while the model runs: DynamicQuantizeLinear and MatMulInteger.

The form is what ONNX Runtime fuses into DynamicQuantizeMatMul (one scale for the whole tensor): the integer product,
Cast, then Mul with scale of the activations times scales of the weights. `plain_dynamic.py` takes it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lepton_edge.quant.emit import add, sort
from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Layer
from lepton_edge.quant.weight_only import Stored

PRODUCTS = ("MatMul", "Gemm")


def write(net: Net, layers: Sequence[Layer], weights: Mapping[str, Stored]) -> Net:
    """A copy of `net` whose MatMul and Gemm `layers` are integer products of activations rounded at run time."""
    made = net.copy()
    seen: dict[str, list[str]] = {}
    for layer in layers:
        if layer.x not in seen:
            seen[layer.x] = [made.fresh(f"{layer.x}_dynamic_{what}") for what in ("quantized", "scale", "zero_point")]
            add(made, "DynamicQuantizeLinear", [layer.x], seen[layer.x])
        _product(made, layer, weights[layer.y], seen[layer.x])
    sort(made)
    return made


def _product(made: Net, layer: Layer, stored: Stored, rounded: list[str]) -> None:
    node = next(n for n in made.nodes if n.name == layer.node)
    turned = layer.axis == 0
    held, scale = made.fresh(f"{layer.weight}_quantized"), made.fresh(f"{layer.weight}_scale")
    made.consts[held] = np.ascontiguousarray(stored.values.T) if turned else stored.values
    made.consts[scale] = stored.scale
    total, wide, factor = (made.fresh(f"{layer.y}_{what}") for what in ("integer", "wide", "factor"))
    has_bias = bool(layer.bias) and layer.op == "Gemm"
    bias = node.input[2] if has_bias else ""
    product = made.fresh(f"{layer.y}_product") if has_bias else layer.y
    made.nodes = [n for n in made.nodes if n is not node]
    add(made, "MatMulInteger", [rounded[0], held, rounded[2]], total)
    add(made, "Cast", [total], wide, to=1)
    add(made, "Mul", [rounded[1], scale], factor)
    add(made, "Mul", [wide, factor], product)
    if has_bias:
        add(made, "Add", [product, bias], layer.y)
    made.link()
