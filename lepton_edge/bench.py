"""Latency of several models in one place, measured so that they can be compared.

Each gets fresh workers that have imported nothing but its runtime: one after the other, for two processes of one file
differ as well. The workers take turns in random order, round by round, so drift of the machine falls on all of them
alike; a waiting worker sleeps. Turns are as short as can be: where another virtual machine computes on the other thread
of the core, speed falls by a third, for moments of 10 ms to seconds. With one thread all workers keep to one processor,
another one the next time: two processors of a machine differ as well, most of all where it is virtual.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lepton_edge import noise
from lepton_edge.errors import LeptonError, PlaceLost, UsageError
from lepton_edge.launch import Worker
from lepton_edge.place import Here, Place
from lepton_edge.recipe import Bench
from lepton_edge.registry import Runtime
from lepton_edge.stats import median, ratio, summarize

#: Samples of a model in all; samples of input kept in a worker; seconds that a warm-up may take.
MINIMUM, MAXIMUM, KEEP, WARMUP_S = 30, 20_000, 32, 1.0
#: A turn is so long, or so many inferences of the slowest model, or so many times the way there and back; there are so
#: many turns at least. A process is worth its start from so many seconds on.
TURN_S, TURN_RUNS, TURN_CALLS, ROUNDS, PROCESS_S, PROCESSES = 0.02, 3, 10, 30, 0.5, 9
#: The quantile of a turn that is compared where other processes disturb it.
DISTURBED_P = 0.1
#: Steps of the progress bar a process.
STEPS = 1000
PROCESSORS = Path(__file__).parent / "ondevice" / "processors.py"

Say = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Entrant:
    """A model file to be timed: in which runtime, on which feed folder, with which load options.

    ``files`` are those that belong to the model and lie beside it; ``batch`` samples are run at once.
    """

    name: str
    model: Path
    runtime: Runtime
    feed: Path
    options: dict = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    batch: int = 1


@dataclass(frozen=True)
class Timing:
    """What came of one entrant: figures in the form of run.json's ``latency``, the runtime's info, or an error."""

    latency: dict | None
    info: dict | None
    error: LeptonError | None = None


@dataclass(frozen=True)
class How:
    """How to measure: ``seconds`` a model in all, over ``rounds`` turns and ``processes`` fresh processes (0: by the
    time there is), on ``threads`` threads; ``cpus`` are the processors to keep to (empty: all)."""

    seconds: float = 3.0
    rounds: int = 0
    processes: int = 0
    threads: int = 1
    cpus: tuple[int, ...] = ()
    seed: int = 0

    @classmethod
    def asked(cls, recipe: Bench, threads: int, seed: int) -> How:
        """As a recipe asks, on so many threads. Raises UsageError for processors that cannot be read."""
        return cls(recipe.seconds, recipe.rounds, recipe.processes, threads, cpu_list(recipe.cpus), seed)

    def starts(self) -> int:
        """The fresh processes that each model gets."""
        fit = int(self.seconds / PROCESS_S)
        return min(self.rounds or ROUNDS, self.processes or (1 if fit < 3 else min(PROCESSES, fit)))

    def turns(self, process: int, least_s: float) -> int:
        """The turns in a process; they take ``least_s`` at least."""
        processes = self.starts()
        if self.rounds:
            return self.rounds // processes + (process < self.rounds % processes)
        return max(-(-ROUNDS // processes), round(self.seconds / processes / least_s))


def cpu_list(text: str) -> tuple[int, ...]:
    """The processors that "0-3,6" names, () for "". Raises UsageError for what cannot be read so."""
    found: list[int] = []
    for part in text.split(",") if text else []:
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise UsageError(f"'{text}' does not name processors", "for example --cpus 0-3 or --cpus 0,2")
        found += range(int(first), int(last or first) + 1)
    return tuple(sorted(set(found)))


@dataclass(frozen=True)
class Measured:
    """What ``measure`` found: a Timing a name, and the readings of the place around each process's rounds."""

    timings: dict[str, Timing]
    windows: list[tuple[dict, dict]]

    def ratios(self, pairs: dict[str, str]) -> dict[str, dict]:
        """For each name in ``pairs`` its time relative to that of the partner, where both were measured."""
        return ratios(self.timings, pairs)


@dataclass
class _Record:
    """What is gathered of one entrant, over its processes."""

    rounds: list[list[int]] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    loads: list[dict] = field(default_factory=list)
    starts: list[dict] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    involuntary: int = 0
    error: LeptonError | None = None


def measure(
    entrants: Sequence[Entrant], how: How | None = None, place: Place | None = None, progress: Say | None = None
) -> Measured:
    """Time every entrant as ``how`` says, in ``place`` (this machine unless one is given).

    A model that fails costs only its own figures: its Timing carries the error. Raises PlaceLost when the place is.
    """
    how, say, place = how or How(), progress or (lambda *_: None), place or Here()
    order, processes, windows = random.Random(how.seed), how.starts(), []
    records = {e.name: _Record() for e in entrants}
    for p in range(processes):
        left = [e for e in entrants if records[e.name].error is None]
        order.shuffle(left)
        kept = replace(how, cpus=_processors(left, how, place, p))
        with ExitStack() as stack:
            workers: dict[str, Worker] = {}
            for e in left:
                say(p * STEPS, processes * STEPS, f"starting {e.name} ({p + 1} of {processes})")
                with _kept(records[e.name]):
                    workers[e.name], loaded, ready = started(stack, e, kept, place)
                    records[e.name].loads.append(loaded)
                    records[e.name].starts.append(ready)
            before = noise.reading(place, _pids(records, workers))
            rounds = how.turns(p, max((_turn_s(workers[name], records[name]) for name in workers), default=TURN_S))
            for r in range(rounds):
                turn = list(workers)
                order.shuffle(turn)
                for name in turn:
                    say(p * STEPS + r * STEPS // rounds, processes * STEPS, name)
                    with _kept(records[name]):
                        _turn(workers[name], records[name], how.seconds / processes / rounds, processes * rounds, p)
                    if records[name].error:
                        del workers[name]
            windows.append((before, noise.reading(place, _pids(records, workers))))
            for name, worker in workers.items():
                with _kept(records[name]):
                    records[name].peaks.append(worker.call("usage")["peak_rss_mb"])
    say(1, 1, "measured")
    seen = {"kind": place.kind, "others_cores": noise.others(windows), "doubts": noise.doubts(windows)}
    return Measured({e.name: _timing(records[e.name], e, how, seen) for e in entrants}, windows)


def _processors(entrants: Sequence[Entrant], how: How, place: Place, turn: int) -> tuple[int, ...]:
    """Those that the workers of a turn keep to: as asked; one, where they use one thread of it; else () for all."""
    if how.cpus or how.threads != 1 or any(e.runtime.device != "cpu" for e in entrants):
        return how.cpus
    one = place.call(PROCESSORS, "quietest", turn=turn)
    return () if one is None else (one,)


class _kept:
    """Keeps a LeptonError for the record of the entrant that it is of; one of the place is everybody's."""

    def __init__(self, record: _Record) -> None:
        self._record = record

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, LeptonError) and not isinstance(error, PlaceLost):
            self._record.error = error
            return True
        return False


def started(
    stack: ExitStack, e: Entrant, how: How, place: Place, *, what: str = "timing", threads: int = 0
) -> tuple[Worker, dict, dict]:
    """A fresh worker of an entrant, warm, with its answers to "load" and "bench_start". Raises LeptonError."""
    worker = stack.enter_context(place.worker(f"{what} {e.name} in {e.runtime.name}", e.runtime))
    loaded = worker.call(
        "load",
        file=place.send(e.runtime.file),
        model=place.send(e.model, e.files),
        options={**e.options, "threads": threads or how.threads},
        cpus=list(how.cpus),
    )
    ready = worker.call("bench_start", feed=place.send(e.feed), keep=KEEP, warmup_s=WARMUP_S, batch=e.batch)
    return worker, loaded, ready


def _turn_s(worker: Worker, record: _Record) -> float:
    """The shortest turn that is worth its call: seconds."""
    with _kept(record):
        start = time.perf_counter()
        worker.call("usage")
        warm = record.starts[-1]["warmup"]
        return max(TURN_S, TURN_RUNS * warm["seconds"] / warm["runs"], TURN_CALLS * (time.perf_counter() - start))
    return TURN_S


def _turn(worker: Worker, record: _Record, seconds: float, rounds: int, process: int) -> None:
    least = math.ceil(MINIMUM / rounds)
    answer = worker.call("bench_round", seconds=seconds, minimum=least, maximum=max(least, MAXIMUM // rounds))
    record.rounds.append(answer["ns"])
    record.processes.append(process)
    record.involuntary += answer["involuntary"]


def _pids(records: dict[str, _Record], workers: dict[str, Worker]) -> list[int]:
    """The processes of the workers at the place, which is not where we are."""
    return [records[name].starts[-1]["pid"] for name in workers]


def _timing(record: _Record, e: Entrant, how: How, seen: dict[str, Any]) -> Timing:
    info = record.loads[0]["info"] if record.loads else None
    if record.error:
        return Timing(None, info, record.error)
    warm = [s["warmup"] for s in record.starts]
    seconds = sum(map(sum, record.rounds)) / 1e9
    figures = {
        **seen,
        **summarize(record.rounds, record.processes),
        "processes": len(warm),
        "batch": e.batch,
        "per_s": e.batch * sum(map(len, record.rounds)) / seconds,
        "first_ms": median([s["first_ns"] / 1e6 for s in record.starts]),
        "load_ms": median([loaded["load_ms"] for loaded in record.loads]),
        "warmup_runs": max(w["runs"] for w in warm),
        "warmup": warm,
        "settled": all(w["settled"] for w in warm),
        "peak_rss_mb": max(record.peaks),
        "threads": how.threads,
        "cpus": sorted({cpu for s in record.starts for cpu in s["cpus"] or ()}) or None,
        "involuntary_per_s": round(record.involuntary / seconds, 1),
        "process_of_round": record.processes,
        "samples_ns": record.rounds,
    }
    return Timing(figures, info)


def ratios(timings: dict[str, Timing], pairs: dict[str, str]) -> dict[str, dict]:
    """For each name in ``pairs`` its time relative to that of the partner, where both were measured together.

    On a quiet machine medians are compared. On one that other processes use, it is the fastest tenth of each turn: what
    they add falls on the rest (Chen & Revels, Robust benchmarking in noisy environments, 2016). Which one it is depends
    on the readings alone, not on the samples, and is said ("of").
    """
    result = {}
    for name, base in pairs.items():
        a, b = timings.get(name), timings.get(base)
        if a and b and a.latency and b.latency:
            p = DISTURBED_P if (a.latency["others_cores"] or 0.0) > noise.BUSY_CORES else 0.5
            rounds = a.latency["samples_ns"], b.latency["samples_ns"]
            result[name] = {"to": base, **ratio(*rounds, a.latency["process_of_round"], p)}
    return result
