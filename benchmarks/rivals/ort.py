"""ONNX Runtime's own quantizer: static QDQ, per channel, after its recommended pre-processing; and dynamic."""

from __future__ import annotations

from pathlib import Path

from _shared import Samples, main, onnx_inputs

ENVIRONMENT = "onnxruntime"
METHODS = {
    "minmax": "onnxruntime quantize_static MinMax",
    "entropy": "onnxruntime quantize_static Entropy",
    "percentile": "onnxruntime quantize_static Percentile",
    "dynamic": "onnxruntime quantize_dynamic",
    "minmax7": "onnxruntime quantize_static MinMax, reduce_range",
}
CALIBRATES = ("minmax", "entropy", "percentile", "minmax7")
ASIDE = ("minmax7",)  # for CPUs without VNNI: only in saturation.py


def run(args) -> dict:
    """Write model.onnx: activations uint8, weights int8 (U8S8), as its guide recommends for x86 with VNNI."""
    from onnxruntime import quantization as q

    out = Path(args.out) / "model.onnx"
    prepared, notes = preprocess(args.model, Path(args.out))
    if args.method == "dynamic":
        q.quantize_dynamic(prepared, out, per_channel=True, weight_type=q.QuantType.QInt8)
        return {"artefacts": {"onnxruntime": out}, "notes": notes}
    samples = Samples(args.calib, onnx_inputs(args.model), args.samples)

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._each = iter(samples)

        def get_next(self):
            return next(self._each, None)

    q.quantize_static(
        prepared,
        out,
        Reader(),
        quant_format=q.QuantFormat.QDQ,
        per_channel=True,
        activation_type=q.QuantType.QUInt8,
        weight_type=q.QuantType.QInt8,
        reduce_range=args.method == "minmax7",
        calibrate_method={
            "minmax": q.CalibrationMethod.MinMax,
            "minmax7": q.CalibrationMethod.MinMax,
            "entropy": q.CalibrationMethod.Entropy,
            "percentile": q.CalibrationMethod.Percentile,
        }[args.method],
    )
    return {"artefacts": {"onnxruntime": out}, "notes": [*notes, f"{len(samples)} samples"]}


def preprocess(model: str, folder: Path) -> tuple[str, list[str]]:
    """quant_pre_process; where it fails, again without symbolic shapes, and the note says so."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made = str(folder / "prepared.onnx")
    try:
        quant_pre_process(model, made)
        return made, []
    except Exception as error:  # it raises bare Exception
        quant_pre_process(model, made, skip_symbolic_shape=True)
        return made, [f"pre-processing failed ({str(error)[:80]}) and was repeated without symbolic shapes"]


if __name__ == "__main__":
    main(METHODS, ("onnxruntime", "onnx", "numpy"), run)
