"""Groups of options that commands share: name -> (annotation, default). ``clikit.command`` gives them to a command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Group = dict[str, tuple[Any, Any]]

OUTPUT: Group = {
    "as_json": (
        Annotated[bool, typer.Option("--json", help="Print one JSON document, and no progress.")],
        False,
    ),
    "verbose": (
        Annotated[bool, typer.Option("--verbose", "-v", help="Also print the workers' logs and tracebacks.")],
        False,
    ),
    "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no table.")], False),
}
DATA: Group = {
    "data": (
        Annotated[
            str | None,
            typer.Option("--data", metavar="PATH", help="Calibration samples: .npz, .npy or a folder of images."),
        ],
        None,
    ),
    "evaluation": (
        Annotated[
            str | None,
            typer.Option(
                "--eval",
                metavar="PATH",
                help="Samples to measure accuracy on, with labels; unseen by the calibration.",
            ),
        ],
        None,
    ),
    "preprocess": (
        Annotated[
            str | None,
            typer.Option(
                "--preprocess",
                metavar="PRESET",
                help="imagenet, imagenet-tf or none; finer control in a recipe.",
            ),
        ],
        None,
    ),
    "samples": (
        Annotated[int | None, typer.Option("--samples", min=1, help="Calibration samples at most (300).")],
        None,
    ),
    "recipe": (
        Annotated[
            Path | None,
            typer.Option(
                "--recipe",
                metavar="FILE",
                help="A TOML recipe; options given here win. For compress also smallest, fastest or balanced.",
            ),
        ],
        None,
    ),
    "seed": (
        Annotated[int | None, typer.Option("--seed", min=0, help="Seed of everything drawn at random (0).")],
        None,
    ),
}
#: For the commands that calibrate nothing: the same options, told by what they do there.
SAMPLES: Group = {k: v for k, v in DATA.items() if k != "samples"} | {
    "data": (
        Annotated[
            str | None,
            typer.Option("--data", metavar="PATH", help="Samples to run it on: .npz, .npy or a folder of images."),
        ],
        None,
    ),
    "evaluation": (
        Annotated[
            str | None,
            typer.Option("--eval", metavar="PATH", help="The same, under the name it has elsewhere; wins over --data."),
        ],
        None,
    ),
    "evaluation_samples": (
        Annotated[int | None, typer.Option("--samples", min=1, help="Samples to run it on at most (5000).")],
        None,
    ),
}
#: For the command that measures no accuracy.
ANALYZE: Group = {k: v for k, v in DATA.items() if k != "evaluation"} | {
    "samples": (
        Annotated[int | None, typer.Option("--samples", min=1, help="Samples to measure the noise on (16).")],
        None,
    ),
}
TRAIN: Group = {
    "train": (
        Annotated[
            str | None,
            typer.Option(
                "--train", metavar="PATH", help="Samples to train on, labelled for Keras models; also data.py:make."
            ),
        ],
        None,
    ),
}
#: How models are trained; the words are those of the passes' options, the figures what Keras passes do.
TUNING: Group = {
    "epochs": (
        Annotated[int | None, typer.Option("--epochs", min=1, help="Epochs of training (Keras models: 3).")],
        None,
    ),
    "batch_size": (Annotated[int | None, typer.Option("--batch-size", min=1, help="Samples of an update (32).")], None),
    "learning_rate": (
        Annotated[
            float | None,
            typer.Option(
                "--learning-rate",
                help="Adam's, at the start (Keras models: 1e-4; others: share of a weight's size, 0.01; qat: 0.001).",
            ),
        ],
        None,
    ),
    "patience": (
        Annotated[
            int | None,
            typer.Option("--patience", min=0, help="Epochs without a better held-out loss before it stops (0: never)."),
        ],
        None,
    ),
    "distil": (
        Annotated[
            float | None,
            typer.Option(
                "--distil", min=0.0, max=1.0, help="Share of the loss towards the original's answers; 1: no labels."
            ),
        ],
        None,
    ),
}
BENCH: Group = {
    "seconds": (
        Annotated[float | None, typer.Option("--seconds", min=0.1, help="Seconds of measuring a model (3).")],
        None,
    ),
    "threads": (
        Annotated[
            int | None,
            typer.Option("--threads", min=1, help="Threads a runtime may use (1, or what the device says)."),
        ],
        None,
    ),
    "cpus": (
        Annotated[
            str | None, typer.Option("--cpus", metavar="LIST", help="Processors to keep to while measuring, as 0-3.")
        ],
        None,
    ),
    "device": (
        Annotated[str | None, typer.Option("--device", metavar="NAME", help="See 'lepton-edge devices list'.")],
        None,
    ),
}
TARGET: Group = {"device": BENCH["device"]}
DROP: Group = {
    "max_drop": (
        Annotated[
            float | None,
            typer.Option("--max-drop", min=0.0, help="Points of top-1 that may be lost; exit code 4 if more."),
        ],
        None,
    ),
}
QUANTIZE: Group = {
    "scheme": (
        Annotated[
            str | None,
            typer.Option(
                "--scheme", metavar="NAME", help="w8a8 (default), w8a16, dynamic, w8, w4, float16 or bfloat16."
            ),
        ],
        None,
    ),
    "preset": (
        Annotated[
            str | None,
            typer.Option("--preset", metavar="NAME", help="fast (no learned rounding), default or best."),
        ],
        None,
    ),
    "ranges": (
        Annotated[
            str | None,
            typer.Option("--ranges", metavar="METHOD", help="auto, minmax, average, percentile, mse or entropy."),
        ],
        None,
    ),
    "integer": (
        Annotated[
            bool,
            typer.Option(
                "--integer", help="Nothing in float: for NPUs, the Edge TPU and microcontrollers (w8a8, w8a16)."
            ),
        ],
        False,
    ),
    "memory": (
        Annotated[
            str | None,
            typer.Option("--memory", metavar="SIZE", help="What calibration may hold at once (1GB)."),
        ],
        None,
    ),
}
CONVERT: Group = {
    "input_shape": (
        Annotated[
            list[str] | None,
            typer.Option("--input-shape", metavar="NAME=SIZES", help="Sizes of free axes, as x=1,3,224,224."),
        ],
        None,
    ),
    "batch": (
        Annotated[int | None, typer.Option("--batch", min=0, help="The batch to fix (1); 0 leaves it free.")],
        None,
    ),
    "fix": (
        Annotated[
            list[str] | None,
            typer.Option("--fix", metavar="NAME=VALUE", help="Make an input a constant, as sr=16000."),
        ],
        None,
    ),
    "dtype": (
        Annotated[str, typer.Option("--dtype", help="How weights are stored: float32, float16, sparse (TFLite).")],
        "float32",
    ),
    "trust": (
        Annotated[
            bool,
            typer.Option("--trust", help="Let the file run code that it carries (Lambda layers, custom operators)."),
        ],
        False,
    ),
    "runtime_release": (
        Annotated[
            str,
            typer.Option("--for", metavar="NAME==VERSION", help="Where it has to load, as tflite-runtime==2.14."),
        ],
        "",
    ),
}

RUNTIME = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME[:DEVICE]",
        help="Another runtime than the format's own, or device: NAME or NAME:DEVICE.",
    ),
]
