"""The numeric core: properties that hold for any data, and nets whose float answers must not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lepton_edge.errors import LeptonError
from lepton_edge.quant import grid, observe, ranges, rounding

FLOATS = st.floats(-1e3, 1e3, width=32)
CHUNKS = st.lists(arrays(np.float32, st.integers(1, 40), elements=FLOATS), min_size=2, max_size=6)


@given(CHUNKS)
def test_merged_histograms_equal_one_pass(chunks):
    whole, parts = observe.Observer(), [observe.Observer() for _ in chunks]
    for chunk, part in zip(chunks, parts, strict=True):
        whole.add(chunk)
        part.add(chunk)
    merged = parts[0]
    for part in parts[1:]:
        merged.merge(part)
    assert (merged.low, merged.high, merged.count, merged.samples) == (
        whole.low,
        whole.high,
        whole.count,
        whole.samples,
    )
    # A part may have needed wider bins than the whole at its start, never narrower ones than the merged need.
    while whole.width < merged.width:
        whole._halve()
    first = min(whole.first, merged.first)
    size = max(whole.first + len(whole.bins), merged.first + len(merged.bins)) - first
    padded = [np.pad(o.bins, (o.first - first, size - (o.first - first) - len(o.bins))) for o in (whole, merged)]
    assert whole.width == merged.width and np.array_equal(*padded) and len(merged.bins) <= observe.BINS


@given(CHUNKS, st.sampled_from(ranges.METHODS), st.sampled_from([4, 8, 16]))
def test_every_range_lies_within_the_extremes_and_holds_zero(chunks, method, bits):
    seen = observe.Observer()
    for chunk in chunks:
        seen.add(chunk)
    low, high = ranges.choose(seen, method, bits)
    assert min(seen.low, 0) <= low <= 0 <= high <= max(seen.high, 0)


@given(
    arrays(np.float32, st.integers(1, 60), elements=FLOATS),
    st.sampled_from([4, 8, 16]),
    st.booleans(),
    st.booleans(),
)
def test_the_error_inside_the_range_is_at_most_half_a_step(x, bits, symmetric, signed):
    g = grid.activation_grid(float(x.min()), float(x.max()), bits, symmetric, signed)
    moved = grid.fake(x, g)
    step = float(g.scale[0])
    inside = (x >= (g.low - int(g.zero[0])) * step) & (x <= (g.high - int(g.zero[0])) * step)
    assert np.all(np.abs(x - moved)[inside] <= step * 0.5 * (1 + 1e-3) + 1e-6)
    assert grid.fake(np.zeros(1, np.float32), g)[0] == 0
    assert np.array_equal(grid.fake(moved, g), moved)  # what is on the grid stays


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 6), st.integers(2, 20), st.sampled_from([4, 8]))
def test_learned_rounding_is_never_worse_than_nearest(seed, groups, outputs, features, bits):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(groups, outputs, features))
    x = rng.normal(size=(groups, 3 * features, features)) @ rng.normal(size=(features, features))
    xx = np.matmul(x.transpose(0, 2, 1), x) / x.shape[1]
    peak = np.abs(w).max(2)
    step = (peak / (2 ** (bits - 1) - 1))[:, :, None]

    def loss(q):
        e = w - q * step
        return np.einsum("gof,gfh,goh->go", e, xx, e)

    learned = rounding.learned(w, peak, xx, bits)
    assert np.abs(learned).max() <= 2 ** (bits - 1) - 1
    assert np.all(loss(learned) <= loss(rounding.nearest(w, peak, bits)) * (1 + 1e-9) + 1e-12)


def test_learned_rounding_gains_on_correlated_features():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 500, 8)) @ rng.normal(size=(8, 64))
    w, xx = rng.normal(size=(1, 32, 64)), np.matmul(x.transpose(0, 2, 1), x) / 500
    peak = np.abs(w).max(2)
    step = (peak / 7)[:, :, None]
    losses = [
        float(np.einsum("gof,gfh,goh->", w - q * step, xx, w - q * step))
        for q in (rounding.learned(w, peak, xx, 4), rounding.nearest(w, peak, 4))
    ]
    assert losses[0] < 0.5 * losses[1]


def test_an_observer_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="NaN or infinity"):
        observe.Observer().add(np.array([1.0, np.nan], np.float32))


@pytest.mark.parametrize(("text", "count"), [("1GB", 10**9), ("512mb", 512 * 10**6), ("2000000", 2_000_000)])
def test_amounts_of_memory(text, count):
    from lepton_edge.texts import byte_count

    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "many", "-1GB", "10", "nan", "infGB"])
def test_what_is_no_amount_of_memory(text):
    from lepton_edge.texts import byte_count

    with pytest.raises(LeptonError, match="not an amount of memory"):
        byte_count(text)
