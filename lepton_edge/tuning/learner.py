"""The student under training: one step of Adam, the loss on samples that are held out, states to come back to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.gradients.graph import Graph
from lepton_edge.gradients.norms import Norms, of_state
from lepton_edge.quant.net import Net
from lepton_edge.quant.tap import Sample
from lepton_edge.slim.live import live
from lepton_edge.tuning.goals import Goal
from lepton_edge.tuning.losses import by_labels, distance
from lepton_edge.tuning.rounded import Rounded
from lepton_edge.tuning.samples import Batch, Rows, augmented

WARM = 0.03  # share of the steps in which the learning rate rises
LEAST = 1e-3  # of a parameter's size, below which its steps are not shrunk (biases that start at zero)
BETAS = (0.9, 0.99)
GROWTH = 0.01  # what a step of a grid moves by, as a share of itself, beside what a weight does


@dataclass(frozen=True)
class Rates:
    """`rate` of learning, relative to the size of each parameter; `steps` it falls over, along a half cosine."""

    rate: float
    steps: int

    def at(self, step: int) -> float:
        """The rate of a step."""
        warm = max(1, round(WARM * self.steps))
        if step < warm:
            return self.rate * (step + 1) / warm
        done = (step - warm) / max(self.steps - warm, 1)
        return self.rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@dataclass(frozen=True)
class Weights:
    """What parts of the loss count: inner tensors, and of what the answers bring the share that comes from labels."""

    inner: float = 1.0
    labels: float = 0.0
    temperature: float = 4.0


class Student:
    """A graph that learns from a teacher's graph; what `training.core.train` calls a Learner.

    Weights that are zero stay zero: those of a pruned model. Steps are Adam's (Kingma & Ba, arXiv:1412.6980), each in
    proportion to the size of its parameter as in Shazeer & Stern, "Adafactor" (arXiv:1804.04235, section 8), for a
    model that is not known has layers of any scale, above all where batch norms were folded.
    """

    def __init__(
        self,
        graph: Graph,
        teacher: Graph,
        goals: Sequence[Goal],
        rows: Rows,
        names: Mapping[str, str],
        *,
        rates: Rates,
        weights: Weights = Weights(),
        ways: Sequence[str] = (),
        seed: int = 0,
        norms: Norms | None = None,
        shown: Sequence[np.ndarray] = (),
        rounded: Rounded | None = None,
    ) -> None:
        """`names` are the teacher's inputs by the student's, `shown` batches of rows that `norms` are settled on;
        what is `rounded` computes as integers, which goes with no norms."""
        import torch

        self.graph, self.teacher, self.goals, self.rows, self.names = graph, teacher, goals, rows, names
        self.rates, self.weights, self.ways, self.seed = rates, weights, ways, seed
        self.masks = {n: (p != 0) for n, p in graph.params.items() if p.dim() > 1 and bool((p == 0).any())}
        self.norms, self.shown, self.settled, self.rounded = norms, shown, True, rounded
        if norms is not None:
            norms.begin(self._show)
        more = [part.params for part in (norms, rounded) if part is not None]
        self.learned = {**graph.params, **{n: p for params in more for n, p in params.items()}}
        self.first = {n: torch.zeros_like(p) for n, p in self.learned.items()}
        self.second = {n: torch.zeros_like(p) for n, p in self.learned.items()}
        self.size = {n: self._size(n, p) for n, p in self.learned.items()}

    def _size(self, name: str, value: Any) -> Any:
        """What a parameter's steps are in proportion to; of a rounded weight, channel by channel as its grid."""
        if self.rounded is not None and name in self.rounded.params:
            return GROWTH
        square = value.detach().square()
        if self.rounded is not None and name in self.rounded.weights:
            own = self.rounded.weights[name].step
            shared = [k for k in range(value.dim()) if own.dim() == 0 or own.shape[k] == 1]
            return square.mean(shared, keepdim=True).sqrt().clamp(min=1e-12)
        return max(float(square.mean().sqrt()), LEAST)

    def learn(self, rows: np.ndarray, step: int) -> float:
        """One update on these samples; the loss before it."""
        import torch

        batch = self.rows.batch(rows)
        if self.ways:
            batch = augmented(batch, self.ways, np.random.default_rng((self.seed, 3, step)))
        loss = self._loss(batch, learning=True)
        grads = torch.autograd.grad(loss, list(self.learned.values()), allow_unused=True)
        self._update(dict(zip(self.learned, grads, strict=True)), step)
        self.settled = False
        return float(loss.detach())

    def loss(self, rows: np.ndarray) -> float:
        """The mean loss of these samples; nothing is learned from them."""
        import torch

        self._settle()
        with torch.no_grad():
            return float(self._loss(self.rows.batch(rows)))

    def state(self) -> dict[str, np.ndarray]:
        """Weights and norms, and the sums of Adam as ``optimizer/...``."""
        self._settle()
        made = {f"weights/{n}": p.detach().cpu().numpy().copy() for n, p in self._held().items()}
        for kind, sums in (("first", self.first), ("second", self.second)):
            made |= {f"optimizer/{kind}/{n}": v.cpu().numpy().copy() for n, v in sums.items()}
        return made

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Take up a state; without the sums of Adam those stay."""
        import torch

        places = {"weights/": self._held(), "optimizer/first/": self.first, "optimizer/second/": self.second}
        self.settled = True
        with torch.no_grad():
            for key, value in state.items():
                for prefix, tensors in places.items():
                    if key.startswith(prefix):
                        tensors[key.removeprefix(prefix)].copy_(torch.from_numpy(np.array(value)))

    def written(self, net: Net) -> Net:
        """A copy of the net that the graph was made of, with what was learned."""
        made = self.graph.written(net)
        if self.rounded is not None:
            return self.rounded.written(made, self.graph.params)
        return made if self.norms is None else self.norms.folded(made)

    def _held(self) -> dict[str, Any]:
        """The tensors that make the model."""
        grown = {} if self.rounded is None else self.rounded.params
        return {**self.graph.params, **of_state(self.norms), **grown}

    def _settle(self) -> None:
        """Statistics of the norms as the weights now have them."""
        if self.norms is not None and not self.settled:
            self.norms.settle(self._show)
        self.settled = True

    def _show(self) -> None:
        for rows in self.shown:
            self._answers(self._feeds(self.rows.batch(rows)), self.graph.gives)

    def _feeds(self, batch: Batch) -> dict[str, Any]:
        import torch

        return {n: torch.from_numpy(np.ascontiguousarray(a)).to(self.graph.device) for n, a in batch.inputs.items()}

    def _answers(self, feeds: dict[str, Any], fetch: list[str], *, learning: bool = False) -> Sequence[Any]:
        if self.rounded is not None:
            feeds = {n: self.rounded(n, x) for n, x in feeds.items()}
            return self.graph.by_operator(feeds, fetch, self.rounded, self.rounded.values(self.graph.params))
        if self.norms is None:
            return self.graph.batch(feeds, fetch)
        self.norms.learning = learning
        return self.graph.by_operator(feeds, fetch, self.norms)

    def _loss(self, batch: Batch, *, learning: bool = False) -> Any:
        import torch

        device = self.graph.device
        feeds = self._feeds(batch)
        counted = self._live(batch)
        with torch.no_grad():
            wanted = self.teacher.batch(
                {self.names[n]: x for n, x in feeds.items()}, [goal.teacher for goal in self.goals]
            )
        got = self._answers(feeds, [goal.student for goal in self.goals], learning=learning)
        total, inner = 0.0, [goal for goal in self.goals if goal.inner]
        outer = len(self.goals) - len(inner)
        for k, (goal, mine, theirs) in enumerate(zip(self.goals, got, wanted, strict=True)):
            part = distance(goal, mine, theirs, self.weights.temperature, counted)
            if goal.inner:
                total = total + self.weights.inner / len(inner) * part
                continue
            if k == 0 and batch.labels is not None and self.weights.labels:
                labels, others = (
                    None if v is None else torch.from_numpy(v).to(device) for v in (batch.labels, batch.others)
                )
                truth = by_labels(goal, mine, labels, others, batch.share)
                part = (1 - self.weights.labels) * part + self.weights.labels * truth
            total = total + part / outer
        return total

    def _live(self, batch: Batch) -> Any:
        """Which positions of padded samples count, [samples, length]; None where there is no mask."""
        import torch

        rows: list[Sample] = [
            {n: a[k] for n, a in batch.inputs.items()} for k in range(len(next(iter(batch.inputs.values()))))
        ]
        masks = live(rows)
        if any(mask is None for mask in masks):
            return None
        return torch.from_numpy(np.stack([m for m in masks if m is not None])).to(self.graph.device)

    def _update(self, grads: Mapping[str, Any], step: int) -> None:
        import torch

        rate = self.rates.at(step)
        keep = [1 - beta ** (step + 1) for beta in BETAS]
        with torch.no_grad():
            for name, grad in grads.items():
                if grad is None:
                    continue
                first, second, value = self.first[name], self.second[name], self.learned[name]
                first.mul_(BETAS[0]).add_(grad, alpha=1 - BETAS[0])
                second.mul_(BETAS[1]).addcmul_(grad, grad, value=1 - BETAS[1])
                change = (first / keep[0]) / ((second / keep[1]).sqrt() + 1e-12)
                value.sub_(change * (rate * self.size[name]))
                if name in self.masks:
                    value.mul_(self.masks[name])
