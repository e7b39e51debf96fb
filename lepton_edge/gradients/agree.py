"""Proof, before anything is trained, that a graph gives what ONNX Runtime gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.gradients.graph import Graph, stacked
from lepton_edge.quant.net import Net
from lepton_edge.quant.tap import Runner, Sample, not_finite

LEAST_DB = 50.0  # of signal over difference: float32 sums in another order leave 100 and more
SHOWN = 3  # samples


def check(graph: Graph, net: Net, samples: Sequence[Sample], model: str) -> float:
    """The least SQNR in dB over the outputs for the first samples, run as a batch.

    Raises LeptonError, naming the first operator that differs, where one is below LEAST_DB, and where ONNX Runtime's
    own answer is not finite.
    """
    shown = [samples[k] for k in range(min(SHOWN, len(samples)))]
    runner = Runner(net)
    wanted = [np.stack(values) for values in zip(*(runner.run(s) for s in shown), strict=True)]
    for name, value in zip(net.outputs, wanted, strict=True):
        if not np.isfinite(value).all():
            raise not_finite(name)
    least = min(_decibels(a, b) for a, b in zip(wanted, _run(graph, shown, net.outputs), strict=True))
    if least < LEAST_DB:
        raise LeptonError(
            f"{model}: {_first(graph, net, shown)} is computed differently here than in ONNX Runtime ({least:.0f} dB at"
            " the outputs), so the model cannot be trained",
            "this is a defect: please report the operator and its attributes",
        )
    return least


def _run(graph: Graph, samples: Sequence[Sample], fetch: Sequence[str]) -> list[np.ndarray]:
    import torch

    with torch.no_grad():
        return [value.cpu().numpy() for value in graph.batch(stacked(samples, graph.device), fetch)]


def _decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    """Signal over difference; -inf for other shapes or values that are not finite, 300 for equal ones."""
    if wanted.shape != got.shape or not np.isfinite(got).all():
        return -np.inf
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    noise, power = float(((a - b) ** 2).sum()), float((a**2).sum())
    if noise == 0:
        return 300.0
    return float(10 * np.log10(max(power, 1e-30) / noise))


def _first(graph: Graph, net: Net, samples: Sequence[Sample]) -> str:
    """The first node whose output differs, as text."""
    for node in net.nodes:
        name = node.output[0]
        try:
            wanted = np.stack([Runner(net, [name]).run(s)[0] for s in samples[:1]])
            got = _run(graph, samples[:1], [name])[0]
        except (KeyError, RuntimeError, LeptonError):
            return f"{node.op_type} '{name}'"
        if wanted.dtype.kind == "f" and np.isfinite(wanted).all() and _decibels(wanted, got) < LEAST_DB:
            return f"{node.op_type} '{name}'"
    return "the net as a whole"
