"""Quantization-aware training of a Keras model: weights end on the grid that `quantize` gives them.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
2018, with trained scales (Esser et al., arXiv:1902.08153). Every kernel computes as whole steps of a symmetric grid,
one scale an output channel, while it trains (_train_shaped), and activations are rounded (_train_activations); ONNX,
TFLite and OpenVINO files of the result hold those very integers (quant/held.py). Zeros of `prune` and centroids of
`cluster` stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.passes._train_keras import Tuning, begin, end, tune
from lepton_edge.passes._train_kernels import Kernel, chosen, left_notes
from lepton_edge.passes._train_lattice import Found, read
from lepton_edge.passes._train_shaped import Grid, Shaped
from lepton_edge.training import checkpoint

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "tf-keras>=2.19")
ENVIRON = {"TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow", "LEPTON_EDGE_GPU": "1"}


def run(
    src: str,
    dst: str,
    *,
    data: str,
    bits: int = 8,
    activations: bool = True,
    keep: str = "",
    epochs: int = 3,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
    held_out: float = 0.1,
    patience: int = 3,
    distil: float = 0.0,
    temperature: float = 2.0,
    augment: str = "",
    seed: int = 0,
    progress: Callable | None = None,
) -> dict:
    """Train the .keras model `src` on the feed `data` with weights of `bits` bits (2 to 8).

    `activations`: they are rounded to 8 bits meanwhile, where the quantizer rounds them (not beside attention).

    Recurrent kernels stay float, for the quantizer leaves them so; so do biases and norms. `keep`: layers left alone,
    by name, with commas: quantize rounds them afterwards. The training options are those of _train_keras.Tuning.
    Returns the layers by what they keep, measured zeros, epochs done, losses, notes.
    Errors: LeptonError for a model, samples or labels that do not fit; `dst` is written once all went well.
    """
    options = {k: v for k, v in locals().items() if k not in ("src", "dst", "data", "progress")}
    if not 2 <= bits <= 8:
        raise UsageError(f"bits must be 2 to 8, not {bits}", "8, or 4 for half the size once zipped")
    tuning = Tuning(epochs, batch_size, learning_rate, held_out, patience, distil, temperature, augment, seed)
    session = begin(src, data, tuning, "quantized", rounded=activations)
    taken, left = [], {}
    for kernel in chosen(session.kernels, keep):
        if kernel.shared is None:
            left[kernel.path] = "the quantizer leaves it in float"
        else:
            taken.append(kernel)
    if not taken:
        why = "; ".join(f"{path}: {reason}" for path, reason in list(left.items())[:3])
        raise LeptonError(f"no layer of the model can be trained for quantization ({why or 'all of them are kept'})")
    found = [read(kernel) for kernel in taken]
    shaped = [shape(kernel, bits, own) for kernel, own in zip(taken, found, strict=True)]
    key = checkpoint.key(__file__, src, {"data": session.samples.sha256, **options})
    outcome, notes = tune(session, shaped, tuning, replace(session.plan, start_counts=True), key, progress)
    told = end(session, taken, dst)
    return {
        "bits": bits,
        **told,
        **outcome.facts(),
        "notes": [*session.notes, *notes, *left_notes(left), *describe(found, bits)],
    }


def shape(kernel: Kernel, bits: int, found: Found) -> Shaped:
    """A kernel on a grid of `bits`, with the zeros and the centroids that it has; look-up tables have 8 bits."""
    grid = Grid(8 if kernel.name == "embeddings" else bits, kernel.shared or ())
    if found.levels is None or found.step is None:
        return Shaped(kernel, mask=found.live, grid=grid)
    levels = found.levels if found.live is None else found.levels[found.levels != 0]  # the mask keeps zeros
    centroids = np.unique(np.rint(levels * (grid.last / 127))) / grid.last
    return Shaped(
        kernel, mask=found.live, grid=grid, scale=found.step * np.float32(127 / grid.last), centroids=centroids
    )


def describe(found: list[Found], bits: int) -> list[str]:
    """What the reader of a report should know."""
    zeros, few = sum(f.live is not None for f in found), sum(f.levels is not None for f in found)
    notes = [f"weights trained on a grid of {bits} bits; quantize with weight_bits = {bits}" if bits < 8 else ""]
    notes.append(f"zeros of {zeros} layers were kept" if zeros else "")
    notes.append(f"centroids of {few} layers were kept" if few else "")
    return [n for n in notes if n]
