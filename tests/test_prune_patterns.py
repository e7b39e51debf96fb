"""Which weights go: the same as in tensorflow-model-optimization, for every layer, and never all of them."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.passes import _prune_masks as masks

RNG = np.random.default_rng(0)


def test_the_smallest_go():
    weight = RNG.normal(size=(3, 3, 4, 8))
    kept = masks.mask(weight, 0.75, masks.pattern("weights"))
    assert kept.sum() == 72
    assert np.abs(weight[kept]).min() > np.abs(weight[~kept]).max()
    assert masks.mask(np.ones((2, 2)), 0.99, masks.pattern("weights")).sum() == 1


@pytest.mark.parametrize(("shape", "axis"), [((8, 5), 0), ((3, 3, 6, 4), 2), ((7, 5), 0), ((3, 6, 4), 1)])
def test_two_of_every_four_along_the_inputs(shape, axis):
    weight = RNG.normal(size=shape)
    kept = np.moveaxis(masks.mask(weight, 0.5, masks.pattern("2:4"), axis), axis, -1)
    size = np.moveaxis(np.abs(weight), axis, -1)
    for at in range(0, shape[axis], 4):
        part, own = kept[..., at : at + 4], size[..., at : at + 4]
        assert (part.sum(-1) == min(2, part.shape[-1])).all()
        smallest = np.where(part, own, np.inf).min(-1)
        assert (np.where(part, -np.inf, own).max(-1) < smallest).all()


def test_blocks_go_whole():
    weight = RNG.normal(size=(3, 3, 4, 8))
    kept = masks.mask(weight, 0.5, masks.pattern("4x2")).reshape(36, 8)
    blocks = kept.reshape(9, 4, 4, 2).transpose(0, 2, 1, 3).reshape(36, 8)
    assert (blocks.all(1) | ~blocks.any(1)).all() and blocks.all(1).sum() == 18
    odd = masks.mask(RNG.normal(size=(5, 3)), 0.5, masks.pattern("2x2"))
    assert odd.shape == (5, 3) and (odd[:2, 0] == odd[0, 0]).all()


def test_masks_are_those_of_tfmot():
    tf = pytest.importorskip("tensorflow")
    pytest.importorskip("tensorflow_model_optimization")
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_impl, pruning_schedule, pruning_utils

    for shape in ((12, 8), (3, 3, 8, 4)):
        weight = RNG.normal(size=shape).astype(np.float32)
        rows = pruning_utils.weights_rearrange(tf.constant(weight))
        kept = tf.constant(pruning_utils.generate_m_by_n_mask(rows, (2, 4)))
        wanted = pruning_utils.m_by_n_sparsity_mask_prepare(kept, tf.TensorShape(shape))
        assert np.array_equal(masks.mask(weight, 0.5, masks.pattern("2:4"), len(shape) - 2), wanted.numpy() == 1)

    def theirs(weight, share, block):
        variables = [(tf.Variable(weight), tf.Variable(np.ones_like(weight)), tf.Variable(0.0))]
        plan = pruning_schedule.ConstantSparsity(share, 0)
        made = pruning_impl.Pruning(lambda: tf.constant(0, tf.int64), variables, plan, block, "AVG")
        return made._maybe_update_block_mask(tf.constant(weight))[1].numpy() == 1

    weight = RNG.normal(size=(12, 8)).astype(np.float32)
    assert np.array_equal(masks.mask(weight, 0.6, masks.pattern("weights")), theirs(weight, 0.6, (1, 1)))
    assert np.array_equal(masks.mask(weight, 0.5, masks.pattern("4x2")), theirs(weight, 0.5, (4, 2)))


@pytest.mark.parametrize("kind", ["constant", "polynomial"])
def test_schedules_reach_their_end(kind):
    pytest.importorskip("tensorflow_model_optimization")
    plan = masks.make_schedule(kind, 0.8, 90)
    shares = [plan.share(step) for step in range(90)]
    told = [s for s in shares if s is not None]
    assert told == sorted(told) and told[-1] == pytest.approx(0.8)
    assert shares[plan.settled] == pytest.approx(0.8) and plan.settled <= 60
    assert 3 <= len(told) <= 31


@pytest.mark.parametrize("method", ["channels", "2:2", "0:4", "4:2", "2:", "1x1", "0x4", "x4", "2:4:8", "100x100"])
def test_methods_that_are_none(method):
    with pytest.raises(UsageError, match="unknown method"):
        masks.pattern(method)


def test_what_a_pattern_does_not_fit():
    assert masks.unfit((3, 3, 3, 8), 2, masks.pattern("2:4")) == "fewer than 4 input channels"
    assert "no single axis" in masks.unfit((2, 4, 8), None, masks.pattern("2:4"))
    assert "smaller than a block" in masks.unfit((2, 3), 0, masks.pattern("4x4"))
    assert masks.unfit((8, 3), 0, masks.pattern("2:4")) == ""
    with pytest.raises(LeptonError, match="leaves nothing of layer 'head' \\(30 weights\\)"):
        masks.check_left("head", (10, 3), 0.99, masks.pattern("weights"))
    masks.check_left("head", (10, 3), 0.9, masks.pattern("weights"))
