"""Parity figures, accuracy and the paired interval of the drop."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_edge import verify
from lepton_edge.errors import LeptonError
from lepton_edge.ports import Port, after, identity, resolve, without_batch


def test_equal_outputs_are_exact():
    ref = {"y": np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)}
    p = verify.parity(ref, {"z": ref["y"].copy()}, (Port("z", "y"),))
    assert p["sqnr_db"] is None and p["max_abs"] == 0 and p["agreement"] == 1 and p["cosine"] == pytest.approx(1)


@given(st.integers(1, 200), st.floats(1e-6, 0.5))
def test_sqnr_is_that_of_the_definition_whatever_the_chunks(count, noise):
    rng = np.random.default_rng(count)
    ref = rng.standard_normal((count, 7)).astype(np.float32)
    out = (ref + noise * rng.standard_normal(ref.shape)).astype(np.float32)
    p = verify.parity({"y": ref}, {"y": out}, (Port("y", "y"),))
    r, o = ref.astype(np.float64), out.astype(np.float64)
    assert p["sqnr_db"] == pytest.approx(10 * math.log10((r**2).sum() / ((r - o) ** 2).sum()))
    assert p["max_abs"] == pytest.approx(np.abs(r - o).max())
    assert p["agreement"] == pytest.approx((r.argmax(1) == o.argmax(1)).mean())


def test_a_transposed_output_is_compared_in_the_layout_of_the_source():
    ref = np.random.default_rng(0).standard_normal((6, 3, 4, 5)).astype(np.float32)  # NCHW
    out = ref.transpose(0, 2, 3, 1)  # NHWC
    p = verify.parity({"y": ref}, {"y": out}, (Port("y", "y", (0, 2, 3, 1)),))
    assert p["sqnr_db"] is None and p["agreement"] is None


def test_the_cosine_of_single_numbers_is_over_the_samples():
    ref = np.linspace(-1, 1, 201)[:, None]  # crosses zero: signs differ where the numbers are nearly equal
    p = verify.parity({"y": ref}, {"y": ref + 0.01}, (Port("y", "y"),))
    assert p["cosine"] == pytest.approx(1, abs=1e-3)
    assert verify.parity({"y": ref}, {"y": -ref}, (Port("y", "y"),))["cosine"] == pytest.approx(-1)


def test_other_shapes_and_nan_are_errors():
    ref = {"y": np.ones((3, 4))}
    with pytest.raises(LeptonError, match=r"shape \[5\]"):
        verify.parity(ref, {"y": np.ones((3, 5))}, (Port("y", "y"),))
    with pytest.raises(LeptonError, match="NaN"):
        verify.parity(ref, {"y": np.full((3, 4), np.nan)}, (Port("y", "y"),))


def test_top1_top5_and_labels_out_of_range():
    scores = np.eye(10)[[1, 2, 3, 4]] + 0.01 * np.arange(10)
    s = verify.score({"y": scores}, np.array([1, 2, 0, 9])).to_json()
    assert s["top1"] == 0.5 and s["top5"] == 0.75
    with pytest.raises(LeptonError, match="label 10 does not fit"):
        verify.score({"y": scores}, np.array([1, 2, 3, 10]))
    assert verify.score({"mask": np.ones((4, 8, 8, 2))}, np.array([0, 1, 0, 1])) is None


@pytest.mark.parametrize(("scores", "expected"), [([0.2, 0.7, 0.6, 0.1], 0.75), ([-3.0, 2.0, 0.4, -1.0], 0.75)])
def test_a_single_score_is_binary(scores, expected):
    s = verify.score({"y": np.array(scores)[:, None]}, np.array([0, 1, 0, 0]))
    assert s.to_json()["top1"] == expected and s.top5 is None


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=400))
def test_the_drop_lies_in_its_paired_interval(pairs):
    a, b = (np.array(x) for x in zip(*pairs, strict=True))
    d = verify.drop(verify.Score(a, None), verify.Score(b, None))
    assert d["drop_points"] == pytest.approx(100 * (a.mean() - b.mean()))
    low, high = d["drop_ci95"]
    assert low < high and low <= d["drop_points"] + 1e-6 and d["drop_points"] - 1e-6 <= high


def test_identical_hits_have_a_narrow_interval():
    hits = np.arange(1000) % 5 > 0
    d = verify.drop(verify.Score(hits, None), verify.Score(hits, None))
    assert d["drop_points"] == 0 and d["drop_ci95"][1] < 0.3


def test_ports_compose_rename_and_resolve():
    ports = identity([{"name": "a"}, {"name": "b"}])
    ports = after(
        ports, [{"name": "B", "source": "b", "perm": [0, 2, 3, 1]}, {"name": "A", "source": "a", "perm": None}]
    )
    ports = after(ports, None)
    ports = after(ports, [{"name": "B", "source": "B", "perm": [0, 3, 1, 2]}, {"name": "A", "source": "A"}])
    assert ports == (Port("B", "b", None), Port("A", "a", None)), "there and back again is no permutation"
    assert resolve(ports, [{"name": "A"}, {"name": "B"}], "x") == (ports[1], ports[0])
    assert [p.source for p in resolve(ports, [{"name": "p"}, {"name": "q"}], "x")] == ["b", "a"]
    with pytest.raises(LeptonError, match="has 1"):
        resolve(ports, [{"name": "A"}], "the model")
    assert without_batch((0, 2, 3, 1)) == (1, 2, 0)


@given(st.permutations([1, 2, 3]), st.permutations([1, 2, 3]))
def test_composed_permutations_are_those_of_numpy(p, q):
    x = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    first, second = [0, *p], [0, *q]
    ports = after(
        after(identity([{"name": "x"}]), [{"name": "x", "source": "x", "perm": first}]),
        [{"name": "x", "source": "x", "perm": second}],
    )
    both = ports[0].perm or (0, 1, 2, 3)
    assert np.array_equal(x.transpose(both), x.transpose(first).transpose(second))
