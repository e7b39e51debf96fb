"""Latency of several models in one place, measured so that they can be compared.

Each gets a fresh worker that has imported nothing but its runtime. The workers take turns in random order,
round by round, so drift of the machine falls on all of them alike; a waiting worker sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from lepton_edge import noise
from lepton_edge.errors import LeptonError
from lepton_edge.launch import Worker
from lepton_edge.place import Here, Place
from lepton_edge.registry import Runtime
from lepton_edge.stats import ratio, summarize

MINIMUM, MAXIMUM, KEEP, WARMUP_S = 5, 5000, 32, 1.0


@dataclass(frozen=True)
class Entrant:
    """A model file to be timed: in which runtime, on which feed folder, with which load options.

    ``files`` are those that belong to the model and lie beside it.
    """

    name: str
    model: Path
    runtime: Runtime
    feed: Path
    options: dict = field(default_factory=dict)
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Timing:
    """What came of one entrant: figures in the form of run.json's ``latency``, the runtime's info, or an error."""

    latency: dict | None
    info: dict | None
    error: LeptonError | None = None


def measure(
    entrants: Sequence[Entrant],
    *,
    seconds: float = 3.0,
    rounds: int = 10,
    threads: int = 1,
    seed: int = 0,
    place: Place | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Timing]:
    """Time every entrant for about ``seconds`` in all, over ``rounds`` interleaved rounds (batch 1).

    ``place`` is where, this machine unless one is given. A model that fails costs only its own figures: its Timing
    carries the error.
    """
    say, place = progress or (lambda *_: None), place or Here()
    order = random.Random(seed)
    done: dict[str, Timing] = {}
    with ExitStack() as stack:
        ready: dict[str, tuple[Worker, dict, dict]] = {}
        for i, e in enumerate(entrants):
            say(i, len(entrants), f"warming up {e.name}")
            worker = stack.enter_context(place.worker(f"timing {e.name} in {e.runtime.name}", e.runtime))
            try:
                loaded = worker.call(
                    "load",
                    file=place.send(e.runtime.file),
                    model=place.send(e.model, e.files),
                    options={**e.options, "threads": threads},
                )
                started = worker.call("bench_start", feed=place.send(e.feed), keep=KEEP, warmup_s=WARMUP_S)
                ready[e.name] = (worker, loaded, started)
            except LeptonError as error:
                done[e.name] = Timing(None, None, error)
                worker.close()
        samples: dict[str, list[list[int]]] = {name: [] for name in ready}
        pids = [worker.pid for worker, _, _ in ready.values()]
        before = noise.moment(pids)
        for r in range(rounds):
            turn = list(ready)
            order.shuffle(turn)
            for name in turn:
                say(r, rounds, f"round {r + 1} of {rounds}: {name}")
                try:
                    answer = ready[name][0].call(
                        "bench_round",
                        seconds=seconds / rounds,
                        minimum=MINIMUM,
                        maximum=max(MINIMUM, MAXIMUM // rounds),
                    )
                    samples[name].append(answer["ns"])
                except LeptonError as error:
                    done[name] = Timing(None, ready[name][1]["info"], error)
                    del ready[name]
        busy = noise.others(before, noise.moment(pids))
        for name, (worker, loaded, started) in ready.items():
            figures = {
                "kind": "measured",
                **summarize(samples[name]),
                "first_ms": started["first_ns"] / 1e6,
                "load_ms": loaded["load_ms"],
                "warmup_runs": started["warmup_runs"],
                "peak_rss_mb": worker.call("usage")["peak_rss_mb"],
                "threads": threads,
                "others_cores": busy,
                "samples_ns": samples[name],
            }
            done[name] = Timing(figures, loaded["info"])
        say(rounds, rounds, "measured")
    return done


def ratios(timings: dict[str, Timing], pairs: dict[str, str]) -> dict[str, dict]:
    """For each name in ``pairs`` its time relative to that of the partner, where both were measured."""
    result = {}
    for name, base in pairs.items():
        a, b = timings.get(name), timings.get(base)
        if a and b and a.latency and b.latency:
            result[name] = {"to": base, **ratio(a.latency["samples_ns"], b.latency["samples_ns"])}
    return result
