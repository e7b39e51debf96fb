"""Measures what releases of runtimes load, for the tables in lepton_edge/compat/.

    python scripts/probe_runtimes.py FAMILY --python PYTHON RELEASE [RELEASE ...]

FAMILY: tflite-runtime, ai-edge-litert, tflite-micro, onnxruntime or openvino. Each release is installed by that
Python's pip into a folder of its own and asked, in a process of its own, to load the smallest files there are: for
TFLite one operator code and version at a time; for ONNX one IR version, opset or operator at a time. Run this for a
new release, and the table knows it; nothing else is edited.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TABLES = Path(__file__).resolve().parent.parent / "lepton_edge" / "compat"
IMPORTS = {
    "tflite-runtime": "from tflite_runtime.interpreter import Interpreter",
    "ai-edge-litert": "from ai_edge_litert.interpreter import Interpreter",
}
NEWEST = 24  # operator versions tried: 1 up to this

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
MICRO = """
import json, sys
from tflite_micro.python.tflite_micro import runtime
seen = []
for name, content in json.load(open(sys.argv[1])).items():
    try:
        runtime.Interpreter.from_bytes(bytes.fromhex(content))
        seen.append(name)
    except RuntimeError as error:
        pass
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


def operator_file(code: int, version: int, used: bool = False) -> bytes:
    """The smallest TFLite file with one operator code: a flatbuffer laid out by hand (schema version 3)."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, entry = schema.ModelT(), schema.SubGraphT(), schema.OperatorCodeT()
    model.version = 3
    entry.builtinCode, entry.deprecatedBuiltinCode, entry.version = code, min(code, 127), version
    graph.tensors, graph.inputs, graph.outputs, graph.operators = [], [], [], []
    model.operatorCodes, model.subgraphs, model.buffers = [entry], [graph], [schema.BufferT()]
    if used:
        tensor, operator = schema.TensorT(), schema.OperatorT()
        tensor.shape, tensor.type, tensor.buffer = [1], schema.TensorType.FLOAT32, 0
        graph.tensors, graph.inputs, graph.outputs = [tensor, tensor], [0], [1]
        operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0], [1]
        graph.operators = [operator]
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def tflite_files(micro: bool = False) -> dict[str, str]:
    """ "NAME version" to file, for every builtin operator."""
    from ai_edge_litert import schema_py_generated as schema

    codes = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    skip = {"CUSTOM", "DELEGATE", "PLACEHOLDER_FOR_GREATER_OP_CODES", "CONCAT_EMBEDDINGS", "CALL"}
    versions = [1] if micro else range(1, NEWEST + 1)
    return {
        f"{name} {v}": operator_file(code, v, micro).hex()
        for code, name in sorted(codes.items())
        if name not in skip
        for v in versions
    }


def onnx_file(opset: int, ir: int, op: str = "Relu") -> str:
    """The smallest ONNX file of these versions, with one operator whose inputs are floats of unknown shape."""
    import onnx
    from onnx import TensorProto, helper

    schema = onnx.defs.get_schema(op, min(opset, onnx.defs.onnx_opset_version()))
    ins = [f"x{k}" for k in range(max(schema.min_input, 1 if schema.max_input else 0))]
    node = helper.make_node(op, ins, ["y"])
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None if op != "Relu" else [1]) for n in ins]
    graph = helper.make_graph([node], "g", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = ir
    return model.SerializeToString().hex()


def onnx_files() -> dict[str, str]:
    """ "opset N" and "ir N" to file."""
    files = {f"opset {n}": onnx_file(n, 3 if n < 9 else 4) for n in range(7, 31)}
    return files | {f"ir {n}": onnx_file(9, n) for n in range(3, 16)}


def operators_of_onnx() -> dict[str, str]:
    """Operator name to a file that uses it in its newest form."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    names = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated})
    return {name: onnx_file(newest, 8, name) for name in names}


FAMILIES = {
    "tflite-runtime": (tflite_files, TFLITE.format(load=IMPORTS["tflite-runtime"])),
    "ai-edge-litert": (tflite_files, TFLITE.format(load=IMPORTS["ai-edge-litert"])),
    "tflite-micro": (lambda: tflite_files(True), MICRO),
    "onnxruntime": (onnx_files, ONNX),
    "openvino": (operators_of_onnx, OPENVINO),
}


def probe(family: str, release: str, python: str, files: dict[str, str]) -> list[str]:
    """What this release loads."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "site"
        command = [python, "-m", "pip", "install", "--quiet", "--pre", "--target", str(target)]
        install = [*command, f"{family}=={release}", "numpy<2"]
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
    format_ = "onnx" if args.family in ("onnxruntime", "openvino") else "tflite"
    table = {"family": args.family, "format": format_, "kind": "loader", "source": source} | table
    files = FAMILIES[args.family][0]()
    for release in args.releases:
        table["releases"][release] = record(args.family, probe(args.family, release, args.python, files))
        file.write_text(json.dumps(table, indent=None, separators=(",", ":")) + "\n")
        print(args.family, release, str(table["releases"][release])[:150], flush=True)


if __name__ == "__main__":
    main()
