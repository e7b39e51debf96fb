"""The onnx package's backend node tests through our converters: how many cases pass, by operator.

    python benchmarks/node_tests.py [--only TEXT]

Each case is converted to TFLite (our writer) and to OpenVINO, run in LiteRT and OpenVINO (f32) on the case's own
inputs, and compared with its own outputs at the case's tolerance (at least 1e-5 absolute). A case is eligible when the
types of its inputs and outputs are float32, bool or the integers of 8 to 64 bits: what TFLite kernels compute on.
Where an operator needs a parameter to be constant (a shape, axes, a scale) and the case feeds it, it is a constant.
Results: benchmarks/results/convert/node_tests.json. Cases run in a process of their own, so a crash is a failed case.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

ROOT = HERE.parent
sys.path.insert(0, str(ROOT))
RESULT = HERE / "results" / "convert" / "node_tests.json"
TYPES = {"FLOAT", "BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"}
TARGETS = ("tflite", "openvino")


def cases() -> dict:
    """Every node case by name."""
    from onnx.backend.test.case.node import collect_testcases

    return {case.name: case for case in collect_testcases(None)}


def eligible(case) -> bool:
    """Whether TFLite has the types of all the inputs and outputs."""
    from onnx import TensorProto

    for value in [*case.model.graph.input, *case.model.graph.output]:
        kind = value.type.WhichOneof("value")
        if kind != "tensor_type" or TensorProto.DataType.Name(value.type.tensor_type.elem_type) not in TYPES:
            return False
    return True


def operator(name: str, known: dict) -> str:
    """The operator that a case is about; of an expanded case, that of the case it was expanded from."""
    base = name.split("_expanded")[0]
    model = known[base if base in known else name].model
    return next(n.op_type for n in model.graph.node if n.op_type != "Constant" or len(model.graph.node) == 1)


def attempt(case, target: str, folder: Path) -> str:
    """Convert and run one case; what went wrong, or an empty string."""
    import numpy as np
    from convert_table import without_paths

    inputs, expected = case.data_sets[0]
    first = ""
    for fixed in (False, True):
        model, feeds = _with_constants(case.model, inputs) if fixed else (case.model, _named(case.model, inputs))
        if model is None:
            break
        try:
            got = (to_tflite if target == "tflite" else to_openvino)(model, feeds, folder)
            names = [o.name for o in model.graph.output]
            for name, want in zip(names, expected, strict=True):
                want = np.asarray(want)
                if got[name].shape != want.shape:
                    raise ValueError(f"shape {got[name].shape} instead of {want.shape}")
                atol = max(case.atol, 1e-5) if want.dtype.kind == "f" else case.atol
                np.testing.assert_allclose(got[name], want, rtol=case.rtol, atol=atol, equal_nan=True)
            return ""
        except Exception as error:  # whatever goes wrong is the answer
            first = first or without_paths(" ".join(str(error).split()))[:200] or type(error).__name__
    return first


def _named(model, inputs: list) -> dict:
    return dict(zip([i.name for i in model.graph.input], inputs, strict=False))


def _with_constants(model, inputs: list) -> tuple:
    """The model with every input but the first as a constant; (None, {}) where there is one only."""
    import numpy as np
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    values = list(copy.graph.input)
    if len(values) < 2:
        return None, {}
    del copy.graph.input[:]
    copy.graph.input.append(values[0])
    for value, array in zip(values[1:], inputs[1:], strict=True):
        copy.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), value.name))
    return copy, {values[0].name: inputs[0]}


def to_tflite(model, feeds: dict, folder: Path) -> dict:
    """Outputs of the converted model in LiteRT, in ONNX order, by ONNX name."""
    import numpy as np
    import onnx

    from lepton_edge.tflite_writer.check import interpreter, run_tflite
    from lepton_edge.tflite_writer.convert import convert
    from lepton_edge.tflite_writer.layout import store

    src, dst = folder / "m.onnx", folder / "m.tflite"
    onnx.save(model, str(src))
    shapes = ";".join(f"{n}={','.join(map(str, np.asarray(v).shape))}" for n, v in feeds.items() if np.asarray(v).ndim)
    result = convert(str(src), str(dst), input_shapes=shapes)
    made = interpreter(dst.read_bytes())
    details = made.get_signature_runner("serving_default").get_input_details()
    given = {}
    for port in result["inputs"]:
        if port["name"] in details:
            value = np.asarray(feeds[port["source"]])
            value = value if port["perm"] is None else store(value, tuple(port["perm"]))
            given[port["name"]] = value.astype(details[port["name"]]["dtype"])
    got = run_tflite(made, given)
    return {
        p["source"]: got[p["name"]] if p["perm"] is None else got[p["name"]].transpose(np.argsort(p["perm"]))
        for p in result["outputs"]
    }


def to_openvino(model, feeds: dict, folder: Path) -> dict:
    """Outputs of the converted model in OpenVINO at f32, by ONNX name."""
    import importlib.util

    import numpy as np
    import onnx
    import openvino as ov

    spec = importlib.util.spec_from_file_location("step", ROOT / "converters" / "onnx_to_openvino.py")
    step = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step)
    src, dst = folder / "m.onnx", folder / "m.xml"
    onnx.save(model, str(src))
    shapes = ";".join(f"{n}={','.join(map(str, np.asarray(v).shape))}" for n, v in feeds.items() if np.asarray(v).ndim)
    step.run(str(src), str(dst), fixed_batch=0, input_shapes=shapes if _dynamic(model) else "")
    compiled = ov.Core().compile_model(str(dst), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    results = request.infer({n: np.asarray(v) for n, v in feeds.items()})
    return {o.name: results[o.name] for o in model.graph.output}


def _dynamic(model) -> bool:
    return any(not d.dim_value for i in model.graph.input for d in i.type.tensor_type.shape.dim)


def work(names: list[str], target: str) -> None:
    """In the child: one JSON line a case."""
    known = cases()
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print("CASE" + json.dumps(name), flush=True)
            print("DONE" + json.dumps([name, attempt(known[name], target, Path(folder))]), flush=True)


def run_all(names: list[str], target: str) -> dict[str, str]:
    """Every case's outcome; a child that dies fails the case it was at, and another goes on."""
    outcome: dict[str, str] = {}
    while left := [n for n in names if n not in outcome]:
        code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import node_tests, json; "
        code += f"node_tests.work(json.load(sys.stdin), {target!r})"
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.DEVNULL, text=True)  # fmt: skip
        child.stdin.write(json.dumps(left))
        child.stdin.close()
        current = left[0]
        for line in child.stdout:
            if line.startswith("CASE"):
                current = json.loads(line[4:])
            elif line.startswith("DONE"):
                name, problem = json.loads(line[4:])
                outcome[name] = problem
        if child.wait():
            outcome[current] = f"the process died with exit code {child.returncode}"
    return outcome


def main() -> None:
    """Run the cases and keep the counts."""
    from convert_table import write_section

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--target", choices=TARGETS)
    args = parser.parse_args()
    from onnx import __version__

    known = cases()
    chosen = [n for n in known if args.only in n]
    fit = {n for n in chosen if eligible(known[n])}
    record = json.loads(RESULT.read_text()) if RESULT.is_file() else {"targets": {}}
    record["note"] = (
        f"{len(known)} cases of onnx {__version__}; {len([n for n in known if eligible(known[n])])} of them have only "
        "types that TFLite computes on (float32, bool, integers of 8 to 64 bits) and are eligible. Passed / eligible, "
        "by operator; measured in LiteRT and OpenVINO at the cases' own tolerances by `benchmarks/node_tests.py`."
    )
    for target in [args.target] if args.target else TARGETS:
        outcome = run_all(sorted(fit), target)
        table: dict[str, Counter] = defaultdict(Counter)
        for name, problem in outcome.items():
            table[operator(name, known)].update(eligible=1, passed=not problem)
        failed = {n: p for n, p in sorted(outcome.items()) if p}
        passed = len(outcome) - len(failed)
        print(target, f"{passed} of {len(outcome)} eligible cases pass ({passed / max(1, len(outcome)):.1%})")
        if not args.only:
            rows = {op: dict(c) for op, c in sorted(table.items())}
            record["targets"][target] = {
                "passed": passed, "eligible": len(outcome), "operators": rows, "failed": failed,
            }  # fmt: skip
            RESULT.parent.mkdir(parents=True, exist_ok=True)
            RESULT.write_text(json.dumps(record, indent=0) + "\n")
            write_section(ROOT / "BENCHMARKS.md", HERE / "results" / "convert")
        else:
            for n, p in failed.items():
                print(" ", n, p)


if __name__ == "__main__":
    main()
