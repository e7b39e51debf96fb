"""The command that trains a compressed model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import typer

from lepton_edge.cli_options import DATA, DROP, TRAIN, TUNING
from lepton_edge.clikit import check_drop, command, emit, progress, recipe_from, tuning

app = typer.Typer()


@command(app, DATA, TRAIN, TUNING, DROP)
def finetune(
    model: Annotated[Path, typer.Argument(help="The compressed float model.")],
    teacher: Annotated[Path, typer.Option("--teacher", metavar="MODEL", help="The model that it was made of.")],
    augment: Annotated[
        str | None,
        typer.Option("--augment", metavar="LIST", help="Change samples while training: mix, flip, shift (none)."),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", metavar="FORMAT", help="Target format (onnx).")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to write the model.")] = None,
    *,
    opts: SimpleNamespace,
) -> None:
    """Train a compressed model towards the answers of the original.

    On its ONNX form, with samples that need no labels (--data); where they have some (--train), those are learned too.
    Weights that were pruned stay zero. The best weights on held-out samples are kept; an interrupted run is taken up
    again. Needs PyTorch, and uses its GPU where there is one.

    Example: `lepton-edge finetune pruned.onnx --teacher model.onnx --data samples.npz --eval test.npz`
    """
    from lepton_edge import api, show

    opts.to = None
    recipe = recipe_from(opts)
    given = {"augment": augment, **tuning(opts)}
    chosen = {**recipe.finetune, **{name: value for name, value in given.items() if value is not None}}
    made = api.finetune(model, teacher, to, out, dataclasses.replace(recipe, finetune=chosen), progress(opts))
    emit(made, opts, lambda: show.artifact(made))
    check_drop(made, opts.max_drop)
