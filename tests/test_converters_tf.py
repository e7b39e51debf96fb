"""The converters that start from Keras models: parity, names and order, free sizes, HDF5 and Keras 2."""

from __future__ import annotations

import numpy as np
import pytest
from tf_models import (
    MODELS,
    QUIET,
    assert_same,
    cnn,
    convert,
    dictionary,
    execute,
    fed,
    gru,
    lstm,
    randomised,
    saver,
    separable,
    several,
    states,
    transformer,
)

from lepton_edge.errors import LeptonError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
onnx = pytest.importorskip("onnx")
pytestmark = QUIET


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saver(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("build", MODELS)
def test_keras_to_tflite(build, saved, tmp_path):
    path, feeds, reference = saved(build)
    result = convert("keras_to_tflite", path, tmp_path / "m.tflite")
    assert [e["name"] for e in result["outputs"]] == list(reference)
    assert [e["name"] for e in result["inputs"]] == list(feeds)
    got = execute("litert", tmp_path / "m.tflite", fed(feeds, result))
    assert list(got) == list(reference)
    assert_same(reference, got, result)
    assert result["notes"] == []


@pytest.mark.parametrize("build", MODELS)
def test_keras_to_onnx(build, saved, tmp_path):
    path, feeds, reference = saved(build)
    result = convert("keras_to_onnx", path, tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 17
    assert [port.name for port in model.graph.input] == list(feeds)
    assert [port.name for port in model.graph.output] == [e["name"] for e in result["outputs"]]
    for port in [*model.graph.input, *model.graph.output]:
        assert port.type.tensor_type.shape.dim[0].dim_value == 1
    assert_same(reference, execute("onnxruntime", tmp_path / "m.onnx", fed(feeds, result)), result)


@pytest.mark.parametrize("build", [cnn, lstm, several, dictionary, states])
def test_keras_to_savedmodel_and_on(build, saved, tmp_path):
    path, feeds, reference = saved(build)
    result = convert("keras_to_savedmodel", path, tmp_path / "sm")
    assert_same(reference, execute("savedmodel", tmp_path / "sm", fed(feeds, result)), result)
    onward = fed(feeds, result)
    expected = execute("savedmodel", tmp_path / "sm", onward)
    for step, runtime, name in (("tflite", "litert", "m.tflite"), ("onnx", "onnxruntime", "m.onnx")):
        second = convert(f"savedmodel_to_{step}", tmp_path / "sm", tmp_path / name)
        assert_same(expected, execute(runtime, tmp_path / name, fed(onward, second)), second)


def test_recurrent_layers_become_single_operations(saved, tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    convert("keras_to_tflite", saved(lstm)[0], tmp_path / "m.tflite")
    ops = [op["op_name"] for op in Interpreter(str(tmp_path / "m.tflite"))._get_ops_details()]
    assert ops.count("UNIDIRECTIONAL_SEQUENCE_LSTM") == 3 and "WHILE" not in ops
    for build, name, count in ((lstm, "LSTM", 3), (gru, "GRU", 1)):
        convert("keras_to_onnx", saved(build)[0], tmp_path / "m.onnx")
        kinds = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
        assert kinds.count(name) == count and "Loop" not in kinds


def test_onnx_is_tidy(saved, tmp_path):
    """Batch normalisation folded, transposes at the ends only, no shape arithmetic, no mean taken for pooling."""
    convert("keras_to_onnx", saved(cnn)[0], tmp_path / "cnn.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "cnn.onnx").graph.node]
    assert kinds.count("Transpose") <= 2 and "Mul" not in kinds and kinds.count("Conv") == 3
    convert("keras_to_onnx", saved(separable)[0], tmp_path / "separable.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "separable.onnx").graph.node]
    assert kinds.count("Transpose") <= 1
    convert("keras_to_onnx", saved(transformer)[0], tmp_path / "transformer.onnx")
    kinds = {node.op_type for node in onnx.load(tmp_path / "transformer.onnx").graph.node}
    assert not kinds & {"Shape", "ReduceProd", "GlobalAveragePool", "Einsum"}


@pytest.mark.parametrize("opset", [17, 18])
def test_free_batch(opset, saved, tmp_path):
    path, feeds, _ = saved(cnn)
    result = convert("keras_to_onnx", path, tmp_path / "m.onnx", fixed_batch=0, opset=opset)
    batch = {name: np.concatenate([feed] * 3) * np.arange(1, 4).reshape(3, 1, 1, 1) for name, feed in feeds.items()}
    batch = {name: array.astype(np.float32) for name, array in batch.items()}
    reference = execute("keras", path, batch)
    assert_same(reference, execute("onnxruntime", tmp_path / "m.onnx", batch), result)


def test_free_dimensions_are_asked_for(tmp_path):
    image = keras.layers.Input((None, None, 3), name="image")
    randomised(keras.Model(image, keras.layers.Conv2D(2, 3)(image))).save(tmp_path / "m.keras")
    with pytest.raises(LeptonError, match=r"image.*free dimensions") as caught:
        convert("keras_to_tflite", tmp_path / "m.keras", tmp_path / "m.tflite")
    assert "input_shapes=image=1,N,N,3" in caught.value.hint and not (tmp_path / "m.tflite").exists()
    for shapes in ("1,9,7,3", "image=1,9,7,3"):
        result = convert("keras_to_tflite", tmp_path / "m.keras", tmp_path / "m.tflite", input_shapes=shapes)
        feeds = {"image": np.ones((1, 9, 7, 3), np.float32)}
        reference = execute("keras", tmp_path / "m.keras", feeds)
        assert_same(reference, execute("litert", tmp_path / "m.tflite", feeds), result)
    for wrong in ("mask=1,9,7,3", "1,9,7", "1,9,7,4", "1,x,7,3"):
        with pytest.raises(LeptonError):
            convert("keras_to_tflite", tmp_path / "m.keras", tmp_path / "n.tflite", input_shapes=wrong)
    assert not (tmp_path / "n.tflite").exists()


# ---------------------------------------------------------------- HDF5 and Keras 2


@pytest.mark.parametrize("build", [separable, several, states])
def test_h5_to_keras(build, saved, tmp_path):
    path, feeds, reference = saved(build)
    keras.saving.load_model(path).save(tmp_path / "m.h5")
    result = convert("h5_to_keras", tmp_path / "m.h5", tmp_path / "m.keras")
    got = execute("keras", tmp_path / "m.keras", fed(feeds, result))
    assert_same(reference, got, result)
    assert_same(execute("keras", tmp_path / "m.h5", feeds), got, result)


def test_h5_with_operators_says_so(saved, tmp_path):
    """Keras 3 itself cannot load keras.ops back from HDF5."""
    keras.saving.load_model(saved(cnn)[0]).save(tmp_path / "m.h5")
    with pytest.raises(LeptonError, match=r"keras\.ops 'Relu'") as caught:
        convert("h5_to_keras", tmp_path / "m.h5", tmp_path / "out.keras")
    assert ".keras" in caught.value.hint


@pytest.mark.parametrize("suffix", ["keras", "h5"])
def test_keras_2_files(suffix, tmp_path):
    """tf_keras files, one with TensorFlow operators in it, go through tf_keras where Keras 3 cannot read them."""
    tf_keras = pytest.importorskip("tf_keras")
    layers = tf_keras.layers
    first, second = layers.Input((4,), name="zeta"), layers.Input((4,), name="alpha")
    x = tf.nn.relu(layers.Dense(5)(first) + layers.Dense(5)(second)) * 2.0
    model = tf_keras.Model([first, second], [layers.Dense(2, name="yy")(x), layers.Dense(2, name="aa")(x)])
    randomised(model).save(tmp_path / f"m.{suffix}")
    source = tmp_path / f"m.{suffix}"
    if suffix == "h5":
        convert("h5_to_keras", source, tmp_path / "n.keras")
        source = tmp_path / "n.keras"
    feeds = {name: np.random.default_rng(i).random((1, 4), np.float32) for i, name in enumerate(("zeta", "alpha"))}
    reference = execute("keras", source, feeds)
    assert list(reference) == ["yy", "aa"]
    for step, runtime, name in (("tflite", "litert", "m.tflite"), ("onnx", "onnxruntime", "m.onnx")):
        result = convert(f"keras_to_{step}", source, tmp_path / name)
        assert_same(reference, execute(runtime, tmp_path / name, feeds), result)


def test_mixed_precision_computes_in_float32(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        layers = keras.layers
        model = keras.Sequential([layers.Input((6, 6, 2)), layers.Conv2D(4, 3), layers.Flatten(), layers.Dense(2)])
        randomised(model).save(tmp_path / "m.keras")
    finally:
        keras.config.set_dtype_policy("float32")
    feeds = {model.layers[0]._inbound_nodes[0].input_tensors[0]._keras_history.operation.name: np.ones((1, 6, 6, 2))}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    result = convert("keras_to_tflite", tmp_path / "m.keras", tmp_path / "m.tflite")
    assert "mixed precision" in result["notes"][0]
    assert_same(execute("keras", tmp_path / "m.keras", feeds), execute("litert", tmp_path / "m.tflite", feeds), result)
