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
MICRO = """
import sys
from tflite_micro.python.tflite_micro.runtime import Interpreter
for path in sys.argv[1:]:
    try:
        Interpreter.from_file(path)
        print("LOADS")
    except (ValueError, RuntimeError):
        print("FAILS")
"""
RUNTIMES = {
    "tflite-runtime": (LOAD.format(module="tflite_runtime.interpreter"), "2.14"),
    "ai-edge-litert": (LOAD.format(module="ai_edge_litert.interpreter"), "2.3"),
    "tflite-micro": (MICRO, "0.dev2026"),
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
    """The files of STAMPS, and one without Gelu, which TensorFlow Lite Micro lacks, in float32 and float16."""
    from lepton_edge.tflite_writer.convert import convert

    base = onnx_model.parent / "base.tflite"
    convert(str(onnx_model), str(base))
    made = {name: _stamped(base, name, *stamp) for name, stamp in STAMPS.items()}
    import onnx

    from lepton_edge.passes.halve_tflite import run as halve

    model = onnx.load(onnx_model)
    model.graph.node[1].op_type = "Relu"
    onnx.save(model, base.with_name("relu.onnx"))
    made |= {name: base.with_name(f"{name}.tflite") for name in ("relu", "relu_half")}
    convert(str(base.with_name("relu.onnx")), str(made["relu"]))
    halve(str(made["relu"]), str(made["relu_half"]))
    return made


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
def test_the_verdict_is_right_for_files_that_load_or_do_not(files, runtime):
    script, release = RUNTIMES[runtime]
    try:
        installed = importlib.metadata.version(runtime)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{runtime} is not installed")
    if not installed.startswith(release):
        pytest.skip(f"{runtime} {installed} is installed, the verdicts here are on {release}")
    command = [sys.executable, "-c", script, *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    truth = dict(zip(files, [x == "LOADS" for x in done.stdout.split()], strict=True))
    target = check.release(f"{runtime}=={installed}")
    told = {name: not check.problems(check.facts(path), target) for name, path in files.items()}
    assert told == truth
    assert set(truth.values()) == {True, False}


#: name: what of the smallest IR (scripts/probe_files.py) is another
IRS = {
    "plain": {},
    "relu_14": {"opset": "opset14"},
    "relu_99": {"opset": "opset99"},
    "gelu_2": {"operator": "Gelu", "opset": "opset2"},
    "gelu_1": {"operator": "Gelu", "opset": "opset1"},
    "identity_16": {"operator": "Identity", "opset": "opset16"},
    "nobodys": {"operator": "NobodysOperator"},
    "extension": {"operator": "NobodysOperator", "opset": "extension"},
    "ir_10": {"ir": 10},
    "ir_9": {"ir": 9},
    "ir_12": {"ir": 12},
    "type_u3": {"kind": "u3"},
    "type_none": {"kind": "f3"},
}


@pytest.fixture(scope="module")
def irs(tmp_path_factory):
    """The smallest IRs, one a case of IRS."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
    from probe_files import ir_file

    sys.path.pop(0)
    folder, files = tmp_path_factory.mktemp("irs"), {}
    for name, changes in IRS.items():
        files[name] = folder / f"{name}.xml"
        files[name].write_bytes(bytes.fromhex(ir_file(**changes)))
        files[name].with_suffix(".bin").touch()
    return files


@pytest.mark.slow
def test_the_verdict_is_right_for_openvino_files(irs, onnx_model, tmp_path):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    openvino.save_model(core.read_model(onnx_model), tmp_path / "real.xml")
    files, truth = {**irs, "real": tmp_path / "real.xml"}, {}
    for name, path in files.items():
        try:
            core.read_model(path.read_bytes(), path.with_suffix(".bin").read_bytes())
            truth[name] = True
        except RuntimeError:
            truth[name] = False
    target = check.release(f"openvino=={importlib.metadata.version('openvino')}", "openvino")
    told = {name: not check.problems(check.facts(path), target) for name, path in files.items()}
    assert told == truth
    assert set(truth.values()) == {True, False}


def test_openvino_files_are_held_against_the_release(irs):
    def problems(name, release):
        (verdict,) = api.check(irs[name], [f"openvino=={release}"])
        return verdict["problems"]

    assert problems("plain", "2023.0") == problems("identity_16", "2026.0") == []
    assert problems("identity_16", "2023.3") == ["it has no operator Identity"]
    assert problems("relu_99", "2024.6") == ["operator Relu is of opset99, it knows those of opset1 to opset15"]
    assert problems("ir_12", "2025.4") == ["IR version is 12, it takes 10 to 11"]
    assert problems("type_u3", "2023.3") == ["it has no type u3"]
    assert problems("extension", "2026.0") == ["operator NobodysOperator is of an extension"]


def test_an_openvino_file_with_entities_is_refused(irs):
    path = irs["plain"].with_name("entities.xml")
    path.write_text(irs["plain"].read_text().replace("<net", '<!DOCTYPE net [<!ENTITY a "b">]><net', 1))
    with pytest.raises(LeptonError, match="not a readable OpenVINO IR"):
        check.facts(path)


def test_a_conversion_to_openvino_is_for_a_release(onnx_model, tmp_path):
    out = tmp_path / "m.xml"
    api.convert(onnx_model, "openvino", out, Recipe(), ask=api.Conversion(runtime="openvino==2024.6"))
    assert api.check(out, ["openvino==2024.6"])[0]["loads"]


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
    assert content["source"] and content["format"] in ("tflite", "onnx", "openvino") and content["releases"]
