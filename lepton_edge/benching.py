"""The stage behind ``bench``: models timed on one device, and what else was asked of them: batches, streams, energy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_edge import bench, bench_record, energy, record, run_feeds, stages, throughput
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError
from lepton_edge.place import Place
from lepton_edge.recipe import Recipe
from lepton_edge.stages import Road

HOST = Path(__file__).with_name("host.py")


@dataclass(frozen=True)
class Ask:
    """What is measured beside the latency of one stream at batch 1."""

    batches: tuple[int, ...] = (1,)
    throughput: bool = False
    streams: tuple[int, ...] = ()
    energy: bool = False


def measured(
    road: Road, models: Sequence[Path], recipe: Recipe, device: Device, place: Place, runtime: str | None, ask: Ask
) -> tuple[list[dict], dict[str, Any]]:
    """The rows of ``models`` on ``device``, which is reached at ``place``, and the environment: see bench_record.

    What fails is a row with its error. Raises LeptonError for a model that cannot be opened here.
    """
    host = place.call(HOST, "host_info")
    how = bench.How.asked(recipe.bench, record.threads(recipe, device, host), road.seed)
    rows, entrants = _entrants(road, models, recipe, device, place, runtime, ask)
    road.workers.drop()
    road.progress.stage(f"measuring latency on {place.name}, models in turn")
    done = bench.measure(entrants, how, place, road.progress.update)
    first = entrants[0].name if entrants else ""
    against = done.ratios({e.name: first for e in entrants[1:]})
    for entry in rows:
        if entry["error"] is None:
            bench_record.fill(entry, done, against.get(entry["name"]))
    good = [e for e in entrants if done.timings[e.name].error is None]
    if ask.throughput:
        _throughput(road, rows, good, how, place, host, recipe, ask)
    if ask.energy:
        _energy(road, rows, good, how, place)
    return rows, bench_record.environment(host, done)


def _entrants(
    road: Road, models: Sequence[Path], recipe: Recipe, device: Device, place: Place, runtime: str | None, ask: Ask
) -> tuple[list[dict], list[bench.Entrant]]:
    where = device if device.is_reached else None
    told = {"name": place.name, "title": where.title if where else "this machine", "kind": place.kind}
    rows: list[dict] = []
    entrants = []
    for path in models:
        source = stages.load_source(road, path, runtime=runtime)
        feed = run_feeds.open_feeds(road, source, recipe, seeded=True).evaluation
        for batch in ask.batches:
            name = path.name + (f" batch {batch}" if ask.batches != (1,) else "")
            again = sum(r["name"].partition(" (")[0] == name for r in rows)
            entry = bench_record.row(f"{name} ({again + 1})" if again else name, source.art, told, feed)
            entry["batch"] = batch
            rows.append(entry)
            fixed = [s for s in source.inputs if batch > 1 and (not s["shape"] or s["shape"][0] is not None)]
            if fixed:
                message = f"{path.name}: input '{fixed[0]['name']}' is {fixed[0]['shape']}, so its batch is fixed"
                entry["error"] = {"message": message, "hint": "leave it free: lepton-edge convert --batch 0"}
                continue
            entrants.append(
                bench.Entrant(entry["name"], source.art.path, source.runtime, feed.folder, {}, source.art.files, batch)
            )
    return rows, entrants


def _throughput(
    road: Road,
    rows: list[dict],
    entrants: Sequence[bench.Entrant],
    how: bench.How,
    place: Place,
    host: dict[str, Any],
    recipe: Recipe,
    ask: Ask,
) -> None:
    cores = min(host["cores"], len(how.cpus) or os.cpu_count() or 1) if how.cpus else host["cores"]
    loads = throughput.configurations(cores, ask.streams, recipe.bench.threads)
    for e in entrants:
        road.progress.stage(f"throughput of {e.name} on {place.name}: {len(loads)} combinations of streams and threads")
        entry = next(r for r in rows if r["name"] == e.name)
        try:
            entry["throughput"] = throughput.sweep(e, how, place, loads, road.progress.update)
        except LeptonError as error:
            entry["error"] = {"message": error.message, "hint": error.hint}


def _energy(road: Road, rows: list[dict], entrants: Sequence[bench.Entrant], how: bench.How, place: Place) -> None:
    road.progress.stage(f"energy on {place.name}, idle and models in turn")
    try:
        found = energy.measure(entrants, how, place, road.progress.update)
    except LeptonError as error:
        found = {e.name: {"joules": None, "ci95": None, "reason": error.message} for e in entrants}
    for entry in rows:
        entry["energy"] = found.get(entry["name"])
