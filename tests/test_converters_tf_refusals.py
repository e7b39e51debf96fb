"""What the converters from Keras and SavedModel refuse, and SavedModels of other makers."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from tf_models import QUIET, assert_same, convert, execute, fed, lstm, randomised, saver, several

from lepton_edge.errors import LeptonError

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")
pytestmark = QUIET


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saver(tmp_path_factory.mktemp("models"))


# ---------------------------------------------------------------- refusals


class Custom(keras.layers.Layer):
    def call(self, x):
        return x * 2


def scale(x):
    return x * 3


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (lambda: keras.layers.Lambda(lambda x: x * 2, name="sneaky"), "Lambda layer 'sneaky'"),
        (lambda: Custom(name="mine"), "'Custom' in layer 'mine'"),
        (lambda: keras.layers.Dense(2, activation=scale, name="head"), "'scale' in layer 'head'"),
        (
            lambda: keras.layers.TimeDistributed(keras.layers.Lambda(lambda x: x, name="inner"), name="outer"),
            "Lambda layer 'inner'",
        ),
    ],
)
def test_code_in_a_model_is_refused(layer, told, suffix, tmp_path):
    keras.Sequential([keras.layers.Input((4, 3)), layer()]).save(tmp_path / f"m.{suffix}")
    for step in ("h5_to_keras", "keras_to_tflite", "keras_to_onnx", "keras_to_savedmodel"):
        with pytest.raises(LeptonError) as caught:
            convert(step, tmp_path / f"m.{suffix}", tmp_path / "out")
        assert told in caught.value.message and caught.value.hint
        assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        execute("keras", tmp_path / f"m.{suffix}", {})


def test_refusal_comes_before_keras_builds_anything(tmp_path, monkeypatch):
    keras.Sequential([keras.layers.Input((3,)), keras.layers.Lambda(lambda x: x)]).save(tmp_path / "m.h5")
    monkeypatch.setattr(keras.saving, "load_model", lambda *a, **k: pytest.fail("Keras was asked to load it"))
    with pytest.raises(LeptonError, match="Lambda"):
        convert("h5_to_keras", tmp_path / "m.h5", tmp_path / "m.keras")
    with pytest.raises(ValueError, match="Lambda"):
        execute("keras", tmp_path / "m.h5", {})


def test_a_custom_loss_is_no_reason_to_refuse(tmp_path):
    model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", lambda a, b: keras.ops.mean(a - b))
    for suffix in ("h5", "keras"):
        model.save(tmp_path / f"m.{suffix}")
        convert("keras_to_tflite", tmp_path / f"m.{suffix}", tmp_path / f"{suffix}.tflite")


@pytest.mark.parametrize("suffix", ["keras", "h5"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_give_one_clear_line(suffix, share, saved, tmp_path):
    source = tmp_path / f"whole.{suffix}"
    keras.saving.load_model(saved(several)[0]).save(source)
    content = source.read_bytes()
    (tmp_path / f"m.{suffix}").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(LeptonError) as caught:
        convert("h5_to_keras", tmp_path / f"m.{suffix}", tmp_path / "out.keras")
    assert f"m.{suffix}" in caught.value.message and "\n" not in caught.value.message
    assert not (tmp_path / "out.keras").exists()
    with pytest.raises(ValueError, match=rf"m\.{suffix}"):
        execute("keras", tmp_path / f"m.{suffix}", {})


def test_other_damage(saved, tmp_path):
    path = saved(several)[0]
    keras.saving.load_model(path).save_weights(tmp_path / "only.weights.h5")
    with pytest.raises(LeptonError, match="weights only"):
        convert("h5_to_keras", tmp_path / "only.weights.h5", tmp_path / "out.keras")
    with zipfile.ZipFile(tmp_path / "bare.keras", "w") as archive:
        archive.writestr("config.json", "[]")
    with pytest.raises(LeptonError, match="describes no model"):
        convert("keras_to_tflite", tmp_path / "bare.keras", tmp_path / "out.tflite")
    with pytest.raises(LeptonError, match="cannot read"):
        convert("keras_to_tflite", tmp_path / "missing.keras", tmp_path / "out.tflite")


# ---------------------------------------------------------------- SavedModels of other makers


class Scaled(tf.Module):
    def __init__(self):
        super().__init__()
        self.weight = tf.Variable(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32))
        self.bias = tf.Variable([0.3, -0.2, 0.7])

    @tf.function(input_signature=[tf.TensorSpec([None, 5], name="b"), tf.TensorSpec([None, 5], name="a")])
    def go(self, b, a):
        return {"z": tf.nn.softmax(b @ self.weight + self.bias), "c": tf.matmul(a, 2.0 * self.weight)}


class Writing(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 5], name="x")])
    def write(self, x):
        tf.io.write_file("written", "x")
        return {"y": x}


@pytest.mark.parametrize("key", ["serving_default", "other"])
def test_plain_module(key, tmp_path):
    made = Scaled()
    tf.saved_model.save(made, str(tmp_path / "sm"), signatures={key: made.go.get_concrete_function()})
    feeds = {name: np.random.default_rng(i).random((1, 5), np.float32) for i, name in enumerate("ab")}
    reference = execute("savedmodel", tmp_path / "sm", feeds)
    for step, runtime, name in (("tflite", "litert", "m.tflite"), ("onnx", "onnxruntime", "m.onnx")):
        result = convert(f"savedmodel_to_{step}", tmp_path / "sm", tmp_path / name)
        assert_same(reference, execute(runtime, tmp_path / name, fed(feeds, result)), result)


@pytest.mark.slow
def test_exported_by_keras_3_and_saved_by_keras_2(saved, tmp_path):
    """Both hold an LSTM traced with a free batch, which TFLite takes only once its loop's shapes are set."""
    tf_keras = pytest.importorskip("tf_keras")
    keras.saving.load_model(saved(lstm)[0]).export(str(tmp_path / "sm3"), verbose=False)
    layers = tf_keras.layers
    model = tf_keras.Sequential([layers.Input((10, 4), name="sequence"), layers.LSTM(6), layers.Dense(2)])
    randomised(model).save(str(tmp_path / "sm2"), save_format="tf")
    for folder in ("sm2", "sm3"):
        feeds = saved(lstm)[1]
        reference = execute("savedmodel", tmp_path / folder, feeds)
        for step, runtime, name in (("tflite", "litert", "m.tflite"), ("onnx", "onnxruntime", "m.onnx")):
            result = convert(f"savedmodel_to_{step}", tmp_path / folder, tmp_path / name)
            assert_same(reference, execute(runtime, tmp_path / name, fed(feeds, result)), result)


def test_savedmodels_that_are_refused(tmp_path):
    made = Scaled()
    bare = tf.Module()
    bare.weight = tf.Variable(1.0)
    tf.saved_model.save(bare, str(tmp_path / "none"))
    writing = Writing()
    tf.saved_model.save(writing, str(tmp_path / "writes"), signatures=writing.write.get_concrete_function())
    tf.saved_model.save(made, str(tmp_path / "two"), signatures={"p": made.go, "q": made.go})
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    content = (tmp_path / "two" / "saved_model.pb").read_bytes()
    (tmp_path / "cut" / "saved_model.pb").write_bytes(content[: len(content) // 2])
    cases = {
        "writes": "WriteFile",
        "two": "serving_default",
        "empty": "saved_model.pb",
        "cut": "damaged",
        "none": "none",
    }
    for folder, told in cases.items():
        with pytest.raises(LeptonError) as caught:
            convert("savedmodel_to_tflite", tmp_path / folder, tmp_path / "m.tflite")
        assert told in caught.value.message
        with pytest.raises(ValueError, match=r"^[^\n]+$"):
            execute("savedmodel", tmp_path / folder, {})
    assert not (tmp_path / "m.tflite").exists() and not Path("written").exists()
