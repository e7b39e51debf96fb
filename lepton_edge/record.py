"""Setting down what happened: run.json, its reports, the bundle of the picked model."""

from __future__ import annotations

import datetime
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lepton_edge import __version__, registry, verify
from lepton_edge.artifact import Artifact
from lepton_edge.candidates import Candidate
from lepton_edge.chains import goal
from lepton_edge.choose import choose
from lepton_edge.device import Device
from lepton_edge.errors import UsageError
from lepton_edge.feeds import Feed
from lepton_edge.quant.schemes import label
from lepton_edge.recipe import Recipe
from lepton_edge.run_feeds import Feeds
from lepton_edge.stages import Answers, Model, Road, Source

SCHEMA = "lepton-edge.run/1"
GOLDEN = 4  # samples that bundles carry


def host() -> dict:
    """The machine that everything was measured on."""
    from lepton_edge.host import host_info

    return host_info()


def threads(recipe: Recipe, device: Device, machine: Mapping[str, Any] | None = None) -> int:
    """Threads a runtime may use: what the recipe says, else the device's, but never more than there are cores.

    ``machine`` is the ``host_info`` of where it runs, this one unless given. Raises UsageError when the recipe asks for
    more than it can run at once.
    """
    from lepton_edge.host import usable_cores

    most = machine["cores_total"] if machine else os.cpu_count() or 1
    if recipe.bench.threads > most:
        raise UsageError(
            f"{recipe.bench.threads} threads were asked for, and {device.name if machine else 'this machine'} runs "
            f"{most} at once",
            f"choose 1 to {most} with --threads: what more would measure is waiting",
        )
    return recipe.bench.threads or max(1, min(device.threads, machine["cores"] if machine else usable_cores()))


def run_record(
    source: Source,
    feeds: Feeds,
    reference: Answers,
    device: Device,
    recipe: Recipe,
    rows: list[dict],
    formats: Sequence[str],
    there: Mapping[str, Any] | None = None,
) -> dict:
    """run.json: what went in, what was measured, what was picked and why.

    ``there`` is the environment of the device, where the candidates were timed on it: its host stands for ours then.
    """
    labels = feeds.labels()
    scored = verify.score(reference.outputs, labels) if labels is not None else None
    base = scored.to_json() if scored else None
    limits = recipe.compress
    picked, reasons, front = choose(
        rows, max_drop=limits.max_drop, max_size=limits.max_size, max_latency=limits.max_latency, goal=goal(recipe)
    )
    for row in rows:
        row |= {
            "picked": row["name"] == picked,
            "pareto": row["name"] in front,
            "reason": reasons[row["name"]],
        }
    machine = there["host"] if there else host()
    told = any("guessing reaches" in w for w in feeds.warnings)  # of its accuracy, by lint.py
    noisy = (*there["notes"], *there["warnings"]) if there else _noise(rows)
    doubts = _doubts(None if told else base, rows, device)
    warnings = [*feeds.warnings, *(f"{device.name}: {text}" if there else text for text in noisy), *doubts]
    return {
        "schema": SCHEMA,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "compress",
        "seconds": None,
        "tool": {"name": "lepton-edge", "version": __version__},
        "host": machine,
        "device": {"name": device.name, "title": device.title, "kind": device.kind},
        "model": {
            "name": source.art.path.name,
            "format": source.art.format,
            "sha256": source.art.sha256,
            "size_bytes": source.art.size_bytes,
            "inputs": source.inputs,
            "outputs": source.outputs,
        },
        "data": {
            role: {"source": Path(f.source).name, "count": f.count, "sha256": f.sha256, "labels": f.labels}
            for role, f in (
                ("calibration", feeds.calibration),
                ("evaluation", feeds.evaluation),
                ("training", feeds.training),
            )
            if f is not None
        },
        "preprocessing": feeds.preprocess.to_dict(),
        "settings": {
            **asdict(limits),
            "to": list(formats),
            **asdict(recipe.bench),
            "prune": recipe.prune,
            **{verb: told for verb in ("factorize", "cluster", "qat") if (told := getattr(recipe, verb)) is not None},
            "quantize": recipe.quantize,
        },
        "reference": {"runtime": reference.info, "accuracy": base},
        "candidates": rows,
        "picked": picked,
        "warnings": list(dict.fromkeys(warnings)),
    }


def _noise(rows: Sequence[dict]) -> list[str]:
    """What the machine says against the times that were taken on it, each once."""
    return list(dict.fromkeys(text for r in rows if r["latency"] for text in r["latency"]["doubts"]))


def _doubts(base: dict | None, rows: Sequence[dict], device: Device) -> list[str]:
    found: list[str] = []
    if base and base["top1"] < 0.2 and base["top5"] is not None and base["top5"] < 0.4:
        found.append(
            f"the source model itself has top-1 {base['top1']:.3f} on this data: check labels and preprocessing"
        )
    if device.latency_note():
        found.append(f"latency was measured on this machine, not on {device.title}, which only set the defaults")
    dead = [r["name"] for r in rows if r["status"] == "failed"]
    if dead:
        found.append(f"failed: {', '.join(dead)}")
    return found


def save_json(path: Path, data: Any) -> None:
    """Write JSON aside, then rename; a list of numbers stands on one line."""
    text = json.dumps(data, indent=1, allow_nan=False, default=str)
    text = re.sub(r"\[\n\s+(-?\d[-\d.eE+,\s]*?)\n\s*\]", lambda m: "[" + re.sub(r"\s+", "", m[1]) + "]", text)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def write_bundle_of_picked(
    road: Road, folder: Path, run: dict, source: Source, feeds: Feeds, made: Sequence[Candidate]
) -> Path | None:
    """The deployable folder of the picked candidate; None when none was picked.

    What a bundle of another candidate takes is kept too: in run.json, and a few samples in samples.npz.
    """
    import numpy as np

    inputs = {n: np.asarray(feeds.evaluation.open()[n][:GOLDEN]) for n in feeds.evaluation.inputs}
    np.savez_compressed(folder / "samples.npz", **inputs)  # type: ignore[arg-type]
    run["bundling"] = {
        "inputs": [_as_fed(spec, feeds.evaluation.whole) for spec in source.inputs],
        "labels": list(feeds.evaluation.classes),
    }
    for row, c in zip(run["candidates"], made, strict=True):
        row["ports"] = _used_ports(c) if c.model is not None and c.answers is not None else None
        row["verbs"] = list(c.verbs)
    chosen = next((c for c in made if c.name == run["picked"]), None)
    if chosen is None or chosen.model is None or chosen.answers is None:
        return None
    row = next(r for r in run["candidates"] if r["name"] == chosen.name)
    outputs = {p.source: np.asarray(chosen.answers.outputs[p.name][:GOLDEN]) for p in chosen.answers.wiring}
    golden = road.folder("golden") / "outputs.npz"
    np.savez(golden, **outputs)  # type: ignore[arg-type]
    info, samples = chosen.answers.info, folder / "samples.npz"
    return write_bundle_of(folder / "bundle", run, row, chosen.model.art.path, info, (samples, golden))


def write_bundle_of(folder: Path, run: dict, row: dict, artifact: Path, info: dict, golden: tuple[Path, Path]) -> Path:
    """The deployable folder of a candidate, from what run.json says of it; ``golden`` are its samples and answers."""
    from lepton_edge.bundle import write_bundle
    from lepton_edge.preprocess import from_dict

    kept = ("accuracy", "drop_points", "parity", "steps", "scheme", "ratio")
    figures = {k: row[k] for k in kept}
    if row["latency"]:
        figures["latency"] = {k: v for k, v in row["latency"].items() if k != "samples_ns"}
    return write_bundle(
        folder,
        artifact_path=artifact,
        runtime_file=registry.runtime_for(row["format"]).file,
        ports=row["ports"],
        input_specs=run["bundling"]["inputs"],
        preprocess=from_dict(run["preprocessing"]),
        manifest_extra={
            "source_model": run["model"],
            "measured": figures,
            "host": run["host"],
            "data": run["data"],
            "created": run["created"],
            "runtime": info,
            # Of the largest output: int8 kernels of another CPU may round a value to the next step.
            "tolerance": 0.02 if "quantize" in row["verbs"] else 1e-3,
        },
        golden=golden,
        labels=run["bundling"]["labels"] or None,
    )


def _as_fed(spec: dict, whole: Sequence[str]) -> dict:
    """The spec of an input as samples are given for it: the first axis counts them."""
    return {**spec, "shape": [None, *spec["shape"]], "whole": True} if spec["name"] in whole else spec


def _used_ports(c: Candidate) -> dict:
    from lepton_edge.ports import resolve

    assert c.model is not None and c.answers is not None
    inputs = resolve(c.model.inputs, c.answers.specs[0], c.name)
    return {"inputs": [p.to_json() for p in inputs], "outputs": [p.to_json() for p in c.answers.wiring]}


def artifact_record(
    art: Artifact, model: Model, figures: dict, info: dict, feeds: Feeds, quantize: Mapping[str, Any] | None = None
) -> dict:
    """The record of one artefact that a single-stage command made."""
    return {
        "path": str(art.path),
        "format": art.format,
        "scheme": scheme(model.verbs, quantize),
        "sha256": art.sha256,
        "size_bytes": art.size_bytes,
        "zip_bytes": art.zip_bytes(),
        "runtime": info,
        "steps": list(model.steps),
        "data": feeds.evaluation.source,
        "warnings": list(feeds.warnings),
        **figures,
    }


def analysis_record(source: Source, feed: Feed, form: Model, told: dict) -> dict:
    """What analyze.json says of a measured sensitivity (see ``analysis/measure.py``); layers get their ranks."""
    return {
        "schema": "lepton-edge.analysis/1",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": "analyze",
        "kind": "measured",
        "tool": {"name": "lepton-edge", "version": __version__},
        "model": {
            "name": source.art.path.name,
            "format": source.art.format,
            "sha256": source.art.sha256,
            "size_bytes": source.art.size_bytes,
        },
        "data": {"source": Path(feed.source).name, "count": feed.count, "sha256": feed.sha256},
        "steps": list(form.steps),
        **told,
        "layers": _with_ranks(told["layers"]),
    }


def _with_ranks(layers: list[dict]) -> list[dict]:
    """The same layers in the same order, each with its `rank`: 1 brings the most noise alone."""
    order = sorted(range(len(layers)), key=lambda k: _quiet(layers[k]["alone_db"]))
    places = {k: rank for rank, k in enumerate(order, 1)}
    return [{"rank": places[k], **layer} for k, layer in enumerate(layers)]


def _quiet(db: float | None) -> float:
    return float("inf") if db is None else db


def scheme(verbs: Sequence[str], quantize: Mapping[str, Any] | None = None) -> str:
    """The word for what was done to a model; ``quantize`` are the options of that pass."""
    names = {
        "prune": "pruned",
        "finetune": "finetuned",
        "factorize": "lowrank",
        "cluster": "clustered",
        "qat": "qat",
        "quantize": label(quantize or {}),
        "halve": "float16",
        "sparse": "sparse",
    }
    return "-".join(names[v] for v in verbs if v in names) or "float32"
