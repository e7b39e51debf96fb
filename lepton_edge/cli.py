"""The command line: parse, call one function of api.py, print. Nothing else happens here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from lepton_edge import __version__, cli_ship, clikit
from lepton_edge.clikit import (
    ANALYZE,
    BENCH,
    CONVERT,
    DATA,
    DROP,
    QUANTIZE,
    SAMPLES,
    TARGET,
    TRAIN,
    command,
    emit,
    progress,
    recipe_from,
)
from lepton_edge.errors import LeptonError, LimitError, UsageError

app = typer.Typer(
    name="lepton-edge",
    help=clikit.help_text(
        """Compress trained models for the edge: prune, quantize, convert to TFLite, ONNX, OpenVINO; verify, measure.

        Exit codes: 0 good, 1 an error you can act on, 2 usage, 3 a defect of ours, 4 a limit not met, 130 interrupted.

        Example: `lepton-edge compress` · `lepton-edge compress model.onnx --data calib.npz`
        """
    ),
    no_args_is_help=True,
    # Plain help: typer's rich help imports a Markdown engine and more, three times what the whole command costs.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
devices_app = typer.Typer(
    help=clikit.help_text("The devices that models are made for.\n\nExample: `lepton-edge devices list`"),
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(devices_app, name="devices")
app.add_typer(cli_ship.app)

ModelArg = Annotated[Path, typer.Argument(help="A model: .keras, .h5, SavedModel folder, .onnx, .pt2, .pt or .tflite.")]
OutFile = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write the model.")]
ToOne = Annotated[
    str | None, typer.Option("--to", metavar="FORMAT", help="Target format: tflite, onnx, openvino or ncnn.")
]
RuntimeOpt = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME[:DEVICE]",
        help="Another runtime than the format's own, or device: NAME or NAME:DEVICE.",
    ),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lepton-edge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@command(app, DATA, QUANTIZE, TRAIN, DROP, BENCH)
def compress(
    model: Annotated[Path | None, typer.Argument(help="The trained model. Without one: the embedded sample.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The run folder to write.")] = Path(
        "lepton-out"
    ),
    to: Annotated[str | None, typer.Option("--to", metavar="LIST", help="Formats (tflite,onnx,openvino,ncnn).")] = None,
    max_size: Annotated[int | None, typer.Option("--max-size", min=1, help="Bytes a model may have.")] = None,
    max_latency: Annotated[
        float | None, typer.Option("--max-latency", min=0.0, help="Milliseconds the median may take.")
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--prune", min=0.0, max=0.99, metavar="SPARSITY", help="Also prune (Keras; needs --train)."),
    ] = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Float and int8 in every format, each verified and timed.

    The whole road: it picks one candidate, says why, and writes a report and a deployable bundle.

    Example: `lepton-edge compress model.keras --data calib.npz --eval test.npz --max-drop 1.0`
    """
    import dataclasses

    from lepton_edge import api, show
    from lepton_edge.demo import sample

    base = None
    if model is None:
        model, base = sample()
    opts.max_size, opts.max_latency, opts.to = max_size, max_latency, clikit.names(to)
    recipe = recipe_from(opts, base)
    if sparsity is not None:
        recipe = dataclasses.replace(recipe, prune={**(recipe.prune or {}), "sparsity": sparsity})
    run = api.compress(model, out, recipe, progress(opts))
    emit(run, opts, lambda: show.run(run, out))
    if run["picked"] is None:
        raise LimitError(
            f"no candidate meets the limits (see the reasons in the table and in {out / 'report.html'})",
            "loosen --max-drop, --max-size or --max-latency, or give more calibration samples",
        )


def _artifact(verb: str, model: Path, to: str | None, out: Path | None, opts: SimpleNamespace) -> None:
    from lepton_edge import api, show

    opts.to = None
    recipe = recipe_from(opts)
    if verb == "convert":
        if to is None:
            raise UsageError("no target format was given", "for example --to tflite")
        made = api.convert(model, to, out, recipe, progress(opts), ask=clikit.conversion(opts))
    else:
        made = api.quantize(model, to, out, recipe, progress(opts), max_drop=opts.max_drop)
    emit(made, opts, lambda: show.artifact(made))
    _check_drop(made, opts.max_drop)


def _check_drop(made: dict, limit: float | None) -> None:
    drop = made["drop_points"]
    if limit is not None:
        if drop is None:
            raise LimitError(
                "--max-drop was given, and there are no labels to measure it",
                "add labelled samples with --eval",
            )
        if drop > limit:
            raise LimitError(
                f"top-1 drops {drop:.2f} points, more than the {limit:g} allowed",
                f"{made['path']} was written",
            )


@command(app, DATA, QUANTIZE, DROP, TARGET)
def quantize(model: ModelArg, to: ToOne = None, out: OutFile = None, *, opts: SimpleNamespace) -> None:
    """Quantization, by default static int8 with calibration samples.

    The result is held against the source model in the runtime it ships for. With --max-drop and labelled samples it
    climbs a ladder of ever more careful ways until the limit is met, and tells what each of them costs. The schemes
    dynamic, w8, w4 and float16 need no samples: without --data they are checked on seeded random ones.

    Example: `lepton-edge quantize model.onnx --data calib.npz --eval test.npz -o model.int8.onnx`
    """
    _artifact("quantize", model, to, out, opts)


@command(app, SAMPLES, TRAIN, DROP)
def prune(
    model: ModelArg,
    sparsity: Annotated[
        float, typer.Option("--sparsity", min=0.0, max=0.99, help="Share of the weights to set to zero.")
    ] = 0.5,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs of fine-tuning.")] = 3,
    to: ToOne = None,
    out: OutFile = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Magnitude pruning of a Keras model, with fine-tuning.

    Example: `lepton-edge prune model.keras --train train.npz --eval test.npz --sparsity 0.75`
    """
    import dataclasses

    from lepton_edge import api, show

    opts.to = None
    recipe = recipe_from(opts)
    recipe = dataclasses.replace(recipe, prune={**(recipe.prune or {}), "sparsity": sparsity, "epochs": epochs})
    made = api.prune(model, to, out, recipe, progress(opts))
    emit(made, opts, lambda: show.artifact(made))
    _check_drop(made, opts.max_drop)


@command(app, CONVERT, SAMPLES, DROP)
def convert(model: ModelArg, to: ToOne = None, out: OutFile = None, *, opts: SimpleNamespace) -> None:
    """Convert between formats, and prove the result equal.

    Checked on your samples (--data), else on seeded random ones. A quantized model stays quantized.

    Example: `lepton-edge convert model.onnx --to tflite -o model.tflite`
    """
    _artifact("convert", model, to, out, opts)


@command(app, SAMPLES)
def evaluate(model: ModelArg, runtime: RuntimeOpt = None, *, opts: SimpleNamespace) -> None:
    """Top-1 and top-5 of a model on labelled samples.

    It runs in the runtime of its own format.

    Example: `lepton-edge evaluate model.int8.tflite --data test.npz`
    """
    from lepton_edge import api, show

    result = api.evaluate(model, recipe_from(opts), progress(opts), runtime=runtime)
    emit(result, opts, lambda: show.evaluation(result))


@command(app, SAMPLES, BENCH)
def bench(
    models: Annotated[
        list[Path],
        typer.Argument(help="Models of any formats; the first is what the others are compared with."),
    ],
    runtime: RuntimeOpt = None,
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
def compare(
    first: Annotated[Path, typer.Argument(help="The model to compare with.")],
    second: Annotated[Path, typer.Argument(help="The model to be compared.")],
    *,
    opts: SimpleNamespace,
) -> None:
    """Parity of two models of any formats.

    Max abs, cosine, SQNR and top-1 agreement of every output.

    Example: `lepton-edge compare model.keras model.int8.tflite --data test.npz`
    """
    from lepton_edge import api, show

    result = api.compare(first, second, recipe_from(opts), progress(opts))
    emit(result, opts, lambda: show.comparison(result))


@command(app)
def inspect(model: ModelArg, *, opts: SimpleNamespace) -> None:
    """What is in a model file.

    Inputs and outputs, parameters, MACs, operators, size by layer, versions.

    Example: `lepton-edge inspect model.tflite`
    """
    from lepton_edge import api, show

    result = api.inspect(model, progress(opts))
    emit(result, opts, lambda: show.inspection(result))


@command(app, ANALYZE)
def analyze(
    model: ModelArg,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder to write.")] = Path(
        "lepton-analysis"
    ),
    *,
    opts: SimpleNamespace,
) -> None:
    """Which layers and activations make the noise of int8, and what to do.

    The SQNR at the outputs with one layer quantized, with its weights or its activations only, and with all up to it.
    A table, worst first, a plot, JSON, CSV and advice.

    Example: `lepton-edge analyze model.onnx --data calib.npz`
    """
    from lepton_edge import api, show

    samples = opts.samples or 16
    opts.samples = None
    result = api.analyze(model, out, recipe_from(opts), progress(opts), samples=samples)
    emit(result, opts, lambda: show.analysis(result, out))


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
def check(
    model: Annotated[Path, typer.Argument(help="A .tflite or .onnx file.")],
    runtime: Annotated[
        list[str],
        typer.Option("--runtime", metavar="NAME==VERSION", help="As tflite-runtime==2.14; give it once a runtime."),
    ],
    *,
    opts: SimpleNamespace,
) -> None:
    """Will the file load in that release of that runtime?

    tflite-runtime, litert, onnxruntime, openvino (ONNX files), tflite-micro; and how much of it ethos-u==u55, xnnpack
    and gpu-delegate take. From tables, without the runtimes. Exit code 4 where it does not load.

    Example: `lepton-edge check model.tflite --runtime tflite-runtime==2.14 --runtime litert==2.3`
    """
    from lepton_edge import api, show

    result = api.check(model, runtime)
    emit(result, opts, lambda: show.verdicts(result))
    bad = [f"{r['runtime']} {r['release']}" for r in result if not r["loads"]]
    if bad:
        raise LimitError(
            f"{model.name} does not load in {', '.join(bad)}", "see the reasons above; 'convert --for' helps"
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


@command(app, name="list")
def list_parts(*, opts: SimpleNamespace) -> None:
    """Formats, steps and runtimes, and what is installed.

    Example: `lepton-edge list`
    """
    from lepton_edge import api, show

    found = api.parts()
    emit(found, opts, lambda: show.parts(found))


@command(app)
def doctor(*, opts: SimpleNamespace) -> None:
    """What works here, what to install, CPU features for int8.

    Example: `lepton-edge doctor`
    """
    from lepton_edge import show
    from lepton_edge.doctor import doctor_checks

    checks = doctor_checks()
    emit(checks, opts, lambda: show.checks(checks))


@command(devices_app, name="list")
def devices_list(*, opts: SimpleNamespace) -> None:
    """The known devices.

    Example: `lepton-edge devices list`
    """
    from lepton_edge import show
    from lepton_edge.device import load_devices

    found = [d.to_dict() for d in load_devices().values()]
    emit(found, opts, lambda: show.devices(found))


@command(devices_app, name="add")
def devices_add(
    address: Annotated[str, typer.Argument(help="user@host[:port], or a Host of ~/.ssh/config; with adb a serial.")],
    name: Annotated[str | None, typer.Option("--name", help="What to call it (its host name).")] = None,
    transport: Annotated[str, typer.Option("--transport", help="How it is reached: ssh or adb.")] = "ssh",
    python: Annotated[str | None, typer.Option("--python", metavar="PATH", help="The interpreter there.")] = None,
    temp: Annotated[str | None, typer.Option("--temp", metavar="DIR", help="Where files may lie there.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Ask it again, and write its file anew.")] = False,
    *,
    opts: SimpleNamespace,
) -> None:
    """Reach a board, ask what it is, and keep that in a file.

    It needs SSH and Python 3.9 or later. Host keys are checked as your SSH settings say.

    Example: `lepton-edge devices add pi@raspberrypi.local --name pi`
    """
    from lepton_edge import probe, show

    reach = {key: value for key, value in (("python", python), ("temp", temp)) if value}
    added = probe.add(address, name, transport, reach, replace=replace)
    emit(added, opts, lambda: show.added(added))


@command(devices_app, name="probe")
def devices_probe(
    name: Annotated[str, typer.Argument(help="A name from 'devices list'.")], *, opts: SimpleNamespace
) -> None:
    """Ask a device what it is now: processor, memory, temperature, runtimes.

    Example: `lepton-edge devices probe pi`
    """
    from lepton_edge import probe, show

    found = probe.probe(name)
    emit(found, opts, lambda: show.probed(found))


@command(devices_app, name="remove")
def devices_remove(
    name: Annotated[str, typer.Argument(help="A device that you added.")], *, opts: SimpleNamespace
) -> None:
    """Forget a device that was added.

    Example: `lepton-edge devices remove pi`
    """
    from lepton_edge import probe, show

    files = {"removed": str(probe.remove(name))}
    emit(files, opts, lambda: show.files(files))


@command(devices_app, name="show")
def devices_show(
    name: Annotated[str, typer.Argument(help="A name from 'devices list'.")], *, opts: SimpleNamespace
) -> None:
    """One device in full.

    Example: `lepton-edge devices show raspberrypi4`
    """
    from lepton_edge import show
    from lepton_edge.device import get_device

    found = get_device(name).to_dict()
    emit(found, opts, lambda: show.device(found))


@command(devices_app, name="wheels")
def devices_wheels(
    name: Annotated[str, typer.Argument(help="A name from 'devices list', or a TOML file.")],
    runtime: Annotated[str, typer.Option("--runtime", metavar="NAME", help="The runtime to take along.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where to put the wheels.")],
    python: Annotated[str, typer.Option("--python", metavar="X.Y", help="The device's Python.")] = "3.11",
    glibc: Annotated[str, typer.Option("--glibc", metavar="X.Y", help="The device's C library.")] = "2.36",
    *,
    opts: SimpleNamespace,
) -> None:
    """Fetch the wheels of a runtime for a device that has no network.

    Example: `lepton-edge devices wheels raspberrypi5 --runtime litert -o wheels`
    """
    from lepton_edge import registry, wheelhouse
    from lepton_edge.device import get_device

    made = wheelhouse.for_device(get_device(name), registry.runtime(runtime), out, python=python, glibc=glibc)
    emit([str(path) for path in made], opts, lambda: typer.echo("\n".join(map(str, made))))
