"""Whether a file loads in a release, told from the tables, against the runtimes that are installed here."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lepton_edge import api, check
from lepton_edge.__main__ import main
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.recipe import Recipe

LOAD = """
import sys
from {module} import Interpreter
for path in sys.argv[1:]:
    try:
        Interpreter(model_path=path).allocate_tensors()
        print("LOADS")
    except (ValueError, RuntimeError):
        print("FAILS")
"""
RUNTIMES = {
    "tflite-runtime": ("tflite_runtime.interpreter", "2.14"),
    "ai-edge-litert": ("ai_edge_litert.interpreter", "2.3"),
}
#: name: (operator, version it is stamped with); "": the file as our writer makes it
STAMPS = {
    "plain": ("", 0),
    "conv_3": ("CONV_2D", 3),
    "conv_7": ("CONV_2D", 7),
    "conv_8": ("CONV_2D", 8),
    "dense_12": ("FULLY_CONNECTED", 12),
    "dense_99": ("FULLY_CONNECTED", 99),
    "mul_7": ("MUL", 7),
    "mul_8": ("MUL", 8),
    "gelu_2": ("GELU", 2),
    "gelu_30": ("GELU", 30),
    "softmax_3": ("SOFTMAX", 3),
    "custom": ("CUSTOM", 1),
}


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    """Conv, Gelu, Mul, Gemm and Softmax at opset 20."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    held = {"w": (4, 3, 3, 3), "b": (4,), "k": (1, 4, 1, 1), "m": (4, 5), "n": (5,)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Gelu", ["c"], ["g"]),
        helper.make_node("Mul", ["g", "k"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "m", "n"], ["d"]),
        helper.make_node("Softmax", ["d"], ["y"]),
    ]
    values = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in held.items()]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 5]))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], values)
    path = tmp_path_factory.mktemp("check") / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture(scope="module")
def files(onnx_model):
    """The twelve files."""
    from lepton_edge.tflite_writer.convert import convert

    base = onnx_model.parent / "base.tflite"
    convert(str(onnx_model), str(base))
    return {name: _stamped(base, name, *stamp) for name, stamp in STAMPS.items()}


def _stamped(base: Path, name: str, operator: str, version: int) -> Path:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(base.read_bytes(), 0))
    for code in model.operatorCodes:
        if operator == "CUSTOM" and code.builtinCode == schema.BuiltinOperator.SOFTMAX:
            code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
            code.customCode, code.version = b"NobodysOperator", version
        elif operator and code.builtinCode == getattr(schema.BuiltinOperator, operator):
            code.version = version
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path = base.with_name(f"{name}.tflite")
    path.write_bytes(bytes(builder.Output()))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_verdict_is_right_for_twelve_files(files, runtime):
    module, release = RUNTIMES[runtime]
    try:
        installed = importlib.metadata.version(runtime)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{runtime} is not installed")
    if not installed.startswith(release):
        pytest.skip(f"{runtime} {installed} is installed, the verdicts here are on {release}")
    command = [sys.executable, "-c", LOAD.format(module=module), *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    truth = dict(zip(files, [x == "LOADS" for x in done.stdout.split()], strict=True))
    target = check.release(f"{runtime}=={release}")
    told = {name: not check.problems(check.facts(path), target) for name, path in files.items()}
    assert told == truth
    assert set(truth.values()) == {True, False}


def test_onnx_versions_are_held_against_the_release(onnx_model):
    found = {r["release"]: r for r in api.check(onnx_model, ["onnxruntime==1.10", "ort==1.23"])}
    assert not found["1.10"]["loads"]
    assert found["1.10"]["problems"] == ["IR version is 10, it takes 3 to 8", "opset is 20, it takes 7 to 15"]
    assert found["1.23"]["loads"]


def test_a_conversion_for_an_old_release_is_brought_down(onnx_model, tmp_path):
    out = tmp_path / "old.onnx"
    api.convert(onnx_model, "onnx", out, Recipe(), ask=api.Conversion(runtime="onnxruntime==1.17"))
    assert api.check(out, ["onnxruntime==1.17"])[0]["loads"]


def test_a_conversion_that_cannot_be_brought_down_says_why(onnx_model, tmp_path):
    out = tmp_path / "old.onnx"
    with pytest.raises(LeptonError, match=r"opset 20 cannot be brought down to 15: .*Gelu"):
        api.convert(onnx_model, "onnx", out, Recipe(), ask=api.Conversion(runtime="onnxruntime==1.10"))
    assert not out.exists()


@pytest.mark.slow
def test_tflite_operators_are_stamped_down_for_tflite_runtime(files, tmp_path):
    out = tmp_path / "old.tflite"
    api.convert(files["mul_8"], "tflite", out, Recipe(), ask=api.Conversion(runtime="tflite-runtime==2.14"))
    assert api.check(out, ["tflite-runtime==2.14"])[0]["loads"]
    with pytest.raises(LeptonError, match=r"it has no custom operator NobodysOperator|cannot load it"):
        api.convert(files["custom"], "tflite", out, Recipe(), ask=api.Conversion(runtime="tflite-runtime==2.14"))


def test_accelerators_tell_what_they_leave(files):
    (verdict,) = api.check(files["plain"], ["ethos-u==u55"])
    assert verdict["loads"] and verdict["coverage"]["covered"] == 0  # it takes integers only
    (verdict,) = api.check(files["plain"], ["xnnpack"])
    assert verdict["coverage"]["left"] == {"GELU float32": 1}


def test_unknown_runtimes_and_releases_are_usage_errors(onnx_model):
    for text, words in (("tensorrt", "unknown runtime"), ("onnxruntime==0.1", "older than the table")):
        with pytest.raises(UsageError, match=words):
            check.release(text)


def test_the_command_exits_with_4_where_a_file_does_not_load(onnx_model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lepton-edge", "check", str(onnx_model), "--runtime", "ort==1.10", "--json"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 4
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 4


@pytest.mark.parametrize("table", sorted(check.tables()))
def test_tables_name_their_source(table):
    content = check.tables()[table]
    assert content["source"] and content["format"] in ("tflite", "onnx") and content["releases"]
