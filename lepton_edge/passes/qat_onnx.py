"""Quantization-aware training of an ONNX model, from the integers that calibration ends with.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
with trained steps (Esser et al., arXiv:1902.08153). The model is quantized first as `quantize` does it, and its weights
move on from there (tuning/rounded.py) towards the answers of the float model, and labels where there are some; what is
no better than the start on held-out samples is not kept.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lepton_edge.errors import UsageError
from lepton_edge.passes._onnx_file import put
from lepton_edge.passes._samples import Progress, silent

REQUIRES = ("torch>=2.9", "onnx>=1.17", "onnxruntime>=1.20", "ml-dtypes>=0.5")
MEANT = 4  # bits of the grid that the learning rate is meant for
COST = 3.0  # Keras models are trained as such, with what pruning and clustering left of them


def run(
    src: str,
    dst: str,
    *,
    data: str,
    bits: int = 8,
    activations: bool = True,
    epochs: int = 10,
    batch_size: int = 32,
    learning_rate: float = 0.001,
    temperature: float = 4.0,
    distil: float = 1.0,
    augment: str = "",
    held_out: float = 0.1,
    patience: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict:
    """Write `dst`, the float ONNX model `src` with weights trained to lie on grids of `bits` bits (2 to 8).

    Trained on the feed `data` and quantized with `weight_bits` of the same number, it keeps these very integers in
    every runtime. `activations` are rounded to 8 bits meanwhile, but not beside attention. It learns the float model's
    answers, and labels where the samples have them and `distil`, the share of the answers, is below 1. `learning_rate`
    is relative to the size of each weight at 4 bits; on other grids it is in proportion to their steps. The other
    options are those of finetune_onnx.

    Returns bits, what calibration told (calibration_sqnr_db), epochs, loss and held_out_loss by epoch, start_loss (of
    the model as `quantize` leaves it), best_epoch, training_s, samples, labelled, device.
    Raises LeptonError for options that make no sense, a model that is quantized already or has nothing to quantize,
    operators that cannot be differentiated, and data of other inputs.
    """
    from lepton_edge.quant import core as quantizer
    from lepton_edge.quant.prepare import prepare
    from lepton_edge.tuning import core
    from lepton_edge.tuning.samples import Rows

    if not 2 <= bits <= 8:
        raise UsageError(f"bits must be 2 to 8, not {bits}", "8, or 4 for half the size once zipped")
    options = core.Options(
        epochs, batch_size, learning_rate, temperature, 0.0, distil, augment, held_out, patience, seed, activations
    )
    options.check()
    options = replace(options, learning_rate=learning_rate * 2.0 ** (MEANT - bits))
    teacher, name, told = prepare(src), Path(src).name, progress or silent
    rows = Rows(data, teacher.inputs, name)
    asked = quantizer.Options(weight_bits=bits, seed=seed)
    start = quantizer.quantize(src, quantizer.take(rows, asked.preset.observed), asked, told)
    key = core.key_of(__file__, src, rows, vars(options), [bits])
    made = core.tune(start.net, teacher, rows, options, name=name, key=key, told=told, spec=start.spec)
    put(made.net, dst)
    notes = [f"weights trained on a grid of {bits} bits; quantize with weight_bits = {bits}"] if bits < 8 else []
    kept = {"bits": bits, "calibration_sqnr_db": start.figures["calibration_sqnr_db"]}
    return {**kept, **made.facts, "notes": [core.fall(made.facts, "as calibrated"), *notes, *made.notes]}
