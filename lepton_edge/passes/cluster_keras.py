"""Weight clustering of a Keras model with fine-tuning: each kernel's weights take a few values only.

Han, Mao & Dally, "Deep Compression", arXiv:1510.00149. tensorflow-model-optimization clusters a kernel's float values;
quantized to int8 with a scale for each output channel, those become different integers in every channel, and the file
hardly shrinks. Here the centroids are integers of the int8 grid, shared by all channels of a kernel, whose scales train
with them: the int8 file holds as many different bytes as there are clusters. Zeros of a pruned model stay zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.passes._train_keras import Session, Tuning, begin, end, tune
from lepton_edge.passes._train_kernels import Kernel, chosen, left_notes
from lepton_edge.passes._train_lattice import read
from lepton_edge.passes._train_shaped import Grid, Shaped, least_error_scale, start_centroids
from lepton_edge.training import checkpoint

REQUIRES = ("tensorflow>=2.19", "keras>=3.8", "tf-keras>=2.19")
ENVIRON = {"TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow", "LEPTON_EDGE_GPU": "1"}


def run(
    src: str,
    dst: str,
    *,
    data: str,
    clusters: int = 16,
    grid: str = "int8",
    depthwise: bool = False,
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
    """Cluster the kernels of the .keras model `src` to `clusters` values each, fine-tuning on the feed `data`.

    `grid`: "int8" (centroids are integers that all channels of a kernel share, for the quantized file) or "float"
    (centroids are plain values, for the float file). `depthwise`: depthwise kernels too. `keep`: layers left alone, by
    name, with commas. The training options are those of _train_keras.Tuning.
    Returns the number of different values by layer, measured zeros, epochs done, losses, notes.
    Errors: LeptonError for a model, samples or labels that do not fit; `dst` is written once all went well.
    """
    options = {k: v for k, v in locals().items() if k not in ("src", "dst", "data", "progress")}
    if not 2 <= clusters <= 64:
        raise UsageError(f"clusters must be 2 to 64, not {clusters}", "16 values take 4 bits each")
    if grid not in ("int8", "float"):
        raise UsageError(f"unknown grid '{grid}'", "known: int8, float")
    tuning = Tuning(epochs, batch_size, learning_rate, held_out, patience, distil, temperature, augment, seed)
    session = begin(src, data, tuning, "clustered")
    taken, left = [], {}
    for kernel in chosen(session.kernels, keep):
        if kernel.depthwise and not depthwise:
            left[kernel.path] = "depthwise (depthwise = true clusters it)"
        else:
            taken.append(kernel)
    if not taken:
        raise LeptonError("no layer is left to cluster", "keep fewer layers")
    shaped = [shape(kernel, clusters, grid) for kernel in taken]
    key = checkpoint.key(__file__, src, {"data": session.samples.sha256, **options})
    outcome, notes = tune(session, shaped, tuning, replace(session.plan, start_counts=True), key, progress)
    counts = values(shaped)
    told = end(session, taken, dst)
    return {
        "clusters": counts,
        **told,
        **outcome.facts(),
        "notes": [*session.notes, *notes, *left_notes(left), *describe(session, shaped)],
    }


def shape(kernel: Kernel, clusters: int, grid: str) -> Shaped:
    """A kernel of so many values: whole steps of the int8 grid where the quantizer gives it one."""
    weight = kernel.variable.numpy().astype(np.float32)
    live = read(kernel).live
    # Zero is one of the values of a pruned kernel, and the mask keeps it.
    own = weight if live is None else weight[live]
    count = clusters if live is None else max(clusters - 1, 1)
    if grid == "float" or kernel.shared is None:
        return Shaped(kernel, mask=live, centroids=start_centroids(own, count))
    lattice = Grid(8, kernel.shared)
    scale = least_error_scale(weight, lattice)
    shares = weight / (scale * lattice.last)
    centroids = start_centroids(shares if live is None else shares[live], count, sweeps=0)
    return Shaped(kernel, mask=live, grid=lattice, centroids=centroids, scale=scale)


def values(shaped: list[Shaped]) -> dict[str, int]:
    """How many different values each kernel has: in steps of its channels' grids where it has one."""
    counts = {}
    for item in shaped:
        weight = item.kernel.variable.numpy()
        if item.grid is not None:
            import tensorflow as tf

            weight = np.rint(weight / (item.scale * tf.exp(item.growth)).numpy())
        name = item.kernel.path if item.kernel.path not in counts else f"{item.kernel.path}/{item.kernel.name}"
        counts[name] = len(np.unique(weight))
    return counts


def describe(session: Session, shaped: list[Shaped]) -> list[Any]:
    """What the reader of a report should know."""
    floats = sorted({s.kernel.path for s in shaped if s.grid is None})
    notes = []
    if floats and len(floats) < len(shaped):
        notes.append(f"{len(floats)} layers have float centroids, for the quantizer leaves them in float: {floats[0]}")
    if len(session.moved.model.outputs) > 1:
        notes.append("the other outputs were trained towards the original's answers")
    return notes
