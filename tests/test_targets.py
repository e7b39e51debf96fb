"""Runtimes on devices: which can be used, why not, and where a model really ran."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_runtimes import Elsewhere, needs, runtime, write_dense_onnx, write_dense_tflite

from lepton_edge import api, availability, placement, registry
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.recipe import Bench, Recipe

QUICK = Recipe(bench=Bench(seconds=0.1, rounds=1))


def target(name):
    base, _, device = name.partition(":")
    return next(r for r in registry.runtimes() if r.name == base).on(device)


# ---- names and availability ------------------------------------------------------------------------------


def test_a_target_is_the_runtime_with_the_devices_options_and_environment():
    cuda = registry.runtime_for("onnx", "onnxruntime:cuda")
    assert cuda.name == "onnxruntime:cuda" and cuda.load == {"provider": "CUDAExecutionProvider"}
    assert cuda.environ["LEPTON_EDGE_GPU"]
    assert registry.runtime_for("onnx", "onnxruntime:cpu") == registry.runtime_for("onnx", "onnxruntime")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("onnxruntime:cudaa", "'onnxruntime:cuda'"), ("onnxrntime:cuda", "'onnxruntime:cuda'"), ("opnvino", "'openvino'")],
)
def test_an_unknown_target_is_a_usage_error(name, hint):
    with pytest.raises(UsageError) as caught:
        registry.runtime_for("onnx", name)
    assert hint in caught.value.hint


@pytest.mark.parametrize(("name", "hidden"), [("onnxruntime:cuda", False), ("onnxruntime", True)])
def test_only_a_gpu_target_sees_gpus(name, hidden, monkeypatch, tmp_path):
    from lepton_edge.launch import Worker

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    step = tmp_path / "see.py"
    step.write_text("import os\ndef run(src, dst):\n    return {'seen': os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    with Worker("looking", environ=registry.runtime_for("onnx", name).environ) as worker:
        seen = worker.call("step", file=str(step), src="", dst="", options={})["seen"]
    assert seen == ("" if hidden else None)


def test_every_target_is_usable_or_says_why_not():
    found = {t.runtime.name: t for t in availability.survey()}
    assert found["fake:npu"].reason == "" and found["fake"].reason == ""
    assert found["fake:absent"].reason == "this machine has no such device"
    assert all(t.fix for t in found.values() if t.reason)
    if not registry.missing(target("onnxruntime:directml").requires) and os.name == "posix":
        assert "DmlExecutionProvider; it has " in found["onnxruntime:directml"].reason


@pytest.mark.parametrize(("how", "told"), [("hang", "no sign of life for 1 s"), ("crash", "SIGSEGV")])
def test_a_device_that_hangs_or_crashes_when_asked_costs_only_its_own_row(how, told, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_FAKE_NPU", how)
    npu, absent = availability.ask([target("fake:npu"), target("fake:absent")], patience=1)
    assert told in npu.reason and absent.reason == "this machine has no such device"


def test_another_build_of_onnxruntime_counts_as_onnxruntime(monkeypatch):
    from importlib import metadata

    def version(name):
        if name == "onnxruntime-gpu":
            return "1.22.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    registry._met.cache_clear()
    try:
        assert registry.missing(("onnxruntime>=1.20",)) == []
        assert registry.missing(("onnxruntime>=1.23",)) == ["onnxruntime>=1.23"]
    finally:
        registry._met.cache_clear()


def test_what_is_not_there_is_refused_with_the_fix(fake_model):
    for command in (api.bench, api.evaluate):
        model = [fake_model()] if command is api.bench else fake_model()
        with pytest.raises(LeptonError, match="fake:absent: this machine has no such device") as caught:
            command(model, QUICK, runtime="fake:absent")
        assert caught.value.hint == "use fake:npu" and caught.value.exit_code == 1


# ---- placement -------------------------------------------------------------------------------------------

NODES = {"nodes": {"Conv": 5, "Resize": 2}}


def test_a_whole_model_on_its_device_is_told_without_a_warning(fake_model):
    result = api.bench([fake_model(**NODES)], QUICK, runtime="fake:npu")
    info = result["rows"][0]["runtime"]
    assert info["device"] == "npu" and info["delegated"] == {"nodes": 7, "of": 7, "partitions": 1, "left": {}}
    assert not [text for text in result["rows"][0]["warnings"] if "CPU" in text]


def test_nodes_left_on_the_cpu_are_a_warning_with_their_names(fake_model, capsys):
    from lepton_edge import show_bench

    result = api.bench([fake_model(**NODES, cpu_only=["Resize"])], QUICK, runtime="fake:npu")
    assert result["rows"][0]["warnings"][0] == "2 of 7 nodes ran on the CPU, not on npu: 2 Resize"
    show_bench.timings(result)
    shown = capsys.readouterr().out
    assert "warning: model.fake: 2 of 7 nodes ran on the CPU" in shown and "fake 1 on npu" in shown
    plain = api.bench([fake_model(**NODES, cpu_only=["Resize"])], QUICK)["rows"][0]["warnings"]
    assert not [text for text in plain if "CPU, not" in text], "none was asked for"


def test_a_model_of_which_nothing_runs_on_the_device_is_refused(fake_model):
    model = fake_model(**NODES, cpu_only=["Conv", "Resize"])
    with pytest.raises(LeptonError, match=r"nothing of it runs on npu in fake:npu; all 7 nodes .*: 5 Conv, 2 Resize"):
        api.bench([model], QUICK, runtime="fake:npu")


def test_a_runtime_that_cannot_tell_is_a_warning():
    info = {"runtime": "onnxruntime", "version": "1.20.0", "device": "cuda"}
    assert placement.warnings(info) == ["onnxruntime 1.20.0 does not tell how much of the model ran on cuda"]


def test_onnxruntime_tells_where_each_node_is(tmp_path):
    module = needs("onnxruntime")
    write_dense_onnx(tmp_path / "m.onnx")
    info = module.load(str(tmp_path / "m.onnx")).info
    assert info["delegated"] == {"nodes": 1, "of": 1, "partitions": 1, "left": {}}
    assert (info["device"], info["precision"]) == ("cpu", "f32")


def test_onnxruntime_counts_the_nodes_of_each_provider():
    def part(provider, *ops):
        return SimpleNamespace(ep_name=provider, get_nodes=lambda: [SimpleNamespace(op_type=op) for op in ops])

    cpu, cuda, trt = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
    parts = [part(trt, "Conv", "Relu"), part(cuda, "Resize"), part(cpu, "NonZero"), part(cpu, "NonZero")]
    placed = runtime("onnxruntime")._placed(parts, trt)
    assert placed == {"nodes": 3, "of": 5, "partitions": 2, "left": {"NonZero": 2}}
    assert runtime("onnxruntime")._placed([part(cpu, "Conv")], cuda)["nodes"] == 0


def test_openvino_tells_its_device_and_precision(tmp_path):
    ov = pytest.importorskip("openvino")
    module = needs("openvino")
    x = ov.opset13.parameter([1, 3], np.float32, name="x")
    ov.save_model(ov.Model([ov.opset13.relu(ov.opset13.sin(x))], [x]), tmp_path / "m.xml", compress_to_fp16=False)
    for device in ("CPU", "AUTO"):
        info = module.load(str(tmp_path / "m.xml"), device=device).info
        assert info["precision"] == "f32", device
        assert info["device"] in (("cpu",) if device == "CPU" else ("cpu", "gpu", "npu"))
        assert info["delegated"]["nodes"] == info["delegated"]["of"] > 0


def test_torch_refuses_a_device_that_is_not_there(tmp_path):
    torch = pytest.importorskip("torch")
    module = runtime("torch")
    if module.unusable("cuda") is None:
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="device 'cuda': "):
        module.load(str(tmp_path / "m.pt2"), device="cuda")
    assert torch.__version__


# ---- TFLite: what delegates take, and the GPU through WebGPU ---------------------------------------------


def write_chain_tflite(path, ops):
    """One-input operators one behind the other, on [1, 4] floats."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    flatbuffers = pytest.importorskip("flatbuffers")
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.subgraphs = 3, [schema.BufferT()], [graph]
    graph.inputs, graph.outputs = [0], [len(ops)]
    graph.tensors, graph.operators, model.operatorCodes = [], [], []
    for k in range(len(ops) + 1):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = f"t{k}", [1, 4], schema.TensorType.FLOAT32, 0
        graph.tensors.append(tensor)
    for k, name in enumerate(ops):
        code, op = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(schema.BuiltinOperator, name)
        code.version, op.opcodeIndex, op.inputs, op.outputs = 1, k, [k], [k + 1]
        model.operatorCodes.append(code)
        graph.operators.append(op)
    builder = flatbuffers.Builder(512)
    builder.Finish(model.Pack(builder), b"TFL3")
    Path(path).write_bytes(bytes(builder.Output()))
    return str(path)


@pytest.mark.parametrize("name", ["litert", "tflite_runtime"])
def test_tflite_tells_what_xnnpack_takes(tmp_path, name):
    module = needs(name)
    model = write_chain_tflite(tmp_path / "m.tflite", ["ABS", "NEG", "ZEROS_LIKE", "ABS"])
    info = module.load(model).info
    assert info["delegated"] == {"nodes": 3, "of": 4, "partitions": 2, "left": {"ZEROS_LIKE": 1}}
    assert info["delegate"] == "xnnpack" and info["device"] == "cpu"
    info = module.load(model, delegate="none").info
    assert info["delegated"]["nodes"] == 0 and info["delegated"]["left"] == {"ABS": 2, "NEG": 1, "ZEROS_LIKE": 1}
    assert info["delegate"] == "none"


def test_tflite_runtime_has_no_int8_xnnpack(tmp_path):
    for name, taken in (("litert", 1), ("tflite_runtime", 0)):
        module = needs(name)
        write_dense_tflite(tmp_path / "m.tflite", int8=True)
        assert module.load(str(tmp_path / "m.tflite")).info["delegated"]["nodes"] == taken, name


@pytest.fixture
def gpu(monkeypatch):
    """LiteRT on a GPU, in a process of its own: a software one where Debian's chromium brings it."""
    software = Path("/usr/lib/chromium/vk_swiftshader_icd.json")
    if "VK_ICD_FILENAMES" not in os.environ and software.is_file():
        monkeypatch.setenv("VK_ICD_FILENAMES", str(software))
        monkeypatch.setenv("LD_LIBRARY_PATH", f"{software.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}")
    needs("litert")
    (found,) = availability.ask([registry.runtime_for("tflite", "litert:webgpu")])
    if found.reason:
        pytest.skip(found.reason)
    return Elsewhere("litert")


def test_a_model_on_the_gpu_answers_as_on_the_cpu(gpu, tmp_path):
    weights = write_dense_tflite(tmp_path / "m.tflite")
    session = gpu.load(str(tmp_path / "m.tflite"), delegate="webgpu")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(session.run({"pixels": x})["scores"], x @ weights.T, rtol=1e-5, atol=1e-5)
    assert session.info["device"] == session.info["delegate"] == "webgpu" and session.info["adapter"]
    assert session.info["delegated"] == {"nodes": 1, "of": 1, "partitions": 1, "left": {}}


def test_what_the_gpu_lacks_is_told_by_name(gpu, tmp_path):
    model = write_chain_tflite(tmp_path / "m.tflite", ["ABS", "NEG", "ZEROS_LIKE", "ABS"])
    session = gpu.load(model, delegate="webgpu")
    left = {"ZEROS_LIKE": 1, "others cut off by them": 1}
    assert session.info["delegated"] == {"nodes": 2, "of": 4, "partitions": 1, "left": left}
    assert session.run({"t0": np.ones((1, 4), np.float32)})["t4"].tolist() == [[0, 0, 0, 0]]
    with pytest.raises(LeptonError, match=r"nothing of it runs on webgpu in litert:webgpu; all 1 nodes .*ZEROS_LIKE"):
        api.bench([Path(write_chain_tflite(tmp_path / "z.tflite", ["ZEROS_LIKE"]))], QUICK, runtime="litert:webgpu")


def test_without_a_gpu_webgpu_says_what_is_missing(monkeypatch):
    needs("litert")
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nowhere.json")
    monkeypatch.setenv("VK_DRIVER_FILES", "/nowhere.json")
    (found,) = availability.ask([registry.runtime_for("tflite", "litert:webgpu")])
    assert found.reason.startswith("WebGPU finds no GPU: ") and "VK_ICD_FILENAMES" in found.fix
