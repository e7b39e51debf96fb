"""The schemes without ranges of activations on one screen: an ONNX file in, a graph with integer weights out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError
from lepton_edge.quant import core, emit_dynamic, emit_weights, weight_only
from lepton_edge.quant.net import Net, to_proto
from lepton_edge.quant.place import Layer, place
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.tap import BUDGET, Sample
from lepton_edge.quant.weight_only import Kind

JUDGED = 32  # samples that the error is measured on


@dataclass(frozen=True)
class Written:
    """`net` is the quantized graph; counts of what became integers, and the error on samples (None without)."""

    net: Net
    layers: int
    tables: int
    short: int  # layers of 4 bits
    integer: int  # products whose activations are rounded at run time
    sqnr_db: float | None

    def proto(self) -> Any:
        """The ModelProto."""
        return to_proto(self.net)


def quantize(
    path: str,
    scheme: str,
    samples: Sequence[Sample] | None,
    *,
    block: int = 32,
    weight_bits: int = 8,
    solved: int = 64,
    positions: int = 64,
    memory: int = BUDGET,
    told: Callable[[int, int], None] | None = None,
) -> Written:
    """Quantize the weights of a float ONNX model by scheme dynamic, w8 or w4; samples, where given, decide rounding.

    Raises LeptonError for a file that cannot be prepared, for a model with no such weights, and, for w4, for one
    without a product of whole blocks.
    """
    wanted = Kind(4, block) if scheme == "w4" else Kind(weight_bits)
    net = prepare(path, emit_weights.OPSET_INT4 if scheme == "w4" else 13)
    layers = [layer for layer in place(net).layers if _taken(layer, scheme)]
    tables = weight_only.tables(net)
    name = Path(path).name
    if not layers and not tables:
        raise LeptonError(
            f"{name}: scheme {scheme} finds nothing to quantize",
            "it has no layer of a kind that the scheme takes, with constant float32 weights; keep it float",
        )
    if scheme == "w4" and not any(weight_only.kind_of(y, net.consts[y.weight], wanted).bits == 4 for y in layers):
        blocks = f" in blocks of {block}" if block else ""
        raise LeptonError(
            f"{name}: scheme w4 finds no MatMul or Gemm whose input features can be stored{blocks}",
            "choose a smaller block, or scheme w8, which also takes convolutions",
        )
    some = core.take(samples, solved) if samples is not None else None
    made, weights = weight_only.solve(net, layers, some, wanted, positions, told, memory=memory)
    products = [y for y in layers if scheme == "dynamic" and y.op in emit_dynamic.PRODUCTS]
    made = emit_weights.write(made, [y for y in layers if y not in products], weights, tables)
    made = emit_dynamic.write(made, products, weights)
    error = None if samples is None else core.decibels(core.distance_of(net, made, core.take(samples, JUDGED)))
    short = sum(s.kind.bits == 4 for s in weights.values())
    return Written(made, len(weights), len(tables), short, len(products), error)


def _taken(layer: Layer, scheme: str) -> bool:
    """dynamic leaves what has no kernel for integer weights and float inputs: grouped and transposed convolutions."""
    return scheme != "dynamic" or layer.op in emit_dynamic.PRODUCTS or (layer.op == "Conv" and layer.group == 1)
