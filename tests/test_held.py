"""Weights that training has shaped stay as they are when they are quantized: whole steps, shared values, zeros."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_edge.errors import LeptonError
from lepton_edge.quant import held, rounding

RNG = np.random.default_rng(0)


def test_whole_steps_are_found_again():
    ints = RNG.integers(-127, 128, (12, 40))
    steps = RNG.uniform(1e-4, 0.1, 12)
    found = held.lattice((ints * steps[:, None]).astype(np.float32), 127)
    assert np.array_equal(found[0], ints) and found[1] == pytest.approx(steps, rel=1e-5)
    assert held.lattice(RNG.normal(size=(12, 40)), 127) is None
    mixed = ints * steps[:, None]
    mixed[3, 7] += 0.3 * steps[3]
    assert held.lattice(mixed, 127) is None  # one weight that is none is enough


def test_a_finer_grid_is_not_taken_for_a_coarse_one():
    ints = RNG.integers(-127, 128, (4, 30))
    assert held.lattice(ints * 0.01, 7) is None
    assert np.array_equal(held.lattice(RNG.integers(-7, 8, (4, 30)) * 0.01, 7)[0].shape, (4, 30))


def test_channels_share_their_values():
    """A channel that lacks the largest value fits several grids: the one that the others have is taken."""
    book = np.array([-127, -80, -33, 0, 41, 90, 120])
    ints = book[RNG.integers(0, len(book), (10, 50))]
    ints[4] = np.where(RNG.random(50) < 0.5, 41, 0)  # two values, which any grid holds
    ints[5] = np.where(np.abs(ints[5]) > 100, 90, ints[5])
    ints[6] = 0
    found = held.lattice(ints * RNG.uniform(0.1, 1, 10)[:, None], 127)[0]
    assert set(np.unique(found)) <= set(book.tolist())
    assert np.array_equal(found[:4], ints[:4]) and np.array_equal(found[5:], ints[5:])


def test_zeros_of_a_pruned_layer():
    weight = RNG.normal(size=(8, 16))
    assert held.zeros(weight) is None
    weight[:, ::2] = 0
    assert np.array_equal(held.zeros(weight), weight != 0)


@pytest.mark.parametrize("blocks", [False, True])
def test_learned_rounding_leaves_zeros(blocks):
    w = RNG.normal(size=(2, 6, 20))
    live = RNG.random(w.shape) > 0.6
    w *= live
    x = RNG.normal(size=(2, 200, 20)) @ RNG.normal(size=(20, 20))
    xx = np.matmul(x.transpose(0, 2, 1), x)
    peak = np.abs(w).max(2) + 0.01
    peak = np.repeat(peak[:, :, None], 20, axis=2) if blocks else peak
    assert (rounding.learned(w, peak, xx, 4)[~live] != 0).any()  # that is what would happen
    made = rounding.gptq(w, peak, xx, 4, live=live)
    assert (made[~live] == 0).all() and (made[live] != 0).any()


def model(path, weights):
    """conv 3x3, ReLU, mean, dense."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Conv", ["x", "conv", "bias"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("GlobalAveragePool", ["b"], ["c"]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "dense", "shift"], ["y"], transB=1),
    ]
    consts = {**weights, "bias": RNG.normal(size=16), "shift": RNG.normal(size=10)}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in consts.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def quantized(tmp_path, weights, **options):
    """The stored integers, by their number of axes, and the result of the pass."""
    import onnx
    from onnx import numpy_helper

    from lepton_edge.feeds import feed_from_arrays
    from lepton_edge.passes import quantize_onnx

    model(tmp_path / "m.onnx", weights)
    x = RNG.normal(size=(24, 3, 12, 12)).astype(np.float32)
    feed_from_arrays({"x": x}, None, tmp_path / "feed", source="test")
    told = quantize_onnx.run(
        str(tmp_path / "m.onnx"), str(tmp_path / "q.onnx"), data=str(tmp_path / "feed"), reduce_range="off", **options
    )
    made = onnx.load(tmp_path / "q.onnx").graph.initializer
    arrays = [numpy_helper.to_array(a) for a in made]
    return {a.ndim: a for a in arrays if a.dtype == np.int8 and a.ndim > 1}, told


def test_the_quantizer_keeps_trained_integers(tmp_path):
    conv, dense = RNG.integers(-127, 128, (16, 3, 3, 3)), RNG.integers(-127, 128, (10, 16))
    conv[:, 0, 0, 0], dense[:, 0] = 127, 127
    weights = {
        "conv": conv * RNG.uniform(0.001, 0.01, (16, 1, 1, 1)),
        "dense": dense * RNG.uniform(0.001, 0.01, (10, 1)),
    }
    found, told = quantized(tmp_path, weights)
    assert np.array_equal(found[4], conv)
    assert np.array_equal(found[2], dense) or np.array_equal(found[2], dense.T)
    assert any("2 layers lay on such a grid" in n for n in told["notes"])
    few = {"conv": np.clip(conv, -7, 7) * 0.01, "dense": np.clip(dense, -7, 7) * 0.01}
    found, told = quantized(tmp_path, few, weight_bits=4)
    assert np.array_equal(found[4], np.clip(conv, -7, 7))
    for scheme in ("w8", "w8a16"):
        found, _ = quantized(tmp_path, weights, scheme=scheme)
        assert np.array_equal(found[4], conv), scheme


def test_the_quantizer_keeps_zeros(tmp_path):
    weights = {"conv": RNG.normal(size=(16, 3, 3, 3)), "dense": RNG.normal(size=(10, 16))}
    for name in weights:
        weights[name][RNG.random(weights[name].shape) < 0.6] = 0
    found, told = quantized(tmp_path, weights)
    assert (found[4][weights["conv"] == 0] == 0).all()
    dense = found[2] if found[2].shape == (10, 16) else found[2].T
    assert (dense[weights["dense"] == 0] == 0).all()
    assert any("zeros of 2 pruned layers are kept" in n for n in told["notes"])


def test_four_bits_of_float_weights(tmp_path):
    weights = {"conv": RNG.normal(size=(16, 3, 3, 3)), "dense": RNG.normal(size=(10, 16))}
    found, told = quantized(tmp_path, weights, weight_bits=4)
    assert np.abs(found[4]).max() == 7 and told["notes"][0].endswith("of 4 bits")
    with pytest.raises(LeptonError, match="weight_bits is 4 with scheme w8"):
        quantized(tmp_path, weights, weight_bits=4, scheme="w8")
    with pytest.raises(LeptonError, match="weight_bits is 9"):
        quantized(tmp_path, weights, weight_bits=9)
