"""Joules an inference: what the machine takes while a model runs without a pause, less what it takes idle."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lepton_edge.bench import Entrant, How, Say, started
from lepton_edge.launch import Worker
from lepton_edge.place import Place
from lepton_edge.stats import mean_interval

POWER = Path(__file__).parent / "ondevice" / "power.py"
#: Seconds of one reading, of the model's run before and after it, and how often each is repeated.
TRACE_S, AROUND_S, REPEATS, MOST = 1.0, 0.3, 5, 200_000


def measure(entrants: Sequence[Entrant], how: How, place: Place, say: Say, root: str = "/") -> dict[str, dict]:
    """For each entrant by name {"joules", "ci95", "watts", "idle_watts", "source", "of"} of one inference.

    Where the place has no source that can be read, "joules" is None and "reason" says why. Idle and running are read
    in turn, ``REPEATS`` times; the interval is the t-interval over them. Raises LeptonError where a model cannot run.
    """
    source = place.call(POWER, "probe", root=root)
    if source["source"] is None:
        return {e.name: {"joules": None, "ci95": None, **source} for e in entrants}
    order, found = random.Random(how.seed), {e.name: [] for e in entrants}  # type: random.Random, dict[str, list]
    with ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(1))
        workers = {e.name: started(stack, e, how, place, what="energy of")[0] for e in entrants}
        for r in range(REPEATS):
            say(r, REPEATS, "energy, idle")
            idle = _watts(place.call(POWER, "trace", seconds=TRACE_S, root=root))
            for name in order.sample(list(workers), len(workers)):
                say(r, REPEATS, f"energy of {name}")
                run = pool.submit(_run, workers[name])
                time.sleep(AROUND_S)
                watts = _watts(place.call(POWER, "trace", seconds=TRACE_S, root=root))
                ns = run.result()["ns"]
                found[name].append((watts, idle, (watts - idle) * sum(ns) / len(ns) / 1e9))
    return {name: _figures(values, source, place) for name, values in found.items()}


def _run(worker: Worker) -> dict:
    return worker.call("bench_round", seconds=TRACE_S + 2 * AROUND_S, minimum=1, maximum=MOST)


def _watts(trace: dict[str, Any]) -> float:
    return trace["joules"] / trace["seconds"]


def _figures(values: Sequence[tuple[float, float, float]], source: dict[str, Any], place: Place) -> dict[str, Any]:
    watts, idle, joules = (list(column) for column in zip(*values, strict=True))
    interval = mean_interval(joules)
    return {
        "kind": place.kind,
        "joules": sum(joules) / len(joules),
        "ci95": list(interval) if interval else None,
        "watts": sum(watts) / len(watts),
        "idle_watts": sum(idle) / len(idle),
        **source,
    }
