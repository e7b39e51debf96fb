"""ai-edge-quantizer, static w8a8 with its default recipe, on the float TFLite file that our converter writes."""

from __future__ import annotations

from pathlib import Path

from _shared import Samples, main

ENVIRONMENT = "ai_edge_quantizer"
METHODS = {"static": "ai-edge-quantizer static_wi8_ai8"}
CALIBRATES = ("static",)
SOURCE = "tflite"


def run(args) -> dict:
    """Write model.tflite. The keys of the samples are those of the file's signature."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    signatures = Interpreter(model_path=args.model).get_signature_list()
    key, inputs = next((key, list(s["inputs"])) for key, s in signatures.items())
    samples = Samples(args.calib, inputs, args.samples)
    worker = quantizer.Quantizer(args.model, recipe.static_wi8_ai8())
    calibrated = worker.calibrate({key: samples})
    out = Path(args.out) / "model.tflite"
    worker.quantize(calibrated).export_model(str(out), overwrite=True)
    return {"artefacts": {"litert": out}}


if __name__ == "__main__":
    main(METHODS, ("ai-edge-quantizer", "ai-edge-litert", "numpy"), run)
