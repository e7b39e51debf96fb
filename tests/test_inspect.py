"""Inspectors against models whose figures are known: by hand, by the framework, or from their publishers."""

import io
import json
import os
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lepton_edge.errors import LeptonError, MissingExtra, UsageError
from lepton_edge.inspect_model import inspect, inspector_files
from lepton_edge.inspectors._common import Weights, count_nonzeros, einsum_macs, times
from lepton_edge.inspectors._flow import Flow
from lepton_edge.inspectors._keras_rules import apply
from lepton_edge.inspectors._wire import parse

KEYS = {
    "format", "producer", "inputs", "outputs", "parameters", "statistics", "nonzeros", "macs", "operators",
    "layers", "weight_bytes", "versions", "quantized", "notes",
}  # fmt: skip


def check(report: dict) -> dict:
    """What holds for every report."""
    assert set(report) == KEYS
    json.dumps(report, allow_nan=False)
    assert sum(report["operators"].values()) == len(report["layers"])
    assert report["nonzeros"] is None or report["nonzeros"] <= report["parameters"]
    counts = [row["macs"] for row in report["layers"]]
    assert report["macs"] == (None if None in counts else sum(counts))
    assert report["macs"] is not None or any("MACs unknown" in note or "no MACs" in note for note in report["notes"])
    return report


# ---- small models, made by hand ----------------------------------------------------------------------


@pytest.fixture
def onnx_model(tmp_path):
    """Conv 3->4 3x3 on a free batch of [3, 8, 8], relu, flatten, dense 144->5: 9*3*4*36 + 144*5 MACs."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    kernel = np.ones((4, 3, 3, 3), np.float32)
    kernel[0] = 0
    tensors = {
        "w": kernel, "b": np.ones(4, np.float32),
        "d": np.ones((144, 5), np.float32), "shape": np.array([0, -1], np.int64), "six": np.array(6, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("Clip", ["c", "", "six"], ["r"], "clip"),
        helper.make_node("Reshape", ["r", "shape"], ["f"], "flat"),
        helper.make_node("MatMul", ["f", "d"], ["y"], "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="me")
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    return path


def test_onnx_by_hand(onnx_model):
    report = check(inspect(str(onnx_model)))
    assert report["macs"] == 9 * 3 * 4 * 36 + 144 * 5
    assert report["parameters"] == 108 + 4 + 720
    assert report["nonzeros"] == 108 + 4 + 720 - 27
    assert report["weight_bytes"] == 4 * report["parameters"]
    assert report["inputs"] == [{"name": "x", "shape": [None, 3, 8, 8], "dtype": "float32"}]
    assert report["operators"] == {"Conv": 1, "Clip": 1, "Reshape": 1, "MatMul": 1}
    assert report["versions"] == {"ir": 9, "opset": {"ai.onnx": 17}}
    conv = report["layers"][0]
    assert (conv["name"], conv["parameters"], conv["bytes"], conv["output_shape"]) == ("conv", 112, 448, [1, 4, 6, 6])


def test_onnx_external_data(onnx_model, tmp_path):
    import onnx

    model = onnx.load(onnx_model)
    target = tmp_path / "e.onnx"
    onnx.save(model, target, save_as_external_data=True, location="e.data", size_threshold=64)
    assert inspect(str(target))["nonzeros"] == inspect(str(onnx_model))["nonzeros"]
    (tmp_path / "e.data").unlink()
    with pytest.raises(LeptonError, match=r"'e\.data'"):
        inspect(str(target))


def test_onnx_external_data_may_not_leave_its_folder(onnx_model, tmp_path):
    import onnx

    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4096))
    model = onnx.load(onnx_model)
    tensor = model.graph.initializer[2]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    onnx.save(model, folder / "m.onnx")
    with pytest.raises(LeptonError, match="cannot be read"):
        inspect(str(folder / "m.onnx"))


def test_onnx_weights_in_integers_belong_to_their_layer(tmp_path):
    """A QDQ weight: counted once, against its zero point, in the row of the layer that uses it."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.full((6, 4), 7, np.uint8)
    weight[0] = 9
    tensors = {"w": weight, "s": np.ones(4, np.float32), "z": np.full(4, 7, np.uint8)}
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wf"], "dq", axis=1),
        helper.make_node("MatMul", ["x", "wf"], ["y"], "dense"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    path = tmp_path / "q.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    report = check(inspect(str(path)))
    assert (report["parameters"], report["nonzeros"], report["weight_bytes"]) == (24, 4, 24)
    assert report["layers"][1]["parameters"] == 24 and report["macs"] == 24
    assert report["quantized"] == {"uint8_tensors": 1, "dequantize_nodes": 1}


def test_onnx_unknown_operators_and_free_sizes_are_not_guessed(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [helper.make_node("Magic", ["x"], ["h"], "magic", domain="acme"), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "steps"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    report = check(inspect(str(path)))
    assert report["macs"] is None and report["operators"] == {"acme.Magic": 1, "Relu": 1}
    assert any("acme" in note for note in report["notes"])


def test_openvino_matches_its_source(onnx_model):
    openvino = pytest.importorskip("openvino")
    path = onnx_model.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(str(onnx_model)), str(path), compress_to_fp16=False)
    report, source = check(inspect(str(path))), inspect(str(onnx_model))
    assert (report["macs"], report["parameters"]) == (source["macs"], source["parameters"])
    assert report["nonzeros"] == source["nonzeros"]
    assert report["inputs"] == source["inputs"] and report["outputs"] == source["outputs"]
    assert report["versions"]["ir"] >= 10
    half = onnx_model.with_name("half.xml")
    openvino.save_model(openvino.Core().read_model(str(onnx_model)), str(half), compress_to_fp16=True)
    packed = check(inspect(str(half)))
    assert packed["weight_bytes"] * 2 == report["weight_bytes"] and packed["macs"] == report["macs"]


def test_openvino_without_or_with_a_cut_bin(onnx_model):
    openvino = pytest.importorskip("openvino")
    path = onnx_model.with_suffix(".xml")
    openvino.save_model(openvino.Core().read_model(str(onnx_model)), str(path))
    binary = path.with_suffix(".bin")
    data = binary.read_bytes()
    binary.write_bytes(data[: len(data) // 2])
    with pytest.raises(LeptonError, match="damaged or not OpenVINO"):
        inspect(str(path), "openvino")
    binary.unlink()
    with pytest.raises(LeptonError, match=r"m\.bin are missing"):
        inspect(str(path), "openvino")


def keras_zip(path: Path, config: dict, weights: dict[str, np.ndarray]) -> Path:
    """A .keras archive from its three members."""
    h5py = pytest.importorskip("h5py")
    store = io.BytesIO()
    with h5py.File(store, "w") as file:
        for name, array in weights.items():
            file[name] = array
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.9.0"}))
        archive.writestr("config.json", json.dumps(config))
        archive.writestr("model.weights.h5", store.getvalue())
    return path


def keras_layer(kind: str, name: str, module: str = "keras.layers", **config) -> dict:
    return {"module": module, "class_name": kind, "config": {"name": name, **config}, "registered_name": None}


def sequential(*layers: dict) -> dict:
    return {"module": "keras", "class_name": "Sequential", "config": {"name": "s", "layers": list(layers)}}


INPUT = keras_layer("InputLayer", "picture", batch_shape=[None, 8, 8, 1], dtype="float32")
CONV = keras_layer("Conv2D", "c", filters=2, kernel_size=[3, 3], strides=[1, 1], padding="same")


def test_keras_by_hand(tmp_path):
    dense = keras_layer("Dense", "d", units=3)
    config = sequential(INPUT, CONV, keras_layer("BatchNormalization", "b"), keras_layer("Flatten", "f"), dense)
    weights = {
        "layers/conv2d/vars/0": np.ones((3, 3, 1, 2), np.float32), "layers/conv2d/vars/1": np.zeros(2, np.float32),
        **{f"layers/batch_normalization/vars/{i}": np.ones(2, np.float32) for i in range(4)},
        "layers/dense/vars/0": np.ones((128, 3), np.float32),
        "seed_generator/vars/0": np.zeros(2, np.uint32),
    }  # fmt: skip
    report = check(inspect(str(keras_zip(tmp_path / "m.keras", config, weights))))
    assert report["macs"] == 64 * 9 * 2 + 128 * 3
    assert (report["parameters"], report["statistics"], report["nonzeros"]) == (20 + 4 + 384, 4, 18 + 4 + 384)
    assert report["inputs"] == [{"name": "picture", "shape": [None, 8, 8, 1], "dtype": "float32"}]
    assert report["outputs"] == [{"name": "d", "shape": [None, 3], "dtype": "float32"}]
    assert [row["parameters"] for row in report["layers"]] == [20, 8, 0, 384]


def test_keras_custom_layers_are_described_and_not_loaded(tmp_path):
    custom = keras_layer("Boom", "boom", module="os")
    lambda_ = keras_layer("Lambda", "l", function={"class_name": "__lambda__", "config": {"code": "x"}})
    report = check(inspect(str(keras_zip(tmp_path / "m.keras", sequential(INPUT, CONV, custom, lambda_), {}))))
    assert report["macs"] is None and report["operators"]["Boom"] == 1
    assert any("Lambda" in note and "not run" in note for note in report["notes"])


def test_keras_subclassed_model_keeps_its_weights(tmp_path):
    config = {"module": "builtins", "class_name": "Mine", "config": {}, "registered_name": "Mine"}
    report = check(inspect(str(keras_zip(tmp_path / "m.keras", config, {"a/vars/0": np.ones((3, 3))}))))
    assert report["parameters"] == 9 and report["macs"] is None


def test_h5_that_is_no_model(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["layer/kernel"] = np.ones(3)
    with pytest.raises(LeptonError, match="no Keras model"):
        inspect(str(tmp_path / "w.h5"))


def test_h5_may_not_read_other_files(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file.attrs["model_config"] = json.dumps(sequential(INPUT, CONV))
        file["model_weights/c/kernel"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(LeptonError, match="links out of the file"):
        inspect(str(tmp_path / "m.h5"))


def pt2_zip(path: Path, sizes: list, raw: bytes) -> Path:
    """x [sizes] -> linear with a weight [5, 4], written as torch.export writes it."""

    def meta(sizes: list) -> dict:
        return {"dtype": 7, "sizes": sizes}

    batch = sizes[0]
    weight = [{"as_int": 5}, {"as_int": 4}]
    graph = {
        "tensor_values": {"p_w": meta(weight), "x": meta(sizes), "linear": meta([batch, {"as_int": 5}])},
        "nodes": [
            {
                "target": "torch.ops.aten.linear.default",
                "inputs": [
                    {"name": "input", "arg": {"as_tensor": {"name": "x"}}},
                    {"name": "weight", "arg": {"as_tensor": {"name": "p_w"}}},
                ],
                "outputs": [{"as_tensor": {"name": "linear"}}],
            }
        ],
    }
    signature = {
        "input_specs": [
            {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
            {"user_input": {"arg": {"as_tensor": {"name": "x"}}}},
        ],
        "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "linear"}}}}],
    }
    program = {
        "graph_module": {"graph": graph, "signature": signature},
        "schema_version": {"major": 8, "minor": 1},
        "torch_version": "2.9.0",
    }
    stored = {"w": {"path_name": "weight_0", "use_pickle": False}}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/models/model.json", json.dumps(program))
        archive.writestr("m/data/weights/model_weights_config.json", json.dumps({"config": stored}))
        archive.writestr("m/data/weights/weight_0", raw)
    return path


BATCH = {"as_expr": {"expr_str": "Symbol('s0', positive=True, integer=True)"}}
TWICE = {"as_expr": {"expr_str": "Mul(Integer(2), Symbol('s7', positive=True, integer=True))"}}


@pytest.mark.parametrize(("batch", "macs"), [({"as_int": 1}, 20), (BATCH, 20), (TWICE, 40), ({"as_int": 3}, 60)])
def test_pt2_by_hand(tmp_path, batch, macs):
    weight = np.arange(20, dtype="<f4").tobytes()
    report = check(inspect(str(pt2_zip(tmp_path / "m.pt2", [batch, {"as_int": 4}], weight)), "pt2"))
    assert (report["macs"], report["parameters"], report["nonzeros"]) == (macs, 20, 19)
    assert report["inputs"][0]["name"] == "x" and report["inputs"][0]["shape"] == [batch.get("as_int"), 4]
    assert any("first dimension of 3" in note for note in report["notes"]) == (macs == 60)


def test_pt2_with_a_cut_weight(tmp_path):
    with pytest.raises(LeptonError, match="holds 8 bytes where it needs 80"):
        inspect(str(pt2_zip(tmp_path / "m.pt2", [BATCH, {"as_int": 4}], bytes(8))), "pt2")


# ---- models made by the frameworks -------------------------------------------------------------------

MAKE = """
import sys, tensorflow as tf, keras
from keras import layers as L
out = sys.argv[1]
keras.utils.set_random_seed(0)
i = keras.Input((16, 16, 3), name="image")
x = L.Conv2D(8, 3, strides=2, padding="same")(i)
x = L.ReLU()(L.BatchNormalization()(x))
x = L.DepthwiseConv2D(3)(x)
x = L.SeparableConv2D(12, 3, padding="same")(x)
x = L.Add()([x, L.Conv2D(12, 1)(x)])
x = L.Conv2DTranspose(4, 3, strides=2)(x)
cnn = keras.Model(i, L.Dense(10, activation="softmax")(L.GlobalAveragePooling2D()(x)), name="cnn")
s = keras.Input((6, 16), name="seq")
y = L.LayerNormalization()(s + L.MultiHeadAttention(2, 8)(s, s))
y = L.Dense(16)(L.Dense(32, activation="relu")(y))
attention = keras.Model(s, L.Dense(2)(keras.ops.mean(y, axis=1)))
t = keras.Input((5,), name="tokens", dtype="int32")
z = L.Bidirectional(L.LSTM(4, return_sequences=True))(L.Embedding(20, 8)(t))
rnn = keras.Model({"tokens": t}, {"b": L.Dense(2, name="q")(L.GRU(3)(z)), "a": L.Dense(1, name="p")(z)})
for name, model in {"cnn": cnn, "attention": attention, "rnn": rnn}.items():
    model.save(f"{out}/{name}.keras")
    model.save(f"{out}/{name}.h5")
    model.export(f"{out}/{name}_sm", verbose=False)
    if name != "rnn":
        data = tf.lite.TFLiteConverter.from_saved_model(f"{out}/{name}_sm").convert()
        open(f"{out}/{name}.tflite", "wb").write(data)
print({n: m.count_params() for n, m in {"cnn": cnn, "attention": attention, "rnn": rnn}.items()})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of one CNN, one attention block and one recurrent model, in four formats."""
    pytest.importorskip("h5py")
    if not any((Path(p) / "tensorflow").is_dir() for p in sys.path):
        pytest.skip("TensorFlow is not installed")
    folder = tmp_path_factory.mktemp("made")
    environ = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MAKE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "counts.json").write_text(done.stdout.strip().splitlines()[-1].replace("'", '"'))
    return folder


MACS = {
    # conv 8x8x8x27, depthwise 6x6x8x9, separable 6x6x(8x9 + 8x12), 1x1 6x6x144, transposed 6x6x12x4x9, dense 40
    "cnn": 13824 + 2592 + 6048 + 5184 + 15552 + 40,
    # query, key, value, output 4x6x16x16, scores and values 2x6x6x16, dense 6x16x32 twice, 16x2
    "attention": 6144 + 1152 + 6144 + 32,
    # 2 directions x 5 steps x 4 gates x 4 x (8+4), 5 x 3 gates x 3 x (8+3), dense 3x2 and 5x8
    "rnn": 1920 + 495 + 6 + 40,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MACS))
@pytest.mark.parametrize("suffix", [".keras", ".h5", "_sm", ".tflite"])
def test_every_format_of_a_model_agrees(made, name, suffix):
    path = made / f"{name}{suffix}"
    if not path.exists():
        pytest.skip("not made: recurrent models are converted from fixed shapes")
    report = check(inspect(str(path)))
    total = json.loads((made / "counts.json").read_text())[name]
    if suffix != ".tflite":  # there, normalization is folded away
        assert report["parameters"] + report["statistics"] == total
        assert report["statistics"] == (16 if name == "cnn" else 0)
    if (name, suffix) == ("rnn", "_sm"):
        assert report["macs"] is None and any("While" in note for note in report["notes"])
    else:
        assert report["macs"] == MACS[name]
    assert [entry["name"] for entry in report["inputs"]] == [
        {"cnn": "image", "attention": "seq", "rnn": "tokens"}[name]
    ]
    if name == "rnn" and suffix != ".tflite":
        assert [(e["name"], e["shape"]) for e in report["outputs"]] == [("a", [None, 5, 1]), ("b", [None, 2])]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn.keras", "cnn.h5", "cnn_sm", "attention.tflite"])
def test_damage_is_one_line_and_names_the_file(made, tmp_path, name):
    """Cut anywhere or with bytes changed, a file gives a report or a LeptonError, and nothing else."""
    import shutil

    chance = random.Random(7)
    source = made / name
    target = tmp_path / name
    if source.is_dir():
        shutil.copytree(source, target)
    victim = target / "saved_model.pb" if source.is_dir() else target
    data = (source / "saved_model.pb").read_bytes() if source.is_dir() else source.read_bytes()
    format_ = {".keras": "keras", ".h5": "h5", ".tflite": "tflite"}.get(source.suffix, "savedmodel")
    refused = 0
    for round_ in range(24):
        hurt = bytearray(data[: chance.randrange(1, len(data))] if round_ % 2 else data)
        for _ in range(0 if round_ % 2 else 30):
            hurt[chance.randrange(len(hurt))] = chance.randrange(256)
        victim.write_bytes(hurt)
        try:
            check(inspect(str(target), format_))
        except LeptonError as problem:
            refused += 1
            assert "\n" not in problem.message and name in problem.message and problem.hint
    assert refused >= 8


@pytest.mark.slow
def test_savedmodel_without_its_variables(made, tmp_path):
    import shutil

    folder = tmp_path / "cnn_sm"
    shutil.copytree(made / "cnn_sm", folder)
    next(folder.glob("variables/*.data-*")).unlink()
    with pytest.raises(LeptonError, match="data-00000-of-00001 is missing"):
        inspect(str(folder))


# ---- published models --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "macs", "parameters", "statistics"),
    [
        ("models/mobilenet_v2.onnx", 300_774_272, 3_487_816, 0),  # batch normalization folded into biases
        ("models/mobilenet_v2.pt2", 300_774_272, 3_504_872, 34_112),
        ("mlperf_tiny/ic_resnet8.h5", 12_501_632, 78_186, 480),
        ("mlperf_tiny/ic_resnet8_reference_int8.tflite", 12_501_632, 77_706, 0),
        ("mlperf_tiny/kws_dscnn_savedmodel", 2_656_768, 23_756, 1_152),
        ("mlperf_tiny/kws_dscnn_reference_int8.tflite", 2_656_768, 22_604, 0),
    ],
)
def test_published_models(shared, file, macs, parameters, statistics):
    report = check(inspect(str(shared / file)))
    assert (report["macs"], report["parameters"], report["statistics"]) == (macs, parameters, statistics)
    assert report["inputs"][0]["shape"][0] in (1, None)


# ---- pieces ------------------------------------------------------------------------------------------


def test_dispatch(tmp_path, monkeypatch, plugins):
    plugins("inspectors/toy.py", 'REQUIRES, EXTRA = ("toy",), "toy"\ndef inspect(path):\n    import no_such_package\n')
    assert {"keras", "h5", "savedmodel", "onnx", "tflite", "openvino", "pt2", "toy"} <= set(inspector_files())
    with pytest.raises(MissingExtra, match="needs toy"):
        inspect("x", "toy")
    with pytest.raises(UsageError) as caught:
        inspect("x", "tflight")
    assert caught.value.hint == "did you mean 'tflite'?"
    with pytest.raises(LeptonError, match="no such"):
        inspect(str(tmp_path / "none.onnx"))


def test_inspectors_import_no_framework():
    """Importing every inspector costs nothing: frameworks come inside functions."""
    code = (
        "import sys; from importlib import import_module as i; from lepton_edge.inspect_model import inspector_files\n"
        "[i(f'lepton_edge.inspectors.{n}') for n in inspector_files()]\n"
        "print({'tensorflow', 'keras', 'torch', 'onnx', 'openvino', 'h5py', 'ai_edge_litert'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_flow_follows_sizes_through_reshapes():
    """[-1, 16, 32] for a batch of one, reshaped to [-1, 32], has 16 rows."""
    flow = Flow(["Reshape"])
    flow.feed("x", [None, 16, 32])
    flow.step("Reshape", ["x"], [("r", [None, 32])])
    flow.step("Relu", ["r"], [("a", [None, 32])])
    flow.step("Reshape", ["a"], [("b", [None, None])])
    assert flow.shape("r") == [16, 32] and flow.shape("a") == [16, 32]
    assert flow.shape("b") == [None, None] and flow.size("b") == 512
    flow.step("Mystery", [], [("m", [None, 4])])
    assert flow.size("m") is None


def test_tflite_recurrent_work_leaves_the_states_out():
    """Input 5 x 8 into 6 units: four input and four recurrent matrices, each step; inputs 18 and 19 are states."""
    from lepton_edge.inspectors.tflite import _recurrent, _stateless

    assert _recurrent([1, 5, 8], [[6, 8]] * 4 + [[6, 6]] * 4 + [[6]] * 4) == 5 * 4 * 6 * 14
    assert _recurrent([1, 5, 8], []) is None and _recurrent([1, None, 8], [[6, 8]]) is None
    assert _stateless("UNIDIRECTIONAL_SEQUENCE_LSTM", list(range(24))) == [*range(18), *range(20, 24)]


def test_wire_reads_and_refuses():
    schema = {1: ("name", "str"), 2: ("*sizes", "int"), 3: ("@named", "int"), 4: ("inner", {1: ("x", "int")})}
    data = b"\x0a\x02hi\x12\x02\x01\x02\x10\x05\x1a\x05\x0a\x01k\x10\x07\x22\x02\x08\x09\x7a\x01?"
    assert parse(data, schema) == {"name": "hi", "sizes": [1, 2, 5], "named": {"k": 7}, "inner": {"x": 9}}
    for cut in (1, 3, 6):
        with pytest.raises(ValueError, match="end"):
            parse(data[:cut], schema)


def test_unknown_is_never_a_number():
    assert times(2, None) is None and times(2, 3) == 6
    assert einsum_macs("bij,bjk->bik", [[1, 2, 3], [1, 3, 4]]) == 24
    assert einsum_macs("...ij,jk->ik", [[2, 3], [3, 4]]) is None
    assert einsum_macs("ij,jk->ik", [[2, None], [3, 4]]) is None
    assert count_nonzeros(np.array([0.0, -0.0, 1.0])) == 1
    weights = Weights()
    weights.add(3, 12, None)
    weights.add(3, 12, 3)
    assert (weights.parameters, weights.nonzeros) == (6, None)


@pytest.mark.parametrize(
    ("kind", "config", "shape", "output", "macs"),
    [
        ("Conv1D", {"filters": 4, "kernel_size": 3, "padding": "causal"}, [None, 10, 2], [None, 10, 4], 240),
        ("Conv2D", {"filters": 4, "kernel_size": 3, "dilation_rate": 2}, [None, 9, 9, 2], [None, 5, 5, 4], 1800),
        ("Conv2D", {"filters": 4, "kernel_size": 3, "groups": 2, "data_format": "channels_first"},
         [None, 2, 5, 5], [None, 4, 3, 3], 324),
        ("Conv2D", {"filters": 4, "kernel_size": 3}, [None, None, None, 2], [None, None, None, 4], None),
        ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2}, [None, 5, 5, 3], [None, 3, 3, 6], 486),
        ("Dense", {"units": 7}, [None, 3, 5], [None, 3, 7], 105),
        ("EinsumDense", {"equation": "abc,cde->abde", "output_shape": [None, 2, 4]}, [None, 3, 5],
         [None, 3, 2, 4], 120),
        ("MaxPooling2D", {"pool_size": 2, "strides": 2, "padding": "same"}, [None, 5, 5, 3], [None, 3, 3, 3], 0),
        ("ZeroPadding2D", {"padding": [[0, 1], [0, 1]]}, [None, 5, 5, 3], [None, 6, 6, 3], 0),
        ("Cropping1D", {"cropping": [1, 2]}, [None, 9, 3], [None, 6, 3], 0),
        ("Reshape", {"target_shape": [-1, 5]}, [None, 3, 10], [None, 6, 5], 0),
        ("TimeDistributed", {"layer": {"class_name": "Dense", "config": {"units": 2}}}, [None, 6, 4],
         [None, 6, 2], 48),
        ("GRU", {"units": 3}, [None, 5, 8], [None, 3], 495),
        ("Dense", {"units": 7}, None, None, None),
        ("Flatten", {}, None, None, 0),
    ],
)  # fmt: skip
def test_keras_rules(kind, config, shape, output, macs):
    assert apply(kind, config, [shape], True) == (output, macs)
    assert apply(kind, config, [shape], False) == (None, None)
