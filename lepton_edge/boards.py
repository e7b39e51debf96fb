"""Models measured on several devices side by side: each visited in a thread of its own, and again when it was lost.

Devices that compute on this machine's processor take turns; boards run beside each other. What fails on a device costs
the rows that it has not answered yet, and nothing else.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from lepton_edge import bench, locate, place, registry, stages, verify
from lepton_edge.bench import Entrant, Timing
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError, PlaceLost
from lepton_edge.feeds import Feed
from lepton_edge.launch import Workers
from lepton_edge.place import Place
from lepton_edge.ports import identity
from lepton_edge.recipe import Bench
from lepton_edge.registry import PACKAGE, Runtime
from lepton_edge.stages import Answers, Model, Road

HOST_FACTS = PACKAGE / "host.py"
PAUSES = (2.0, 5.0, 20.0, 60.0)  # seconds before a device is tried again: a board starts anew in about a minute
#: SQNR in dB below which a device answers differently: other kernels round elsewhere, a saturated sum is at 9 dB.
FLOAT_DB, INTEGER_DB = 60.0, 25.0


@dataclass(frozen=True)
class Job:
    """One model to be run on devices: what it answered here, on which samples, and how nearly it has to be the same.

    ``runtime`` is the one that was asked for; without one it is that which the device has.
    """

    name: str
    model: Model
    feed: Feed
    here: Answers
    quantized: bool
    runtime: Runtime | None = None
    options: dict = field(default_factory=dict)

    def on(self, feed: Feed, chosen: np.ndarray) -> Job:
        """The same on fewer samples: ``feed`` holds those of this job's that ``chosen`` numbers."""
        outputs = {name: array[chosen] for name, array in self.here.outputs.items()}
        return replace(self, feed=feed, here=replace(self.here, outputs=outputs))

    @property
    def limit(self) -> float:
        """The SQNR (dB) that a device's answers have to reach against this machine's."""
        return INTEGER_DB if self.quantized else FLOAT_DB


@dataclass(frozen=True)
class Row:
    """One model on one device."""

    runtime: Runtime | None = None
    timing: Timing | None = None
    parity: dict | None = None  # of the device's answers with this machine's, in the form of verify.parity
    answers: Answers | None = None
    error: LeptonError | None = None


@dataclass(frozen=True)
class Visit:
    """What came of one device: a row a model, what the device is, and what happened on the way."""

    device: Device
    rows: dict[str, Row]
    facts: dict | None = None
    notes: tuple[str, ...] = ()


def visit_all(
    road: Road,
    devices: Sequence[Device],
    jobs: Sequence[Job],
    how: Bench,
    threads: Callable[[Device], int],
    wheels: Sequence[Path] = (),
) -> list[Visit]:
    """Run and time every job on every device, in the order of ``devices``."""
    turn = threading.Lock()  # of the devices that share this machine's processor
    told: dict[str, tuple[int, int, str]] = {}
    found: dict[str, Visit | BaseException] = {}

    def work(device: Device, own: Road) -> None:
        try:
            with Workers() as workers:
                own = replace(own, workers=workers)
                found[device.name] = _visit(own, device, jobs, how, threads(device), wheels, turn)
        except BaseException as error:  # a thread's defect is raised where it was started
            found[device.name] = error

    running = []
    for device in devices:
        own = replace(road, scratch=road.folder(device.name), progress=_Teller(device.name, told))
        thread = threading.Thread(target=work, args=(device, own), daemon=True)
        thread.start()
        running.append(thread)
    road.progress.stage(f"measuring on {', '.join(d.name for d in devices)}")
    while any(t.is_alive() for t in running):
        running[0].join(0.2)
        running = [t for t in running if t.is_alive()]
        if told:
            parts = list(told.items())
            words = "; ".join(f"{name}: {what}" for name, (_, _, what) in parts)
            road.progress.update(sum(p[0] for _, p in parts), sum(p[1] for _, p in parts), words)
    visits = []
    for device in devices:
        result = found[device.name]
        if isinstance(result, BaseException):
            raise result
        visits.append(result)
    return visits


class _Teller(stages.Silent):
    """The progress of one device's thread, for the main thread to show."""

    def __init__(self, name: str, told: dict[str, tuple[int, int, str]]) -> None:
        self._name, self._told = name, told

    def stage(self, text: str) -> None:
        self._told[self._name] = (0, 1, text)

    def update(self, done: int, total: int, what: str = "") -> None:
        self._told[self._name] = (done, total, what)


def _visit(
    road: Road,
    device: Device,
    jobs: Sequence[Job],
    how: Bench,
    threads: int,
    wheels: Sequence[Path],
    turn: threading.Lock,
) -> Visit:
    """One device: what is missing is tried again when the connection was lost, after each of PAUSES.

    A device that was never reached is tried only twice.
    """
    visit, reached = Visit(device, {}), False
    for pause in (*PAUSES, None):
        missing = [j for j in jobs if j.name not in visit.rows]
        try:
            road.progress.stage("connecting")
            at = place.open_place(device, lambda: road.folder("there"), road.progress.update)
            reached = True
            try:
                with turn if at.shares_host else nullcontext():
                    visit = _stay(road, at, visit, missing, how, threads, wheels)
            finally:
                at.close()
            lost = next((r.error for r in visit.rows.values() if isinstance(r.error, PlaceLost)), None)
        except PlaceLost as error:
            lost = error
        except LeptonError as error:
            return replace(visit, rows=visit.rows | {j.name: Row(error=error) for j in missing})
        if lost is None:
            return visit
        answered = {n: r for n, r in visit.rows.items() if not isinstance(r.error, PlaceLost)}
        if pause is None or (visit.notes and not reached):
            return replace(visit, rows={j.name: answered.get(j.name, Row(error=lost)) for j in jobs})
        visit = replace(visit, rows=answered, notes=(*visit.notes, f"{lost.message}; tried again"))
        road.progress.stage(f"{lost.message}; trying again")
        time.sleep(pause)
    raise AssertionError("the last of the tries returns")


def _stay(
    road: Road, at: Place, visit: Visit, jobs: Sequence[Job], how: Bench, threads: int, wheels: Sequence[Path]
) -> Visit:
    """Run, then time, the jobs; a row for each."""
    facts, rows = at.call(HOST_FACTS, "host_info"), dict(visit.rows)
    at.install(wheels)
    for job in jobs:
        try:
            rows[job.name] = _same(road, at, job, job.runtime or runtime_there(job, visit.device, facts, wheels))
        except PlaceLost:
            raise
        except LeptonError as error:
            rows[job.name] = Row(error=error)
    fit = [j for j in jobs if rows[j.name].error is None]
    entrants = [
        Entrant(j.name, j.model.art.path, r.runtime, r.answers.feed.folder, j.options, j.model.art.files)
        for j, r in ((j, rows[j.name]) for j in fit)
        if r.runtime and r.answers
    ]
    timings = bench.measure(entrants, bench.How.asked(how, threads, road.seed), at, road.progress.update).timings
    for job in fit:
        timing = timings[job.name]
        rows[job.name] = replace(rows[job.name], timing=timing, error=timing.error)
    return replace(visit, rows=rows, facts=facts)


def runtime_there(job: Job, device: Device, facts: dict, wheels: Sequence[Path] = ()) -> Runtime:
    """The runtime to use on a device: the first of its list, else the lightest, that is installed or carried there.

    Raises LeptonError when it has none for the model's format.
    """
    format_ = job.model.art.format
    carried = {re.split(r"-\d", wheel.name)[0].lower().replace("_", "-") for wheel in wheels}
    there = carried | {name.lower().replace("_", "-") for name in facts["packages"]}
    known = [r for r in registry.runtimes() if format_ in r.formats and not r.broken]
    known.sort(key=lambda r: (device.runtimes.index(r.name) if r.name in device.runtimes else 99, r.cost))
    needs = {r.name: [Requirement(q).name.lower() for q in r.requires] for r in known}
    for runtime in known:
        if all(name in there for name in needs[runtime.name]):
            return runtime
    wanted = " or ".join(" and ".join(names) for names in needs.values())
    raise LeptonError(
        f"{job.name}: no runtime for {format_} files is installed on {device.name} ({wanted})",
        f"install one there, or carry its wheels with --wheels: lepton-edge devices wheels {device.name}",
    )


def _same(road: Road, at: Place, job: Job, runtime: Runtime) -> Row:
    """Run the samples there, and hold the answers against this machine's. A difference is an error that says where."""
    what = f"running {job.name}"
    road.progress.stage(what)
    got = stages.answers(road, job.model, job.feed, runtime=runtime, options=job.options, what=what, place=at)
    parity = verify.parity(job.here.outputs, got.outputs, identity([{"name": p.name} for p in got.wiring]))
    sqnr = parity["sqnr_db"]
    error = None
    if not verify.exact(parity) and (sqnr is None or sqnr < job.limit):
        where = locate.first_difference_there(road, at, job.model, runtime, job.feed, job.limit)
        figure = f"{sqnr:.1f} dB" if sqnr is not None else f"off by {parity['max_abs']:.3g}"
        error = LeptonError(
            f"{job.name}: {at.name} does not answer as this machine does ({figure}, at least {job.limit:g} dB expected)"
            + (f"; {where}" if where else ""),
            "compare the runtime's versions; for int8 on a CPU without VNNI or dot products quantize with --device",
        )
    return Row(runtime, parity=parity, answers=got, error=error)
