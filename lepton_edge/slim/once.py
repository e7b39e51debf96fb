"""What a pruning is asked for, and one pruning: an ONNX file in, a smaller or sparser net out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lepton_edge.quant.net import Net
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.tap import Sample
from lepton_edge.slim import core, drive_depth, drive_sparse, sparse

Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Asked:
    """`method` is "channels", "depth", "weights" or as "2:4"; `macs` and `sparsity` are shares: see
    passes/prune_onnx.py."""

    method: str
    macs: float
    sparsity: float
    round_to: int
    importance: str
    kept: tuple[str, ...]
    seed: int
    memory: int
    spread: str = "uniform"


@dataclass(frozen=True)
class Once:
    """The pruned `net`, and the `dense` one: inner tensors of one name mean the same in both."""

    net: Net
    dense: Net
    figures: dict = field(default_factory=dict)


def once(
    src: str | Path, samples: Sequence[Sample], asked: Asked, told: Told, labels: np.ndarray | None = None
) -> Once:
    """Prune a file as asked. Raises LeptonError as slim/core.py and slim/drive_sparse.py do."""
    if asked.method == "depth":
        made = drive_depth.prune(str(src), samples, asked.macs, told)
        return Once(made.net, prepare(str(src)), made.figures)
    if asked.method != "channels":
        wanted = sparse.pattern(asked.method, asked.sparsity)
        made = drive_sparse.prune(str(src), samples, wanted, told, spread=asked.spread)
        return Once(made.net, prepare(str(src)), made.figures)
    options = core.Options(
        asked.macs, asked.round_to, asked.importance, asked.kept, seed=asked.seed, memory=asked.memory
    )
    found = core.study(str(src), samples, options, told, labels=labels)
    made = core.apply(found, samples, options, told)
    return Once(made.net, found.trace.net, made.figures)
