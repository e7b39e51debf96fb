"""The stage behind ``bench``: models timed on one device, and what else was asked of them: batches, streams, energy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_edge import bench, bench_record, boards, elsewhere, energy, estimates, placement, record, throughput
from lepton_edge.device import Device
from lepton_edge.elsewhere import Subject
from lepton_edge.errors import LeptonError, PlaceLost
from lepton_edge.place import Place
from lepton_edge.recipe import Recipe
from lepton_edge.registry import Runtime
from lepton_edge.stages import Road

HOST = Path(__file__).with_name("host.py")


@dataclass(frozen=True)
class Ask:
    """What is measured beside the latency of one stream at batch 1."""

    batches: tuple[int, ...] = (1,)
    throughput: bool = False
    streams: tuple[int, ...] = ()
    energy: bool = False


def work(subjects: Sequence[Subject], recipe: Recipe, ask: Ask, wheels: Sequence[Path] = ()) -> boards.Work:
    """What ``bench`` does on a device (see boards): a row a subject and batch, and the environment they were taken in.

    Where a subject was run here, its answers there are compared first; one that answers differently is not timed.
    """

    def measured(road: Road, device: Device, place: Place, rows: dict[str, dict]) -> dict[str, Any]:
        host = place.call(HOST, "host_info")
        if device.is_reached:
            elsewhere.check_wheels(wheels, device.name, host)
            place.install(wheels)
        how = bench.How.asked(recipe.bench, record.threads(recipe, device, host), road.seed)
        entrants = []
        for it in subjects:
            entrants += _entrants(road, it, device, place, host, ask, wheels, rows)
        road.workers.drop()
        road.progress.stage(f"measuring latency on {place.name}, models in turn")
        done = bench.measure(entrants, how, place, road.progress.update)
        first = entrants[0].name if entrants else ""
        against = done.ratios({e.name: first for e in entrants[1:]})
        for e in entrants:
            bench_record.fill(rows[e.name], done, against.get(e.name))
            _refuse_misplaced(rows[e.name], e.runtime)
        good = [e for e in entrants if rows[e.name]["error"] is None]
        if ask.throughput:
            _throughput(road, rows, good, how, place, host, recipe, ask)
        if ask.energy:
            _energy(road, rows, good, how, place)
        return bench_record.environment(host, done)

    return measured


def _refuse_misplaced(entry: dict, runtime: Runtime) -> None:
    """A row of which nothing ran on the device that was asked for is an error, without the figures of another."""
    try:
        placement.require(entry["name"], runtime, entry["runtime"] or {})
    except LeptonError as error:
        entry |= {"latency": None, "ratio": None}
        bench_record.fail(entry, error)


def _entrants(
    road: Road,
    it: Subject,
    device: Device,
    place: Place,
    host: dict[str, Any],
    ask: Ask,
    wheels: Sequence[Path],
    rows: dict[str, dict],
) -> list[bench.Entrant]:
    """The entrants of a subject, one a batch, with a row each; none where a row has failed already."""
    names = _rows(it, device, place.kind, ask, rows)
    left = [name for name in names if rows[name]["error"] is None]
    try:
        runtime = it.runtime
        if device.is_reached:
            runtime = elsewhere.runtime_there(it, device, host["packages"], wheels, provided=place.provides)
        feed = it.feed
        if it.here is not None and device.is_reached and left:
            found, got = elsewhere.answered(road, place, it, runtime)
            feed = got.feed
            for name in left:
                rows[name] |= {"parity": found["parity"], "accuracy": found["accuracy"], "runtime": got.info}
            if found["error"]:
                raise found["error"]
    except PlaceLost:
        raise
    except LeptonError as error:
        for name in left:
            bench_record.fail(rows[name], error)
        return []
    art = it.model.art
    made = {n: bench.Entrant(n, art.path, runtime, feed.folder, runtime.load, art.files, names[n]) for n in left}
    return list(made.values())


def _rows(it: Subject, device: Device, kind: str, ask: Ask, rows: dict[str, dict]) -> dict[str, int]:
    """Add what is missing of a subject's rows on a device; their names, and the batch of each."""
    where = (device.name, device.title) if device.is_reached else ("local", "this machine")
    told = {"name": where[0], "title": where[1], "kind": kind}
    names = {f"{it.name} batch {b}" if ask.batches != (1,) else it.name: b for b in ask.batches}
    for name, batch in names.items():
        if name not in rows:
            rows[name] = bench_record.row(name, it.model.art, told, it.feed) | {"batch": batch}
            if batch > 1 and not it.free_batch:
                fix = "leave it free: lepton-edge convert --batch 0"
                bench_record.fail(rows[name], LeptonError(f"{it.name}: its inputs have a fixed batch", fix))
    return names


def gathered(
    visits: Sequence[boards.Visit], subjects: Sequence[Subject], ask: Ask
) -> tuple[list[dict], dict[str, dict[str, Any]]]:
    """The rows of all devices, those that were never answered with the reason; and the environments by device."""
    rows: list[dict] = []
    environments: dict[str, dict[str, Any]] = {}
    for visit in visits:
        own = dict(visit.rows)
        for it in subjects:
            _rows(it, visit.device, visit.device.kind, ask, own)
        for entry in own.values():
            if visit.error and entry["error"] is None and entry["latency"] is None:
                bench_record.fail(entry, visit.error)
        found = visit.environment or bench_record.unknown_environment()
        note = visit.device.latency_note()
        name = visit.device.name if visit.device.is_reached else "local"
        warnings = [*found["warnings"], *([note] if note else [])]
        environments[name] = found | {"notes": visit.notes, "warnings": warnings}
        rows += own.values()
    return rows, environments


def estimated(
    road: Road, subjects: Sequence[Subject], device: Device, recipe: Recipe
) -> tuple[list[dict], dict[str, Any]]:
    """The rows of a device that is only estimated ("estimates" by estimator, Vela's time as p50); its environment."""
    rows = []
    for it in subjects:
        told = {"name": device.name, "title": device.title, "kind": "estimated"}
        entry = bench_record.row(it.name, it.model.art, told, it.feed)
        try:
            found = estimates.of_model(road, it.model.art.path, device, recipe)["estimates"]
        except LeptonError as error:
            bench_record.fail(entry, error)
        else:
            entry["estimates"] = found
            if failed := [e for e in found.values() if "error" in e]:
                bench_record.fail(entry, LeptonError(failed[0]["error"], failed[0]["hint"]))
            elif "vela" in found:
                entry["runtime"] = {"runtime": "vela", "version": found["vela"]["version"]}
                entry["latency"] = {"kind": "estimated", "p50_ms": found["vela"]["inference_ms"]}
        rows.append(entry)
    return rows, bench_record.unknown_environment()


def _throughput(
    road: Road,
    rows: dict[str, dict],
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
        entry = rows[e.name]
        try:
            entry["throughput"] = throughput.sweep(e, how, place, loads, road.progress.update)
        except LeptonError as error:
            bench_record.fail(entry, error)


def _energy(road: Road, rows: dict[str, dict], entrants: Sequence[bench.Entrant], how: bench.How, place: Place) -> None:
    road.progress.stage(f"energy on {place.name}, idle and models in turn")
    try:
        found = energy.measure(entrants, how, place, road.progress.update)
    except LeptonError as error:
        found = {e.name: {"joules": None, "ci95": None, "reason": error.message} for e in entrants}
    for name, entry in rows.items():
        entry["energy"] = found.get(name)
