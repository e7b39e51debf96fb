"""Does an int8 TFLite made of a QDQ MobileNetV2 answer as ONNX Runtime does? ONNX Runtime's own QDQ files, and ours.

    python benchmarks/qdq_agreement.py

Top-1 agreement on the 300 evaluation images. ONNX Runtime's two files hold the same numbers, with activations as uint8
and as int8: how far it agrees with itself between them is what can be asked of any other runtime.
Results: benchmarks/results/convert/agreement.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
RESULT = HERE / "results" / "convert" / "agreement.json"
IMAGES = ("--preprocess", "imagenet")


def ort_file(model: Path, kind: str, folder: Path) -> Path:
    """quantize_static with min-max ranges, per channel, on the 200 calibration images."""
    import numpy as np
    from common import shared
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from lepton_edge.preprocess_core import decode

    mean, std = (np.array(v, np.float32) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    prepared, out = folder / "prepared.onnx", folder / f"{kind}.onnx"
    quant_pre_process(str(model), str(prepared))
    files = sorted(shared("imagenet_sample/calib").glob("*.jpg"))

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._each = ((((decode(f)[..., :3] / np.float32(255)) - mean) / std).transpose(2, 0, 1) for f in files)

        def get_next(self):
            image = next(self._each, None)
            return None if image is None else {"input": np.ascontiguousarray(image[None], np.float32)}

    activations = {"u8s8": q.QuantType.QUInt8, "s8s8": q.QuantType.QInt8}[kind]
    q.quantize_static(
        str(prepared), str(out), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
        activation_type=activations, weight_type=q.QuantType.QInt8,
    )  # fmt: skip
    return out


def compare(first: Path, second: Path) -> dict:
    """Agreement and SQNR of the second file against the first, each in its runtime."""
    from common import cli, shared

    found = cli("compare", first, second, "--data", shared("imagenet_sample/eval"), *IMAGES)["parity"]
    return {"agreement": found["agreement"], "sqnr_db": found["sqnr_db"], "count": found["count"]}


def main() -> None:
    """Make, convert, compare, keep."""
    from common import cache, cli, shared
    from convert_table import write_section

    folder = cache("agreement")
    model = shared("models/mobilenet_v2.onnx")
    calib = ("--data", shared("imagenet_sample/calib"), *IMAGES)
    files = {f"onnxruntime quantize_static, {kind.upper()}": ort_file(model, kind, folder) for kind in ("u8s8", "s8s8")}
    for preset in ("default", "best"):
        out = folder / f"ours-{preset}.onnx"
        cli("quantize", model, *calib, "--preset", preset, "-o", out)
        files[f"lepton-edge {preset}"] = out
    rows = []
    for name, file in files.items():
        made = folder / f"{file.stem}.tflite"
        cli("convert", file, "--to", "tflite", "-o", made)
        rows.append({"file": name, **compare(file, made)})
        print(rows[-1], flush=True)
    (folder / "prepared.onnx").unlink()
    itself = compare(*list(files.values())[:2])
    print("ONNX Runtime with itself", itself, flush=True)
    RESULT.write_text(json.dumps({"rows": rows, "itself": itself}, indent=1) + "\n")
    write_section(HERE.parent / "BENCHMARKS.md", RESULT.parent)


if __name__ == "__main__":
    main()
