"""NNCF post-training quantization, on the ONNX file and on OpenVINO's IR."""

from __future__ import annotations

from pathlib import Path

from _shared import Samples, main, onnx_inputs

ENVIRONMENT = "nncf"
METHODS = {"onnx": "NNCF (ONNX back end)", "openvino": "NNCF (OpenVINO back end)"}
CALIBRATES = ("onnx", "openvino")


def run(args) -> dict:
    """Write model.onnx or model.xml: the default preset, or what NNCF advises for transformers."""
    import nncf

    samples = Samples(args.calib, onnx_inputs(args.model), args.samples)
    options = {
        "subset_size": len(samples),
        "model_type": nncf.ModelType.TRANSFORMER if args.transformer else None,
    }
    if args.method == "onnx":
        import onnx

        made = nncf.quantize(onnx.load(args.model), nncf.Dataset(samples), **options)
        out = Path(args.out) / "model.onnx"
        onnx.save(made, str(out))
        return {"artefacts": {"onnxruntime": out}}
    import openvino as ov

    made = nncf.quantize(ov.Core().read_model(args.model), nncf.Dataset(samples), **options)
    out = Path(args.out) / "model.xml"
    ov.save_model(made, out, compress_to_fp16=False)
    return {"artefacts": {"openvino": out}}


if __name__ == "__main__":
    main(METHODS, ("nncf", "openvino", "onnx", "numpy"), run)
