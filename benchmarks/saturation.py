"""Does an int8 file answer the same on a CPU without VNNI? Run natively and on an emulated Haswell, and compared.

    python benchmarks/saturation.py [--images N] [--ours "--option value ..."] [NAME=FILE.onnx ...]

On x86 with AVX2 or AVX-512 but without VNNI, ONNX Runtime multiplies uint8 activations by int8 weights in pairs whose
sum is held in 16 bits and saturates (VPMADDUBSW): full-range weights then give other answers than on a CPU with VNNI.
The emulator is qemu-x86_64-static (Debian: qemu-user-static) with `-cpu Haswell`, which has AVX2 and no VNNI.

Compared are, on MobileNetV2: ONNX Runtime's U8S8 file of full range, its reduce_range file (7-bit weights), our file
made with the options of --ours (how this checkout is told to make a file for AVX2), and the files named. A float file
takes about ten times as long: the emulator computes floats in software.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import artefacts
import models
import numpy as np
from common import BIN, RESULTS, Missing, cache, environment, last_words
from judging import compare
from quantization import stamp
from quantization_page import write_section

EMULATOR = ("qemu-x86_64-static", "-cpu", "Haswell")
# Runs in the environment of ONNX Runtime's own rival: model, samples, count, file for the outputs.
RUNNER = """
import sys, time
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
with np.load(sys.argv[2]) as arrays:
    feeds = {i.name: arrays[i.name][: int(sys.argv[3])] for i in session.get_inputs()}
start, answers = time.monotonic(), []
for k in range(int(sys.argv[3])):
    answers.append(session.run(None, {name: a[k : k + 1] for name, a in feeds.items()})[0][0])
np.save(sys.argv[4], np.stack(answers))
print(time.monotonic() - start)
"""


def main() -> None:
    """Compare the files and write the section of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="NAME=FILE", help="further int8 .onnx files of MobileNetV2")
    parser.add_argument("--images", type=int, default=60, help="evaluation images (60)")
    parser.add_argument(
        "--ours",
        metavar="OPTIONS",
        default="--device generic-x86-avx2",
        help="options of `lepton-edge quantize` for an AVX2 target",
    )
    args = parser.parse_args()
    if shutil.which(EMULATOR[0]) is None:
        raise SystemExit(f"{EMULATOR[0]} was not found: on Debian and Ubuntu, apt-get install qemu-user-static")
    made_of = models.prepare("mobilenet_v2")
    candidates = rivals(made_of)
    if args.ours is not None:
        candidates[f"lepton-edge {args.ours}".strip()] = ours(made_of, shlex.split(args.ours))
    for named in args.files:
        name, _, file = named.partition("=")
        candidates[name] = Path(file)
    rows = {}
    for name, file in candidates.items():
        rows[name] = examine(made_of, file, args.images)
        r = rows[name]
        print(
            f"{name}: same top-1 {r['same_top1']} of {args.images}, SQNR between the two {db(r['sqnr_db'])}; right "
            f"{r['right_native']} natively, {r['right_emulated']} emulated; {r['native_s']} s and {r['emulated_s']} s"
        )
    version = subprocess.run([EMULATOR[0], "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[
        0
    ]
    record = {"images": args.images, "emulator": version, "command": list(EMULATOR), "files": rows, **stamp()}
    path = RESULTS / "quantization" / "saturation.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    write_section()


def rivals(made_of: models.Prepared) -> dict[str, Path]:
    """ONNX Runtime's own files, of full and of reduced range."""
    made = [artefacts.rival(name, made_of) for name in ("ort-minmax", "ort-minmax7")]
    if failed := [m for m in made if m.error]:
        raise SystemExit(f"{failed[0].title}: {failed[0].error}")
    return {m.title: m.files["onnxruntime"] for m in made}


def ours(made_of: models.Prepared, options: list[str]) -> Path:
    """Our file for a CPU with AVX2."""
    out = cache("artefacts", made_of.name, "saturation") / "ours.onnx"
    command = [str(BIN / "lepton-edge"), "quantize", str(made_of.model), "--data", str(made_of.calib)]
    done = subprocess.run(
        [*command, "--eval", str(made_of.eval), "-o", str(out), *options], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"lepton-edge quantize {' '.join(options)}: {last_words(done.stderr)}")
    return out


def examine(made_of: models.Prepared, file: Path, count: int) -> dict:
    """Outputs of one file natively and emulated, held against each other and against the labels."""
    native, native_s = run(made_of, file, count, ())
    emulated, emulated_s = run(made_of, file, count, EMULATOR)
    with np.load(made_of.eval) as arrays:
        labels = arrays["y"][:count]
    return {
        "same_top1": int((native.argmax(1) == emulated.argmax(1)).sum()),
        "right_native": int((native.argmax(1) == labels).sum()),
        "right_emulated": int((emulated.argmax(1) == labels).sum()),
        "max_abs": float(np.abs(native - emulated).max()),
        "largest_logit": float(np.abs(native).max()),
        "sqnr_db": compare(native, emulated)["sqnr_db"],
        "native_s": round(native_s, 2),
        "emulated_s": round(emulated_s, 2),
    }


def run(made_of: models.Prepared, file: Path, count: int, before: tuple[str, ...]) -> tuple[np.ndarray, float]:
    """Logits [count, 1000] and the seconds they took, in a process started behind the command ``before``."""
    out = cache("scratch") / f"saturation-{os.getpid()}.npy"
    python = environment("onnxruntime")
    # The emulator is given the interpreter itself: it would run a launcher's target natively.
    site = next((python.parent.parent / "lib").glob("python*/site-packages"))
    command = [*before, str(python.resolve()), "-c", RUNNER, str(file), str(made_of.eval), str(count), str(out)]
    environ = os.environ | {"PYTHONPATH": str(site), "OPENBLAS_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell"}
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        raise Missing(f"{file.name} {'emulated' if before else 'natively'}: {last_words(done.stderr)}")
    answers = np.load(out)
    out.unlink()
    print(f"  {file.name} {'emulated' if before else 'natively'}: {time.monotonic() - start:.0f} s", file=sys.stderr)
    return answers, float(done.stdout.split()[-1])


def db(value: float | None) -> str:
    """Decibels in words."""
    return "exact" if value is None else f"{value:.1f} dB"


if __name__ == "__main__":
    main()
