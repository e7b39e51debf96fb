"""Every runtime: names, shapes, batches, state, and one-line errors for damaged files."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import textwrap
import zipfile
from importlib import util
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
RUNTIMES = ROOT / "lepton_edge" / "runtimes"
ON_DEVICES = ["fake", "litert", "ncnn", "onnxruntime", "openvino", "tflite_runtime", "torch"]


def runtime(name):
    """Load a runtime by its path, as the worker does: its name may be that of the package it wraps."""
    spec = util.spec_from_file_location(f"lepton_runtime_{name}", RUNTIMES / f"{name}.py")
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _serve(pipe, name):
    """The other end of Elsewhere: loads and runs models until told to stop, errors included."""
    session = None
    while (call := pipe.recv()) is not None:
        what, args, options = call
        try:
            if what == "load":
                session = runtime(name).load(*args, **options)
                pipe.send((session.inputs, session.outputs, session.info))
            else:
                pipe.send(session.run(*args))
        except Exception as e:
            pipe.send(e)


class Elsewhere:
    """A runtime in a fresh process: tflite-runtime's symbols clash with those of a TensorFlow that is loaded."""

    def __init__(self, name):
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        self._pipe, end = context.Pipe()
        self._process = context.Process(target=_serve, args=(end, name), daemon=True)
        self._process.start()

    def _ask(self, *call):
        self._pipe.send(call)
        if not self._pipe.poll(60):
            raise TimeoutError("the other process does not answer")
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def load(self, *args, **options):
        self.inputs, self.outputs, self.info = self._ask("load", args, options)
        return self

    def run(self, feeds):
        return self._ask("run", (feeds,), {})

    def __del__(self):
        self._process.kill()


def write_dense_onnx(path, rows="batch"):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.arange(6, dtype=np.float32).reshape(3, 2) / 10
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, 2])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return weights


def write_dense_tflite(path, *, signature=True, int8=False):
    """y = x @ w.T as one FULLY_CONNECTED, written with the schema's own classes."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    flatbuffers = pytest.importorskip("flatbuffers")
    weights = (np.arange(6) - 2).reshape(2, 3)
    kind = schema.TensorType.INT8 if int8 else schema.TensorType.FLOAT32
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.description = 3, "dense"
    stored = weights.astype(np.int8 if int8 else np.float32)
    model.buffers = [schema.BufferT(), schema.BufferT()]
    model.buffers[1].data = np.frombuffer(stored.tobytes(), np.uint8)
    graph.tensors = []
    for name, shape, buffer in (("serving_default_x:0", [1, 3], 0), ("w", [2, 3], 1), ("Result:0", [1, 2], 0)):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, shape, kind, buffer
        if int8:
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale, tensor.quantization.zeroPoint = [0.5], [0]
        graph.tensors.append(tensor)
    op = schema.OperatorT()
    op.opcodeIndex, op.inputs, op.outputs = 0, [0, 1, -1], [2]
    op.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    op.builtinOptions = schema.FullyConnectedOptionsT()
    graph.inputs, graph.outputs, graph.operators = [0], [2], [op]
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version = 4 if int8 else 1
    model.operatorCodes, model.subgraphs = [code], [graph]
    if signature:
        definition = schema.SignatureDefT()
        definition.signatureKey, definition.subgraphIndex = "serving_default", 0
        entries = []
        for name, index in (("pixels", 0), ("scores", 2)):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, index
            entries.append(entry)
        definition.inputs, definition.outputs = entries[:1], entries[1:]
        model.signatureDefs = [definition]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    Path(path).write_bytes(bytes(builder.Output()))
    return weights.astype(np.float32)


def needs(name):
    module = {"litert": "ai_edge_litert", "tflite_runtime": "tflite_runtime"}.get(name, name)
    if name != "fake" and util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    if name == "tflite_runtime" and int(np.__version__.split(".")[0]) >= 2:
        pytest.skip("tflite-runtime needs numpy < 2")
    return Elsewhere(name) if name == "tflite_runtime" else runtime(name)


# ---- TFLite, both packages -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["litert", "tflite_runtime"])
@pytest.mark.parametrize("delegate", ["xnnpack", "none"])
def test_tflite_names_come_from_the_signature_and_batches_run_one_by_one(tmp_path, name, delegate):
    module = needs(name)
    weights = write_dense_tflite(tmp_path / "m.tflite")
    session = module.load(str(tmp_path / "m.tflite"), delegate=delegate)
    assert session.inputs == [{"name": "pixels", "shape": [1, 3], "dtype": "float32"}]
    assert session.outputs == [{"name": "scores", "shape": [1, 2], "dtype": "float32"}]
    assert session.info["version"] and session.info["delegate"] in ("xnnpack", "none")
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(session.run({"pixels": x})["scores"], x @ weights.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["litert", "tflite_runtime"])
def test_tflite_names_fall_back_to_tidied_tensor_names(tmp_path, name):
    module = needs(name)
    write_dense_tflite(tmp_path / "m.tflite", signature=False)
    session = module.load(str(tmp_path / "m.tflite"))
    assert [session.inputs[0]["name"], session.outputs[0]["name"]] == ["x", "Result"]


@pytest.mark.parametrize("name", ["litert", "tflite_runtime"])
def test_tflite_int8_ports_tell_their_quantization(tmp_path, name):
    module = needs(name)
    write_dense_tflite(tmp_path / "m.tflite", int8=True)
    session = module.load(str(tmp_path / "m.tflite"))
    assert session.inputs[0]["dtype"] == "int8"
    assert session.inputs[0]["quantization"] == [0.5, 0]
    assert session.outputs[0]["quantization"] == [0.5, 0]
    with pytest.raises(ValueError, match="takes int8"):
        session.run({"pixels": np.zeros((1, 3), np.float32)})


def test_outputs_are_copies(tmp_path):
    module = needs("litert")  # both packages share the code that copies, see the test of it below
    write_dense_tflite(tmp_path / "m.tflite")
    session = module.load(str(tmp_path / "m.tflite"))
    first = session.run({"pixels": np.ones((1, 3), np.float32)})["scores"]
    kept = first.copy()
    session.run({"pixels": np.full((1, 3), 9, np.float32)})
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("name", ["litert", "tflite_runtime"])
def test_damaged_tflite_is_a_value_error_never_a_crash(tmp_path, name):
    """In a process of its own: tflite-runtime segfaults on most truncated files."""
    needs(name)
    write_dense_tflite(tmp_path / "m.tflite")
    code = f"""
        import sys, random
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_runtimes import runtime
        module, data = runtime({name!r}), open({str(tmp_path / "m.tflite")!r}, "rb").read()
        target = {str(tmp_path / "damaged.tflite")!r}
        rng, refused = random.Random(0), 0
        cases = [data[:n] for n in range(0, len(data), 5)] + [b"junk" * 100, b"\\0\\0\\0\\0TFL3" + b"\\xff" * 200]
        for i in range(150):
            flipped = bytearray(data)
            flipped[rng.randrange(len(data))] = rng.randrange(256)
            cases.append(bytes(flipped))
        for case in cases:
            open(target, "wb").write(case)
            try:
                module.load(target)
            except ValueError as error:
                assert "\\n" not in str(error) and "damaged.tflite" in str(error), error
                refused += 1
        print("refused", refused)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) >= 50


def test_the_two_tflite_adapters_share_their_session():
    texts = [(RUNTIMES / f"{n}.py").read_text() for n in ("litert", "tflite_runtime")]
    assert texts[0][texts[0].index("class Session") :] == texts[1][texts[1].index("class Session") :]


# ---- ONNX Runtime ----------------------------------------------------------------------------------------


def test_onnxruntime_runs_free_and_fixed_batches(tmp_path):
    module = needs("onnxruntime")
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    for rows, shape in (("batch", [None, 3]), (1, [1, 3])):
        weights = write_dense_onnx(tmp_path / "m.onnx", rows)
        session = module.load(str(tmp_path / "m.onnx"), threads=1)
        assert session.inputs == [{"name": "x", "shape": shape, "dtype": "float32"}]
        np.testing.assert_allclose(session.run({"x": x})["y"], x @ weights, rtol=1e-5, atol=1e-6)
    assert session.info["provider"] == "CPUExecutionProvider" and session.info["spinning"] is False


def test_onnxruntime_never_falls_back_from_a_missing_provider(tmp_path):
    module = needs("onnxruntime")
    write_dense_onnx(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"'NoSuchProvider' is not available here; available: .*CPU"):
        module.load(str(tmp_path / "m.onnx"), provider="NoSuchProvider")


@pytest.mark.parametrize("cut", [0, 10, 60])
def test_onnxruntime_refuses_damaged_files(tmp_path, cut):
    module = needs("onnxruntime")
    write_dense_onnx(tmp_path / "m.onnx")
    data = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[:cut])
    with pytest.raises(ValueError, match=r"cut\.onnx"):
        module.load(str(tmp_path / "cut.onnx"))


def test_onnxruntime_names_bad_feeds(tmp_path):
    module = needs("onnxruntime")
    write_dense_onnx(tmp_path / "m.onnx")
    session = module.load(str(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=r"inputs are \['x'\], got \['z'\]"):
        session.run({"z": np.zeros((1, 3), np.float32)})
    with pytest.raises(ValueError, match="ONNX Runtime"):
        session.run({"x": np.zeros((1, 4), np.float32)})


# ---- OpenVINO --------------------------------------------------------------------------------------------


@pytest.fixture
def dense_ir(tmp_path):
    ov = pytest.importorskip("openvino")
    weights = write_dense_onnx(tmp_path / "m.onnx", 1)
    ov.save_model(ov.Core().read_model(tmp_path / "m.onnx"), tmp_path / "m.xml", compress_to_fp16=False)
    return tmp_path / "m.xml", weights


def test_openvino_runs_exactly_and_tells_its_precision(dense_ir):
    path, weights = dense_ir
    session = runtime("openvino").load(str(path))
    assert session.info["precision"] == "f32"
    assert session.inputs == [{"name": "x", "shape": [1, 3], "dtype": "float32"}]
    assert session.outputs == [{"name": "y", "shape": [1, 2], "dtype": "float32"}]
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    first = session.run({"x": x[:1]})["y"]
    np.testing.assert_allclose(session.run({"x": x})["y"], x @ weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first, x[:1] @ weights, rtol=1e-5, atol=1e-6)
    assert runtime("openvino").load(str(path), precision="default").info["precision"] in ("f32", "bf16", "f16")


def test_openvino_names_what_is_wrong(dense_ir):
    path, _ = dense_ir
    module = runtime("openvino")
    session = module.load(str(path))
    with pytest.raises(ValueError, match="takes float32, got float64"):
        session.run({"x": np.zeros((1, 3))})
    with pytest.raises(ValueError, match="device 'NPU9' is not available"):
        module.load(str(path), device="NPU9")
    with pytest.raises(ValueError, match="unknown precision"):
        module.load(str(path), precision="f8")
    path.with_suffix(".bin").unlink()
    with pytest.raises(ValueError, match=r"m\.bin is missing"):
        module.load(str(path))
    path.write_text("<html></html>")
    with pytest.raises(ValueError, match="not an OpenVINO IR"):
        module.load(str(path))


# ---- PyTorch ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program_file(tmp_path_factory):
    torch = pytest.importorskip("torch")

    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(3, 2)

        def forward(self, x, ids):
            return {"sum": self.dense(x) + ids, "twice": x * 2}

    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Pair().eval(),
        (torch.randn(2, 3), torch.ones(2, 2, dtype=torch.int64)),
        dynamic_shapes=({0: batch}, {0: batch}),
    )
    path = tmp_path_factory.mktemp("pt2") / "pair.pt2"
    torch.export.save(program, path)
    return path, program


def test_torch_runs_a_program_with_a_free_batch(program_file):
    torch = pytest.importorskip("torch")
    path, program = program_file
    session = runtime("torch").load(str(path))
    assert [(s["name"], s["shape"], s["dtype"]) for s in session.inputs] == [
        ("x", [None, 3], "float32"),
        ("ids", [None, 2], "int64"),
    ]
    x, ids = np.ones((5, 3), np.float32), np.full((5, 2), 7)
    got = list(session.run({"x": x, "ids": ids}).values())
    want = program.module()(torch.from_numpy(x), torch.from_numpy(ids))
    np.testing.assert_allclose(got[0], want["sum"].detach().numpy(), rtol=1e-6)
    np.testing.assert_allclose(got[1], x * 2)
    with pytest.raises(ValueError, match="takes int64"):
        session.run({"x": x, "ids": x})


def edited(path, target, change):
    """A copy of a .pt2 with `change(files: dict[str, bytes])` applied to its members."""
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].split("/")[0]
        files = {n.split("/", 1)[1]: archive.read(n) for n in archive.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"{root}/{name}", data)
    return str(target)


class Bomb:
    """Its unpickling leaves a file behind."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def in_model(change):
    def apply(files):
        document = json.loads(files["models/model.json"])
        change(document)
        files["models/model.json"] = json.dumps(document).encode()

    return apply


@pytest.mark.parametrize(
    "attack",
    ["sample pickle", "weight pickle", "opaque constant", "guards", "target", "expression", "name", "native", "tree"],
)
def test_torch_never_runs_what_a_file_says(program_file, tmp_path, attack):
    path, _ = program_file
    marker = tmp_path / "ran"
    call = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def poison(files):
        if attack == "sample pickle":
            files["data/sample_inputs/model.pt"] = pickle.dumps(Bomb(marker))
        elif attack in ("weight pickle", "opaque constant"):
            kind, name = ("weights", "weight_0") if attack == "weight pickle" else ("constants", "opaque_obj_0")
            config = json.loads(files[f"data/{kind}/model_{kind}_config.json"])
            meta = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
            config["config"]["bad"] = meta
            files[f"data/{kind}/model_{kind}_config.json"] = json.dumps(config).encode()
            files[f"data/{kind}/{name}"] = pickle.dumps(Bomb(marker))
        elif attack == "native":
            files["data/aotinductor/model/x.so"] = b"\x7fELF"
        else:
            in_model(change)(files)

    def change(document):
        graph = document["graph_module"]["graph"]
        if attack == "guards":
            document["guards_code"] = [call]
        elif attack == "target":
            node = graph["nodes"][0]
            node["target"] = "torch.os.system"
            node["inputs"] = [{"name": "command", "arg": {"as_string": f"touch {marker}"}, "kind": 1}]
        elif attack == "expression":
            text = json.dumps(graph["tensor_values"])
            document["graph_module"]["graph"]["tensor_values"] = json.loads(
                text.replace('"expr_str": "', f'"expr_str": {json.dumps(call)[:-1]} + ')
            )
        elif attack == "name":
            for value in graph["inputs"]:
                if value.get("as_tensor", {}).get("name") == "x":
                    value["as_tensor"]["name"] = f"x={call}"
        elif attack == "tree":
            signature = document["graph_module"]["module_call_graph"][0]["signature"]
            signature["out_spec"] = signature["out_spec"].replace("builtins.dict", "collections.defaultdict")

    target = edited(path, tmp_path / "bad.pt2", poison)
    module = runtime("torch")
    if attack in ("guards", "sample pickle"):  # dropped: the model itself is whole
        module.load(target).run({"x": np.ones((1, 3), np.float32), "ids": np.ones((1, 2), np.int64)})
    else:
        with pytest.raises(ValueError, match=r"bad\.pt2"):
            module.load(target)
    assert not marker.exists()


def test_torch_refuses_other_files(program_file, tmp_path):
    path, _ = program_file
    module = runtime("torch")
    for name, data in (("junk", b"junk" * 50), ("cut", path.read_bytes()[:2000]), ("empty", b"")):
        (tmp_path / f"{name}.pt2").write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}\.pt2: not a \.pt2 archive"):
            module.load(str(tmp_path / f"{name}.pt2"))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("something/else.txt", "hello")
    (tmp_path / "zip.pt2").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="no exported program"):
        module.load(str(tmp_path / "zip.pt2"))


# ---- the stand-in ----------------------------------------------------------------------------------------


def write_fake(path, **extra):
    config = {
        "inputs": [{"name": "x", "shape": [1, 2, 3]}],
        "outputs": [{"name": "y", "shape": [1, 4]}],
        "seed": 3,
        **extra,
    }
    path.write_text(json.dumps(config))
    return str(path)


def test_fake_is_deterministic_and_linear(tmp_path):
    module = runtime("fake")
    a, b = (module.load(write_fake(tmp_path / "m.fake")) for _ in range(2))
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(a.run({"x": x})["y"], b.run({"x": x})["y"])
    np.testing.assert_allclose(a.run({"x": 2 * x})["y"], 2 * a.run({"x": x})["y"], rtol=1e-6)
    noisy = module.load(write_fake(tmp_path / "n.fake", noise=0.01))
    assert 0 < np.abs(noisy.run({"x": x})["y"] - a.run({"x": x})["y"]).max() < 0.2


@pytest.mark.parametrize(("fail", "error"), [("error", RuntimeError), ("oom", MemoryError)])
def test_fake_fails_when_told(tmp_path, fail, error):
    session = runtime("fake").load(write_fake(tmp_path / "m.fake", fail=fail, fail_at=1))
    x = {"x": np.zeros((1, 2, 3), np.float32)}
    session.run(x)
    with pytest.raises(error):
        session.run(x)


def test_fake_crash_kills_its_process(tmp_path):
    path = write_fake(tmp_path / "m.fake", fail="crash", fail_at="load")
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += f"from test_runtimes import runtime; runtime('fake').load({path!r})"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -11


@pytest.mark.parametrize("text", ["", "[]", '{"inputs": 3}', '{"inputs": [], "outputs": [], "typo": 1}'])
def test_fake_refuses_odd_files(tmp_path, text):
    (tmp_path / "m.fake").write_text(text)
    with pytest.raises(ValueError, match=r"m\.fake: not a fake model"):
        runtime("fake").load(str(tmp_path / "m.fake"))


@pytest.mark.parametrize("name", ON_DEVICES)
def test_missing_file_is_one_line(tmp_path, name):
    module = needs(name)
    with pytest.raises(ValueError, match=r"nowhere\.") as caught:
        module.load(str(tmp_path / "nowhere.xml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ON_DEVICES)
def test_runtimes_are_self_contained(name):
    text = (RUNTIMES / f"{name}.py").read_text()
    assert "lepton_edge" not in text and "import tensorflow" not in text
