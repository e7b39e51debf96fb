"""Training through the command line: steps that chain, data from a function, a kill -9 in the middle, bad calls."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "samples"
RECIPE = "[preprocess]\nscale = 0.00392156862745098\n[data]\nevaluation_samples = 300\n"
MAKE = """
import numpy as np

def make():
    with np.load({path!r}) as data:
        x, y = data["x"][:{count}], data["y"][:{count}]
    for i in range(0, len(x), 64):
        yield x[i : i + 64], y[i : i + 64]
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe and a function that gives training samples, and a store of its own."""
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path / "store"))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "data.py").write_text(MAKE.format(path=str(SAMPLES / "fashion_train.npz"), count=640))
    return tmp_path


def command(place, verb, model, *args):
    base = [sys.executable, "-m", "lepton_edge", verb, str(model), "--recipe", str(place / "recipe.toml")]
    return [*base, "--eval", str(SAMPLES / "fashion_eval.npz"), *map(str, args), "--json"]


def lepton(place, verb, model, *args):
    done = subprocess.run(command(place, verb, model, *args), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def refused(place, verb, model, *args, recipe=""):
    (place / "recipe.toml").write_text(RECIPE + recipe)
    done = subprocess.run(command(place, verb, model, *args), capture_output=True, text=True, check=False)
    told = json.loads(done.stdout)["error"]
    assert done.returncode == told["exit_code"] in (1, 2) and "Traceback" not in done.stderr
    return told["message"], told["hint"]


@pytest.mark.slow
def test_a_chain_ends_as_a_small_int8_file(place):
    for package in ("tensorflow", "tf_keras", "tensorflow_model_optimization", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    train = ("--train", place / "data.py:make", "--epochs", "2", "--learning-rate", "1e-3")
    model = SAMPLES / "fashion_cnn.keras"
    lepton(place, "prune", model, *train, "--sparsity", "0.6", "-o", place / "1.keras")
    lepton(place, "cluster", place / "1.keras", *train, "-o", place / "2.keras")
    made = lepton(place, "qat", place / "2.keras", *train, "-o", place / "3.keras")
    (step,) = [s for s in made["steps"] if s["step"] == "qat_keras"]
    assert any("centroids of" in n for n in step["notes"]) and any("zeros of" in n for n in step["notes"])
    data = ("--data", SAMPLES / "fashion_calib.npz", "--to", "tflite")
    small = lepton(place, "quantize", place / "3.keras", *data, "-o", place / "3.tflite")
    plain = lepton(place, "quantize", model, *data, "-o", place / "0.tflite")
    from lepton_edge.artifact import open_artifact

    sizes = [open_artifact(place / f"{k}.tflite").zip_bytes() for k in (3, 0)]
    assert sizes[0] < 0.75 * sizes[1]
    assert small["accuracy"]["top1"] > plain["accuracy"]["top1"] - 0.05


@pytest.mark.slow
def test_a_killed_training_goes_on(place):
    for package in ("tensorflow", "tf_keras"):
        pytest.importorskip(package)
    train = ("--train", SAMPLES / "fashion_train.npz", "--epochs", "6", "--patience", "0", "-o", place / "out.keras")
    running = subprocess.Popen(
        command(place, "qat", SAMPLES / "fashion_cnn.keras", *train), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 300
    while not list((place / "store" / "training").glob("*/state.npz")):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.communicate()
    assert not (place / "out.keras").exists()
    made = lepton(place, "qat", SAMPLES / "fashion_cnn.keras", *train)
    (step,) = [s for s in made["steps"] if s["step"] == "qat_keras"]
    assert any("went on from a checkpoint at batch" in n for n in step["notes"])
    assert (place / "out.keras").exists() and not list((place / "store" / "training").iterdir())


def test_calls_that_are_off(place):
    pytest.importorskip("tensorflow")
    model = SAMPLES / "fashion_cnn.keras"
    message, hint = refused(place, "qat", model)
    assert message == "qat needs labelled samples to fine-tune on" and "--train" in hint
    np.savez(place / "x.npz", x=np.zeros((8, 28, 28, 1), np.uint8))
    message, hint = refused(place, "cluster", model, "--train", place / "x.npz")
    assert "no labels" in message and "distil" in hint
    message, _ = refused(place, "prune", model, "--train", f"{place}/nowhere.py:make")
    assert "no such Python file" in message
    message, _ = refused(place, "prune", model, "--train", f"{place}/data.py:mak")
    assert "no function 'mak'" in message
    message, _ = refused(place, "qat", model, "--train", place / "x.npz", recipe="[qat]\nbitz = 4\n")
    assert "'bitz'" in message


def test_other_formats_are_not_trained(place):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 17)]), place / "m.onnx")
    message, hint = refused(place, "cluster", place / "m.onnx", "--train", SAMPLES / "fashion_train.npz")
    assert message.endswith("m.onnx: cluster trains Keras models, and this is onnx") and "qat trains it" in hint
