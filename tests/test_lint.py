"""Calibration lint: each doubt is seen, with its number, and good samples raise none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from lepton_edge import lint
from lepton_edge.cli import app
from lepton_edge.feeds import feed_from_arrays


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def feeds(folder, calibration, evaluation, source="eval"):
    pair = []
    for name, x, where in (("c", calibration, "calib"), ("e", evaluation, source)):
        arrays = x if isinstance(x, dict) else {"x": x}
        pair.append(feed_from_arrays(arrays, None, folder / name, source=where))
    return pair


def images(rng, count, shape=(8, 8, 8), smooth=2):
    """Smooth along the first two axes, without order along the last; float32 in 0..1."""
    x = rng.random((count, *shape))
    for axis in (1, 2):
        for _ in range(smooth):
            x = (x + np.roll(x, 1, axis)) / 2
    return (x + rng.random((count, 1, 1, shape[-1]))).astype(np.float32) / 2


def test_good_samples_raise_no_warning(tmp_path, rng):
    assert lint.between(*feeds(tmp_path, images(rng, 40), images(rng, 60))) == []


def test_copies_and_blank_samples(tmp_path, rng):
    x = images(rng, 40)
    assert lint.between(*feeds(tmp_path / "few", np.concatenate([x, x[:1]]), images(rng, 20))) == []
    (found,) = lint.between(*feeds(tmp_path / "many", np.concatenate([x, x[:10]]), images(rng, 20)))
    assert found.startswith("10 of 50 calibration samples are copies of others")
    same, blank = lint.between(*feeds(tmp_path / "one", np.full((30, 4, 4), 7, np.float32), x))
    assert same.startswith("all 30 calibration samples are the same")
    assert blank.startswith("30 of 30 calibration samples hold one value only (sample 0: 7)")


def test_a_constant_second_input_and_token_ids_are_no_doubt(tmp_path, rng):
    one, two = (
        {"x": images(rng, n), "mask": np.ones((n, 5), np.float32), "ids": rng.integers(0, 99, (n, 5))} for n in (30, 40)
    )
    assert lint.between(*feeds(tmp_path, one, two)) == []


def test_samples_that_are_evaluation_samples_too(tmp_path, rng):
    x, other = images(rng, 40), images(rng, 60)
    (found,) = lint.between(*feeds(tmp_path / "a", x, np.concatenate([other, x[:12]])))
    assert found.startswith("12 of 40 calibration samples are evaluation samples too")
    assert lint.between(*feeds(tmp_path / "b", x, np.concatenate([other, x[:1]]))) == []
    # The same file for both is told by the command.
    assert lint.between(*feeds(tmp_path / "c", x, x[:20], source="calib")) == []


def test_values_and_axes_unlike_those_of_the_evaluation_samples(tmp_path, rng):
    x, other = images(rng, 40), images(rng, 60)
    (found,) = lint.between(*feeds(tmp_path / "a", x * 255, other))
    assert "calibration samples of 'x' span" in found and "(257x wider)" in found
    (found,) = lint.between(*feeds(tmp_path / "b", x + 1, other))
    assert "deviations apart" in found
    (found,) = lint.between(*feeds(tmp_path / "c", x.transpose(0, 3, 1, 2), other))
    assert "axes [1, 2, 0] of the calibration samples of 'x'" in found and "channels-first" in found


def test_a_source_model_that_guesses(rng):
    labels = np.arange(200) % 10
    scores = np.eye(10, dtype=np.float32)[labels]
    (found,) = lint.guessed({"y": rng.random((200, 10))}, labels)
    assert "on 200 samples of 10 classes" in found
    assert lint.guessed({"y": scores}, labels) == []
    assert lint.guessed({"y": rng.random((20, 10))}, labels[:20]) == []  # too few to tell
    assert lint.guessed({"y": rng.random((200, 3, 3))}, labels) == []  # no scores
    half = np.where(np.arange(200) % 4 == 0, 1 - labels % 2, labels % 2)  # 75 % of two classes is no guessing
    assert lint.guessed({"y": np.eye(2)[half]}, labels % 2) == []


def write_normalised(path, first=True):
    """Conv, BatchNormalization trained on inputs in 0..1, Relu, mean: 5 scores."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)
    w = rng.normal(size=(5, 3, 3, 3)).astype(np.float32)
    mean = w.sum((1, 2, 3)) * 0.5
    stats = {"w": w, "gamma": np.ones(5), "beta": np.zeros(5), "mean": mean, "var": (w**2).sum((1, 2, 3)) / 12}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], name="bn1"),
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 9, 9]), ("y", [1, 5]))]
    consts = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in stats.items()]
    graph = helper.make_graph(nodes, "normalised", ports[:1], ports[1:], consts)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_values_unlike_what_the_first_batchnorm_was_trained_on(tmp_path, rng):
    from lepton_edge.analysis import first_norm

    write_normalised(tmp_path / "m.onnx")
    x = rng.random((40, 3, 9, 9)).astype(np.float32)
    good, bad = feeds(tmp_path, x, x * 255)
    got = first_norm.run(str(tmp_path / "m.onnx"), "", data=str(good.folder))
    assert got["channels"] == 5 and got["ratio"] == pytest.approx(1, rel=0.1) and lint._untrained(got) == []
    got = first_norm.run(str(tmp_path / "m.onnx"), "", data=str(bad.folder))
    assert "'bn1'" in lint._untrained(got)[0] and 200 < got["ratio"] < 300


def test_quantize_tells_all_of_it(tmp_path, rng):
    write_normalised(tmp_path / "m.onnx")
    x = rng.random((20, 3, 9, 9)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=np.concatenate([x, x[:5]]) * 255)
    np.savez(tmp_path / "eval.npz", x=rng.random((100, 3, 9, 9)).astype(np.float32), y=rng.integers(0, 5, 100))
    (tmp_path / "r.toml").write_text('[quantize]\npreset = "fast"\n')
    call = ["quantize", "m.onnx", "--data", "calib.npz", "--eval", "eval.npz", "--recipe", "r.toml", "-o", "q.onnx"]
    call = [str(tmp_path / part) if "." in part else part for part in call]
    done = CliRunner().invoke(app, [*call, "--json"])
    assert done.exit_code == 0, done.output
    text = "\n".join(json.loads(done.stdout)["warnings"])
    for told in ("5 of 25 calibration samples are copies", "wider", "first BatchNormalization ('bn1')"):
        assert told in text
