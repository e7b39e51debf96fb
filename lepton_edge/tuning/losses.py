"""Distances of a batch from its goals, as PyTorch scalars. Tensors are [samples, ...]."""

from __future__ import annotations

from typing import Any

from lepton_edge.tuning.goals import Goal


def distance(goal: Goal, mine: Any, theirs: Any, temperature: float, live: Any = None) -> Any:
    """How far the student is from the teacher, 0 where it is the same.

    - classes: T^2 KL(teacher || student) of the softmax at temperature T;
    - switches: the same of each sigmoid;
    - direction: 1 - cosine;
    - values: mean squared difference as a share of the teacher's variance; `live` [samples, length] are positions of
      padded samples that count.
    """
    import torch
    from torch.nn import functional as F

    if goal.kind == "classes":
        a = torch.log_softmax(mine / temperature, goal.axis)
        b = torch.log_softmax(theirs / temperature, goal.axis)
        return temperature**2 * (b.exp() * (b - a)).sum(goal.axis).mean()
    if goal.kind == "switches":
        a, b = mine / temperature, torch.sigmoid(theirs / temperature)
        gap = F.binary_cross_entropy_with_logits(a, b) - F.binary_cross_entropy_with_logits(theirs / temperature, b)
        return temperature**2 * gap
    if goal.kind == "direction":
        return (1 - F.cosine_similarity(mine, theirs, dim=-1)).mean()
    error = (mine - theirs).square() / goal.power
    if live is not None and error.dim() >= 3 and error.shape[2] == live.shape[1]:
        mask = live.reshape(live.shape[0], 1, live.shape[1], *[1] * (error.dim() - 3)).to(error.dtype)
        return (error * mask).sum() / (mask.expand_as(error).sum().clamp(min=1.0))
    return error.mean()


def by_labels(goal: Goal, mine: Any, labels: Any, others: Any, share: float) -> Any:
    """Cross-entropy of class scores [samples, ..., classes] with labels [samples]; a mixed sample has two."""
    from torch.nn import functional as F

    scores = mine.movedim(goal.axis, -1).reshape(len(labels), -1)
    loss = F.cross_entropy(scores, labels)
    if others is None:
        return loss
    return share * loss + (1 - share) * F.cross_entropy(scores, others)
