"""Our p50 against that of the runtimes' own tools and MLPerf LoadGen, on the same files and settings, in turn.

    python benchmarks/cross_check.py [NAME ...] [--seconds S] [--times N] [page]

MobileNetV2 float and int8, and the int8 ResNet-8 of MLPerf Tiny, in three formats. Each time round, ours, the runtime's
own tool and LoadGen run at once, in fresh processes on one processor, of which only one goes at any moment: they are
stopped and continued in turns of 0.1 s, so that all meet the same moods of the machine. The ratio is that of the pairs,
with its 95 % interval. One thread, batch 1, float parts at f32. See vendor_tool.py for what the tools do otherwise.
Results: benchmarks/results/cross_check.json and a section of BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import RESULTS, Missing, cache, cli, environment, last_words, shared  # noqa: E402
from page import table, update  # noqa: E402

from lepton_edge import bench, run_feeds, stages, stats  # noqa: E402
from lepton_edge.ondevice import processors  # noqa: E402
from lepton_edge.progress import Silent  # noqa: E402
from lepton_edge.recipe import Recipe  # noqa: E402

RESULT = RESULTS / "cross_check.json"
TOOLS = {"onnx": ("bert_perf_test",), "tflite": ("litert", "bare"), "openvino": ("benchmark_app", "bare")}
TITLES = {
    "bert_perf_test": "ONNX Runtime (bert_perf_test)",
    "litert": "LiteRT (benchmark_litert_model)",
    "benchmark_app": "OpenVINO (benchmark_app)",
    "loadgen": "MLPerf LoadGen SingleStream",
}
OURS = {"ours": "with inputs and outputs", "bare": "the same call without"}
SUFFIX = {"onnx": ".onnx", "tflite": ".tflite", "openvino": ".xml"}
BAR, SLICE_S = 0.03, 0.1


def files() -> dict[str, Path]:
    """The nine files by name, made once into the cache. Raises Missing."""
    folder = cache("cross_check")
    float32, tiny = shared("models/mobilenet_v2.onnx"), shared("mlperf_tiny/ic_resnet8_reference_int8.tflite")
    data = ["--data", shared("imagenet_sample/calib"), "--preprocess", "imagenet", "--preset", "fast"]
    found = {}
    for format_, suffix in SUFFIX.items():
        for name, source, command in (
            ("mobilenet_v2 float", float32, ["convert"]),
            ("mobilenet_v2 int8", float32, ["quantize", *data]),
            ("ic_resnet8 int8", tiny, ["convert"]),
        ):
            out = folder / f"{name.replace(' ', '-')}{suffix}"
            if source.suffix == suffix and command == ["convert"]:
                out = source
            elif not out.is_file():
                verb, *options = command
                cli(verb, source, *options, "--to", format_, "--out", out)
            found[f"{name} {format_}"] = out
    return found


def together(tools: list[str], e: bench.Entrant, seconds: float, count: int, cpu: int) -> dict[str, float]:
    """p50 in milliseconds by tool, each in a process of its own. Raises Missing where one fails."""
    site = environment("loadgen").parent.parent / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    env = os.environ | {"LOADGEN": str(site), "CI": "true", "CUDA_VISIBLE_DEVICES": ""}
    head, pin = [sys.executable, str(HERE / "vendor_tool.py")], ["taskset", "-c", str(cpu)]
    tail = [str(e.model), str(e.feed), str(seconds), str(count)]
    with ExitStack() as stack:
        running: dict[str, subprocess.Popen] = {}
        logs = {tool: stack.enter_context(tempfile.TemporaryFile("w+")) for tool in tools}
        try:
            for tool in tools:
                # LoadGen writes its log on a thread of its own, which takes a processor of its own.
                command = [*([] if tool == "loadgen" else pin), *head, tool, *tail]
                running[tool] = subprocess.Popen(command, stdout=logs[tool], stderr=subprocess.STDOUT, env=env)
                tell(running[tool].pid, signal.SIGSTOP)
            take_turns(running)
        finally:
            for process in running.values():
                if process.poll() is None:
                    tell(process.pid, signal.SIGKILL)
                    process.wait()
        return {tool: _told(tool, e, running[tool].returncode, logs[tool]) for tool in tools}


def tell(pid: int, what: int) -> None:
    """Send a signal to a process and all that it has started."""
    for child in [text for file in Path(f"/proc/{pid}/task").glob("*/children") for text in file.read_text().split()]:
        tell(int(child), what)
    with suppress(ProcessLookupError):
        os.kill(pid, what)


def take_turns(running: dict[str, subprocess.Popen]) -> None:
    """Let one process, with what it has started, go at a time, round and round, until all have ended."""
    left = list(running.values())
    while left:
        for process in random.sample(left, len(left)):
            try:
                tell(process.pid, signal.SIGCONT)
                process.wait(SLICE_S)
                left.remove(process)
            except subprocess.TimeoutExpired:
                tell(process.pid, signal.SIGSTOP)


def _told(tool: str, e: bench.Entrant, code: int, log: IO[str]) -> float:
    log.seek(0)
    text = log.read()
    told = [line for line in text.splitlines() if line.startswith('{"p50_ms"')]
    if code or not told:
        raise Missing(f"{tool} on {e.name}: exit code {code}: {last_words(text)}")
    return json.loads(told[-1])["p50_ms"]


def check(name: str, file: Path, args: argparse.Namespace) -> dict:
    """All tools on one file, ``args.times`` times round: p50s by tool."""
    with stages.road(cache("scratch"), Silent()) as road:
        source = stages.load_source(road, file)
        feed = run_feeds.open_feeds(road, source, Recipe(), seeded=True).evaluation
        road.workers.drop()
        e = bench.Entrant(name, source.art.path, source.runtime, feed.folder, {}, source.art.files)
        order, p50s = random.Random(name), {tool: [] for tool in ("ours", *TOOLS[source.art.format], "loadgen")}
        # A first round warms the disk cache, and says how many runs fill the time.
        first = together(["ours"], e, 0.5, 0, processors.quietest() or 0)
        count = max(50, round(args.seconds * 1e3 / first["ours"]))
        for k in range(args.times):
            made = together(order.sample(list(p50s), len(p50s)), e, args.seconds, count, processors.quietest(k) or 0)
            for tool, p50 in made.items():
                p50s[tool].append(p50)
    return {"p50_ms": p50s}


def ratios(p50s: dict[str, list[float]]) -> list[tuple[str, str, dict]]:
    """Ours to the tools, and the call without inputs and outputs to the tool that leaves them out: of, to, ratio."""
    tools = [tool for tool in p50s if tool not in OURS]
    pairs = [("ours", tool) for tool in tools] + [("bare", tools[0])] * ("bare" in p50s)
    rounds = {tool: [[v] for v in values] for tool, values in p50s.items()}
    return [(a, b, stats.ratio(rounds[a], rounds[b], range(len(rounds[a])))) for a, b in pairs]


def page(kept: dict) -> list[str]:
    """The section of BENCHMARKS.md."""
    lines = [
        "## Our p50 against the runtimes' own tools and LoadGen",
        "",
        "Generated by benchmarks/cross_check.py: fresh processes on one processor that are stopped and continued in",
        "turns of 0.1 s; the ratio is ours to theirs, paired, with its 95 % interval. One thread, batch 1.",
        "The tools of LiteRT and OpenVINO write their input once and never read the output, and OpenVINO's leaves out",
        "the call from Python; ours counts all of it, as an application has it. What that makes is told by rows of the",
        "same call without it: our session and samples, timing what the tool times.",
        "",
    ]
    rows = []
    for name, found in kept.items():
        for own, tool, ratio in ratios(found["p50_ms"]):
            low, high = ratio["ci95"]
            mine, other = (stats.median(found["p50_ms"][t]) for t in (own, tool))
            within = "yes" if abs(ratio["median"] - 1) <= BAR else "no"
            figures = [f"{mine:.4g}", f"{other:.4g}", f"{ratio['median']:.3f} [{low:.3f}, {high:.3f}]", within]
            rows.append([name, OURS[own], TITLES[tool], *figures])
    return [*lines, *table(["file", "ours", "tool", "our p50 ms", "its p50 ms", "ratio", f"within {BAR:.0%}"], rows)]


def main() -> None:
    """Check the files that are asked for and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of the names of the files to check (all)")
    parser.add_argument("--seconds", type=float, default=2.5, help="of one run of one tool")
    parser.add_argument("--times", type=int, default=6, help="times round")
    args = parser.parse_args()
    kept = json.loads(RESULT.read_text()) if RESULT.is_file() else {}
    try:
        for name, file in files().items() if args.names != ["page"] else ():
            if not args.names or any(part in name for part in args.names):
                kept[name] = check(name, file, args)
                print(name, *(f"{a} / {b} {r['median']:.3f}" for a, b, r in ratios(kept[name]["p50_ms"])), flush=True)
                RESULT.write_text(json.dumps(kept, indent=1) + "\n")
    except Missing as error:
        sys.exit(str(error))
    update("cross_check", page(kept))


if __name__ == "__main__":
    main()
