"""The command line: parse, call one function of api.py, print. Nothing else happens here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from lepton_edge import __version__, cli_devices, cli_measure, cli_ship, cli_tune, clikit
from lepton_edge.cli_options import (
    ANALYZE,
    BENCH,
    CONVERT,
    DATA,
    DROP,
    QUANTIZE,
    RUNTIME,
    SAMPLES,
    TARGET,
    TRAIN,
    TUNING,
)
from lepton_edge.clikit import check_drop, command, emit, progress, recipe_from
from lepton_edge.errors import LimitError, UsageError

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
app.add_typer(cli_measure.app)
app.add_typer(cli_devices.app, name="devices")
app.add_typer(cli_ship.app)
app.add_typer(cli_tune.app)

ModelArg = Annotated[Path, typer.Argument(help="A model: .keras, .h5, SavedModel folder, .onnx, .pt2, .pt or .tflite.")]
OutFile = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write the model.")]
ToOne = Annotated[
    str | None, typer.Option("--to", metavar="FORMAT", help="Target format: tflite, onnx, openvino or ncnn.")
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
        typer.Option(
            "--prune", min=0.0, max=0.99, metavar="SPARSITY", help="Also prune: Keras with --train, others by samples."
        ),
    ] = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Float and int8 in every format, each verified and timed.

    The whole road: it picks one candidate, says why, and writes a report and a deployable bundle. With --recipe
    smallest, fastest or balanced it tries pruned and, given --train, trained models too.

    Example: `lepton-edge compress model.keras --data calib.npz --eval test.npz --max-drop 1.0`
    """
    import dataclasses

    from lepton_edge import api, show
    from lepton_edge.demo import sample

    base = None
    if model is None:
        model, base = sample()
    opts.max_size, opts.max_latency, opts.to = max_size, max_latency, clikit.names(to)
    recipe = recipe_from(opts, base, presets=True)
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
    check_drop(made, opts.max_drop)


@command(app, DATA, QUANTIZE, DROP, TARGET)
def quantize(model: ModelArg, to: ToOne = None, out: OutFile = None, *, opts: SimpleNamespace) -> None:
    """Quantization, by default static int8 with calibration samples.

    The result is held against the source model in the runtime it ships for. With --max-drop and labelled samples it
    climbs a ladder of ever more careful ways until the limit is met, and tells what each of them costs. The schemes
    dynamic, w8, w4 and float16 need no samples: without --data they are checked on seeded random ones.

    Example: `lepton-edge quantize model.onnx --data calib.npz --eval test.npz -o model.int8.onnx`
    """
    _artifact("quantize", model, to, out, opts)


@command(app, DATA, TRAIN, TUNING, DROP, TARGET)
def prune(
    model: ModelArg,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            metavar="NAME",
            help="channels, depth (ONNX form), weights, N:M as in 2:4, HxW blocks (Keras).",
        ),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option("--macs", min=0.0, max=1.0, help="Channels: share of the multiply-accumulates that stays (0.8)."),
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            "--latency",
            metavar="SHARE",
            help="Channels, instead of --macs: at most this share of the model's own latency, measured on --device.",
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option("--sparsity", min=0.0, max=0.99, help="Weights: share to set to zero (Keras models: 0.5)."),
    ] = None,
    round_to: Annotated[
        int | None, typer.Option("--round-to", min=1, help="Channels: layers keep a multiple of it (8).")
    ] = None,
    importance: Annotated[
        str | None,
        typer.Option(
            "--importance", metavar="NAME", help="reconstruction, activation, magnitude or taylor (channels)."
        ),
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", min=1, help="Channels, weights: prune and train in so many parts (1).")
    ] = None,
    to: ToOne = None,
    out: OutFile = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Remove channels, or set weights to zero.

    Keras models are fine-tuned meanwhile, on labelled samples (--train), and go on after an interruption. Others are
    pruned on their ONNX form: what is left is fitted to the original's answers on calibration samples (--data). With
    --epochs it is also trained towards them, on all samples of --train, labelled or not, or of --data (needs PyTorch).

    Example: `lepton-edge prune model.onnx --data calib.npz --macs 0.8`
    · `lepton-edge prune model.onnx --data calib.npz --latency 0.7 --to tflite --device pi`
    · `lepton-edge prune model.onnx --train train.npz --eval test.npz --macs 0.5 --epochs 60`
    """
    import dataclasses

    from lepton_edge import api, show

    opts.to = None
    recipe = recipe_from(opts)
    given = {"method": method, "macs": macs, "sparsity": sparsity, "round_to": round_to, **clikit.tuning(opts)}
    given |= {"importance": importance, "rounds": rounds}
    chosen = {**(recipe.prune or {}), **{name: value for name, value in given.items() if value is not None}}
    made = api.prune(model, to, out, dataclasses.replace(recipe, prune=chosen), progress(opts), latency=latency)
    emit(made, opts, lambda: show.artifact(made))
    check_drop(made, opts.max_drop)


@command(app, DATA, DROP)
def factorize(
    model: ModelArg,
    macs: Annotated[
        float | None,
        typer.Option("--macs", min=0.0, max=1.0, help="Share of the multiply-accumulates that stays (0.8)."),
    ] = None,
    round_to: Annotated[int | None, typer.Option("--round-to", min=1, help="Ranks are a multiple of it (8).")] = None,
    to: ToOne = None,
    out: OutFile = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Put two thin products in the place of large dense layers.

    Only where that is measured faster. On the ONNX form, without training: ranks go where outputs on calibration
    samples (--data) miss least, and what is left is fitted to the original's answers.

    Example: `lepton-edge factorize model.onnx --data calib.npz --eval test.npz --macs 0.75`
    """
    import dataclasses

    from lepton_edge import api, show

    opts.to = None
    recipe = recipe_from(opts)
    given = {name: value for name, value in {"macs": macs, "round_to": round_to}.items() if value is not None}
    chosen = {**(recipe.factorize or {}), **given}
    made = api.factorize(model, to, out, dataclasses.replace(recipe, factorize=chosen), progress(opts))
    emit(made, opts, lambda: show.artifact(made))
    check_drop(made, opts.max_drop)


def _trained(verb: str, own: dict, model: Path, to: str | None, out: Path | None, opts: SimpleNamespace) -> None:
    import dataclasses

    from lepton_edge import api, show

    opts.to = None
    recipe = recipe_from(opts)
    given = {name: value for name, value in (own | clikit.tuning(opts)).items() if value is not None}
    chosen = {**(getattr(recipe, verb) or {}), **given}
    made = api.train(verb, model, to, out, dataclasses.replace(recipe, **{verb: chosen}), progress(opts))
    emit(made, opts, lambda: show.artifact(made))
    check_drop(made, opts.max_drop)


@command(app, DATA, TRAIN, TUNING, DROP)
def cluster(
    model: ModelArg,
    clusters: Annotated[
        int | None, typer.Option("--clusters", min=2, max=64, help="Different values of a layer's weights (16).")
    ] = None,
    to: ToOne = None,
    out: OutFile = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Give a Keras model's weights few different values, so that its file zips well.

    The values are integers of the int8 grid and stay what they are when the result is quantized; zeros of a pruned
    model stay zeros. It is fine-tuned meanwhile (--train), and goes on after an interruption.

    Example: `lepton-edge cluster model.keras --train train.npz --eval test.npz -o model.clustered.keras`
    """
    _trained("cluster", {"clusters": clusters}, model, to, out, opts)


@command(app, DATA, TRAIN, TUNING, DROP)
def qat(
    model: ModelArg,
    bits: Annotated[int | None, typer.Option("--bits", min=2, max=8, help="Of the weights: 8, or 4 (8).")] = None,
    to: ToOne = None,
    out: OutFile = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Train a model for quantization: its weights end on the grid that quantize gives them.

    Keras models as such, with labelled samples (--train); zeros of a pruned one and the values of a clustered one stay.
    Others on their ONNX form, from what quantize makes of it and towards the float model's answers, which needs no
    labels (--data). Quantize the result (for 4 bits with weight_bits = 4 in the recipe's [quantize] section). It goes
    on after an interruption.

    Example: `lepton-edge qat model.keras --train train.npz --eval test.npz -o model.qat.keras`
    """
    _trained("qat", {"bits": bits}, model, to, out, opts)


@command(app, CONVERT, SAMPLES, DROP)
def convert(model: ModelArg, to: ToOne = None, out: OutFile = None, *, opts: SimpleNamespace) -> None:
    """Convert between formats, and prove the result equal.

    Checked on your samples (--data), else on seeded random ones. A quantized model stays quantized.

    Example: `lepton-edge convert model.onnx --to tflite -o model.tflite`
    """
    _artifact("convert", model, to, out, opts)


@command(app, SAMPLES)
def evaluate(model: ModelArg, runtime: RUNTIME = None, *, opts: SimpleNamespace) -> None:
    """Top-1 and top-5 of a model on labelled samples.

    It runs in the runtime of its own format.

    Example: `lepton-edge evaluate model.int8.tflite --data test.npz`
    """
    from lepton_edge import api, show

    result = api.evaluate(model, recipe_from(opts), progress(opts), runtime=runtime)
    emit(result, opts, lambda: show.evaluation(result))


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
