"""What a model would take of a device that is not here: by the estimators that its file names, each in a worker."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_edge import registry, run_feeds, stages
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.facts import inspect_model
from lepton_edge.launch import python_path
from lepton_edge.progress import Silent
from lepton_edge.recipe import Recipe
from lepton_edge.stages import Road


def estimate(
    models: Sequence[Path], device: Device, recipe: Recipe, progress: Silent | None = None, *, keep: Path | None = None
) -> dict:
    """Every estimator of ``device`` on every model; samples come from the recipe, seeded random ones without any.

    ``keep`` is a folder for the files that estimators leave (layers by cycles). Raises UsageError for a device without
    estimators, LeptonError for a model that is not int8 TFLite, MissingExtra where a package is missing.
    """
    needed(device)
    with stages.road(Path(tempfile.gettempdir()), progress or Silent(), recipe.compress.seed) as road:
        found = [of_model(road, path, device, recipe, keep) for path in models]
    return {"device": device.name, "title": device.title, "kind": "estimated", "models": found}


def of_model(road: Road, model: Path, device: Device, recipe: Recipe, keep: Path | None = None) -> dict:
    """The row of one model: {"name", "format", "size_bytes", "kind": "estimated", "data", "estimates": {estimator: …}}.

    An estimator that fails leaves its error in its place; see its file for what it tells.
    """
    source = stages.load_source(road, model)
    if source.art.format != "tflite":
        raise LeptonError(
            f"{model.name}: {device.title} runs TFLite files, and this is {source.art.format}",
            f"lepton-edge quantize {model.name} --to tflite --data …",
        )
    facts = inspect_model(road, source.art)
    if not (facts.get("quantized") or {}).get("int8_tensors"):
        raise LeptonError(
            f"{model.name}: is a float model, and {device.title} computes in int8",
            f"lepton-edge quantize {model.name} --to tflite --data …",
        )
    feeds = run_feeds.open_feeds(road, source, recipe, seeded=True)
    results: dict[str, Any] = {}
    for estimator in needed(device):
        road.progress.stage(f"estimating {model.name} with {estimator.name}")
        options = {k: v for k, v in device.estimate.items() if k in estimator.options}
        if "data" in estimator.options:
            options["data"] = str(feeds.evaluation.folder)
        if keep and "keep" in estimator.options:
            keep.mkdir(parents=True, exist_ok=True)
            options["keep"] = python_path(keep)
        worker = road.workers.get(f"estimating {model.name} with {estimator.name}", environ=estimator.environ)
        try:
            results[estimator.name] = worker.call(
                "estimate",
                road.progress.update,
                file=python_path(estimator.file),
                model=python_path(model),
                options=options,
            )
        except LeptonError as e:
            results[estimator.name] = {"error": e.message, "hint": e.hint}
    return {
        "name": model.name,
        "format": source.art.format,
        "size_bytes": source.art.size_bytes,
        "kind": "estimated",
        "data": feeds.evaluation.source,
        "estimates": results,
    }


def needed(device: Device) -> list[registry.Estimator]:
    """The estimators of a device. Raises UsageError where it has none, MissingExtra where a package is missing."""
    if not device.estimators:
        raise UsageError(f"{device.name}: no estimator is known for this device", "see 'lepton-edge devices list'")
    chosen = [registry.estimator(name) for name in device.estimators]
    for estimator in chosen:
        registry.require(f"estimating with {estimator.name}", estimator.requires)
    return chosen
