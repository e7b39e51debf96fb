"""TFLite weights without their zeros: the same answers, fewer bytes, a refusal where there is nothing to leave out."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nets import model
from slim_nets import Builder
from typer.testing import CliRunner

from lepton_edge.cli import app
from lepton_edge.passes import sparse_tflite

onnx = pytest.importorskip("onnx")
pytest.importorskip("ai_edge_litert")


def thinned_net(path, share):
    """A stem, two 1x1 convolutions of which a share of the weights is zero, a pool, a dense layer."""
    b = Builder(5)
    x = b.op("Relu", b.op("Conv", "x", b.normal(16, 3, 3, 3), b.normal(16), pads=[1] * 4, strides=[2, 2]))
    for ins, outs in ((16, 64), (64, 300)):
        weight = (b.rng.normal(size=(outs, ins, 1, 1)) * (b.rng.random((outs, ins, 1, 1)) >= share)).astype(np.float32)
        x = b.op("Relu", b.op("Conv", x, b.const(weight), b.normal(outs, scale=0.1)))
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.normal(5, 300), b.normal(5), transB=1)
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, b.consts, opset=20), path)
    return str(path)


def call(tmp_path, monkeypatch, *arguments):
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path / "cache"))
    return CliRunner().invoke(app, [*arguments, "--json"])


def test_rows_hold_all_that_is_not_zero():
    rng = np.random.default_rng(0)
    for shape in ((4, 7), (3, 2, 2, 300), (2, 1, 1, 70000)):
        value = (rng.normal(size=shape) * (rng.random(shape) < 0.2)).astype(np.float32)
        values, begins, positions = sparse_tflite.rows(value)
        made = np.zeros_like(value.reshape(-1, shape[-1]))
        for k, row in enumerate(made):
            part = slice(int(begins[k]), int(begins[k + 1]))
            row[positions[part]] = values[part]
        assert np.array_equal(made.reshape(shape), value)
    assert positions.dtype == np.int32


def test_answers_stay_and_the_file_shrinks(tmp_path, monkeypatch):
    path = thinned_net(tmp_path / "m.onnx", 0.9)
    plain, sparse = tmp_path / "plain.tflite", tmp_path / "sparse.tflite"
    for out, dtype in ((plain, "float32"), (sparse, "sparse")):
        result = call(tmp_path, monkeypatch, "convert", path, "--to", "tflite", "--dtype", dtype, "-o", str(out))
        assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["scheme"] == "sparse" and made["parity"]["sqnr_db"] > 60
    assert sparse.stat().st_size < 0.6 * plain.stat().st_size
    again = tmp_path / "again.tflite"
    result = call(tmp_path, monkeypatch, "convert", str(plain), "--to", "tflite", "--dtype", "sparse", "-o", str(again))
    assert result.exit_code == 0 and abs(again.stat().st_size - sparse.stat().st_size) < 512


@pytest.mark.parametrize(
    ("share", "target", "message"),
    [(0.1, "tflite", "no layer has zeros enough"), (0.9, "onnx", "stored sparse in TFLite files only")],
)
def test_what_cannot_be_stored_so_is_told(tmp_path, monkeypatch, share, target, message):
    path, out = thinned_net(tmp_path / "m.onnx", share), tmp_path / "out"
    result = call(tmp_path, monkeypatch, "convert", path, "--to", target, "--dtype", "sparse", "-o", f"{out}.{target}")
    assert result.exit_code in (1, 2) and message in result.output and not list(tmp_path.glob("out*"))
