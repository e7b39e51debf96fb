"""Percentiles, intervals and ratios."""

import math
from fractions import Fraction

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


def exactly_below(n, p, k):
    """P(B < k), B ~ Binomial(n, p), in fractions."""
    return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k))


@given(st.integers(1, 120), st.sampled_from([(1, 2), (9, 10), (19, 20), (3, 4), (1, 10)]))
def test_ranks_are_the_tightest_that_hold_95_percent(n, share):
    p, tail = Fraction(*share), Fraction(25, 1000)
    ranks = stats.quantile_ranks(n, float(p))
    if ranks is None:
        # Either no order statistic is low enough, or none is high enough.
        assert exactly_below(n, p, 1) > tail or 1 - exactly_below(n, p, n) > tail
        return
    low, high = ranks
    assert 1 <= low < high <= n
    assert exactly_below(n, p, low) <= tail < exactly_below(n, p, low + 1)
    assert 1 - exactly_below(n, p, high) <= tail < 1 - exactly_below(n, p, high - 1)


@pytest.mark.parametrize(("p", "needed"), [(0.5, 6), (0.9, 36), (0.95, 73), (0.99, 368)])
def test_samples_needed(p, needed):
    assert abs(stats.samples_needed(p) - needed) <= 2
    assert stats.quantile_ranks(stats.samples_needed(p) - 1, p) is None


def bursts(rng, rounds=30, length=40):
    """Exponential times; in one of ten rounds all are three times as slow, so a tenth of samples decides p90 and up."""
    return [rng.exponential(size=length) * (3 if rng.random() < 0.1 else 1) for _ in range(rounds)]


def test_bursts_make_samples_worth_less_and_intervals_honest():
    rng = np.random.default_rng(0)
    true = np.quantile(np.concatenate(bursts(rng, 20000)), 0.9)
    hits, naive, shown = 0, 0, 0
    for _ in range(300):
        turns = [t.tolist() for t in bursts(rng)]
        ordered = sorted(v for t in turns for v in t)
        worth = stats.effective_count(turns, stats.quantile(ordered, 0.9))
        low, high = stats.quantile_interval(ordered, 0.9)
        naive += low <= true <= high
        if interval := stats.quantile_interval(ordered, 0.9, worth):
            shown += 1
            hits += interval[0] <= true <= interval[1]
    assert shown > 250 and hits > 0.9 * shown and naive < 0.85 * 300


def test_independent_samples_are_worth_what_they_are():
    rng = np.random.default_rng(0)
    worth = [stats.effective_count(rng.exponential(size=(30, 40)).tolist(), -math.log(0.1)) for _ in range(50)]
    assert max(worth) == 1200 and np.mean(worth) > 900
    assert stats.effective_count([[1, 1], [2, 2]], 5) == 4


@given(st.lists(st.integers(1, 10**6), min_size=8, max_size=400), st.floats(0, 1))
def test_an_interval_of_fewer_samples_is_of_samples_and_wider(values, share):
    ordered = sorted(values)
    full, fewer = (stats.quantile_interval(ordered, 0.5, c) for c in (None, share * len(ordered)))
    if fewer:
        assert fewer[0] <= full[0] and full[1] <= fewer[1] and set(fewer) <= set(ordered)


def test_processes_that_differ_are_in_the_interval_of_the_median():
    rng = np.random.default_rng(2)
    levels = rng.normal(1e6, 2e4, 6)
    rounds = [[int(v) for v in rng.normal(level, 1e3, 50)] for level in levels for _ in range(5)]
    apart = stats.summarize(rounds, [p for p in range(6) for _ in range(5)])
    assert apart["p50_ci"][0] < 1.0 < apart["p50_ci"][1] and apart["p50_worth"] < 20
    assert apart["p99_ms"] is None, "six levels say nothing of a hundredth"


def test_trend():
    rng = np.random.default_rng(3)
    assert stats.trend([100 + r + rng.normal() for r in range(30)]) == pytest.approx(0.25, abs=0.05)
    assert stats.trend([100 - r / 2 + rng.normal() for r in range(30)]) == pytest.approx(-0.15, abs=0.05)
    assert stats.trend([1, 2, 3]) is None
    assert sum(stats.trend(rng.normal(100, 1, 30).tolist()) is not None for _ in range(200)) <= 6


def test_differences_below_the_resolution_are_none():
    a, b, processes = [[1005] * 5] * 10, [[1000] * 5] * 10, [0] * 5 + [1] * 5
    found = stats.ratio(a, b, processes)
    assert found["verdict"] == "no difference" and found["ci95"] == pytest.approx([1.005, 1.005])
    assert stats.ratio([[1020] * 5] * 10, b, processes)["verdict"] == "slower"
    assert stats.ratio([[1020] * 5] * 10, b)["verdict"] == "no difference", "one process may be 2 % off"
    assert stats.ratio([[1060] * 5] * 10, b)["verdict"] == "slower"
