"""The harness held to its word: what it adds to a time, and how often it sees differences that are there, or are not.

    python benchmarks/harness.py [overhead streams deeper same slower page ...] [--times N] [--seconds S]

overhead   a session that does nothing: what the timing loop itself takes, in the time and beside it
streams    two streams as processes and as threads of one process
deeper     how much slower the network with more layers is, over a long measurement; picks the number of layers
same       40 comparisons of a file with itself: a loop, and MobileNetV2
slower     20 comparisons with a file that is 5 % slower: a loop, and MobileNetV2 with more layers

Parts are kept in benchmarks/results/harness.json as they are done; those asked for are done again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import slower  # noqa: E402
from common import RESULTS, cache, shared  # noqa: E402
from page import table, update  # noqa: E402

from lepton_edge import api, stats  # noqa: E402
from lepton_edge.recipe import Recipe  # noqa: E402

RESULT = RESULTS / "harness.json"
PARTS = ("overhead", "streams", "deeper", "same", "slower")


def compared(first: Path, second: Path, seconds: float, seed: int = 0) -> dict:
    """One run of ``bench`` on two files: its verdict, its interval, and the wall seconds that all of it took."""
    start = time.monotonic()
    recipe = Recipe()
    bench, compress = replace(recipe.bench, seconds=seconds, threads=1), replace(recipe.compress, seed=seed)
    made = api.bench([first, second], replace(recipe, bench=bench, compress=compress))
    a, b = made["rows"]
    return {
        "wall_s": round(time.monotonic() - start, 1),
        **{k: b["ratio"][k] for k in ("median", "ci95", "verdict", "of")},
        "p50_ms": [a["latency"]["p50_ms"], b["latency"]["p50_ms"]],
        "others_cores": round(a["latency"]["others_cores"], 2),
        "host": {k: made["environments"]["local"]["host"][k] for k in ("cpu", "cores")},
    }


def overhead(args: argparse.Namespace) -> dict:
    """Nanoseconds of an inference that does nothing: as it is timed, and with all that the loop does around it."""
    file = cache("harness") / "nothing.spin"
    file.write_text('{"spin": 0}')
    recipe = Recipe()
    made = api.bench([file], replace(recipe, bench=replace(recipe.bench, seconds=3.0, threads=1)))
    row = made["rows"][0]["latency"]
    return {"p50_ns": row["p50_ms"] * 1e6, "p50_ci_ns": [v * 1e6 for v in row["p50_ci"]], "loop_ns": _loop()}


def _loop() -> float:
    """Nanoseconds of the timing loop an inference, with the loop itself: the least of 50 turns of 10,000."""
    from lepton_edge import worker

    class Nothing:
        def run(self, feeds: dict) -> None:
            pass

    state = {"session": Nothing(), "samples": [{}] * 32, "next": 0}
    turns = []
    for _ in range(50):
        start = time.perf_counter_ns()
        worker._timed(state, 10_000, 1, 1 << 62)
        turns.append((time.perf_counter_ns() - start) / 10_000)
    return min(turns)


def streams(args: argparse.Namespace) -> list[dict]:
    """Two streams of one thread as processes and as threads, in turn: inferences a second."""
    from lepton_edge import bench, run_feeds, stages, throughput
    from lepton_edge.place import Here
    from lepton_edge.progress import Silent

    rows = []
    for file in (shared("models/mobilenet_v2.onnx"), shared("mlperf_tiny/ic_resnet8_reference_int8.tflite")):
        with stages.road(cache("harness"), Silent()) as road:
            source = stages.load_source(road, file)
            feed = run_feeds.open_feeds(road, source, Recipe(), seeded=True).evaluation
            road.workers.drop()
            e = bench.Entrant(file.name, file, source.runtime, feed.folder)
            rates: dict[str, list[float]] = {"processes": [], "threads": []}
            for _ in range(6):
                (found,) = throughput.sweep(e, bench.How(seconds=3.0), Here(), [(2, 1)], lambda *_: None)
                rates["processes"].append(found["per_s"])
                rates["threads"].append(_threads(e, 2, 3.0))
        pairs = [[t] for t in rates["threads"]], [[p] for p in rates["processes"]]
        rows.append({"model": file.name, **rates, "threads_to_processes": stats.ratio(*pairs, range(6))})
    return rows


def _threads(e, count: int, seconds: float) -> float:
    """Inferences a second of ``count`` threads of one process, each with a session of its own."""
    import subprocess

    command = [sys.executable, str(HERE / "stream_threads.py"), str(e.runtime.file), str(e.model), str(e.feed)]
    done = subprocess.run([*command, str(count), str(seconds)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def deeper(args: argparse.Namespace) -> dict:
    """The number of layers that makes MobileNetV2 about 5 % slower, and how much that really is."""
    base = shared("models/mobilenet_v2.onnx")
    files = [slower.deeper(base, n, cache("harness") / f"deeper-{n}.onnx") for n in slower.LAYERS]
    recipe = Recipe()
    made = api.bench(
        [base, *files], replace(recipe, bench=replace(recipe.bench, seconds=20.0, processes=10, threads=1))
    )
    ratios = [r["ratio"]["median"] for r in made["rows"][1:]]
    best = min(range(len(files)), key=lambda k: abs(ratios[k] - 1.05))
    return {"layers": slower.LAYERS[best], "ratio": made["rows"][1 + best]["ratio"], "all": ratios}


def pairs(kept: dict) -> dict[str, tuple[Path, Path]]:
    """By name a file and the one that is about 5 % slower."""
    found = {"loop": slower.spins(cache("harness"))}
    if "deeper" in kept:
        base, layers = shared("models/mobilenet_v2.onnx"), kept["deeper"]["layers"]
        found["mobilenet_v2"] = base, slower.deeper(base, layers, cache("harness") / f"deeper-{layers}.onnx")
    return found


def trials(kept: dict, part: str, args: argparse.Namespace, times: int) -> dict:
    """Comparisons of each pair, the first with itself or with the second, each kept as it is done."""
    found = kept[part] = {}
    for name, (first, second) in pairs(kept).items():
        found[name] = []
        for k in range(args.times or times):
            found[name].append(compared(first, first if part == "same" else second, args.seconds, seed=k))
            keep(kept)
            print(part, name, k, found[name][-1], flush=True)
    return found


def keep(kept: dict) -> None:
    """Write the results, aside first."""
    RESULTS.mkdir(exist_ok=True)
    part = RESULT.with_suffix(".part")
    part.write_text(json.dumps(kept, indent=1) + "\n")
    part.replace(RESULT)


def page(kept: dict) -> list[str]:
    """The section of BENCHMARKS.md."""
    lines = [
        "# The harness",
        "",
        "Generated by `make bench-harness` (benchmarks/harness.py, benchmarks/cross_check.py).",
        "",
    ]
    if "overhead" in kept:
        o = kept["overhead"]
        lines += [
            f"An inference that does nothing is timed as {o['p50_ns']:.0f} ns; with all that the loop does around it, "
            f"it takes {o['loop_ns']:.0f} ns.",
            "",
        ]
    rows = []
    for part, truth in (("same", "itself"), ("slower", "one 5 % slower")):
        for name, runs in kept.get(part, {}).items():
            told = [r["verdict"] for r in runs]
            widths = stats.median([50 * (r["ci95"][1] - r["ci95"][0]) for r in runs])
            middle = stats.median([r["median"] for r in runs])
            wall, busy = max(r["wall_s"] for r in runs), stats.median([r["others_cores"] for r in runs])
            counts = ", ".join(f"{told.count(v)} {v}" for v in ("no difference", "slower", "faster") if told.count(v))
            cells = [name, truth, counts, f"{middle:.4f}", f"±{widths:.1f} %", f"{wall:.0f}", f"{busy:.2f}"]
            rows.append(cells)
    if rows:
        head = ["file", "against", "verdicts", "median ratio", "interval", "wall s at most", "cores busy with others"]
        lines += [*table(head, rows), ""]
    if "deeper" in kept:
        d = kept["deeper"]
        low, high = d["ratio"]["ci95"]
        text = f"MobileNetV2 with {d['layers']} more identity convolutions takes {d['ratio']['median']:.4f} "
        lines += [f"{text}[{low:.4f}, {high:.4f}] of its time in a long measurement.", ""]
    for row in kept.get("streams", []):
        r = row["threads_to_processes"]
        text = f"{row['model']}, two streams: {stats.median(row['processes']):,.0f} inferences/s as processes; as "
        text += f"threads of one process {r['median']:.2f}x [{r['ci95'][0]:.2f}, {r['ci95'][1]:.2f}] of that."
        lines.append(f"- {text}")
    return lines


def main() -> None:
    """Do the parts that are asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, "page"], default=list(PARTS))
    parser.add_argument("--times", type=int, default=0, help="comparisons of a pair (40 and 20)")
    parser.add_argument("--seconds", type=float, default=4.5, help="of measuring a file in one comparison")
    args = parser.parse_args()
    os.environ["LEPTON_EDGE_PLUGINS"] = str(HERE / "spinning")
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    for part in [p for p in PARTS if p in args.parts]:
        if part in ("same", "slower"):
            trials(kept, part, args, 40 if part == "same" else 20)
        else:
            kept[part] = {"overhead": overhead, "streams": streams, "deeper": deeper}[part](args)
            print(part, kept[part], flush=True)
        keep(kept)
    update("harness", page(kept))


if __name__ == "__main__":
    main()
