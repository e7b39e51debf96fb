"""Measures what releases of runtimes load, for the tables in lepton_edge/compat/.

    python scripts/probe_runtimes.py FAMILY --python PYTHON RELEASE [RELEASE ...]

FAMILY: tflite-runtime, ai-edge-litert, tflite-micro, onnxruntime, openvino (ONNX files) or openvino-ir. Each release is
installed by that Python's pip into a folder of its own and asked, in a process of its own, to load the smallest files
there are: for TFLite one operator code and version at a time; for ONNX and OpenVINO IR one version, opset, operator or
type at a time. Run this for a new release, and the table knows it; nothing else is edited.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from probe_files import ir_files, onnx_files, operators_of_onnx, tflite_files, typed_files

TABLES = Path(__file__).resolve().parent.parent / "lepton_edge" / "compat"
IMPORTS = {
    "tflite-runtime": "from tflite_runtime.interpreter import Interpreter",
    "ai-edge-litert": "from ai_edge_litert.interpreter import Interpreter",
}

TFLITE = """
import json, sys
{load}
seen = []
for name, content in json.load(open(sys.argv[1])).items():
    try:
        Interpreter(model_content=bytes.fromhex(content))
        seen.append(name)
    except (ValueError, RuntimeError) as error:
        if "Didn't find op" not in str(error) and "custom" not in str(error):
            seen.append(name)
print("RESULT" + json.dumps(seen))
"""
# Each file in a process of its own: TFLM's own code may crash over an operator without parameters. Why it refuses a
# file it only writes to stderr; all but these words mean that it has the operator, and wants other inputs for it.
MICRO = """
import json, os, sys, tempfile
from tflite_micro.python.tflite_micro import runtime
seen = []
for name, content in json.load(open(sys.argv[1])).items():
    with tempfile.TemporaryFile() as log:
        child = os.fork()
        if not child:
            os.dup2(log.fileno(), 2)
            try:
                runtime.Interpreter.from_bytes(bytes.fromhex(content))
            except BaseException as error:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        log.seek(0)
        words = log.read().decode("utf-8", "replace")
        if status if name.startswith("refused ") else "Didn't find op" not in words:
            seen.append(name)
print("RESULT" + json.dumps(seen))
"""
ONNX = """
import json, sys
import onnxruntime as ort
ort.set_default_logger_severity(4)
seen = []
for name, content in json.load(open(sys.argv[1])).items():
    try:
        ort.InferenceSession(bytes.fromhex(content), providers=["CPUExecutionProvider"])
        seen.append(name)
    except Exception:  # the answer itself: it does not load (ONNX Runtime's errors derive straight from Exception)
        pass
print("RESULT" + json.dumps(seen))
"""
OPENVINO = """
import io, json, sys
try:
    import openvino as ov
    core = ov.Core()
except AttributeError:
    import openvino.runtime as ov
    core = ov.Core()
seen = []
for name, content in json.load(open(sys.argv[1])).items():
    try:
        core.read_model(io.BytesIO(bytes.fromhex(content)))
        seen.append(name)
    except Exception as error:  # its class differs from release to release; the text tells what was missing
        text = str(error)
        if "does not support" not in text and "No conversion rule" not in text and "unsupported" not in text.lower():
            seen.append(name)
print("RESULT" + json.dumps(seen))
"""


# Over an operator without attributes it may crash: then it has that operator, and a new process goes on behind it.
OPENVINO_IR = """
import json, os, sys
def offer(files, answer):
    import openvino as ov
    if not hasattr(ov, "Core"):
        import openvino.runtime as ov
    core = ov.Core()
    lacks = "unsupported opset", "doesn't contain the operation", "not a member of enum element::Type"
    for name, content in files:
        os.write(answer, b"?")
        try:
            core.read_model(bytes.fromhex(content), b"")
            has = True
        except Exception as error:  # its class differs from release to release; the text tells what was missing
            has = not name.startswith("ir ") and not any(words in str(error) for words in lacks)
        os.write(answer, b"1" if has else b"0")
files, told = list(json.load(open(sys.argv[1])).items()), b""
while len(told) < len(files):
    read, write = os.pipe()
    if not os.fork():
        offer(files[len(told):], write)
        os._exit(0)
    os.close(write)
    told += open(read, "rb").read().replace(b"?1", b"1").replace(b"?0", b"0").replace(b"?", b"1")
    os.wait()
print("RESULT" + json.dumps([name for (name, _), has in zip(files, told) if has == 49]))
"""
FAMILIES = {
    "tflite-runtime": (tflite_files, TFLITE.format(load=IMPORTS["tflite-runtime"])),
    "ai-edge-litert": (tflite_files, TFLITE.format(load=IMPORTS["ai-edge-litert"])),
    "tflite-micro": (lambda: tflite_files(True) | typed_files(), MICRO),
    "onnxruntime": (onnx_files, ONNX),
    "openvino": (operators_of_onnx, OPENVINO),
    "openvino-ir": (ir_files, OPENVINO_IR),
}
FORMATS = {"onnxruntime": "onnx", "openvino": "onnx", "openvino-ir": "openvino"}


def probe(family: str, release: str, python: str, files: dict[str, str]) -> list[str]:
    """What this release loads."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "site"
        command = [python, "-m", "pip", "install", "--quiet", "--pre", "--target", str(target)]
        install = [*command, f"{family.removesuffix('-ir')}=={release}", "numpy<2"]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{family} {release}: {done.stderr.strip().splitlines()[-1]}")
        (Path(folder) / "files.json").write_text(json.dumps(files))
        (Path(folder) / "probe.py").write_text(FAMILIES[family][1])
        env = os.environ | {"PYTHONPATH": str(target), "CI": "true"}
        run = [python, str(Path(folder) / "probe.py"), str(Path(folder) / "files.json")]
        done = subprocess.run(run, capture_output=True, text=True, check=False, env=env)
        line = next((x for x in done.stdout.splitlines() if x.startswith("RESULT")), None)
        if line is None:
            raise SystemExit(f"{family} {release}: {done.stderr.strip().splitlines()[-1:]}")
        return json.loads(line.removeprefix("RESULT"))


def record(family: str, seen: list[str]) -> dict:
    """What a table keeps of a release: the highest version of each operator, or the limits, or the operators."""
    if family == "onnxruntime":
        limits = {kind: [int(s.split()[1]) for s in seen if s.startswith(kind)] for kind in ("opset", "ir")}
        return {kind: [min(v), max(v)] for kind, v in limits.items()}
    if family == "openvino":
        return {"operators": seen}
    if family == "tflite-micro":  # whose kernels look at no version
        return {
            "operators": [s.split()[0] for s in seen if not s.startswith("refused ")],
            "refused": [s.removeprefix("refused ") for s in seen if s.startswith("refused ")],
        }
    if family == "openvino-ir":
        opsets: dict[str, list[int]] = {}
        for name, number in (s.split() for s in seen):
            if name not in ("ir", "type"):
                opsets.setdefault(name, []).append(int(number))
        return {
            "ir": [f(int(s.split()[1]) for s in seen if s.startswith("ir ")) for f in (min, max)],
            "types": [s.split()[1] for s in seen if s.startswith("type ")],
            "operators": {name: [min(v), max(v)] for name, v in opsets.items()},
        }
    highest: dict[str, int] = {}
    for item in seen:
        name, version = item.split()
        highest[name] = max(highest.get(name, 0), int(version))
    return {"operators": highest}


def main() -> None:
    """Probe the releases and lay their findings into the family's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(FAMILIES))
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--python", default=sys.executable)
    args = parser.parse_args()
    file = TABLES / f"{args.family}.json"
    table = json.loads(file.read_text()) if file.is_file() else {"releases": {}}
    source = f"measured: what `scripts/probe_runtimes.py {args.family}` finds that the wheels load"
    family, format_ = args.family.removesuffix("-ir"), FORMATS.get(args.family, "tflite")
    table = {"family": family, "format": format_, "kind": "loader", "source": source} | table
    files = FAMILIES[args.family][0]()
    for release in args.releases:
        table["releases"][release] = record(args.family, probe(args.family, release, args.python, files))
        file.write_text(json.dumps(table, indent=None, separators=(",", ":")) + "\n")
        print(args.family, release, str(table["releases"][release])[:150], flush=True)


if __name__ == "__main__":
    main()
