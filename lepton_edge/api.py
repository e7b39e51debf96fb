"""What Lepton Edge does, a function a command. Each takes plain values and returns plain data; the CLI prints it.

model ── load ─▶ source ── plan, steps ─▶ candidates ── verify ─▶ ── bench ─▶ choose ─▶ report + bundle
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_edge import (
    availability,
    bench_record,
    benching,
    boards,
    candidates,
    candidates_there,
    chains,
    elsewhere,
    estimates,
    facts,
    lint,
    placement,
    plan,
    record,
    registry,
    rescue,
    routes,
    run_feeds,
    rundir,
    stages,
    verify,
    within,
)
from lepton_edge import check as runtime_check
from lepton_edge.analysis import files
from lepton_edge.analysis.advice import sentences
from lepton_edge.analysis.measure import OBSERVED
from lepton_edge.artifact import check_place, copy_artifact, detect, open_artifact, suffix
from lepton_edge.conversion import Conversion, step_options
from lepton_edge.deploy import deploy, deployments, rollback  # noqa: F401 - commands of their own
from lepton_edge.device import get_device
from lepton_edge.errors import LeptonError, UsageError, did_you_mean
from lepton_edge.inspect_model import inspector_files
from lepton_edge.progress import Silent
from lepton_edge.quant import schemes
from lepton_edge.rebundle import bundle  # noqa: F401 - a command of its own
from lepton_edge.recipe import CHAIN, Recipe
from lepton_edge.report import render

TARGETS = ("tflite", "onnx", "openvino")


def compress(model: Path, out: Path, recipe: Recipe, progress: Silent | None = None) -> dict:
    """The whole road: make float and int8 candidates in every target format, verify and time each, pick one.

    A device that can be reached answers and is timed itself; one that is only described sets the defaults.
    Writes the run folder ``out`` (artifacts/, bundle/, run.json and its reports) and returns run.json.
    """
    start = time.monotonic()
    rundir.check(out)
    recipe = _for_device(recipe)
    device = get_device(recipe.compress.device)
    if not device.is_reached:
        record.threads(recipe, device)  # too many are refused before any work
    asked = targets(recipe.compress.to)
    formats = asked or targets(device.formats or TARGETS)
    found, left = chains.possible(chains.of(recipe), detect(model), formats, recipe)
    needed = [chain.steps for chain in found if chain.needed]
    stages.require_extras("compress", detect(model), formats, needed, all_of_them=bool(asked))
    with (
        rundir.publishing(out) as folder,
        stages.road(folder, progress or Silent(), recipe.compress.seed) as road,
    ):
        source = stages.load_source(road, model)
        learns = any(chain.learns for chain in found)
        feeds = run_feeds.open_feeds(road, source, recipe, ("quantize", *chains.verbs_of(found)), learns=learns)
        feeds = lint.checked(road, source, feeds)
        reference = stages.reference(road, source, feeds.evaluation)
        feeds = lint.scored(feeds, reference)
        start_from, by_verb, place = source.model(feeds.evaluation), feeds.by_verb(), (folder / "artifacts", model.stem)
        judged, more = candidates.explore(
            road, start_from, formats, found, recipe, by_verb, reference, feeds.evaluation, place
        )
        there = None
        if device.is_reached:
            timed, there = candidates_there.time(road, judged, device, recipe, feeds.evaluation)
        else:
            timed = candidates.time(road, judged, recipe, record.threads(recipe, device))
        candidates.require_one(timed)
        rows = candidates.rows(timed, folder, feeds.labels())
        run = record.run_record(source, feeds, reference, device, recipe, rows, formats, there)
        run |= {"goal": chains.goal(recipe), "left_out": [*left, *more]}
        run["model"] |= facts.counts(road, source.art) | {"zip_bytes": source.art.zip_bytes()}
        run["seconds"] = round(time.monotonic() - start, 1)
        road.progress.stage("writing the bundle")
        record.write_bundle_of_picked(road, folder, run, source, feeds, timed)
        record.save_json(folder / "run.json", run)
    # Behind the publishing: what was measured is kept, whatever may be wrong with a picture of it.
    render(run, out)
    return run


def convert(
    model: Path,
    target: str,
    out: Path | None,
    recipe: Recipe,
    progress: Silent | None = None,
    *,
    verbs: tuple[str, ...] = (),
    ask: Conversion | None = None,
    max_drop: float | None = None,
    through: str = "",
    latency: float | None = None,
) -> dict:
    """Bring a model to ``target`` format, with ``verbs`` (quantize, prune) applied, and hold it against the source.

    ``ask`` says what else it has to be: sizes, batch, float16 weights, the runtime release it has to load in.
    With ``max_drop`` (points of top-1, on labelled samples) a quantization climbs the rescue ladder until it is met.
    ``through`` is a format that it is brought to before any of the ``verbs``. A pruning takes away as much as it needs
    for ``latency``, a share of the model's own, measured in the runtime of the target on the device. Without
    data a plain conversion is checked on seeded random inputs. Writes the artefact to ``out`` and returns its figures.
    Raises LeptonError when a conversion differs from its source beyond the noise of its arithmetic, naming the first
    tensor that does where that can be found.
    """
    (target,) = targets((target,))
    ask = ask or Conversion()
    ask.check(target)
    art = open_artifact(model)
    release = runtime_check.release(ask.runtime, target) if ask.runtime else None
    fits = release is not None and any(step.name == f"fit_{target}" for step in registry.steps())
    stored = {"float16": ("halve",), "sparse": ("sparse",)}.get(ask.dtype, ())
    verbs = (*verbs, *stored, *(["fit"] if fits else []))
    if "quantize" in verbs:
        recipe = _for_device(recipe)
        schemes.require(recipe.quantize, target)
    out = out or Path(f"{model.stem}{'.' + record.scheme(verbs, recipe.quantize) if verbs else ''}{suffix(target)}")
    if out.resolve() == model.resolve():
        raise UsageError(f"{out}: the output would overwrite the model itself", "choose another file with --out")
    check_place(out, target)
    if art.format == target and not verbs and not ask.runtime:
        raise UsageError(f"{model}: is {target} already", "choose another format with --to")
    if through:
        stages.require_extras(" and ".join(verbs), art.format, (through,), [()])
    stages.require_extras(" and ".join(verbs) or "convert", through or art.format, (target,), [verbs])
    with stages.road(out.absolute().parent, progress or Silent(), recipe.compress.seed) as road:
        source = stages.load_source(road, model, ask=ask)
        seeded = not set(CHAIN) & set(verbs) and ("quantize" not in verbs or not schemes.needs_data(recipe.quantize))
        feeds = run_feeds.open_feeds(road, source, recipe, verbs, seeded=seeded, ask=ask, through=through)
        feeds = lint.checked(road, source, feeds)
        options = {verb: getattr(recipe, verb) or {} for verb in CHAIN}
        options |= {"quantize": recipe.quantize, "convert": step_options(ask)}
        if release and fits:
            options["fit"] = runtime_check.fit_options(release, target)
        start = source.model(feeds.evaluation)
        if through:
            start = stages.travel(road, start, through, (), {}, {})
        reference = stages.reference(road, source, feeds.evaluation)
        if "quantize" in verbs:
            feeds = lint.scored(feeds, reference)

        tried = None
        if latency is not None:
            given = (feeds.by_verb(), feeds.evaluation, recipe, latency)
            share, tried = within.share_of(road, start, target, options, *given)
            options = within.settled(options, share)

        def prove(options: dict[str, dict]) -> rescue.Proven:
            return routes.proven(road, source, start, target, verbs, options, feeds, reference)

        rungs = None
        if max_drop is not None and _rescues(verbs, recipe, reference, feeds):
            climbed = rescue.climb(road, prove, options, max_drop)
            plain = stages.travel(road, start, target, (), {}, {})
            threads = record.threads(recipe, get_device(recipe.compress.device))
            rungs = rescue.costs(road, climbed, plain, feeds.evaluation, recipe, threads)
            result, got, figures = rescue.best(climbed, max_drop)
        else:
            result, got, figures = prove(options)
        if release:
            runtime_check.require(result.art.path, release)
        written = copy_artifact(result.art, out)
        told = facts.inspect_model(road, written) if written.format in inspector_files() else {"operators": {}}
    made = record.artifact_record(written, result, figures, got.info, feeds, recipe.quantize)
    more = {name: rows for name, rows in (("rungs", rungs), ("latency_tried", tried)) if rows}
    return made | more | {"transposes": routes.transposes(told), "operators": told["operators"]}


def _for_device(recipe: Recipe) -> Recipe:
    """The recipe with what the device's instruction set asks of a quantization, where it does not say otherwise."""
    wanted = get_device(recipe.compress.device).quantize_options()
    if not schemes.needs_data(recipe.quantize):
        wanted.pop("integer", None)
    return dataclasses.replace(recipe, quantize={**wanted, **recipe.quantize})


def _rescues(verbs: Sequence[str], recipe: Recipe, reference: stages.Answers, feeds: run_feeds.Feeds) -> bool:
    """Whether there is a ladder to climb, and accuracy to tell when to stop: other schemes than w8a8 have no rungs."""
    if "quantize" not in verbs or schemes.named(recipe.quantize) != "w8a8":
        return False
    labels = feeds.labels()
    return labels is not None and verify.score(reference.outputs, labels) is not None


def quantize(
    model: Path,
    target: str | None,
    out: Path | None,
    recipe: Recipe,
    progress: Silent | None = None,
    *,
    max_drop: float | None = None,
) -> dict:
    """Post-training quantization by the recipe's scheme; the format stays unless ``target`` says otherwise.

    With ``max_drop`` the rescue ladder is climbed until top-1 drops by no more points; "rungs" tells what each costs.
    """
    if schemes.verb(recipe.quantize) == "halve":
        own = detect(model)
        ask = Conversion(dtype="float16")
        return convert(model, target or (own if own in TARGETS else TARGETS[0]), out, recipe, progress, ask=ask)
    return _with_verb("quantize", model, target, out, recipe, progress, max_drop)


def prune(
    model: Path,
    target: str | None,
    out: Path | None,
    recipe: Recipe,
    progress: Silent | None = None,
    *,
    latency: float | None = None,
) -> dict:
    """Prune a model: Keras models while they are fine-tuned on labelled samples, others on their ONNX form.

    So are Keras models where channels are to go, or an option is one of that way alone. ``latency`` takes the place of
    the option macs; see convert(). Raises UsageError for options that no single way has.
    """
    asked = dict(recipe.prune or {})
    if latency is not None:
        within.check(latency, asked, get_device(recipe.compress.device))
    keras = run_feeds.fine_tunes(detect(model))
    own = latency is not None or asked.get("method") in ("channels", "depth")
    own = own or bool(_foreign(asked, "prune_keras"))
    through = keras and own
    way = "prune_keras" if keras and not through else "prune_onnx"
    other = " (channels go on its ONNX form, without training unless --epochs is given)" if through else ""
    _refuse_foreign(model, asked, way, other)
    if through:
        return convert(
            model, target or "onnx", out, recipe, progress, verbs=("prune",), through="onnx", latency=latency
        )
    target = target or _place_of("prune", detect(model), model)
    return convert(model, target, out, recipe, progress, verbs=("prune",), latency=latency)


def _foreign(asked: Mapping[str, Any], way: str) -> list[str]:
    """Options that the step ``way`` does not have."""
    known = next(s.options for s in registry.steps() if s.name == way)
    return [name for name in asked if name not in known]


def _refuse_foreign(model: Path, asked: Mapping[str, Any], way: str, why: str = "") -> None:
    """Raise UsageError for an option that another step of the verb has, and this one would not heed."""
    for name in _foreign(asked, way):
        raise UsageError(f"{model}: '{name}' is no option of {way}{why}", "leave it out")


def factorize(
    model: Path, target: str | None, out: Path | None, recipe: Recipe, progress: Silent | None = None
) -> dict:
    """Factorise a model's dense layers on its ONNX form, without training, by the recipe's options."""
    return _with_verb("factorize", model, target, out, recipe, progress)


def train(
    verb: str, model: Path, target: str | None, out: Path | None, recipe: Recipe, progress: Silent | None = None
) -> dict:
    """Cluster a Keras model's weights ("cluster"), or train a model for quantization ("qat"), by the recipe's options.

    Others than Keras models are trained on their ONNX form.
    """
    format_ = detect(model)
    keras = run_feeds.fine_tunes(format_)
    if verb == "cluster" and not keras:
        raise LeptonError(
            f"{model}: {verb} trains Keras models, and this is {format_}",
            "without training, quantize and prune work on it; qat trains it",
        )
    _refuse_foreign(model, getattr(recipe, verb) or {}, f"{verb}_{'keras' if keras else 'onnx'}")
    return _with_verb(verb, model, target or ("keras" if keras else None), out, recipe, progress)


def finetune(
    model: Path, teacher: Path, target: str | None, out: Path | None, recipe: Recipe, progress: Silent | None = None
) -> dict:
    """Train a compressed model towards the answers of ``teacher``, the model it was made of, on its ONNX form.

    Samples need no labels. What comes out is held against the teacher; "before" has the figures of ``model`` itself.
    Writes the artefact to ``out``. Raises LeptonError for a teacher of other inputs or outputs.
    """
    (target,) = targets((target or _place_of("finetune", detect(model), model),))
    out = out or Path(f"{model.stem}.finetuned{suffix(target)}")
    if out.resolve() in (model.resolve(), teacher.resolve()):
        raise UsageError(f"{out}: the output would overwrite a model", "choose another file with --out")
    check_place(out, target)
    stages.require_extras("finetune", detect(model), (target,), [("finetune",)])
    with stages.road(out.absolute().parent, progress or Silent(), recipe.compress.seed) as road:
        source, other = stages.load_source(road, teacher), stages.load_source(road, model)
        ports = run_feeds.match(source, other)
        feeds = run_feeds.open_feeds(road, source, recipe, ("finetune",))
        feeds = lint.checked(road, source, feeds)
        original = source.model(feeds.evaluation)
        start = stages.Model(other.art, *ports, sizes=original.sizes)
        reference = stages.reference(road, source, feeds.evaluation)
        road.progress.stage(f"running {model.name} on {feeds.evaluation.count} samples")
        first = stages.answers(road, start, feeds.evaluation, runtime=other.runtime)
        before = stages.judge(reference, first, feeds.labels())
        form = stages.travel(road, original, "onnx", (), {}, {})
        told = {"teacher": str(form.art.path.absolute()), "teacher_sha256": form.art.sha256}
        options = {"finetune": {**recipe.finetune, **told}}
        result, got, figures = routes.proven(road, source, start, target, ("finetune",), options, feeds, reference)
        written = copy_artifact(result.art, out)
    return record.artifact_record(written, result, figures, got.info, feeds) | {"before": before}


def _with_verb(
    verb: str,
    model: Path,
    target: str | None,
    out: Path | None,
    recipe: Recipe,
    progress: Silent | None,
    max_drop: float | None = None,
) -> dict:
    format_ = detect(model)
    if target is None:
        target = _place_of(verb, format_, model)
    return convert(model, target, out, recipe, progress, verbs=(verb,), max_drop=max_drop)


def _place_of(verb: str, format_: str, model: Path) -> str:
    """The format a pass leaves a model in when none is asked for: its own, else the nearest; TFLite for int8."""
    known = registry.steps()
    own = sorted({s.source for s in known if s.verb == verb})
    if format_ in own:
        return format_
    routes = {f: way for f in own if (way := plan.route(format_, f, (verb,), known))}
    if not routes:
        raise LeptonError(f"{model}: {verb} does not work on {format_} models", f"it works on: {', '.join(own)}")
    if verb == "quantize" and "tflite" in routes:
        return "tflite"
    return min(routes, key=lambda f: (sum(s.cost for s in routes[f]), f))


def evaluate(model: Path, recipe: Recipe, progress: Silent | None = None, *, runtime: str | None = None) -> dict:
    """Accuracy of one model on labelled data, in the runtime of its format."""
    with stages.road(_scratch(), progress or Silent(), recipe.compress.seed) as road:
        source = stages.load_source(road, model, runtime=runtime)
        feeds = run_feeds.open_feeds(road, source, recipe)
        labels = feeds.labels()
        if labels is None:
            raise LeptonError(
                f"{feeds.evaluation.source}: holds no labels, so there is no accuracy to measure",
                "add labels (y), or hold the model against another one with 'lepton-edge compare'",
            )
        got = stages.reference(road, source, feeds.evaluation)
        figures = verify.score(got.outputs, labels)
        if figures is None:
            raise LeptonError(
                f"{model}: no output can be read as scores of classes", "accuracy needs a vector of scores"
            )
    return {
        "model": model.name,
        "format": source.art.format,
        "size_bytes": source.art.size_bytes,
        "runtime": got.info,
        "accuracy": figures.to_json(),
        "kind": "measured",
        "data": feeds.evaluation.source,
        "warnings": [*feeds.warnings, *placement.warnings(got.info)],
    }


def bench(
    models: Sequence[Path],
    recipe: Recipe,
    progress: Silent | None = None,
    *,
    runtime: str | None = None,
    ask: benching.Ask | None = None,
    out: Path | None = None,
    devices: Sequence[str] = (),
    wheels: Sequence[Path] = (),
) -> dict:
    """Latency of one or more models on devices (the recipe's), interleaved; the ratio of each to the first.

    A device that has estimators and no transport is estimated. On one that is reached the samples are run first, and
    its answers compared with this machine's. ``ask`` adds batches, throughput and energy; ``wheels`` are carried to the
    devices. Returns the document that is written to ``out`` (see bench_record). A model that fails is a row with its
    error. Raises LeptonError where all of them do.
    """
    start, ask = time.monotonic(), ask or benching.Ask()
    where = [get_device(name) for name in dict.fromkeys(devices or (recipe.compress.device,))]
    guessed = [d for d in where if d.estimators and not d.is_reached]
    where = [d for d in where if d not in guessed]
    for device in guessed:
        estimates.needed(device)
    if len(described := [d.name for d in where if not d.is_reached]) > 1:
        raise UsageError(
            f"{' and '.join(described)} would both be measured on this machine",
            "there is no way to a device that is only described: add your board with 'lepton-edge devices add'",
        )
    if out is not None:
        bench_record.check(out)
    with stages.road(_scratch(), progress or Silent(), recipe.compress.seed) as road:
        compared = any(d.is_reached for d in where)
        subjects = elsewhere.subjects(road, models, recipe, runtime, compared=compared)
        visits = boards.visit_all(road, where, benching.work(subjects, recipe, ask, wheels)) if where else []
        rows, environments = benching.gathered(visits, subjects, ask)
        for device in guessed:
            more, environments[device.name] = benching.estimated(road, subjects, device, recipe)
            rows += more
    if visits and not guessed and visits[0].error and all(v.error for v in visits):
        raise visits[0].error
    if all(r["error"] for r in rows):
        raise LeptonError(rows[0]["error"]["message"], rows[0]["error"]["hint"])
    settings = dataclasses.asdict(recipe.bench) | dataclasses.asdict(ask) | {"runtime": runtime}
    made = bench_record.document(rows, environments, settings, time.monotonic() - start)
    if out is not None:
        bench_record.write(made, out)
    return made


def compare(first: Path, second: Path, recipe: Recipe, progress: Silent | None = None) -> dict:
    """Parity of two models of any formats on the same samples: the second against the first, output by output."""
    with stages.road(_scratch(), progress or Silent(), recipe.compress.seed) as road:
        source = stages.load_source(road, first)
        feeds = run_feeds.open_feeds(road, source, recipe, seeded=True)
        reference = stages.reference(road, source, feeds.evaluation)
        other = stages.load_source(road, second)
        model = stages.Model(other.art, *run_feeds.match(source, other))
        road.progress.stage(f"running {second.name} on {feeds.evaluation.count} samples")
        got = stages.answers(road, model, feeds.evaluation, runtime=other.runtime)
        figures = stages.judge(reference, got, feeds.labels())
    return {
        "first": {"name": first.name, "format": source.art.format, "runtime": reference.info},
        "second": {"name": second.name, "format": other.art.format, "runtime": got.info},
        "data": feeds.evaluation.source,
        "warnings": list(feeds.warnings),
        **figures,
    }


def inspect(model: Path, progress: Silent | None = None) -> dict:
    """What is in a model file: signature, parameters, MACs, operators, sizes by layer, versions."""
    art = open_artifact(model)
    with stages.road(_scratch(), progress or Silent()) as road:
        found = facts.inspect_model(road, art)
    return {
        "name": model.name,
        "format": art.format,
        "sha256": art.sha256,
        "size_bytes": art.size_bytes,
        **found,
    }


def analyze(model: Path, out: Path, recipe: Recipe, progress: Silent | None = None, *, samples: int = 16) -> dict:
    """How sensitive a model is to int8: noise at the outputs by layer and activation, ranked, with advice.

    Measured on ``samples`` samples, on the ONNX form of the model, as quantizing to int8 prepares it. Writes the folder
    ``out`` (analyze.json, analyze.csv, analyze.png, analyze.svg) and returns what analyze.json holds.
    """
    start = time.monotonic()
    rundir.check(out, files.MARK)
    format_ = detect(model)
    stages.require_extras("analyze", format_, ("onnx",), [()])
    with (
        rundir.publishing(out, files.MARK) as folder,
        stages.road(folder, progress or Silent(), recipe.compress.seed) as road,
    ):
        source = stages.load_source(road, model)
        feed, warnings = run_feeds.open_calibration(road, source, recipe, max(samples, OBSERVED))
        form = stages.travel(road, source.model(feed), "onnx", (), {}, {})
        told = stages.analysis(road, model.name, form, feed, samples, recipe.quantize.get("ranges", "auto"))
        document = record.analysis_record(source, feed, form, told) | {
            "advice": sentences(told),
            "warnings": [*warnings, *lint.alone(road, source, feed)],
            "seconds": round(time.monotonic() - start, 1),
        }
        files.write(document, folder)
    return document


def check(model: Path, runtimes: Sequence[str]) -> list[dict]:
    """Whether a TFLite or ONNX file loads in each of these releases ("tflite-runtime==2.14"), from public tables."""
    open_artifact(model)
    return [runtime_check.check(model, text) for text in runtimes]


def targets(names: Sequence[str]) -> tuple[str, ...]:
    """Check names of target formats: those that some step writes and some runtime runs."""
    runnable = {f for r in registry.runtimes() for f in r.formats}
    known = sorted({s.target for s in registry.steps()} & runnable)
    for name in names:
        if name not in known:
            raise UsageError(f"unknown target format '{name}'", did_you_mean(name, known))
    return tuple(dict.fromkeys(names))


def _scratch() -> Path:
    import tempfile

    return Path(tempfile.gettempdir())


def parts() -> dict[str, Any]:
    """The formats, the steps, and the runtimes on each of their devices, and what each lacks here."""
    return {
        "formats": sorted({f for s in registry.steps() for f in (s.source, s.target)}),
        "steps": [
            {
                "name": s.name,
                "verb": s.verb,
                "from": s.source,
                "to": s.target,
                "summary": s.summary,
                "options": s.options,
                "missing": registry.missing_of(s),
                "broken": s.broken,
            }
            for s in registry.steps()
        ],
        "runtimes": [
            {
                "name": t.runtime.name,
                "formats": list(t.runtime.formats),
                "summary": t.runtime.summary,
                "device": t.runtime.device,
                "missing": registry.missing(t.runtime.requires),
                "broken": t.runtime.broken,
                "unusable": t.reason,
                "fix": t.fix,
            }
            for t in availability.survey()
        ],
    }
