"""Depth pruning: branches of residual sums are found, and taken away where the answers miss them least."""

from __future__ import annotations

import numpy as np
import pytest
from nets import model
from slim_nets import Builder, bottleneck, encoder, random_net, residual
from test_slim import images, loss

from lepton_edge.errors import LeptonError
from lepton_edge.quant.core import distance_of
from lepton_edge.quant.prepare import prepare
from lepton_edge.slim import drive_depth
from lepton_edge.slim.branches import branches, muted, without
from lepton_edge.slim.remove import renewed

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def chain(path, weights=(1.0, 1.0, 1.0)):
    """Three residual blocks whose insides count by `weights`, then a dense layer."""
    b, blocks = Builder(2), (residual, bottleneck, residual)
    x = b.op("Relu", b.conv("x", 3, 16, 3))
    for block, weight in zip(blocks, weights, strict=True):
        before = len(b.consts)
        x, _ = block(b, x, 16)
        for name in list(b.consts)[before:]:
            if b.consts[name].ndim == 4 and b.consts[name].shape[0] == 16:  # what a block ends with
                b.consts[name] = (b.consts[name] * weight).astype(np.float32)
        x = b.op("Relu", x)
    b.op("Gemm", b.op("Flatten", b.op("GlobalAveragePool", x)), b.normal(5, 16), b.normal(5), transB=1)
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, b.consts, opset=20), path)
    return str(path)


def test_branches_are_the_insides_of_blocks_and_both_sides_of_projections(tmp_path):
    net = prepare(chain(tmp_path / "m.onnx"))
    found = branches(net)
    assert len(found) == 3 and all(branch.macs > 0 for branch in found)
    b = Builder(0)
    x = b.conv("x", 3, 16, 3)
    b.op("Add", b.conv(b.op("Relu", x), 16, 8), b.conv(x, 16, 8, 3))
    b.nodes[-1].output[0] = "y"
    onnx.save(model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 8, 8, 8]}, b.consts, opset=20), tmp_path / "p.onnx")
    net = prepare(str(tmp_path / "p.onnx"))
    both = branches(net)
    assert [len(branch.nodes) for branch in both] == [2, 1]  # the activation goes with its side
    for branch in both:
        assert distance_of(renewed(muted(net, branch)), renewed(without(net, branch)), images(4)) < 1e-10


def test_what_feeds_others_too_stays(tmp_path):
    onnx.save(random_net(1, [2, 3]), tmp_path / "m.onnx")  # concatenations and gates: no sums of two paths
    assert branches(prepare(str(tmp_path / "m.onnx"))) == []
    with pytest.raises(LeptonError, match="no residual sum") as e:
        drive_depth.prune(str(tmp_path / "m.onnx"), images(8), 0.5)
    assert e.value.hint


def test_the_block_that_counts_least_goes_first(tmp_path):
    path, samples = chain(tmp_path / "m.onnx", (1.0, 1.0, 0.02)), images(48)
    made = drive_depth.prune(path, samples, 0.85)
    whole = [branch.y for branch in branches(prepare(path))]
    assert made.figures["branches"] == [whole[2]]
    assert made.figures["macs"]["after"] <= 0.85 * made.figures["macs"]["before"]
    assert loss(path, made, images(16, seed=3)) > 15
    assert sum(node.op_type == "Relu" for node in made.net.nodes) < sum(
        n.op_type == "Relu" for n in prepare(path).nodes
    )


def test_no_more_goes_than_has_to(tmp_path):
    path, samples = chain(tmp_path / "m.onnx", (0.3, 0.02, 1.0)), images(32)
    net = prepare(path)
    first, second, _ = branches(net)
    share = 1 - first.macs / drive_depth.macs(net) + 1e-6  # the first alone would do; the second costs least
    assert second.macs < first.macs
    made = drive_depth.prune(path, samples, share)
    assert len(made.figures["branches"]) == 1


def test_blocks_of_a_transformer(tmp_path):
    onnx.save(encoder(), tmp_path / "e.onnx")
    rng = np.random.default_rng(0)
    samples = [{"x": rng.normal(size=(1, 6, 32)).astype(np.float32)} for _ in range(24)]
    made = drive_depth.prune(str(tmp_path / "e.onnx"), samples, 0.7)
    assert made.figures["macs"]["after"] <= 0.7 * made.figures["macs"]["before"]
    assert np.isfinite(made.figures["calibration_sqnr_db"])
    with pytest.raises(LeptonError, match=r"without all of its branches it takes 0\.\d+"):
        drive_depth.prune(chain(tmp_path / "m.onnx"), images(8), 0.01)
