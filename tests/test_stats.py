"""Percentiles, intervals and ratios."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_edge import stats


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_quantile_is_a_sample_with_enough_below(values, p):
    ordered = sorted(values)
    q = stats.quantile(ordered, p)
    assert q in ordered
    assert sum(v <= q for v in ordered) >= p * len(ordered)


@pytest.mark.parametrize(("p", "least"), [(0.5, 6), (0.9, 36), (0.95, 73), (0.99, 368)])
def test_a_percentile_needs_enough_samples(p, least):
    """Two-sided order-statistic intervals exist from these counts on: the largest n with p**n > 2.5 %, plus one."""
    assert math.ceil(math.log(0.025) / math.log(p)) <= least <= math.ceil(math.log(0.025) / math.log(p)) + 1
    assert stats.quantile_interval(list(range(least + 5)), p) is not None
    assert stats.quantile_interval(list(range(least - 2)), p) is None


def test_quantile_interval_covers_the_true_quantile():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        low, high = stats.quantile_interval(sorted(rng.exponential(size=200)), 0.9)
        hits += low <= -math.log(0.1) <= high
    assert hits >= 0.93 * 400


def test_summary_omits_what_few_samples_cannot_bound():
    figures = stats.summarize([[1_000_000 + i for i in range(5)]] * 3)
    assert figures["count"] == 15
    assert figures["p50_ms"] == pytest.approx(1.000002)
    assert figures["p95_ms"] is None and figures["p99_ms"] is None


def test_the_median_interval_covers_drift_between_rounds():
    steady = stats.summarize([[100, 101, 102] * 20] * 10)
    drifting = stats.summarize([[100 + 10 * r, 101 + 10 * r, 102 + 10 * r] * 20 for r in range(10)])
    assert steady["p50_ci"][1] - steady["p50_ci"][0] < drifting["p50_ci"][1] - drifting["p50_ci"][0]


def test_ratio_cancels_drift_and_knows_no_difference():
    rng = np.random.default_rng(1)

    def rounds(scale):
        return [[int(1e6 * scale * (1 + r) * rng.normal(1, 0.02)) for _ in range(50)] for r in range(10)]

    assert stats.ratio(rounds(1.0), rounds(1.0))["verdict"] == "no difference"
    slower = stats.ratio(rounds(1.2), rounds(1.0))
    assert slower["verdict"] == "slower" and slower["ci95"][0] < 1.2 < slower["ci95"][1]
    assert stats.ratio(rounds(0.5), rounds(1.0))["verdict"] == "faster"


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_proportion_interval_holds_the_proportion(pair):
    hits, count = pair
    low, high = stats.proportion_interval(hits, count)
    assert 0 <= low <= hits / count + 1e-9 and hits / count - 1e-9 <= high <= 1
