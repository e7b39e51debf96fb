"""What a model under training is held against: answers and inner tensors of the original, and labels.

Each output is compared by what it is. Class scores: Hinton et al., "Distilling the Knowledge in a Neural Network"
(arXiv:1503.02531). Inner tensors of one name and shape: Romero et al., "FitNets" (arXiv:1412.6550), whose projections a
pruned model does not need, for what its layers make means the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant.net import Net, attribute
from lepton_edge.quant.tap import Runner, Sample

SHOWN = 8  # samples that outputs are looked at on
PASSING = ("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Dropout")
JOINTS = ("Add", "LayerNormalization", "RMSNormalization", "Concat", "Relu", "Clip", "HardSwish", "Gelu", "Mul", "Conv")
MOST = 8  # inner tensors that are compared


@dataclass(frozen=True)
class Goal:
    """One tensor of the student and the one of the teacher that it should be like.

    `kind` is "classes" (scores before a softmax along `axis`), "switches" (before a sigmoid), "direction" (vectors of
    length 1) or "values"; `power` is the variance of the teacher's values, which the error is a share of.
    """

    student: str
    teacher: str
    kind: str
    axis: int = -1
    power: float = 1.0
    inner: bool = False


def goals(
    student: Net, teacher: Net, samples: Sequence[Sample], theirs: Sequence[Sample], name: str, inner: bool
) -> list[Goal]:
    """The outputs, then with `inner` up to MOST inner tensors; `theirs` are the samples in the teacher's names.

    Raises LeptonError for models with other outputs, and where no output holds numbers to learn from.
    """
    if len(student.outputs) != len(teacher.outputs):
        raise LeptonError(
            f"{name} has {len(student.outputs)} outputs, and its teacher {len(teacher.outputs)}",
            "give the model that it was made of as the teacher",
        )
    named = set(student.outputs) == set(teacher.outputs)
    pairs = [(y, y if named else teacher.outputs[k]) for k, y in enumerate(student.outputs)]
    shown, same = samples[:SHOWN], theirs[:SHOWN]
    mine, wanted = _values(student, shown), _values(teacher, same)
    made = []
    for y, t in pairs:
        a, b = mine[y], wanted[t]
        if a.shape != b.shape:
            raise LeptonError(
                f"{name}: its output '{y}' is {list(a.shape[1:])}, the teacher's '{t}' {list(b.shape[1:])}",
                "give the model that it was made of as the teacher",
            )
        if a.dtype.kind == "f":
            made.append(_goal(student, teacher, y, t, b))
    if not made:
        raise LeptonError(f"{name}: its outputs are whole numbers, which nothing can be learned from", "")
    return made + (_inner(student, teacher, shown, same, made) if inner else [])


def _values(net: Net, samples: Sequence[Sample], fetch: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    runner = Runner(net, fetch)
    rows = [runner.run(sample) for sample in samples]
    return {name: np.stack(values) for name, values in zip(runner.fetch, zip(*rows, strict=True), strict=True)}


def _goal(student: Net, teacher: Net, y: str, t: str, values: np.ndarray) -> Goal:
    ends = before(student, y), before(teacher, t)
    if ends[0][1:] == ends[1][1:] and ends[0][1] != "values":
        return Goal(ends[0][0], ends[1][0], ends[0][1], ends[0][2])
    rows = values.reshape(len(values), -1, values.shape[-1]) if values.ndim > 1 else values[:, None, None]
    lengths = np.linalg.norm(rows.astype(np.float64), axis=-1)
    if rows.shape[-1] > 1 and np.abs(lengths - 1).max() < 1e-3:
        return Goal(y, t, "direction")
    return Goal(y, t, "values", power=_power(values))


def before(net: Net, y: str) -> tuple[str, str, int]:
    """(tensor, kind, axis): what stands before the softmax or sigmoid that an output ends with, else the output."""
    node = net.makers.get(y)
    while node is not None and node.op_type in PASSING:
        node = net.makers.get(node.input[0])
    if node is not None and node.op_type in ("Softmax", "LogSoftmax"):
        rank = len(net.shapes.get(node.input[0], ()))
        axis = attribute(node, "axis", -1)
        return node.input[0], "classes", axis - rank if axis >= 0 and rank else axis
    if node is not None and node.op_type == "Sigmoid":
        return node.input[0], "switches", -1
    return y, "values", -1


def _power(values: np.ndarray) -> float:
    """Variance over samples and positions; what is always the same counts by its size."""
    flat = values.astype(np.float64).reshape(len(values), -1)
    spread = float(((flat - flat.mean(0)) ** 2).mean()) if len(flat) > 1 else float(flat.var())
    return max(spread, 1e-4 * float((flat**2).mean()), 1e-12)


def _inner(
    student: Net, teacher: Net, samples: Sequence[Sample], theirs: Sequence[Sample], ends: Sequence[Goal]
) -> list[Goal]:
    """Inner tensors of the same name and shape on both sides, spread evenly over the depth of the net.

    Where sums or normalizations have such, they are taken, for all that a block does comes together in them.
    """
    taken = {goal.student for goal in ends} | set(student.outputs)
    shapes = {name: shape for name, shape in teacher.shapes.items() if name in teacher.makers}
    by_rank: list[list[str]] = [[], []]
    for node in student.nodes:
        name = node.output[0]
        if name in taken or node.op_type not in JOINTS or shapes.get(name) != student.shapes.get(name):
            continue
        sizes = [d for d in shapes[name] if d is not None]
        if len(sizes) < len(shapes[name]) or int(np.prod(sizes)) < 2 or student.dtypes.get(name) != 1:
            continue
        by_rank[node.op_type not in JOINTS[:3]].append(name)
    names = by_rank[0] or by_rank[1]
    if not names:
        return []
    chosen = [names[k] for k in np.unique(np.linspace(0, len(names) - 1, MOST).round().astype(int))]
    mine, wanted = _values(student, samples, chosen), _values(teacher, theirs, chosen)
    made = [Goal(n, n, "values", power=_power(wanted[n]), inner=True) for n in chosen if np.isfinite(wanted[n]).all()]
    # One name is no proof: a tensor may hold the same in another basis.
    return [g for g in made if float(((mine[g.student] - wanted[g.teacher]) ** 2).mean()) < g.power]
