"""Several devices visited side by side, each in a thread of its own, and again when it was lost.

Devices that compute on this machine's processor take turns; boards run beside each other. What fails on a device costs
the rows that it has not answered yet, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from lepton_edge import place
from lepton_edge.device import Device
from lepton_edge.errors import LeptonError, PlaceLost
from lepton_edge.launch import Workers
from lepton_edge.place import Place
from lepton_edge.progress import Silent
from lepton_edge.stages import Road

PAUSES = (2.0, 5.0, 20.0, 60.0)  # seconds before a device is tried again: a board starts anew in about a minute
#: What is done on a device: rows are filled in as they come, so that a second try does only what is missing.
Work = Callable[[Road, Device, Place, dict[str, dict]], dict[str, Any]]


@dataclass
class Visit:
    """What came of one device: rows by name, its environment, what happened on the way, and why it was given up."""

    device: Device
    rows: dict[str, dict] = field(default_factory=dict)
    environment: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    error: LeptonError | None = None


def visit_all(road: Road, devices: Sequence[Device], work: Work) -> list[Visit]:
    """Do ``work`` on every device; a Visit each, in their order. A defect in a thread is raised here."""
    turn = threading.Lock()  # of the devices that share this machine's processor
    if len(devices) == 1:
        (visit,) = visits = [Visit(devices[0])]
        _visit(road, visit, work, turn)
        return visits
    told: dict[str, tuple[int, int, str]] = {}
    visits, defects = [Visit(device) for device in devices], []

    def run(visit: Visit, own: Road) -> None:
        try:
            with Workers() as workers:
                _visit(replace(own, workers=workers), visit, work, turn)
        except BaseException as error:  # of whatever kind: it is raised in the main thread, below
            defects.append(error)

    running = []
    for visit in visits:
        own = replace(road, scratch=road.folder(visit.device.name), progress=_Teller(visit.device.name, told))
        thread = threading.Thread(target=run, args=(visit, own), daemon=True)
        thread.start()
        running.append(thread)
    road.progress.stage(f"measuring on {', '.join(d.name for d in devices)}")
    while running := [t for t in running if t.is_alive()]:
        running[0].join(0.2)
        parts = list(told.items())
        words = "; ".join(f"{name}: {what}" for name, (_, _, what) in parts)
        road.progress.update(sum(p[0] for _, p in parts), sum(p[1] for _, p in parts), words)
    if defects:
        raise defects[0]
    return visits


class _Teller(Silent):
    """The progress of one device's thread, for the main thread to show."""

    def __init__(self, name: str, told: dict[str, tuple[int, int, str]]) -> None:
        self._name, self._told = name, told

    def stage(self, text: str) -> None:
        self._told[self._name] = (0, 1, text)

    def update(self, done: int, total: int, what: str = "") -> None:
        self._told[self._name] = (done, total, what)


def _visit(road: Road, visit: Visit, work: Work, turn: threading.Lock) -> None:
    """One device: tried again when it was lost, after each of PAUSES; not so one that was never reached."""
    reached = False
    for pause in (*PAUSES, None):
        try:
            road.progress.stage("connecting")
            at = place.open_place(visit.device, lambda: road.folder("there"), road.progress.update)
            visit.notes += [note for note in at.notes if note not in visit.notes]
            reached = True
            try:
                with turn if at.shares_host else nullcontext():
                    visit.environment = work(road, visit.device, at, visit.rows)
                return
            finally:
                at.close()
        except PlaceLost as lost:
            if pause is None or not reached:
                visit.error = lost
                return
            visit.notes.append(f"{lost.message}; tried again")
            road.progress.stage(f"{lost.message}; trying again")
            time.sleep(pause)
        except LeptonError as error:
            visit.error = error
            return
