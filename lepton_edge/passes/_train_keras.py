"""Fine-tuning of a Keras model with weights that are shaped meanwhile: what prune, cluster and qat share.

The Keras 3 model is moved to tf_keras (lepton_edge.keras_move), trained there by lepton_edge.training, and its weights
are written back into the original graph. On a GPU where TensorFlow sees one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.keras_move import Moved, copy_back, graph_of, leaf_layers, move
from lepton_edge.passes import _train_activations
from lepton_edge.passes._train_kernels import Kernel, find
from lepton_edge.passes._train_loss import make_loss
from lepton_edge.passes._train_samples import Samples, Target, find_target, open_samples
from lepton_edge.passes._train_shaped import Shaped
from lepton_edge.tf_export.load import load_keras
from lepton_edge.training import checkpoint, core
from lepton_edge.tuning.samples import Batch, augmented, check_ways, ways

OBSERVED = 16  # batches that tell the ranges of activations to start from
ENVIRON = {"TF_USE_LEGACY_KERAS": "1", "KERAS_BACKEND": "tensorflow"}


@dataclass(frozen=True)
class Tuning:
    """The options of training that all passes have. `distil` is the share of the loss that the original's answers get
    (1: labels are not needed), softened by `temperature`; `augment` is "flip,shift,mix" or some of them (see
    lepton_edge.tuning.samples); the learning rate falls to a hundredth along a cosine."""

    epochs: int
    batch_size: int
    learning_rate: float
    held_out: float
    patience: int
    distil: float
    temperature: float
    augment: str
    seed: int

    def check(self) -> None:
        """Refuse options that make no sense, naming the one that is off."""
        core.Plan(
            2, self.epochs, self.batch_size, held_out=self.held_out, patience=self.patience, seed=self.seed
        ).check()
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise UsageError(f"learning_rate must be above 0, not {self.learning_rate}")
        if not 0 <= self.distil <= 1:
            raise UsageError(f"distil is a share of the loss from 0 to 1, not {self.distil}")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise UsageError(f"temperature must be above 0, not {self.temperature}")
        ways(self.augment)


@dataclass(frozen=True)
class Session:
    """A model ready to be trained. `notes` say how it was read."""

    model: Any
    moved: Moved
    samples: Samples
    target: Target
    kernels: list[Kernel]
    plan: core.Plan
    notes: list[str]

    @property
    def steps(self) -> int:
        """Batches of the whole training."""
        return core.steps(self.plan) * self.plan.epochs


def prepare() -> None:
    """Set what TensorFlow and Keras read when they are imported. Raises LeptonError where Keras runs on another one."""
    for key, value in ENVIRON.items():
        os.environ.setdefault(key, value)
    import keras

    if keras.backend.backend() != "tensorflow":
        raise LeptonError(
            f"Keras runs on {keras.backend.backend()}, and training needs TensorFlow",
            hint="set KERAS_BACKEND=tensorflow",
        )


def begin(src: str, data: str, tuning: Tuning, doing: str, *, rounded: bool = False) -> Session:
    """Read the model and its samples and move it. `doing` ("pruned") is for errors; `rounded`: with activations that
    can be rounded (see _train_activations).

    Errors: LeptonError for a model, samples or labels that do not fit.
    """
    tuning.check()
    prepare()
    model, notes = load_keras(src)
    if type(model).__module__.split(".")[0] != "keras":
        raise LeptonError("Keras 3 cannot read this Keras 2 file", hint="save the model with Keras 3")
    samples = open_samples(data, model, unlabelled=tuning.distil == 1)
    target = find_target(model, samples)

    import tensorflow as tf
    import tf_keras

    tf_keras.utils.set_random_seed(tuning.seed)
    tf.config.experimental.enable_op_determinism()
    rounded = rounded and _train_activations.takes_part(list(leaf_layers(model)))
    moved = move(model, _train_activations.after if rounded else None)
    if not moved.model.trainable_weights:
        raise LeptonError("every layer is frozen, so nothing can be fine-tuned", hint="set trainable=True and save")
    plan = core.Plan(
        samples.count,
        tuning.epochs,
        tuning.batch_size,
        tuning.seed,
        tuning.held_out,
        tuning.patience,
        labels=samples.labels,
    )
    plan.check()
    kernels = find(moved)
    if not kernels:
        raise LeptonError(f"the model has no layer with weights to be {doing} (dense, convolution, recurrent ...)")
    return Session(model, moved, samples, target, kernels, plan, notes)


class Learner:
    """A moved model as lepton_edge.training takes it. Adam (Kingma & Ba, arXiv:1412.6980).

    `moving`: batches are normalised by their own statistics, which the model's follow, and dropout drops. Without, the
    model computes as when it ships, which is for changes too small to need new statistics (frozen ones are also what
    Krishnamoorthi, arXiv:1806.08342, recommends for quantization-aware training).
    """

    def __init__(self, session: Session, shaped: Sequence[Shaped], tuning: Tuning, moving: bool = True) -> None:
        import tensorflow as tf
        import tf_keras

        self.session, self.shaped = session, list(shaped)
        self.ways, self.seed, self.moving = ways(tuning.augment), tuning.seed, moving
        self.model = session.moved.model
        held = {id(s.kernel.variable): s for s in self.shaped}
        self.reads = list(self.model.trainable_weights)  # where gradients come from
        trained: dict[str, Any] = {}
        for variable in self.reads:
            for part in held[id(variable)].trained() if id(variable) in held else [variable]:
                trained.setdefault(str(id(part)), part)
        self.trained = list(trained.values())  # where they go
        rate = tf_keras.optimizers.schedules.CosineDecay(tuning.learning_rate, max(session.steps, 1), alpha=0.01)
        self.optimizer = tf_keras.optimizers.Adam(rate)
        self.optimizer.build(self.trained)
        self.answers = tuning.distil > 0 or len(self.model.outputs) > 1 or not session.target.kind
        self._loss = make_loss(session.target, tuning.distil, tuning.temperature)
        self._held = held
        self._learn = tf.function(self._learn_batch, reduce_retracing=True)
        self._judge = tf.function(self._judge_batch, reduce_retracing=True)
        self._write = tf.function(self._write_all)
        self.write()
        self._observe()

    def _observe(self) -> None:
        """Let the rounding of activations see a few batches, then begin."""
        layers = _train_activations.layers_of(self.model)
        if not layers:
            return
        for layer in layers:
            layer.mode.assign(_train_activations.OBSERVES)
        plan = self.session.plan
        for rows in core.batches(plan.split()[0], plan.batch_size, plan.seed, 0)[:OBSERVED]:
            self._judge(*self._batch(rows))
        for layer in layers:
            layer.mode.assign(_train_activations.ROUNDS)

    def write(self) -> None:
        """Set every shaped kernel to what it ships as."""
        if self.shaped:
            self._write()

    def _write_all(self) -> None:
        for item in self.shaped:
            item.write()

    def learn(self, rows: np.ndarray, step: int) -> float:
        """One update; the masks of this step come first."""
        for item in self.shaped:
            item.update(step)
        self.write()
        return float(self._learn(*self._batch(rows, step)))

    def loss(self, rows: np.ndarray) -> float:
        """The loss of samples as the model would ship."""
        self.write()
        return float(self._judge(*self._batch(rows)))

    def state(self) -> dict[str, np.ndarray]:
        """Every weight of the model, of the shaped kernels' twins, and of the optimizer."""
        self.write()
        return {name: variable.numpy() for name, variable in self._variables().items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up a state; raises LeptonError where it is of another model."""
        for name, variable in self._variables().items():
            if name in state:
                if tuple(variable.shape) != state[name].shape:
                    raise LeptonError(f"the checkpoint's '{name}' is {state[name].shape}, not {tuple(variable.shape)}")
                variable.assign(state[name])
            elif not name.startswith(core.OPTIMIZER):
                raise LeptonError(f"the checkpoint lacks '{name}'", "remove the 'training' folder of the cache")

    def _variables(self) -> dict[str, Any]:
        found = {f"weights/{i}": v for i, v in enumerate(self.model.weights)}
        for i, item in enumerate(self.shaped):
            found |= {f"shaped/{i}/{name}": v for name, v in item.variables().items()}
        own = self.optimizer.variables
        return found | {f"{core.OPTIMIZER}{i}": v for i, v in enumerate(own() if callable(own) else own)}

    def _batch(self, rows: np.ndarray, step: int | None = None) -> tuple[list[Any], Any, Any, Any]:
        """The samples of rows by input, their labels; where a `step` learns from them, varied as `augment` says, and
        then also the labels of those mixed in and the share of the first."""
        import tensorflow as tf

        samples, inputs = self.session.samples, graph_of(self.session.moved.source).inputs
        x = [np.asarray(a[rows]).astype(t.dtype) for a, t in zip(samples.inputs, inputs, strict=True)]
        labels = np.zeros(len(rows), np.int64) if samples.labels is None else samples.labels[rows]
        others, share = labels, 1.0
        if self.ways and step is not None:
            batch = Batch({str(k): a[:, None] for k, a in enumerate(x)}, labels)
            if step == 0:
                check_ways(self.ways, batch, f"the model '{self.session.model.name}'")
            made = augmented(batch, self.ways, np.random.default_rng((self.seed, 3, step)))
            x = [made.inputs[str(k)][:, 0] for k in range(len(x))]
            others, share = labels if made.others is None else made.others, made.share
        return [tf.constant(a) for a in x], tf.constant(labels), tf.constant(others), tf.constant(share, tf.float32)

    def _forward(self, x: list[Any], labels: Any, others: Any, share: Any, training: bool) -> Any:
        import keras
        import tensorflow as tf

        answers: list[Any] = []
        if self.answers:
            source = self.session.moved.source
            given = keras.tree.pack_sequence_as(graph_of(source)._inputs_struct, x)
            answers = [tf.stop_gradient(a) for a in keras.tree.flatten(source(given, training=False))]
        outputs = self.model(x if len(x) > 1 else x[0], training=training)
        outputs = tf.nest.flatten(outputs)
        return self._loss(outputs, answers, labels, others, share)

    def _learn_batch(self, x: list[Any], labels: Any, others: Any, share: Any) -> Any:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = self._forward(x, labels, others, share, self.moving)
            for penalty in self.model.losses:
                loss += tf.cast(penalty, tf.float32)
        slopes = tape.gradient(loss, self.reads)
        wanted: dict[int, Any] = {}
        for variable, slope in zip(self.reads, slopes, strict=True):
            if slope is None:
                continue
            slope = tf.convert_to_tensor(slope)
            if (item := self._held.get(id(variable))) is None:
                wanted[id(variable)] = slope
                continue
            with tf.GradientTape() as inner:
                value = item.value()
            for part, own in zip(
                item.trained(), inner.gradient(value, item.trained(), output_gradients=slope), strict=True
            ):
                if own is not None:
                    wanted[id(part)] = own
        pairs = [(wanted[id(v)], v) for v in self.trained if id(v) in wanted]
        self.optimizer.apply_gradients(pairs)
        return loss

    def _judge_batch(self, x: list[Any], labels: Any, others: Any, share: Any) -> Any:
        return self._forward(x, labels, others, share, False)


def tune(
    session: Session,
    shaped: Sequence[Shaped],
    tuning: Tuning,
    plan: core.Plan,
    key: str,
    progress: Callable | None,
) -> tuple[core.Outcome, list[str]]:
    """Train, going on from the checkpoint under `key`; the model is left as it ships. Returns notes on it.

    Where the start counts, the model is near to what it shall be, and statistics stay those that it has.
    """
    learner = Learner(session, shaped, tuning, moving=not plan.start_counts)
    with checkpoint.opened(key) as place:
        outcome = core.train(learner, plan, place, progress)
        learner.write()
        notes = place.notes if place else ["another process trains the same, so no checkpoints were kept"]
    return outcome, [described(session, tuning, outcome), *outcome.notes(), *notes, *devices()]


def described(session: Session, tuning: Tuning, outcome: core.Outcome) -> str:
    """What the model was trained on."""
    target, done = session.target, len(outcome.losses)
    what = f"output {target.index} ({target.kind}, {target.width} wide)" if target.kind else "all outputs"
    how = ""
    if tuning.distil == 1:
        how = ", towards the original's answers, without labels"
    elif tuning.distil:
        how = f", {tuning.distil:.0%} of the loss towards the original's answers"
    how += f", varied by {tuning.augment}" if ways(tuning.augment) else ""
    return f"fine-tuned on {what}, {done} of {tuning.epochs} epochs{how}"


def devices() -> list[str]:
    """A note on the GPUs that training ran on, if any."""
    import tensorflow as tf

    found = tf.config.list_physical_devices("GPU")
    return [f"trained on {len(found)} GPU"] if found else []


def end(session: Session, kernels: Sequence[Kernel], dst: str | Path) -> dict[str, Any]:
    """Write the trained weights back and the Keras 3 model to `dst`: aside first. Returns measure()."""
    copy_back(session.moved)
    save(session.model, dst)
    return measure(session, kernels)


def measure(session: Session, kernels: Sequence[Kernel]) -> dict[str, Any]:
    """Shares of zeros (over all of these kernels, over the model, by layer) and counts of the Keras 3 model."""
    sizes: dict[str, list[int]] = {}
    for kernel in kernels:
        array = np.asarray(kernel.variable)
        layer = sizes.setdefault(kernel.path, [0, 0])
        layer[0] += array.size - int(np.count_nonzero(array))
        layer[1] += array.size
    zeros, total = (sum(pair[i] for pair in sizes.values()) for i in (0, 1))
    everything = [np.asarray(w) for w in session.moved.source.weights]
    parameters = sum(a.size for a in everything)
    nonzeros = sum(int(np.count_nonzero(a)) for a in everything)
    return {
        "sparsity": {
            "overall": round(zeros / total, 6),
            "model": round(1 - nonzeros / parameters, 6),
            "layers": {path: round(empty / size, 6) for path, (empty, size) in sizes.items()},
        },
        "nonzeros": nonzeros,
        "parameters": parameters,
    }


def save(model: Any, dst: str | Path) -> None:
    """Write a Keras 3 model as .keras: aside first, then in place."""
    part = Path(dst).with_name(f".{Path(dst).name}.part.keras")
    try:
        model.save(part)
        part.replace(dst)
    finally:
        part.unlink(missing_ok=True)
