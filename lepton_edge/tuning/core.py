"""Fine-tuning on one screen: a compressed net, the net it was made of, samples; the same net with better weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.gradients import agree
from lepton_edge.gradients.graph import graph_of
from lepton_edge.gradients.norms import Norms, places
from lepton_edge.quant.net import Net
from lepton_edge.quant.spec import QuantSpec
from lepton_edge.quant.tap import Sample
from lepton_edge.slim.explicit import explicit
from lepton_edge.training import checkpoint as checkpoints
from lepton_edge.training.core import Plan, steps, train
from lepton_edge.tuning.goals import Goal, goals
from lepton_edge.tuning.learner import Rates, Student, Weights
from lepton_edge.tuning.rounded import Rounded, twins
from lepton_edge.tuning.samples import Rows, check_ways, ways

Told = Callable[[int, int, str], None]
# Norms by batch are noisy: few samples in all, near to the original already, learn more without them.
LEAST_ROWS, LEAST_BATCH = 1000, 16
SETTLED = 12  # batches that statistics are taken of


@dataclass(frozen=True)
class Options:
    """`learning_rate` is relative to the size of each parameter, `inner` the weight of inner tensors, `distil` the
    share of the answers' loss that is the teacher's, where labels make the rest; `augment` as in "mix,flip". Of a model
    that is trained for quantization, `activations` are rounded meanwhile."""

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 0.01
    temperature: float = 4.0
    inner: float = 1.0
    distil: float = 0.7
    augment: str = ""
    held_out: float = 0.1
    patience: int = 0
    seed: int = 0
    activations: bool = True

    def check(self) -> None:
        """Raise UsageError for an option that makes no sense."""
        Plan(2, self.epochs, self.batch_size, self.seed, self.held_out, self.patience).check()
        if not 0 < self.learning_rate < 1:
            raise UsageError(
                f"learning_rate must lie between 0 and 1, not {self.learning_rate:g}",
                "it is relative to the size of each parameter; 0.01 is usual",
            )
        if not 0 < self.temperature <= 100:
            raise UsageError(f"temperature must lie between 0 and 100, not {self.temperature:g}", "4 is usual")
        if not 0 <= self.distil <= 1:
            raise UsageError(f"distil is a share from 0 to 1, not {self.distil:g}", "1 trains without labels")
        if self.inner < 0:
            raise UsageError(f"inner must be 0 or more, not {self.inner:g}", "0 leaves inner tensors out")
        ways(self.augment)


@dataclass(frozen=True)
class Tuned:
    """The trained `net`; `facts` are figures, `notes` sentences for a report."""

    net: Net
    facts: dict = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def tune(
    student: Net,
    teacher: Net,
    rows: Rows,
    options: Options = Options(),
    *,
    name: str,
    key: str = "",
    told: Told | None = None,
    spec: QuantSpec | None = None,
) -> Tuned:
    """Train the weights of a prepared net until it answers as another one does; zeros of its weights stay.

    With a `spec` of the student, its weights end as whole steps of their grids, and activations are rounded meanwhile.
    `rows` are in the names of the student's inputs; with `key` (checkpoint.key) an interrupted run is taken up. Raises
    LeptonError for operators that cannot be differentiated, a net that is computed otherwise than in ONNX Runtime, a
    teacher of other inputs or outputs, labels that no output has, and values that are not finite.
    """
    options.check()
    plan = Plan(
        len(rows), options.epochs, options.batch_size, options.seed, options.held_out, options.patience,
        start_counts=True, labels=rows.labels,
    )  # fmt: skip
    plan.check()
    names = matched(student, teacher, rows, name)
    first = [rows[k] for k in np.linspace(0, len(rows) - 1, 8).astype(int)]
    theirs: list[Sample] = [{names[n]: a for n, a in sample.items()} for sample in first]
    wanted = goals(student, teacher, first, theirs, name, options.inner > 0)
    labels = options.distil < 1 and check_labels(wanted[0], student, rows, name)
    if labels:  # then they are scores of classes, also where no softmax stands behind them
        wanted[0] = replace(wanted[0], kind="classes")
    device = processor()
    student = student.copy() if spec is None else twins(student, spec)
    explicit(student)
    mine, other = graph_of(student, name, device), graph_of(teacher, f"the teacher of {name}", device)
    agree.check(mine, student, first, name)
    agree.check(other, teacher, theirs, f"the teacher of {name}")
    if not mine.params:
        raise LeptonError(f"{name} holds no weights that could be trained", "")
    chosen = ways(options.augment)
    check_ways(chosen, rows.batch(np.array([0])), name)
    normed = spec is None and len(rows) >= LEAST_ROWS and options.batch_size >= LEAST_BATCH
    where = places(student, mine.params) if normed else []
    norms = Norms(student, where, device) if where else None
    learner = Student(
        mine, other, wanted, rows, names,
        rates=Rates(options.learning_rate, steps(plan) * options.epochs),
        weights=Weights(options.inner, 1 - options.distil if labels else 0.0, options.temperature),
        ways=chosen, seed=options.seed, norms=norms, shown=shown(plan),
        rounded=None if spec is None else Rounded(spec, student, device, activations=options.activations),
    )  # fmt: skip
    notes: list[str] = []
    if key:
        with checkpoints.opened(key) as kept:
            outcome = train(learner, plan, kept, told)
            notes += kept.notes if kept else []
    else:
        outcome = train(learner, plan, None, told)
    facts = {
        **outcome.facts(),
        "start_loss": outcome.start,
        "samples": len(rows),
        "labelled": labels,
        "compared": [goal.student for goal in wanted],
        "device": device,
        "norms": len(where),
        "zeros_kept": int(sum(int((~mask).sum()) for mask in learner.masks.values())),
    }
    return Tuned(learner.written(student), facts, [*notes, *outcome.notes()])


def fall(facts: dict, before: str = "before") -> str:
    """From what to what the held-out loss of a training fell; `before` is a word for what it started from."""
    said = f"trained for {facts['epochs']} epochs: held-out loss"
    start, held_out = facts["start_loss"], facts["held_out_loss"]
    if start is None or not held_out:
        return f"{said} not measured, for no samples were held out"
    return f"{said} {start:.4g} {before}, {min(start, *held_out):.4g} after"


def shown(plan: Plan) -> list[np.ndarray]:
    """Batches of the training rows, evenly spread, that statistics are taken of."""
    rows, _ = plan.split()
    size = min(plan.batch_size, len(rows))
    count = min(SETTLED, len(rows) // size)
    return list(rows[np.linspace(0, len(rows) - 1, count * size).astype(int)].reshape(size, count).T)


def processor() -> str:
    """A GPU where PyTorch has one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def matched(student: Net, teacher: Net, rows: Rows, name: str) -> dict[str, str]:
    """The teacher's inputs by the student's: by name, else in order. Raises LeptonError where they are others."""
    ours, theirs = student.inputs, teacher.inputs
    if len(ours) != len(theirs):
        raise LeptonError(
            f"{name} takes {len(ours)} inputs, and its teacher {len(theirs)}",
            "give the model that it was made of as the teacher",
        )
    names = {n: n for n in ours} if set(ours) == set(theirs) else dict(zip(ours, theirs, strict=True))
    for mine, other in names.items():
        shape, wanted = (net.shapes.get(n, ()) for net, n in ((student, mine), (teacher, other)))
        fits = len(shape) == len(wanted) and all(
            a == b or a is None or b is None for a, b in zip(shape, wanted, strict=True)
        )
        if not fits or student.dtypes.get(mine) != teacher.dtypes.get(other):
            raise LeptonError(
                f"{name}: its input '{mine}' is {list(shape)}, the teacher's '{other}' {list(wanted)}",
                "give the model that it was made of as the teacher",
            )
    return names


def check_labels(goal: Goal, student: Net, rows: Rows, name: str) -> bool:
    """Whether labels can be learned: they are there, and the first output holds scores of classes.

    Raises LeptonError for labels that are no class of it.
    """
    if rows.labels is None or goal.kind not in ("classes", "values"):
        return False
    shape = student.shapes.get(goal.student) or ()
    counted = [d for d in shape[1:] if d != 1]
    if len(counted) != 1 or counted[0] is None or (goal.kind == "values" and counted[0] < 2):
        return False
    low, high, classes = int(rows.labels.min()), int(rows.labels.max()), counted[0]
    if low < 0 or high >= classes:
        raise LeptonError(
            f"label {low if low < 0 else high} is out of range: {name} knows the classes 0 to {classes - 1}",
            "check that the labels belong to this model, or give samples without labels",
        )
    return True


def key_of(file: str | Path, model: str | Path, rows: Rows, options: dict[str, Any], more: Sequence[Any] = ()) -> str:
    """The key of a training's checkpoint: pass, model, samples, options, and what else decides it."""
    return checkpoints.key(file, model, {"samples": rows.feed.sha256, "options": options, "more": list(more)})
