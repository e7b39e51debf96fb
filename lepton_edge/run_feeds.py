"""The samples of a run: calibration, evaluation and training feeds, and what is doubtful about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lepton_edge import registry, stages
from lepton_edge.conversion import Conversion, asked_sizes, fixed_values
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import Feed, open_data, write_feed
from lepton_edge.plan import route
from lepton_edge.ports import Port, Ports
from lepton_edge.preprocess import Preprocess, from_dict
from lepton_edge.quant.schemes import needs_data
from lepton_edge.recipe import Recipe
from lepton_edge.stages import Road, Source
from lepton_edge.training import user_data

TRAINED = ("cluster", "qat_keras")  # on Keras models only, as pruning them is
LEARNS = ("finetune", "qat", "qat_onnx")  # on ONNX models from the original's answers, with labels or without


@dataclass(frozen=True)
class Feeds:
    """The feeds of a run; ``evaluation`` is always there."""

    evaluation: Feed
    calibration: Feed | None
    training: Feed | None
    preprocess: Preprocess
    warnings: tuple[str, ...] = ()
    tunes: bool = False  # what is pruned on its ONNX form is trained, too

    def by_verb(self) -> dict[str, Feed]:
        """Which samples a pass of a verb works on."""
        given = {"quantize": self.calibration, "cluster": self.training, "qat": self.training}
        given |= dict.fromkeys(("prune", "finetune"), self.training or self.calibration)
        given |= {"prune_keras": self.training, "prune_onnx": self._fitted(), "factorize": self._fitted()}
        given["training"] = self.training  # for chains of a compress run that train on the ONNX form
        return {verb: feed for verb, feed in given.items() if feed is not None}

    def _fitted(self) -> Feed | None:
        first, second = (self.training, self.calibration) if self.tunes else (self.calibration, self.training)
        return first or second

    def labels(self) -> Any | None:
        """The labels of the evaluation samples: int64 [count], or None."""
        return self.evaluation.label_array()


def open_feeds(
    road: Road,
    source: Source,
    recipe: Recipe,
    verbs: Sequence[str] = (),
    *,
    seeded: bool = False,
    ask: Conversion | None = None,
    through: str = "",
    learns: bool = False,
) -> Feeds:
    """Read the recipe's data for the inputs of ``source``: what ``verbs`` work on, and the evaluation samples.

    ``seeded``: where no data is given, make up seeded random samples instead of raising LeptonError.
    ``ask`` may give sizes to free dimensions and values to inputs; ``through`` is the format that the verbs work on.
    ``learns``: the recipe's training samples are wanted, whatever the verbs are.
    """
    data, preprocess = recipe.data, from_dict(recipe.preprocess)
    specs = asked_sizes(ask, source.inputs) if ask else source.inputs
    evaluated = data.evaluation or data.calibration or data.training
    if evaluated and evaluated == data.training and user_data.is_function(evaluated):
        raise LeptonError(
            f"{evaluated} gives training samples, and nothing was given to measure accuracy on",
            "name labelled samples with --eval",
        )
    if evaluated is None:
        if not seeded:
            raise LeptonError("no samples were given", "name a .npz, .npy or image folder with --data")
        values = fixed_values(ask, source.inputs) if ask else {}
        try:
            feed = stages.seeded_feed(specs, road.folder("seeded"), seed=road.seed, values=values)
        except LeptonError as e:
            raise LeptonError(f"{source.art.path}: {e.message}", e.hint) from e
        note = "checked on seeded random inputs, for no data were given"
        return Feeds(feed, None, None, preprocess, (note,))
    needs = _needs(recipe, verbs, through or source.art.format, source.art.path.name)
    warnings: list[str] = []
    classes = _classes(source.outputs)

    def read(path: str, limit: int | None, role: str) -> Feed:
        if role == "training" and user_data.is_function(path):
            return called(path, role)
        road.progress.stage(f"reading {role} samples from {Path(path).name}")
        opened = open_data(
            Path(path), specs, preprocess, limit=limit, role=role, seed=recipe.compress.seed, classes=classes
        )
        warnings.extend(f"{role} data: {note}" for note in opened.notes)
        return write_feed(opened, road.folder(role) / "feed", road.progress.update)

    def called(path: str, role: str) -> Feed:
        road.progress.stage(f"running {Path(path).name} for {role} samples")
        seed = recipe.compress.seed
        made = user_data.collect(path, specs, road.folder(role), seed, road.progress.update)
        try:
            opened = open_data(made, specs, preprocess, role=role, seed=seed, classes=classes)
            warnings.extend(f"{role} data: {note}" for note in opened.notes)
            told = replace(opened, path=Path(path))
            return write_feed(told, made.with_name("feed"), road.progress.update)
        except LeptonError as e:
            raise type(e)(e.message.replace(str(made), path), e.hint) from e
        finally:
            made.unlink(missing_ok=True)

    evaluation = read(evaluated, data.evaluation_samples, "evaluation")
    calibration = training = None
    if needs.calibrating:
        calibration = read(needs.calibrating, data.samples, "calibration")
        _check_sizes(calibration, evaluation)
    if learned := needs.learned or (data.training if learns else None):
        training = read(learned, None, "training")
        if needs.learns or learns:
            _check_sizes(training, evaluation)
    if verbs and evaluated != data.evaluation:
        what = "accuracy" if evaluation.labels else "nearness to the source model"
        warnings.append(f"{what} is measured on samples that compression has seen: give unseen ones with --eval")
    elif calibration and calibration.sha256 == evaluation.sha256:
        warnings.append("calibration and evaluation samples are the same: figures are not those on unseen data")
    if evaluation.count < 100:
        warnings.append(f"only {evaluation.count} evaluation samples: a few points of accuracy are noise")
    return Feeds(evaluation, calibration, training, preprocess, tuple(dict.fromkeys(warnings)), needs.tunes)


@dataclass(frozen=True)
class _Needs:
    """The samples that verbs ask for: paths to read or None; ``tunes``: what is pruned on its ONNX form is trained on
    ``learned``, too; ``learns``: some pass on ONNX files is."""

    calibrating: str | None
    learned: str | None
    tunes: bool
    learns: bool


def _needs(recipe: Recipe, verbs: Sequence[str], format_: str, name: str) -> _Needs:
    """What verbs on models of a format need of the recipe's data. Raises LeptonError for what is not given."""
    data, keras = recipe.data, fine_tunes(format_)
    if "quantize" in verbs and data.calibration is None and needs_data(recipe.quantize):
        raise LeptonError("quantize needs calibration samples", "name a .npz, .npy or image folder with --data")
    trained = [v for v in verbs if v in (*TRAINED, "prune_keras") or (v in ("prune", "qat") and keras)]
    if trained and not keras:
        raise LeptonError(
            f"{name}: {trained[0]} trains Keras models, and this is {format_}",
            "without training, quantize and prune work on it",
        )
    if trained and data.training is None:
        converted = "; a model converted to ONNX is pruned without training, on --data" if trained == ["prune"] else ""
        raise LeptonError(f"{trained[0]} needs labelled samples to fine-tune on", f"name them with --train{converted}")
    # Without labels every sample that there is teaches something: --data is then trained on as a whole.
    fitted = [v for v in verbs if v in ("factorize", "prune_onnx") or (v == "prune" and not keras)]
    fits = bool(fitted)
    learner = next((v for v in verbs if v in LEARNS and v not in trained), "")
    tunes = learner == "finetune" or (fits and not trained and bool((recipe.prune or {}).get("epochs")))
    learns = tunes or bool(learner)
    learned = data.training or data.calibration if learns else data.training if trained else None
    if learner and learned is None:
        raise LeptonError(
            f"{learner.split('_')[0]} needs samples to train on", "name them with --data, or labelled ones with --train"
        )
    calibrating = data.calibration or (data.training if fits else None)
    if fits and calibrating is None:
        raise LeptonError(
            f"{fitted[0].split('_')[0]} needs calibration samples", "name a .npz, .npy or image folder with --data"
        )
    return _Needs(calibrating if "quantize" in verbs or (fits and not tunes) else None, learned, tunes, learns)


def fine_tunes(format_: str) -> bool:
    """Whether models of a format are pruned as Keras models, while they train."""
    return route(format_, "keras", (), registry.steps()) is not None


def open_calibration(road: Road, source: Source, recipe: Recipe, limit: int) -> tuple[Feed, list[str]]:
    """Up to ``limit`` calibration samples alone, for what measures no accuracy; and what is doubtful about them."""
    path = recipe.data.calibration or recipe.data.evaluation
    if path is None:
        raise LeptonError("no samples were given", "name a .npz, .npy or image folder with --data")
    road.progress.stage(f"reading calibration samples from {Path(path).name}")
    preprocess, seed = from_dict(recipe.preprocess), recipe.compress.seed
    opened = open_data(Path(path), source.inputs, preprocess, limit=limit, role="calibration", seed=seed)
    feed = write_feed(opened, road.folder("calibration") / "feed", road.progress.update)
    own = "are used, evenly spread"  # the limit is ours, so nothing to be told of
    return feed, [f"calibration data: {note}" for note in opened.notes if not note.endswith(own)]


def _check_sizes(calibration: Feed, evaluation: Feed) -> None:
    """Free dimensions are fixed to the sizes of the samples, so all the samples have to have the same."""
    for name in evaluation.inputs:
        ours, theirs = (list(feed.array(name).shape[1:]) for feed in (calibration, evaluation))
        if ours != theirs:
            raise LeptonError(
                f"input '{name}': the calibration samples are {ours}, the evaluation samples {theirs}",
                "the model is fixed to the size of its samples: pad or cut them to one size",
            )


def _classes(outputs: Sequence[dict]) -> int | None:
    """How many classes the first output that can hold scores has; None where that is not known."""
    for spec in outputs:
        if len(spec["shape"]) == 2 and isinstance(spec["shape"][1], int):
            return max(2, spec["shape"][1])
    return None


def match(first: Source, second: Source) -> tuple[Ports, Ports]:
    """How the signature of ``second`` goes with that of ``first``: names, else order; layouts from the shapes.

    Raises LeptonError naming what does not fit.
    """
    sides = ((first.inputs, second.inputs, "inputs"), (first.outputs, second.outputs, "outputs"))
    inputs, outputs = (_match(a, b, f"{second.art.path.name}: its {what}") for a, b, what in sides)
    return inputs, outputs


def _match(ours: Sequence[dict], theirs: Sequence[dict], what: str) -> Ports:
    if len(ours) != len(theirs):
        raise LeptonError(
            f"{what} are {len(theirs)} where the first model has {len(ours)}", "compare models of one task"
        )
    by_name = {s["name"]: s for s in ours}
    named = set(by_name) == {s["name"] for s in theirs}
    ports = []
    for k, spec in enumerate(theirs):
        mate = by_name[spec["name"]] if named else ours[k]
        perm = _layout(mate["shape"], spec["shape"])
        if perm == ():
            raise LeptonError(f"{what}: '{spec['name']}' {spec['shape']} does not fit '{mate['name']}' {mate['shape']}")
        ports.append(Port(spec["name"], mate["name"], perm))
    return tuple(ports)


def _layout(a: Sequence[int | None], b: Sequence[int | None]) -> tuple[int, ...] | None:
    """The permutation that brings shape ``a`` to ``b``: None when none is needed, () when there is none."""

    def fits(x: Sequence[int | None], y: Sequence[int | None]) -> bool:
        # The first axis is the batch: free in one model, fixed in the other.
        return len(x) == len(y) and all(p == q or p is None or q is None for p, q in zip(x[1:], y[1:], strict=True))

    if fits(a, b):
        return None
    for perm in ((0, 2, 3, 1), (0, 3, 1, 2)):
        if len(a) == 4 and fits([a[i] for i in perm], b):
            return perm
    sizes = [[d for d in x if d not in (None, 1)] for x in (a, b)]
    return None if sizes[0] == sizes[1] else ()
