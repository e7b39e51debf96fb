"""Inferences a second of threads of one process, each with a session of its own (for benchmarks/harness.py).

python benchmarks/stream_threads.py RUNTIME.py MODEL FEED COUNT SECONDS
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lepton_edge import worker


def main() -> None:
    """Warm up, run, print the rate."""
    file, model, feed, count, seconds = *sys.argv[1:4], int(sys.argv[4]), float(sys.argv[5])
    states = []
    for _ in range(count):
        state: dict = {}
        worker._load(state, {"file": file, "model": model, "options": {"threads": 1}}, None)
        worker._bench_start(state, {"feed": feed, "keep": 32, "warmup_s": 1.0}, None)
        states.append(state)
    done = [0] * count
    gate, stop = threading.Barrier(count + 1), time.perf_counter

    def run(k: int) -> None:
        session, samples = states[k]["session"], states[k]["samples"]
        gate.wait()
        end = stop() + seconds
        while stop() < end:
            session.run(samples[done[k] % len(samples)])
            done[k] += 1

    threads = [threading.Thread(target=run, args=(k,)) for k in range(count)]
    for t in threads:
        t.start()
    gate.wait()
    start = stop()
    for t in threads:
        t.join()
    print(sum(done) / (stop() - start))


if __name__ == "__main__":
    main()
