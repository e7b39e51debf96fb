"""The edges between float and integer tensors."""

from __future__ import annotations

from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node


def convert(code: str, side: int):
    """QUANTIZE or DEQUANTIZE; `side` is the end (0 input, 1 output) that must be quantized per tensor."""

    def apply(e: Emitter, n: Node) -> None:
        name = n.inputs[0] if side == 0 else n.out
        quant = e.quant(name)
        if quant is None or len(quant.scale) > 1:
            raise Unsupported(f"{n.op} '{n.name}': a run-time tensor with a scale per channel")
        perm = e.perm(n.inputs[0])
        e.emit(code, [e.get(n.inputs[0], perm)], n.out, perm)

    return apply


OPS = {
    "QuantizeLinear": convert("QUANTIZE", 1),
    "DequantizeLinear": convert("DEQUANTIZE", 0),
    "Requantize": convert("QUANTIZE", 1),
}
