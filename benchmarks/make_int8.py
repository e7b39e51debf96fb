"""Writes one int8 QDQ model as ONNX: `python make_int8.py NAME FOLDER`, NAME a case of models.py, or NAME_ort.

The first is what `lepton-edge quantize` makes, the second ONNX Runtime's own quantizer (per channel, U8S8, MinMax).
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
from common import BIN
from models import prepare

SAMPLES = 100


def ours(model: Path, calib: Path, out: Path) -> None:
    """The QDQ file of `lepton-edge quantize`, without learned rounding."""
    command = [str(BIN / "lepton-edge"), "quantize", str(model), "--data", str(calib), "--out", str(out)]
    subprocess.run([*command, "--preset", "fast", "--samples", str(SAMPLES), "--quiet"], check=True)


def rival(model: Path, calib: Path, out: Path) -> None:
    """The QDQ file of ONNX Runtime's quantize_static."""
    import onnxruntime as ort
    from onnxruntime import quantization as q

    names = [port.name for port in ort.InferenceSession(model).get_inputs()]
    with np.load(calib) as held:
        arrays = {name: held[name][:SAMPLES] for name in names}
    rows = [{n: a[k : k + 1] for n, a in arrays.items()} for k in range(len(next(iter(arrays.values()))))]

    class Reader(q.CalibrationDataReader):
        def __init__(self) -> None:
            self._each = iter(rows)

        def get_next(self):
            return next(self._each, None)

    q.quantize_static(model, out, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
                      activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8)  # fmt: skip


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    case, make = (name.removesuffix("_ort"), rival) if name.endswith("_ort") else (name, ours)
    ready = prepare(case)
    make(ready.model, ready.calib, folder / f"int8_{name}.onnx")


if __name__ == "__main__":
    main()
