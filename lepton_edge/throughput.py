"""Throughput: inferences a second of several streams at once, by streams and threads.

A stream is a worker process with a session of its own. Threads of one process would share its interpreter: it is held
while inputs go in and outputs come out, which costs small models much (benchmarks/harness.py measures it).
"""

from __future__ import annotations

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import accumulate, groupby
from typing import Any

from lepton_edge.bench import Entrant, How, Say, started
from lepton_edge.place import Place
from lepton_edge.stats import mean_interval, summarize

ROUNDS, MOST = 10, 200_000


def configurations(cores: int, streams: Sequence[int] = (), threads: int = 0) -> list[tuple[int, int]]:
    """(streams, threads) to try: powers of two whose product the cores can run at once, and all cores.

    ``streams`` and ``threads`` that are given are taken as they are.
    """
    steps = sorted({min(2**k, cores) for k in range(math.ceil(math.log2(max(1, cores))) + 1)})
    counts = [threads] if threads else steps
    return [(s, t) for t in counts for s in (streams or steps) if streams or s * t <= max(cores, t)]


def sweep(e: Entrant, how: How, place: Place, loads: Sequence[tuple[int, int]], say: Say) -> list[dict[str, Any]]:
    """Inferences a second for each (streams, threads), each measured ``how.seconds`` in all, latency beside.

    Those with the same threads take turns in random order. Raises LeptonError where the model cannot be run so.
    """
    order, found = random.Random(how.seed), []
    for threads, group in groupby(sorted(loads, key=lambda load: load[1]), key=lambda load: load[1]):
        counts = [streams for streams, _ in group]
        with ExitStack() as stack:
            workers = []
            for k in range(max(counts)):
                say(k, max(counts), f"stream {k + 1} of {e.name}, {threads} thread(s)")
                workers.append(started(stack, e, how, place, what="a stream of", threads=threads)[0])
            pool = stack.enter_context(ThreadPoolExecutor(max(counts)))
            rounds: dict[int, list[list[dict]]] = {streams: [] for streams in counts}
            for r in range(ROUNDS):
                for streams in order.sample(counts, len(counts)):
                    say(r, ROUNDS, f"{streams} stream(s) of {threads} thread(s)")
                    rounds[streams].append(list(pool.map(_run(how.seconds / ROUNDS), workers[:streams])))
            found += [_figures(rounds[s], s, threads, e.batch) for s in counts]
    return found


def _run(seconds: float) -> Any:
    return lambda worker: worker.call("bench_round", seconds=seconds, minimum=1, maximum=MOST)


def _figures(rounds: Sequence[Sequence[dict]], streams: int, threads: int, batch: int) -> dict[str, Any]:
    rates = [rate(turn) * batch for turn in rounds]
    latency = summarize([[ns for answer in turn for ns in answer["ns"]] for turn in rounds])
    interval = mean_interval(rates)
    return {
        "streams": streams,
        "threads": threads,
        "batch": batch,
        "per_s": math.fsum(rates) / len(rates),
        "per_s_ci": [max(0.0, interval[0]), interval[1]] if interval else None,
        "per_s_rounds": rates,
        **{key: latency[key] for key in ("count", "p50_ms", "p50_ci", "p95_ms", "p95_ci")},
    }


def rate(turn: Sequence[dict]) -> float:
    """Inferences a second of streams that ran at once, while all of them did: their clocks are one.

    Where their times do not overlap, or a stream had one long inference only, all of the time counts.
    """
    start, end = max(a["started_ns"] for a in turn), min(a["ended_ns"] for a in turn)
    if end <= start or min(len(a["ns"]) for a in turn) < 3:
        span = max(a["ended_ns"] for a in turn) - min(a["started_ns"] for a in turn)
        return sum(len(a["ns"]) for a in turn) / span * 1e9
    return sum(_done(a, end) - _done(a, start) for a in turn) / (end - start) * 1e9


def _done(answer: dict, at: int) -> float:
    """How many inferences of a stream were ready at a time, the one under way in part."""
    scale = (answer["ended_ns"] - answer["started_ns"]) / max(1, sum(answer["ns"]))  # what lies between inferences
    ends = [answer["started_ns"] + scale * t for t in accumulate(answer["ns"])]
    k = bisect_right(ends, at)
    if k == len(ends):
        return float(k)
    start = ends[k - 1] if k else answer["started_ns"]
    return k + max(0.0, at - start) / max(1.0, ends[k] - start)
