"""The p50 of a model by another tool, as JSON on the last line: for benchmarks/cross_check.py, in a process of its own.

    python benchmarks/vendor_tool.py TOOL MODEL FEED SECONDS COUNT

ours            one process of the harness
bare            what the tools of LiteRT and OpenVINO time, in the session and with the samples of the harness
bert_perf_test  ONNX Runtime's own loop (onnxruntime.transformers; the wheel has no onnxruntime_perf_test)
litert          LiteRT's benchmark_litert_model, from its wheel
benchmark_app   OpenVINO's benchmark_app, from its wheel
loadgen         MLPerf LoadGen, SingleStream; LOADGEN is the folder that it is installed in

The tools round what they print to 10 us; their own samples are taken before. One thread, batch 1, f32 in OpenVINO.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def opened(model: str, feed: str) -> tuple:
    """The session that the harness times, and the samples that it feeds it, in the form of a worker."""
    from lepton_edge import registry, worker
    from lepton_edge.artifact import detect

    state: dict = {}
    runtime = registry.runtime_for(detect(Path(model)))
    worker._load(state, {"file": str(runtime.file), "model": model, "options": {"threads": 1}}, None)
    worker._bench_start(state, {"feed": feed, "keep": 32, "warmup_s": 1.0}, None)
    return state["session"], state["samples"]


def ours(model: str, feed: str, seconds: float, count: int) -> dict:
    """What ``lepton-edge bench`` tells of one process."""
    from lepton_edge import bench, registry
    from lepton_edge.artifact import detect, open_artifact

    art = open_artifact(Path(model))
    e = bench.Entrant("model", Path(model), registry.runtime_for(detect(Path(model))), Path(feed), {}, art.files)
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    timing = bench.measure([e], bench.How(seconds, processes=1, cpus=cpus)).timings["model"]
    if timing.error or not timing.latency:
        raise SystemExit(str(timing.error))
    return {"p50_ms": timing.latency["p50_ms"], "count": timing.latency["count"]}


def bare(model: str, feed: str, seconds: float, count: int) -> dict:
    """What the runtime's own tool times, in the loop and with the feed of the harness: no input written, none read.

    In LiteRT ``invoke`` alone, in OpenVINO the request by its own clock, without the call from Python.
    """
    session, samples = opened(model, feed)
    times: list[float] = []
    litert = hasattr(session, "_interpreter")
    for k in range(count):
        session.run(samples[k % len(samples)])
        if litert:
            start = time.perf_counter_ns()
            session._interpreter.invoke()
            times.append((time.perf_counter_ns() - start) / 1e6)
        else:
            times.append(session._request.latency)
    return {"p50_ms": statistics.median(times), "count": count}


def bert_perf_test(model: str, feed: str, seconds: float, count: int) -> dict:
    """Its loop runs ``session.run`` of Python on each input, and keeps the outputs of all."""
    import onnxruntime as ort
    from onnxruntime.transformers import bert_perf_test as tool

    _, samples = opened(model, feed)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    tool.onnxruntime_inference(session, samples, names)
    times: list[float] = []
    while sum(times) < seconds:
        times += tool.onnxruntime_inference(session, samples, names)[1]
    return {"p50_ms": statistics.median(times) * 1e3, "count": len(times)}


def litert(model: str, feed: str, seconds: float, count: int) -> dict:
    """Inputs are random, written once before the loop; outputs are never read."""
    from ai_edge_litert.tools import benchmark_litert_model as tool

    tool.round = lambda value, digits: value
    sys.argv = ["benchmark_litert_model", f"--model={model}", "--num_threads=1"]
    sys.argv += [f"--num_runs={count}", f"--warmup_runs={max(5, count // 10)}"]
    made = tool.run_benchmark(tool.parse_args())["latency"]
    return {"p50_ms": made["median_ms"], "count": made["num_runs"]}


def benchmark_app(model: str, feed: str, seconds: float, count: int) -> dict:
    """Inputs are random, set once before the loop; the time is that of OpenVINO's own request; outputs are not read."""
    from openvino.tools.benchmark import benchmark as loop
    from openvino.tools.benchmark import main as tool

    kept: list[list[float]] = []
    plain = loop.percentile

    def percentile(values: list[float], percent: float) -> float:
        kept.append(values)
        return plain(values, percent)

    loop.percentile = percentile
    sys.argv = ["benchmark_app", "-m", model, "-api", "sync", "-hint", "none", "-nstreams", "1", "-nthreads", "1"]
    sys.argv += ["-infer_precision", "CPU:f32", "-t", str(max(1, round(seconds)))]
    tool.main()
    return {"p50_ms": statistics.median(kept[0]), "count": len(kept[0])}


def loadgen(model: str, feed: str, seconds: float, count: int) -> dict:
    """SingleStream: a query after the other, timed by LoadGen from issuing it to its completion."""
    sys.path.append(os.environ["LOADGEN"])
    import mlperf_loadgen as lg

    session, samples = opened(model, feed)

    def issue(queries: list) -> None:
        for query in queries:
            session.run(samples[query.index])
            lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0)])

    settings = lg.TestSettings()
    settings.scenario, settings.mode = lg.TestScenario.SingleStream, lg.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = int(seconds * 1e3), 100
    with tempfile.TemporaryDirectory() as folder:
        output = lg.LogOutputSettings()
        output.outdir, output.copy_summary_to_stdout = folder, False
        log = lg.LogSettings()
        log.log_output = output
        sut = lg.ConstructSUT(issue, lambda: None)
        qsl = lg.ConstructQSL(len(samples), len(samples), lambda s: None, lambda s: None)
        lg.StartTestWithLogSettings(sut, qsl, settings, log)
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
        lines = (Path(folder) / "mlperf_log_detail.txt").read_text().splitlines()
    found = SimpleNamespace(**{e["key"]: e["value"] for e in (json.loads(line.partition(" ")[2]) for line in lines)})
    return {"p50_ms": vars(found)["result_50.00_percentile_latency_ns"] / 1e6, "count": found.result_query_count}


def main() -> None:
    """Run one tool."""
    tools = {f.__name__: f for f in (ours, bare, bert_perf_test, litert, benchmark_app, loadgen)}
    name, model, feed, seconds, count = sys.argv[1:]
    print("\n" + json.dumps(tools[name](model, feed, float(seconds), int(count))), flush=True)


if __name__ == "__main__":
    main()
