"""The training loop that all passes share: epochs over row numbers, the best weights on held-out samples, resume.

A Learner does the arithmetic of one framework; this file decides which samples make a batch, when it is done, what is
kept, and what is told. Nothing here is random but ``seed``: a run that was interrupted goes on with the same batches.
Early stopping: Prechelt, "Early Stopping - But When?" (1998), with the loss on samples that are never trained on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.texts import duration
from lepton_edge.training.checkpoint import Checkpoint, Snapshot

Told = Callable[[int, int, str], None]
State = dict[str, np.ndarray]

HELD_OUT_MOST = 2000  # samples: more of them cost time and settle nothing
OPTIMIZER = "optimizer/"  # states of this prefix are needed to go on, not to be the best


class Learner(Protocol):
    """A model under training in one framework. Rows are positions in its training samples, int64 [n]."""

    def learn(self, rows: np.ndarray, step: int) -> float:
        """One update on these samples, the ``step``-th of the whole run (from 0); the loss before it."""

    def loss(self, rows: np.ndarray) -> float:
        """The mean loss of these samples as the model would ship now; nothing is learned from them."""

    def state(self) -> State:
        """Copies of all that training goes on from: weights, and the optimizer's arrays as ``optimizer/...``."""

    def restore(self, state: State) -> None:
        """Take up such a state; one without ``optimizer/...`` is the best weights, at the end of training."""


@dataclass(frozen=True)
class Plan:
    """What training is asked for. ``labels`` (int [samples], if any) let the held-out samples have all the classes.

    ``held_out`` is a share of the samples (0: none, then the last weights are kept); ``patience`` the epochs without a
    better held-out loss after which it ends (0: never). Weights count from batch ``settled`` on: before it a
    schedule has not got where it should. ``start_counts``: so do those that training starts from.
    """

    samples: int
    epochs: int = 3
    batch_size: int = 32
    seed: int = 0
    held_out: float = 0.1
    patience: int = 3
    settled: int = 0
    start_counts: bool = False
    labels: np.ndarray | None = None

    def check(self) -> None:
        """Raise UsageError or LeptonError for a plan that makes no sense, naming the option."""
        if self.epochs < 1 or self.batch_size < 1:
            raise UsageError(f"epochs and batch_size must be at least 1, not {self.epochs} and {self.batch_size}")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out is a share of the samples from 0 to below 1, not {self.held_out}")
        if self.patience < 0:
            raise UsageError(f"patience must be 0 (never stop early) or more, not {self.patience}")
        if self.samples < 2:
            raise LeptonError(
                f"{self.samples} training sample{'' if self.samples == 1 else 's'} cannot train a model",
                "give more with --train",
            )

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows to train on and rows that are held out, both int64 and ascending; classes keep their shares."""
        most = min(round(self.samples * self.held_out), HELD_OUT_MOST)
        rng = np.random.default_rng((self.seed, 1))
        order = rng.permutation(self.samples)
        if self.labels is None:
            held = order[:most]
        else:
            kinds, counts = np.unique(self.labels, return_counts=True)
            ends = np.rint(np.cumsum(counts) * most / self.samples).astype(np.int64)
            by_class = [order[self.labels[order] == kind] for kind in kinds]
            held = np.concatenate([part[:n] for part, n in zip(by_class, np.diff(ends, prepend=0), strict=True)])
        held = np.sort(held)
        return np.setdiff1d(np.arange(self.samples), held), held


@dataclass
class Outcome:
    """What came of it: mean losses of the finished epochs, on held-out samples after each; ``best`` the epoch whose
    weights were kept (0: those of the start, -1: none counted yet), and ``ended`` why: "", "patience", "diverged"."""

    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    start: float | None = None
    best: int = -1
    ended: str = ""
    epochs: int = 0
    resumed: int = 0
    seconds: float = 0.0

    def notes(self) -> list[str]:
        """Sentences for the report; none for a training that simply ran to its end."""
        told = []
        if self.resumed:
            told.append(f"training went on from a checkpoint at batch {self.resumed}")
        kept = "the original weights" if self.best < 1 else f"the weights of epoch {self.best}"
        done = len(self.losses)
        if self.ended == "diverged":
            told.append(
                f"the loss became NaN or infinite in epoch {done + 1}: training stopped, {kept} were restored;"
                " try a smaller learning_rate"
            )
        elif self.ended == "patience":
            told.append(f"training stopped after epoch {done} of {self.epochs}, for the held-out loss fell no more")
        if self.held_out and self.ended != "diverged" and self.best != done:
            told.append(f"{kept} were kept, those of the lowest loss on held-out samples")
        return told

    def facts(self) -> dict:
        """The figures for run.json."""
        return {
            "epochs": len(self.losses),
            "loss": [round(v, 6) for v in self.losses],
            "held_out_loss": [round(v, 6) for v in self.held_out],
            "best_epoch": max(self.best, 0),
            "training_s": round(self.seconds, 1),
        }


def batches(rows: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch, in an order that (seed, epoch) decide; an incomplete last one is left out."""
    size = min(size, len(rows))
    order = np.random.default_rng((seed, 2, epoch)).permutation(rows)
    return [np.sort(order[i : i + size]) for i in range(0, len(order) - size + 1, size)]


def steps(plan: Plan) -> int:
    """Batches of an epoch."""
    rows, _ = plan.split()
    return len(rows) // min(plan.batch_size, len(rows))


def train(learner: Learner, plan: Plan, checkpoint: Checkpoint | None = None, told: Told | None = None) -> Outcome:
    """Train until the plan is fulfilled, the held-out loss falls no more, or the loss is no number any more.

    The learner is left with the best weights that counted. A checkpoint of an earlier run of the same key, which was
    interrupted, is taken up. Raises LeptonError for a plan that makes no sense, and when memory runs out (with a
    smaller batch size as the fix).
    """
    plan.check()
    rows, held = plan.split()
    run = _Run(learner, plan, rows, held, checkpoint, told)
    try:
        run.begin()
        while run.outcome.ended == "" and run.epoch < plan.epochs:
            run.one_epoch()
        run.finish()
    except Exception as e:  # frameworks share no error for memory; whatever else it is goes on
        if out_of_memory(e):
            half = max(min(plan.batch_size, len(rows)) // 2, 1)
            fix = f"set batch_size to {half}" if plan.batch_size > 1 else "use a smaller model, or a larger machine"
            raise LeptonError(f"out of memory while training with batches of {plan.batch_size}", fix) from e
        raise
    return run.outcome


class _Run:
    """One training: where it is (epoch, batch within), what it has seen, what is best so far."""

    def __init__(
        self,
        learner: Learner,
        plan: Plan,
        rows: np.ndarray,
        held: np.ndarray,
        checkpoint: Checkpoint | None,
        told: Told | None,
    ) -> None:
        self.learner, self.plan, self.rows, self.held = learner, plan, rows, held
        self.checkpoint, self.told = checkpoint, told
        self.outcome = Outcome(epochs=plan.epochs)
        self.steps = len(rows) // min(plan.batch_size, len(rows))
        self.epoch = self.at = 0
        self.sum = 0.0
        self.best: State = {}
        self.best_loss = math.inf
        self.started = self.shown = time.monotonic()
        self.first = 0

    @property
    def step(self) -> int:
        """Batches done."""
        return self.epoch * self.steps + self.at

    def begin(self) -> None:
        """Take up a checkpoint, else note what there is before the first batch."""
        snapshot = self.checkpoint.load() if self.checkpoint else None
        if snapshot is not None:
            self._take_up(snapshot)
            return
        self.best = weights(self.learner.state())
        if self.plan.start_counts and len(self.held):
            self.outcome.start = self._held_out()
            if math.isfinite(self.outcome.start):
                self.best_loss, self.outcome.best = self.outcome.start, 0

    def one_epoch(self) -> None:
        """The batches of this epoch that are left, then the held-out samples."""
        todo = batches(self.rows, self.plan.batch_size, self.plan.seed, self.epoch)
        for k in range(self.at, len(todo)):
            loss = float(self.learner.learn(todo[k], self.step))
            if not math.isfinite(loss):
                self._diverged()
                return
            self.sum += loss
            self.at += 1
            self._tell(loss)
            if self.checkpoint and self.checkpoint.due():
                self._save()
        loss = self.sum / max(self.steps, 1)
        state = weights(self.learner.state())
        if not all(np.isfinite(v).all() for v in state.values() if v.dtype.kind == "f"):
            self._diverged()
            return
        self.epoch, self.at, self.sum = self.epoch + 1, 0, 0.0
        self.outcome.losses.append(loss)
        self._judge(state)
        if self.checkpoint and self.epoch < self.plan.epochs and not self.outcome.ended:
            self._save()

    def finish(self) -> None:
        """Leave the learner with the best weights."""
        if self.outcome.ended == "diverged" or self.outcome.best != len(self.outcome.losses):
            self.learner.restore(self.best)
        self.outcome.seconds += time.monotonic() - self.started

    def _judge(self, state: State) -> None:
        """After an epoch: is it the best so far, and was that the last one?"""
        done = len(self.outcome.losses)
        if not len(self.held):
            self.best, self.outcome.best = state, done
            return
        found = self._held_out()
        self.outcome.held_out.append(found)
        if not math.isfinite(found):
            self.outcome.losses.pop()
            self.outcome.held_out.pop()
            self._diverged()
        elif self.step < self.plan.settled:
            self.best, self.outcome.best = state, done  # what a NaN falls back to; nothing is compared with it
        elif found < self.best_loss:
            self.best, self.best_loss, self.outcome.best = state, found, done
        elif self.plan.patience and done - max(self.outcome.best, self._settled_epoch()) >= self.plan.patience:
            self.outcome.ended = "patience"

    def _settled_epoch(self) -> int:
        return math.ceil(self.plan.settled / max(self.steps, 1))

    def _diverged(self) -> None:
        self.outcome.ended = "diverged"

    def _held_out(self) -> float:
        """Mean loss of the held-out samples, in batches as large as those of training."""
        size, total = self.plan.batch_size, 0.0
        for part in _parts(self.held, size):
            total += float(self.learner.loss(part)) * len(part)
        return total / len(self.held)

    def _tell(self, loss: float) -> None:
        now, total = time.monotonic(), self.steps * self.plan.epochs
        if self.told is None or (now - self.shown < 0.5 and self.step < total):
            return
        self.shown = now
        left = (now - self.started) / max(self.step - self.first, 1) * (total - self.step)
        where = f"epoch {(self.step - 1) // self.steps + 1}/{self.plan.epochs}"
        self.told(self.step, total, f"{where}, loss {loss:.4f}, {duration(left)} left")

    def _save(self) -> None:
        assert self.checkpoint is not None
        seconds = self.outcome.seconds + time.monotonic() - self.started
        facts = {
            "epoch": self.epoch, "at": self.at, "sum": self.sum, "best_loss": self.best_loss,
            "losses": self.outcome.losses, "held_out": self.outcome.held_out, "best": self.outcome.best,
            "start": self.outcome.start, "seconds": seconds,
        }  # fmt: skip
        self.checkpoint.save(Snapshot(facts, self.learner.state(), self.best))

    def _take_up(self, snapshot: Snapshot) -> None:
        facts = snapshot.facts
        self.learner.restore(snapshot.state)
        self.epoch, self.at, self.sum = facts["epoch"], facts["at"], facts["sum"]
        self.best, self.best_loss = snapshot.best, facts["best_loss"]
        out = self.outcome
        out.losses, out.held_out, out.best = facts["losses"], facts["held_out"], facts["best"]
        out.start, out.seconds = facts["start"], facts["seconds"]
        out.resumed = self.first = self.step


def weights(state: State) -> State:
    """What of a state belongs to the model, without the optimizer's arrays."""
    return {name: value for name, value in state.items() if not name.startswith(OPTIMIZER)}


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception of any framework says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"ResourceExhaustedError", "OutOfMemoryError"}:
        return True
    text = str(error).lower()
    return any(sign in text for sign in ("out of memory", "can't allocate memory", "bad_alloc", "oom when allocating"))


def _parts(rows: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for i in range(0, len(rows), size):
        yield rows[i : i + size]
