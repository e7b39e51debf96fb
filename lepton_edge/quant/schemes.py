"""The schemes of quantization: what each does, whether it needs samples, and what no runtime of a format can run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_edge.errors import LeptonError, UsageError, did_you_mean

FORMATS = ("onnx", "tflite", "openvino")


@dataclass(frozen=True)
class Scheme:
    """`label` stands in names of artefacts; `data`: it needs calibration samples; `refused`: reasons by format."""

    summary: str
    label: str
    data: bool = False
    refused: Mapping[str, str] | None = None


SCHEMES = {
    "w8a8": Scheme("int8 weights and activations, static", "int8", data=True),
    "w8a16": Scheme("int8 weights, int16 activations, static", "w8a16", data=True),
    "dynamic": Scheme("int8 weights, activations rounded to 8 bits while it runs", "dynamic"),
    "w8": Scheme("int8 weights, activations float", "w8"),
    "w4": Scheme("int4 weights in blocks, activations float", "w4"),
    "float16": Scheme("weights stored in half precision, arithmetic float32", "float16"),
    "bfloat16": Scheme(
        "arithmetic in bfloat16",
        "bfloat16",
        refused={
            "onnx": "ONNX Runtime's CPU provider has no bfloat16 kernels (Conv, MatMul)",
            "tflite": "LiteRT's CPU kernels (CONV_2D, FULLY_CONNECTED) take no bfloat16",
            "openvino": "in OpenVINO bfloat16 is chosen when a model is loaded (INFERENCE_PRECISION_HINT=bf16), "
            "so the float file is the bfloat16 file",
        },
    ),
}


def named(options: Mapping[str, Any]) -> str:
    """The scheme that options of the quantize pass ask for. Raises UsageError for one that is not known."""
    name = str(options.get("scheme", "w8a8"))
    if name not in SCHEMES:
        raise UsageError(f"unknown scheme '{name}'", did_you_mean(name, list(SCHEMES)))
    return name


def label(options: Mapping[str, Any]) -> str:
    """The word for a model quantized with these options, as in `model.int8.tflite`."""
    return SCHEMES[named(options)].label


def needs_data(options: Mapping[str, Any]) -> bool:
    """Whether the pass cannot do without calibration samples."""
    return SCHEMES[named(options)].data


def verb(options: Mapping[str, Any]) -> str:
    """The verb of the pass that makes it: float16 is storage, applied to the finished file."""
    return "halve" if named(options) == "float16" else "quantize"


def require(options: Mapping[str, Any], format_: str) -> None:
    """Raise LeptonError, with the reason, for a scheme that cannot be had in a format."""
    name = named(options)
    if reason := (SCHEMES[name].refused or {}).get(format_):
        raise LeptonError(
            f"scheme {name} is not possible in {format_}: {reason}", "take float16, or w8 for smaller weights"
        )


def only_static(name: str, step: str) -> None:
    """Raise LeptonError in a pass that has no scheme but w8a8."""
    if name != "w8a8":
        raise LeptonError(
            f"{step} has no scheme {name}: only w8a8 is made on this format",
            "convert the model to ONNX first, and quantize that",
        )
