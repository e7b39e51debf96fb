"""OpenVINO IR with its weights stored in half precision; arithmetic stays as it was."""

from __future__ import annotations

REQUIRES = ("openvino>=2026",)


def run(src: str, dst: str) -> dict:
    """Write `dst` (.xml and .bin) from the IR `src`: float32 constants become float16, converted back when loaded.

    Raises LeptonError for an IR that cannot be read.
    """
    import openvino as ov

    from lepton_edge.errors import LeptonError
    from lepton_edge.openvino_ir import ir_aside, reason

    try:
        model = ov.Core().read_model(src)
        with ir_aside(dst) as made:
            ov.save_model(model, made, compress_to_fp16=True)
    except RuntimeError as error:
        raise LeptonError(f"OpenVINO cannot read '{src}': {reason(error)}", "convert the model again") from error
    return {}
