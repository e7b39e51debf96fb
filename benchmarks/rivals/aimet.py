"""AIMET-ONNX: TF-enhanced ranges with cross-layer equalization, or with AdaRound; exported as QDQ ONNX."""

from __future__ import annotations

import os
from pathlib import Path

from _shared import Samples, main, onnx_inputs

ENVIRONMENT = "aimet"
METHODS = {"tfe_cle": "AIMET TF-enhanced + CLE", "adaround": "AIMET TF-enhanced + AdaRound"}
CALIBRATES = ("tfe_cle", "adaround")
# AIMET advises 10,000 a layer, which takes hours on two cores.
ITERATIONS = int(os.environ.get("AIMET_ADAROUND_ITERATIONS", "1000"))


def run(args) -> dict:
    """Write model.onnx: activations uint8, weights int8 per channel, biases left float."""
    import aimet_onnx
    import onnx
    from aimet_onnx.common.quantsim_config import config_utils
    from aimet_onnx.cross_layer_equalization import equalize_model

    model, notes = onnx.load(args.model), []
    samples = list(Samples(args.calib, onnx_inputs(args.model), args.samples))
    if args.method == "tfe_cle":
        try:
            equalize_model(model)
        except IndexError as error:  # so it ends where there is no chain of convolutions to equalize
            model = onnx.load(args.model)
            notes.append(f"cross-layer equalization failed (IndexError: {error}) and was left out")
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=aimet_onnx.int8,
        activation_type=aimet_onnx.int8,
        quant_scheme="tf_enhanced",
        config_file=config_utils.get_path_for_target_config("default_config_per_channel"),
        dummy_input=samples[0],
        providers=["CPUExecutionProvider"],
    )
    if args.method == "adaround":
        aimet_onnx.apply_adaround(sim, samples, num_iterations=ITERATIONS)
        notes.append(f"AdaRound: {ITERATIONS} iterations a layer (its advice: 10000)")
    sim.compute_encodings(samples)
    out = Path(args.out) / "model.onnx"
    onnx.save(sim.to_onnx_qdq(prequantize_constants=True), str(out))
    return {"artefacts": {"onnxruntime": out}, "notes": notes}


if __name__ == "__main__":
    main(METHODS, ("aimet-onnx", "onnxruntime", "onnx", "torch", "numpy"), run)
