"""ONNX brought to the opset and IR version that an older runtime takes."""

from __future__ import annotations

REQUIRES = ("onnx>=1.17",)


def run(src: str, dst: str, *, limits: str = "") -> dict:
    """Write `dst` from `src`; `limits` is JSON: {"opset": highest, "ir": highest}.

    Raises LeptonError when an operator has no form at that opset, naming it.
    """
    import json
    import tempfile
    from pathlib import Path

    import onnx
    from onnx import version_converter

    from lepton_edge.errors import LeptonError, first_line
    from lepton_edge.tflite_writer.load import opset

    wanted, model, notes = json.loads(limits or "{}"), onnx.load(src), []
    now = opset(model)
    if wanted.get("opset", now) < now:
        _drop_defaults(model.graph)
        try:
            model = version_converter.convert_version(model, wanted["opset"])
            onnx.checker.check_model(model)
        except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
            raise LeptonError(
                f"opset {now} cannot be brought down to {wanted['opset']}: {first_line(error)}",
                "export the model at an older opset, or use a newer release of the runtime",
            ) from error
        notes.append(f"opset {now} to {wanted['opset']}")
    if wanted.get("ir", model.ir_version) < model.ir_version:
        notes.append(f"IR version {model.ir_version} to {wanted['ir']}")
        model.ir_version = wanted["ir"]
    with tempfile.TemporaryDirectory(dir=Path(dst).parent, prefix=".onnx-") as folder:
        made = Path(folder) / "model.onnx"
        onnx.save(model, str(made))
        made.replace(dst)
    return {"notes": notes}


def _drop_defaults(graph) -> None:
    """Attributes that say what older forms of the operator do anyway: the converter of onnx stumbles over them."""
    for node in graph.node:
        for attribute in list(node.attribute):
            if attribute.name in ("noop_with_empty_axes", "allowzero") and attribute.i == 0:
                node.attribute.remove(attribute)
