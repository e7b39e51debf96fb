"""The stages that the commands are made of: apply a step, run a model, hold it against its source."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lepton_edge import availability, bench, placement, registry, shapes, store, verify
from lepton_edge import ports as wiring
from lepton_edge.artifact import Artifact, open_artifact, suffix
from lepton_edge.conversion import Conversion, ranked
from lepton_edge.errors import LeptonError, NoWay, UsageError, WorkerError
from lepton_edge.feeds import Feed, adapt_feed
from lepton_edge.launch import Workers, python_path
from lepton_edge.place import Place
from lepton_edge.plan import plan, route
from lepton_edge.ports import Ports
from lepton_edge.progress import Silent
from lepton_edge.recipe import Bench
from lepton_edge.registry import Runtime, Step
from lepton_edge.texts import size


@dataclass(frozen=True)
class Road:
    """What every stage of one command shares: its workers, a scratch folder and the progress display.

    ``refused`` are the errors of steps, by their key in the store: what cannot be done is not tried for every format.
    """

    workers: Workers
    scratch: Path
    progress: Silent
    seed: int = 0
    refused: dict[str, LeptonError] = field(default_factory=dict)

    def folder(self, name: str) -> Path:
        """A new, empty folder in the scratch folder."""
        n = 0
        while True:
            place = self.scratch / f"{name}-{n}"
            if not place.exists():
                place.mkdir(parents=True)
                return place
            n += 1


@contextmanager
def road(near: Path, progress: Silent, seed: int = 0) -> Iterator[Road]:
    """Open a road whose scratch folder is on the file system of ``near``; workers and scratch end with it."""
    limit = store.max_bytes()
    with store.aside(near) as scratch, Workers() as workers, progress:
        yield Road(workers, scratch, progress, seed)
        store.trim(limit)


@dataclass(frozen=True)
class Model:
    """An artefact with its wiring to the source model, and the steps that made it.

    ``sizes`` are the shapes, at batch 1, of those inputs of the source model whose dimensions are free there.
    """

    art: Artifact
    inputs: Ports
    outputs: Ports
    verbs: tuple[str, ...] = ()
    steps: tuple[dict, ...] = ()
    sizes: shapes.Shapes = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """The model that everything is held against, in the runtime of its own format."""

    art: Artifact
    runtime: Runtime
    inputs: list[dict]
    outputs: list[dict]
    info: dict
    options: dict = field(default_factory=dict)

    def model(self, feed: Feed | None = None) -> Model:
        """The source as the start of a sequence of steps; samples say what sizes its free dimensions have."""
        sizes = shapes.from_samples(self.inputs, feed.open()) if feed else {}
        return Model(self.art, wiring.identity(self.inputs), wiring.identity(self.outputs), sizes=sizes)


@dataclass(frozen=True)
class Answers:
    """What a model answered to all the samples of a feed: arrays [count, ...] by output name."""

    outputs: dict[str, Any]
    wiring: Ports
    info: dict
    feed: Feed
    specs: tuple[list[dict], list[dict]] = field(default=([], []))


def require_extras(
    doing: str, source: str, targets: Sequence[str], ways: Sequence[Sequence[str]], *, all_of_them: bool = True
) -> None:
    """Raise MissingExtra, with one command that installs the packages of the whole road, before anything starts.

    ``ways`` are the verbs of each way to go. Not ``all_of_them``: only when the source model itself cannot be run;
    what a target lacks is then told of its candidates, and the others come out.
    """
    own, known = registry.runtime_needs(source), registry.steps()
    needs = list(own)
    for target in targets:
        for verbs in ways:
            needs += [r for step in route(source, target, tuple(verbs), known) or () for r in step.requires]
        needs += registry.runtime_needs(target)
    if all_of_them or registry.missing(own):
        registry.require(f"{doing} ({source} to {', '.join(targets)})", tuple(dict.fromkeys(needs)))


def load_source(road: Road, path: Path, *, runtime: str | None = None, ask: Conversion | None = None) -> Source:
    """Recognise a model and load it in the runtime of its format, to learn its inputs and outputs.

    ``ask`` may tell the sizes of inputs, where the file does not. Raises LeptonError when nothing does.
    """
    ask = ask or Conversion()
    art = open_artifact(path)
    chosen = registry.runtime_for(art.format, runtime)
    availability.require(chosen)
    road.progress.stage(f"loading {path.name} ({art.format}) in {chosen.name}")
    options = chosen.load | ({"trust": True} if ask.trust and "trust" in chosen.options else {})
    loaded = _load(road, f"loading {path.name} in {chosen.name}", chosen, art, options)
    placement.require(path.name, chosen, loaded["info"])
    inputs = ranked(ask, loaded["inputs"])
    for spec in inputs:
        if spec["shape"] is None:
            raise LeptonError(
                f"{path.name}: the file does not say the sizes of input '{spec['name']}'",
                f"convert it first: lepton-edge convert {path.name} --to onnx --input-shape {spec['name']}=1,3,224,224",
            )
    return Source(art, chosen, inputs, loaded["outputs"], loaded["info"], options)


def _load(road: Road, what: str, runtime: Runtime, art: Artifact, options: dict | None = None) -> dict:
    worker = _worker(road, what, runtime)
    return worker.call("load", file=python_path(runtime.file), model=python_path(art.path), options=options or {})


def _worker(road: Road, what: str, runtime: Runtime):
    # Else a runtime has a worker of its own, so that no other framework's libraries or threads are loaded beside it.
    role = {} if runtime.shared else {"LEPTON_EDGE_ROLE": f"runtime {runtime.name}"}
    return road.workers.get(what, environ={**runtime.environ, **role})


def apply(road: Road, model: Model, step: Step, options: dict[str, Any], feed: Feed | None = None) -> Model:
    """Run one step on a model, or find its result in the store.

    ``options`` are those of the step that differ from its defaults; ``feed`` holds samples in the source
    model's names, for a step that takes ``data``. Raises LeptonError when the step fails; nothing is left then.
    """
    options = {**{k: v for k, v in step.options.items() if v is not registry.REQUIRED}, **options}
    if not options.get("input_shapes", True):
        options["input_shapes"] = shapes.to_text(wiring.forward(model.inputs, model.sizes))
    named = {k: v for k, v in options.items() if k in step.options and k != "data"}
    keyed = dict(named)
    if "data" in step.options:
        if feed is None and step.options["data"] is registry.REQUIRED:
            raise LeptonError(f"{step.name} needs samples to work on", "give them with --data")
        if feed is not None:
            keyed["data"] = [feed.sha256, [p.to_json() for p in model.inputs]]
    key = store.key(step, model.art, keyed)
    start, found = time.monotonic(), store.find(key)
    cached = found is not None
    if key in road.refused:
        raise road.refused[key]
    if found is None:
        road.progress.stage(f"{step.summary or step.name} [{step.name}]")
        python = _python(road, step)
        with store.aside(store.root()) as scratch:
            file = "model" + suffix(step.target)
            if "data" in step.options and feed is not None:
                named["data"] = python_path(feed_for(road, model, feed).folder)
            worker = road.workers.get(step.name, python, step.environ)
            try:
                result = worker.call(
                    "step",
                    road.progress.update,
                    file=python_path(step.file),
                    src=python_path(model.art.path),
                    dst=str(scratch / file),
                    options=named,
                )
            except WorkerError as e:
                # Not every framework says so when a disk is full; some even crash.
                if (free := shutil.disk_usage(scratch).free) < 3 * model.art.size_bytes:
                    fix = "free some space, or choose another folder with LEPTON_EDGE_CACHE"
                    raise WorkerError(e.message, f"only {size(free)} are free in {store.root()}: {fix}") from e
                raise
            except LeptonError as e:
                road.refused[key] = e
                raise
            if not (scratch / file).exists():
                raise LeptonError(f"{step.name} reported success and wrote no file", "this is a defect of the step")
            found = store.publish(key, scratch, file, result)
    art, result = found
    if art.format != step.target:
        raise LeptonError(
            f"{step.name} wrote a file that is {art.format}, not {step.target}",
            "this is a defect of the step",
        )
    record = {
        "step": step.name,
        "seconds": round(time.monotonic() - start, 3),
        "cached": cached,
        "options": {k: v for k, v in named.items() if k != "data"},
        "notes": result.get("notes", []),
    }
    facts = {k: v for k, v in result.items() if k not in ("inputs", "outputs", "notes", "file", "sha256")}
    return Model(
        art,
        wiring.after(model.inputs, result.get("inputs")),
        wiring.after(model.outputs, result.get("outputs")),
        model.verbs if step.verb == "convert" else (*model.verbs, step.verb),
        (*model.steps, {**record, **({"result": facts} if facts else {})}),
        model.sizes,
    )


def _python(road: Road, step: Step) -> str:
    """The interpreter that a step runs in: ours, or that of its own environment. Raises MissingExtra without it."""
    if not step.python:
        registry.require(step.name, step.requires)
        return sys.executable
    from lepton_edge import envs

    road.progress.stage(f"the environment of {step.name}: {', '.join(step.requires)} (made once)")
    return envs.ensure(step.name, step.python, step.requires)


def travel(
    road: Road,
    start: Model,
    target: str,
    verbs: Sequence[str],
    options: dict[str, dict],
    feeds: dict[str, Feed],
    refused: Sequence[tuple[str, str]] = (),
) -> Model:
    """Bring ``start`` to the ``target`` format with ``verbs`` applied; ``options`` and ``feeds`` are by verb.

    Feeds may also be by the name of a step, which wins.

    Where a conversion fails and there is another way round it, that is taken, and the artefact's record says so.
    ``refused`` are (step, why) that failed before. Raises the first failure when no way leads there.
    """
    known = registry.steps()
    failures: list[tuple[Step, LeptonError]] = [
        (next(s for s in known if s.name == name), LeptonError(why)) for name, why in refused
    ]
    known = [step for step in known if step.name not in dict(refused)]
    fallback = [step for step in known if step.python]  # heavy: only where the lighter ways cannot do it
    if not refused:
        known = [step for step in known if not step.python]
    while True:
        try:
            steps = plan(start.art.format, target, tuple(verbs), known)
        except LeptonError as no_way:
            raise (failures[0][1] if failures else no_way) from None
        model, failed = start, None
        for step in steps:
            try:
                feed = feeds.get(step.name) or feeds.get(step.verb)
                model = apply(road, model, step, _options(step, options, road), feed)
            except LeptonError as e:
                failures.append((step, e))
                failed = step
                if isinstance(e, NoWay):
                    known, fallback = known + fallback, []
                break
        if failed is None:
            notes = [f"{step.name} failed ({e.message}), so another way was taken" for step, e in failures]
            detours = [{"step": "detour", "seconds": 0.0, "cached": False, "options": {}, "notes": [n]} for n in notes]
            return replace(model, steps=(*detours, *model.steps))
        if failed.verb != "convert":
            raise failures[0][1]
        known = [s for s in known if s.name != failed.name]


LAST = ("sparse", "halve", "fit")  # passes that are applied to the finished file, in this order


def finish(road: Road, model: Model, verbs: Sequence[str], options: dict[str, dict]) -> Model:
    """Apply those of ``verbs`` that come last. Raises UsageError for a format that lacks such a pass."""
    for verb in [v for v in verbs if v in LAST]:
        name = f"{verb}_{model.art.format}"
        step = next((s for s in registry.steps() if s.name == name), None)
        if step is None:
            raise UsageError(f"there is no pass '{verb}' for {model.art.format} models", "see 'lepton-edge list'")
        model = apply(road, model, step, options.get(verb, {}))
    return model


def _options(step: Step, options: dict[str, dict], road: Road) -> dict:
    chosen = {k: v for k, v in options.get(step.verb, {}).items() if k in step.options}
    if "seed" in step.options:
        chosen.setdefault("seed", road.seed)
    return chosen


def timed(
    road: Road, entrants: Sequence[bench.Entrant], how: Bench, threads: int, what: str
) -> dict[str, bench.Timing]:
    """The latency of models by name, ``what`` says which, as the recipe's ``how`` asks: in turn, in fresh workers."""
    road.workers.drop()
    road.progress.stage(f"measuring latency, {what} in turn")
    asked = bench.How.asked(how, threads, road.seed)
    return bench.measure(entrants, asked, progress=road.progress.update).timings


def feed_for(road: Road, model: Model, feed: Feed, specs: list[dict] | None = None) -> Feed:
    """The feed under the names and in the layout of ``model``'s own inputs."""
    if specs is None:
        runtime = registry.runtime_for(model.art.format)
        specs = _load(road, f"loading {model.art.path.name}", runtime, model.art)["inputs"]
    inputs = wiring.resolve(model.inputs, specs, f"the inputs of the {model.art.format} model")
    # A converted model may take another integer type (int64 tokens become int32 in TFLite).
    types = [{**p.to_json(), "dtype": s["dtype"]} for p, s in zip(inputs, specs, strict=True)]
    return adapt_feed(feed, types, road.folder("feed"))


def answers(
    road: Road,
    model: Model,
    feed: Feed,
    *,
    runtime: Runtime | None = None,
    options: dict | None = None,
    what: str = "",
    place: Place | None = None,
) -> Answers:
    """Run every sample of ``feed`` (in the source model's names) through ``model``, batch 1; in another ``place``."""
    runtime = runtime or registry.runtime_for(model.art.format)
    what = what or f"running the {model.art.format} model in {runtime.name}"
    if place is not None:
        return _answers_there(road, place, model, feed, runtime, options or {}, what)
    loaded = _load(road, what, runtime, model.art, options)
    outputs = wiring.resolve(model.outputs, loaded["outputs"], f"the outputs of the {model.art.format} model")
    own = feed_for(road, model, feed, loaded["inputs"])
    out = road.folder("outputs")
    worker = _worker(road, what, runtime)
    done = worker.call("predict", road.progress.update, feed=python_path(own.folder), out=python_path(out))
    arrays = verify.open_outputs(out, done["outputs"])
    return Answers(arrays, outputs, loaded["info"], own, (loaded["inputs"], loaded["outputs"]))


def _answers_there(
    road: Road, place: Place, model: Model, feed: Feed, runtime: Runtime, options: dict, what: str
) -> Answers:
    with place.worker(what, runtime) as worker:
        file, path = place.send(runtime.file), place.send(model.art.path, model.art.files)
        loaded = worker.call("load", file=file, model=path, options=options)
        outputs = wiring.resolve(model.outputs, loaded["outputs"], f"the outputs of the {model.art.format} model")
        own = feed_for(road, model, feed, loaded["inputs"])
        there, here = place.folder(), road.folder("outputs")
        done = worker.call("predict", road.progress.update, feed=place.send(own.folder), out=there)
    place.fetch(there, here)
    arrays = verify.open_outputs(here, done["outputs"])
    return Answers(arrays, outputs, loaded["info"], own, (loaded["inputs"], loaded["outputs"]))


def reference(road: Road, source: Source, feed: Feed) -> Answers:
    """The source model's own answers. Raises LeptonError when they are not finite, or the labels do not fit them."""
    road.progress.stage(f"running the source model in {source.runtime.name} on {feed.count} samples")
    got = answers(road, source.model(), feed, runtime=source.runtime, options=source.options)
    verify.check_reference(got.outputs, feed.label_array())
    return got


def analysis(road: Road, name: str, model: Model, feed: Feed, samples: int, ranges: str) -> dict:
    """The sensitivity of an ONNX model to int8, measured in a worker; see ``analysis/measure.py``.

    ``name`` is that of the user's own file, for errors.
    """
    file = registry.PACKAGE / "analysis" / "measure.py"
    own = feed_for(road, model, feed)
    road.progress.stage(f"measuring the noise of each layer on {min(samples, feed.count)} samples")
    worker = road.workers.get("analyzing the model")
    options = {"data": python_path(own.folder), "samples": samples, "ranges": ranges, "seed": road.seed}
    src = python_path(model.art.path)
    try:
        return worker.call("step", road.progress.update, file=python_path(file), src=src, dst="", options=options)
    except LeptonError as e:
        raise type(e)(e.message.replace(model.art.path.name, name), e.hint) from e


def judge(reference: Answers, candidate: Answers, labels: Any | None) -> dict:
    """Parity with the reference, and accuracy with its drop in points where there are labels."""
    figures: dict[str, Any] = {
        "parity": verify.parity(reference.outputs, candidate.outputs, candidate.wiring),
        "accuracy": None,
        "drop_points": None,
        "drop_ci95": None,
    }
    if labels is not None:
        # Scores are looked for in the source model's order of outputs, so that both read the same one.
        by_source = {p.source: candidate.outputs[p.name] for p in candidate.wiring}
        got = verify.score({n: by_source[n] for n in reference.outputs if n in by_source}, labels)
        base = verify.score(reference.outputs, labels)
        if got and base:
            figures |= {"accuracy": got.to_json(), **verify.drop(base, got)}
    return figures


def seeded_feed(
    specs: list[dict], folder: Path, count: int = 8, seed: int = 0, values: dict[str, float] | None = None
) -> Feed:
    """Seeded random samples for a model without data: normal for floats, 0 or 1 for integers and booleans.

    A quantized input gets the whole range of what it can stand for.

    ``values`` are those of inputs that have always the same.

    Raises LeptonError when an input has a free dimension besides its batch.
    """
    import numpy as np

    from lepton_edge.feeds import feed_from_arrays

    rng = np.random.default_rng(seed)
    arrays = {}
    if not specs:
        raise LeptonError("the model takes no inputs, so there is nothing to run it on", "export it with its inputs")
    whole = [spec["name"] for spec in specs if shapes.is_whole(spec["shape"])]
    for spec in specs:
        shape = spec["shape"] if spec["name"] in whole else spec["shape"][1:]
        if any(not isinstance(d, int) or d < 1 for d in shape):
            raise LeptonError(
                f"input '{spec['name']}' has free dimensions {json.dumps(spec['shape'])}, so no sample can be made up",
                "give their sizes with --input-shape, or real samples with --data",
            )
        if count * math.prod(shape) > 1 << 30:
            raise LeptonError(
                f"input '{spec['name']}' is {json.dumps(spec['shape'])}: {count} samples of it do not fit in memory",
                "check that the model is intact, or give fewer samples with --data",
            )
        dtype = np.dtype(spec["dtype"])
        if values and spec["name"] in values:
            arrays[spec["name"]] = np.full((count, *shape), values[spec["name"]], dtype)
            continue
        if "quantization" in spec:  # over all that the stored type can hold
            (scale, zero), limits = spec["quantization"], np.iinfo(spec["stored"])
            drawn = (rng.integers(limits.min, limits.max, (count, *shape), endpoint=True) - zero) * scale
        elif dtype.kind == "f":
            drawn = rng.standard_normal((count, *shape))
        else:
            drawn = rng.integers(0, 2, (count, *shape))
        arrays[spec["name"]] = drawn.astype(dtype)
    return feed_from_arrays(arrays, None, folder, source="seeded random samples", whole=whole)


def moved(model: Model, art: Artifact) -> Model:
    """The same model at another place."""
    return replace(model, art=art)
