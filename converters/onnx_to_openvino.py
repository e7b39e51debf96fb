"""ONNX to OpenVINO IR (float, or int8 when the source holds QDQ pairs)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError

REQUIRES = ("openvino>=2026",)


def run(src: str, dst: str, *, fixed_batch: int = 1, compress_to_fp16: bool = False) -> dict:
    """Write `dst` (.xml) and its .bin beside it. Names of inputs and outputs are kept.

    A free leading dimension of an input becomes `fixed_batch` (0 leaves it free). Quantized weights stay
    int8. Raises LeptonError for a model that OpenVINO cannot read or reshape.
    """
    import openvino as ov

    name = Path(src).name
    core = ov.Core()
    try:
        model = core.read_model(src)
    except RuntimeError as error:
        raise LeptonError(
            f"{name}: OpenVINO cannot read this ONNX model: {_reason(error)}",
            hint="check that the file is complete and that OpenVINO supports its operators",
        ) from error
    fixed = _fix_batch(model, fixed_batch, name)
    save_ir(model, dst, compress_to_fp16=compress_to_fp16)
    return {
        "inputs": [_port(p) for p in model.inputs],
        "outputs": [_port(p) for p in model.outputs],
        "notes": [f"batch fixed to {fixed_batch}"] if fixed else [],
    }


def save_ir(model: Any, dst: str, *, compress_to_fp16: bool = False) -> None:
    """Write an `ov.Model` aside and move both files into place, the .xml last: half an IR is never seen."""
    import openvino as ov

    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ir-") as folder:
        xml = Path(folder) / target.name
        ov.save_model(model, xml, compress_to_fp16=compress_to_fp16)
        xml.with_suffix(".bin").replace(target.with_suffix(".bin"))
        xml.replace(target)


def _fix_batch(model: Any, batch: int, name: str) -> bool:
    """Set free leading dimensions to `batch`; whether there were any."""
    shapes = {}
    for port in model.inputs:
        shape = port.get_partial_shape()
        if batch > 0 and shape.rank.is_static and len(shape) > 0 and shape[0].is_dynamic:
            shape[0] = batch
            shapes[port] = shape
    if not shapes:
        return False
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise LeptonError(
            f"{name}: cannot fix its batch dimension to {batch}: {_reason(error)}",
            hint="set fixed_batch to 0 to leave it free, or to the size the model expects",
        ) from error
    return True


def _port(port: Any) -> dict[str, Any]:
    """An OpenVINO port keeps its ONNX tensor name among its names."""
    name = port.get_any_name() if port.names else port.get_node().get_friendly_name()
    return {"name": name, "source": name, "perm": None}


def _reason(error: Exception) -> str:
    """The last telling line of OpenVINO's multi-line errors."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(("Exception from", "Check '")) or len(lines) == 1]
    return (plain or lines or [type(error).__name__])[-1][:300]
