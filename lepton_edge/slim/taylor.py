"""What the loss changes by when a member of a family goes, from gradients.

A gate of 1 stands before each layer that reads the family's channels, one a channel and sample, and the score of a
member is E[(sum of its gates' gradients)^2]: Molchanov et al., "Importance Estimation for Neural Network Pruning"
(arXiv:1906.10771, equation 8, with gates). All gates of a member are summed first, for it goes everywhere at once.

With labels the loss is that of the labels. Without, it is the distance from the model's own answers, whose gradient is
0 where they are still the same; the score is then the second-order term, with the Gauss-Newton matrix, estimated by
random projections of the answers: labels drawn from the model's own probabilities where there are class scores (its
Fisher matrix; Liu et al., "Group Fisher Pruning", arXiv:2108.00708), normal numbers elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lepton_edge.gradients import agree
from lepton_edge.gradients.graph import Graph, graph_of, stacked
from lepton_edge.quant.tap import Sample
from lepton_edge.slim.families import Family
from lepton_edge.slim.trace import Consumer, Trace
from lepton_edge.tuning.goals import before

BATCH = 16
DRAWN = 4  # projections of a sample's answers


def scored(
    t: Trace,
    families: Sequence[Family],
    samples: Sequence[Sample],
    labels: np.ndarray | None,
    name: str,
    seed: int,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> list[np.ndarray]:
    """The score of each member of each family, float64 [members]; least is least important.

    `labels` are int [samples] or None. Raises LeptonError where the net cannot be differentiated.
    """
    import torch

    graph = graph_of(t.net, name)
    agree.check(graph, t.net, samples, name)
    readers = {(c.node, c.axis): c for family in families for c in family.consumers}
    roots = t.channels.roots()
    sums = [np.zeros(len(family.members)) for family in families]
    draw = torch.Generator().manual_seed(seed)
    for at in range(0, len(samples), BATCH):
        rows = [samples[k] for k in range(at, min(at + BATCH, len(samples)))]
        some = None if labels is None else torch.from_numpy(labels[at : at + len(rows)].astype(np.int64))
        for grads in _gradients(graph, t, list(readers.values()), rows, some, draw):
            for k, family in enumerate(families):
                sums[k] += _joined(family, roots, grads, len(rows))
        told(at + len(rows), len(samples))
    return sums


def _joined(family: Family, roots: np.ndarray, grads: dict[tuple[int, int], np.ndarray], count: int) -> np.ndarray:
    """Sum over samples of the squares of each member's gradient: [members]."""
    at = {int(root): k for k, root in enumerate(family.members)}
    total = np.zeros((count, len(family.members)))
    for consumer in family.consumers:
        found = grads[consumer.node, consumer.axis]
        for channel, root in enumerate(roots[consumer.channels].tolist()):
            if root in at:
                total[:, at[root]] += found[:, channel]
    return (total**2).sum(0)


def _gradients(
    graph: Graph, t: Trace, readers: Sequence[Consumer], rows: Sequence[Sample], labels: Any, draw: Any
) -> Any:
    """For each projection, the gradients of all gates: {(node, axis): float64 [samples, channels]}."""
    import torch

    ends = [before(t.net, y) for y in t.net.outputs]
    gates = {}
    for c in readers:
        gates[c.node, c.axis] = torch.ones((len(rows), len(c.channels)), requires_grad=True)
    named = {(t.net.nodes[node].output[0], axis): gate for (node, axis), gate in gates.items()}
    answers = graph.batch(stacked(rows), [tensor for tensor, _, _ in ends], named)
    found = [(y, kind, axis) for y, (_, kind, axis) in zip(answers, ends, strict=True) if y.dtype.is_floating_point]
    once = labels is not None and _classified(*found[0], labels)
    for last in reversed(range(1 if once else DRAWN)):
        loss = sum(_projected(y, kind, axis, labels if once and k == 0 else None, draw)
                   for k, (y, kind, axis) in enumerate(found))  # fmt: skip
        made = torch.autograd.grad(loss, list(gates.values()), retain_graph=last > 0, allow_unused=True)
        yield {
            place: np.zeros(gate.shape) if grad is None else grad.numpy().astype(np.float64)
            for (place, gate), grad in zip(gates.items(), made, strict=True)
        }


def _classified(y: Any, kind: str, axis: int, labels: Any) -> bool:
    """Whether an answer [samples, ...] holds one score a class, and the labels are such."""
    scores = y.movedim(axis, -1).reshape(len(labels), -1)
    return kind in ("classes", "values") and y.shape[axis] == scores.shape[1] > int(labels.max())


def _projected(y: Any, kind: str, axis: int, labels: Any, draw: Any) -> Any:
    """A scalar whose gradient, squared, is that of the loss in the mean; summed over samples."""
    import torch
    from torch.nn import functional as F

    if kind == "classes" or labels is not None:
        scores = y.movedim(axis, -1)
        scores = scores.reshape(-1, scores.shape[-1])
        if labels is None:
            labels = torch.multinomial(torch.softmax(scores.detach(), -1), 1, generator=draw)[:, 0]
        return F.cross_entropy(scores, labels, reduction="sum")
    if kind == "switches":
        chance = torch.sigmoid(y.detach())
        drawn = (torch.rand(y.shape, generator=draw) < chance).to(y.dtype)
        return F.binary_cross_entropy_with_logits(y, drawn, reduction="sum")
    scale = y.detach().std().clamp(min=1e-12)
    return (y * torch.randn(y.shape, generator=draw)).sum() / scale
