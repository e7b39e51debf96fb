"""The commands that measure: bench, estimate, and report of what was measured."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from lepton_edge import clikit
from lepton_edge.cli_options import BENCH, RUNTIME, SAMPLES
from lepton_edge.clikit import command, emit, progress, recipe_from
from lepton_edge.errors import LeptonError, LimitError, UsageError

app = typer.Typer()


@command(app, SAMPLES, BENCH)
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(help="Models of any formats; the first is what the others are compared with."),
    ],
    runtime: RUNTIME = None,
    batch: Annotated[
        str | None, typer.Option("--batch", metavar="LIST", help="Samples run at once, as 1,2,4,8 (1).")
    ] = None,
    throughput: Annotated[
        bool, typer.Option("--throughput", help="Also inferences a second, by parallel streams and threads.")
    ] = False,
    streams: Annotated[
        str | None, typer.Option("--streams", metavar="LIST", help="The streams of --throughput (up to the cores).")
    ] = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Also joules an inference, where the machine tells them.")
    ] = False,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Fresh processes a model (6, fewer for a short time).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="PATH", help="Keep it all, with every sample: .json or folder."),
    ] = None,
    wheels: Annotated[
        Path | None,
        typer.Option("--wheels", metavar="DIR", help="Carry these wheels to the devices, for their runtime."),
    ] = None,
    max_latency: Annotated[
        float | None, typer.Option("--max-latency", min=0.0, help="Exit code 4 if a median is above (ms).")
    ] = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Latency of models, measured in turn, with intervals; on devices side by side with --device a,b.

    Each is warmed up until it is steady, and timed in fresh processes that take short turns in random order. A
    percentile is printed where the samples support it, a difference where it is beyond the noise. On a device that can
    be reached the samples are run first (100, or --samples), and one that answers differently is an error.

    Example: `lepton-edge bench model.tflite model.int8.tflite --threads 1`
    """
    from lepton_edge import api, benching, show_bench

    carried = sorted(wheels.glob("*.whl")) if wheels else []
    if wheels and not carried:
        raise UsageError(f"{wheels}: holds no wheels", "fill it: lepton-edge devices wheels NAME -o DIR")
    opts.processes = processes
    asked = clikit.counts(streams, "--streams")
    devices = clikit.names(opts.device) or ()
    opts.device = None
    opts.evaluation_samples = opts.evaluation_samples or 100
    ask = benching.Ask(clikit.counts(batch, "--batch") or (1,), throughput or bool(asked), asked, energy)
    result = api.bench(
        models, recipe_from(opts), progress(opts), runtime=runtime, ask=ask, out=out, devices=devices, wheels=carried
    )
    emit(result, opts, lambda: show_bench.timings(result))
    if failed := [r for r in result["rows"] if r["error"]]:
        error = failed[0]["error"]
        raise LeptonError(f"{len(failed)} of {len(result['rows'])} not measured; {error['message']}", error["hint"])
    timed = [r for r in result["rows"] if r["latency"]]
    slow = [r["name"] for r in timed if max_latency is not None and r["latency"]["p50_ms"] > max_latency]
    if slow:
        raise LimitError(f"p50 above {max_latency:g} ms: {', '.join(slow)}")


@command(app, SAMPLES)
def estimate(
    models: Annotated[list[Path], typer.Argument(help="int8 TFLite files.")],
    device: Annotated[str, typer.Option("--device", metavar="NAME", help="A microcontroller; see 'devices list'.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Also keep the layers and what was compiled.")
    ] = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Time, memory and answers on a microcontroller, estimated.

    Arm Ethos-U by its compiler (Vela), and TensorFlow Lite Micro: the arena it takes, and its answers beside LiteRT's.

    Example: `lepton-edge estimate model.int8.tflite --device cortex-m55-ethos-u55 --data test.npz`
    """
    from lepton_edge import estimates, show_estimates
    from lepton_edge.device import get_device

    result = estimates.estimate(models, get_device(device), recipe_from(opts), progress(opts), keep=out)
    emit(result, opts, lambda: show_estimates.table(result))
    problems = [(m["name"], e) for m in result["models"] for e in m["estimates"].values() if "error" in e]
    if problems:
        raise LeptonError(
            f"{len(problems)} of the estimates failed; the first: {problems[0][1]['error']}", problems[0][1]["hint"]
        )


@command(app)
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run of 'compress' (two: what changed), or results of 'bench --out'."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where to write it (beside the result).")
    ] = None,
    fail_if: Annotated[
        list[str] | None,
        typer.Option("--fail-if", metavar="LIMIT", help="As 'p95 > 12ms': exit code 4 where it holds; repeatable."),
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="OLD.json", help="An earlier result: exit code 4 where it got worse."),
    ] = None,
    tolerance: Annotated[
        str, typer.Option("--tolerance", metavar="3%", help="What a baseline may differ by from day to day (2%).")
    ] = "",
    strict: Annotated[bool, typer.Option("--strict", help="What the samples cannot decide counts as broken.")] = False,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Compare with a baseline of another machine all the same.")
    ] = False,
    *,
    opts: SimpleNamespace,
) -> None:
    """Reports of runs and measurements, limits for CI, and what changed.

    A run of 'compress' is rendered again, two are compared. Results of 'bench' become one report of any number of
    devices and days. A limit is [selector:]metric comparator value, as 'pi:model.tflite:p95 > 12ms' or
    'model~int8:size > 4MB', of p50, p90, p95, p99, mean, first, load, peak_mb, size, top1, drop, sqnr, energy_mj and
    throughput; it is broken where the whole 95 % interval is beyond it.

    Example: `lepton-edge report lepton-out` · `lepton-edge report new.json --fail-if 'p95 > 12ms' --baseline old.json`
    """
    from lepton_edge import reporting, show_report

    made = reporting.report(runs, reporting.Ask(fail_if or (), strict, baseline, tolerance, any_machine, out))
    emit(made, opts, lambda: show_report.told(made))
    reporting.require(made, strict)
