"""What a conversion is asked for besides its target: sizes, batch, fixed values, number type, runtime, trust."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_edge import shapes
from lepton_edge.errors import LeptonError, UsageError

DTYPES = ("float32", "float16", "sparse")


@dataclass(frozen=True)
class Conversion:
    """``shapes`` ("x=1,3,224,224;y=1,10") sets free sizes, ``values`` ("sr=16000;...") makes inputs constants.

    ``batch`` sets every free first axis (0 leaves it free; None: 1). ``dtype`` is how weights are stored ("sparse":
    float32 without zeros).
    ``runtime`` ("tflite-runtime==2.14") is where the file has to load. ``trust`` lets the source run code.
    """

    shapes: str = ""
    batch: int | None = None
    values: str = ""
    dtype: str = "float32"
    runtime: str = ""
    trust: bool = False

    def check(self, target: str) -> None:
        """Raise UsageError for what cannot be asked of ``target``."""
        if self.dtype not in DTYPES:
            raise UsageError(f"unknown number type '{self.dtype}'", f"known: {', '.join(DTYPES)}")
        if self.dtype == "sparse" and target != "tflite":
            raise UsageError("weights are stored sparse in TFLite files only", "convert --to tflite")
        if self.batch == 0 and target == "tflite":
            raise UsageError("a TFLite file has a fixed batch", "give --batch 1, or the batch it has to have")


def asked_sizes(ask: Conversion, inputs: Sequence[Mapping[str, Any]]) -> list[dict]:
    """The specs of the inputs with the sizes that ``ask`` gives to their free dimensions.

    Raises LeptonError for a name that is no input and for a size that is not free.
    """
    given = shapes.parse(ask.shapes, [spec["name"] for spec in inputs])
    found = []
    for spec in inputs:
        if spec["shape"] is None:
            if spec["name"] not in given:
                raise LeptonError(
                    f"the file does not say the sizes of input '{spec['name']}'",
                    f"give them: --input-shape {spec['name']}=1,3,224,224",
                )
            spec = {**spec, "shape": [None] * len(given[spec["name"]])}
        sizes = shapes.set_free(spec["name"], spec["shape"], given.get(spec["name"]))
        if ask.batch and sizes and sizes[0] is None:
            sizes[0] = ask.batch
        found.append({**spec, "shape": sizes})
    return found


def ranked(ask: Conversion, inputs: Sequence[Mapping[str, Any]]) -> list[dict]:
    """The specs of inputs whose number of axes only ``ask`` tells, with that many free ones."""
    given = shapes.parse(ask.shapes, [spec["name"] for spec in inputs])
    return [
        {**spec, "shape": [None] * len(given[spec["name"]])}
        if spec["shape"] is None and spec["name"] in given
        else {**spec}
        for spec in inputs
    ]


def fixed_values(ask: Conversion, inputs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The numbers that ``ask`` fixes inputs to, by name. Raises UsageError for what is no number or no input."""
    return parse_values(ask.values, [spec["name"] for spec in inputs])


def parse_values(text: str, names: Sequence[str]) -> dict[str, float]:
    """``"sr=16000;k=1"`` as numbers by input name. Raises UsageError for anything else."""
    found = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, number = part.rpartition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError as error:
            raise UsageError(f"--fix {part}: '{number}' is no number", "write it as name=16000") from error
        if name.strip() not in names:
            raise UsageError(f"--fix {part}: '{name}' is no input of the model", f"inputs: {', '.join(names)}")
    return found


def step_options(ask: Conversion) -> dict[str, Any]:
    """The options of conversion steps that follow from ``ask``; each step takes those it knows."""
    options: dict[str, Any] = {}
    if ask.batch == 0:
        options["fixed_batch"] = 0
    if ask.values:
        options["input_values"] = ask.values
    if ask.trust:
        options["trust"] = True
    return options
