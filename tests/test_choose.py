"""Selection: limits, reasons, ties and the Pareto front."""

from hypothesis import given
from hypothesis import strategies as st

from lepton_edge.choose import choose, pareto, quality


def candidate(name, top1=0.9, p50=1.0, size=1000, drop=0.0, half=0.01, ratio=None, **more):
    return {
        "name": name,
        "status": "ok",
        "error": None,
        "accuracy": {"top1": top1},
        "drop_points": drop,
        "parity": {"cosine": 0.999, "sqnr_db": 30.0},
        "latency": {"p50_ms": p50, "p50_ci": [p50 - half, p50 + half]},
        "size_bytes": size,
        "ratio": ratio,
        **more,
    }


def test_the_fastest_within_the_drop_wins_and_everyone_gets_a_reason():
    rows = [candidate("a"), candidate("b", p50=0.5, drop=3.0), candidate("c", p50=0.7, drop=0.5)]
    picked, reasons, _ = choose(rows, max_drop=1.0)
    assert picked == "c"
    assert "drops 3.00 points" in reasons["b"] and "1.43x" in reasons["a"] and "fastest" in reasons["c"]


def test_within_the_noise_the_smaller_wins():
    rows = [candidate("a", p50=1.0, size=900), candidate("b", p50=0.995, size=1000)]
    picked, reasons, _ = choose(rows, max_drop=1.0)
    assert picked == "a" and "within the noise" in reasons["a"] and "not smaller" in reasons["b"]


def test_slower_than_float_is_never_picked():
    slow = {"to": "float", "median": 1.3, "verdict": "slower"}
    picked, reasons, _ = choose([candidate("int8", p50=0.1, ratio=slow)], max_drop=1.0)
    assert picked is None and "never picked" in reasons["int8"]


def test_limits_on_size_and_latency():
    rows = [candidate("big", size=5000), candidate("slow", p50=9.0)]
    picked, reasons, _ = choose(rows, max_drop=1.0, max_size=2000, max_latency=5.0)
    assert picked is None
    assert "5,000 bytes" in reasons["big"] and "9 ms" in reasons["slow"]


def test_without_labels_the_cosine_decides():
    far = candidate("far", accuracy=None, drop_points=None, parity={"cosine": 0.9, "sqnr_db": 7.0})
    near = candidate("near", p50=2.0, accuracy=None, drop_points=None)
    picked, reasons, _ = choose([far, near], max_drop=1.0)
    assert picked == "near" and "cosine" in reasons["far"]


def test_a_failed_candidate_says_why():
    bad = candidate("bad", status="failed", error={"message": "no such operator", "hint": ""}, latency=None)
    picked, reasons, _ = choose([bad, candidate("good")], max_drop=1.0)
    assert picked == "good" and reasons["bad"] == "failed: no such operator"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 10)), min_size=1, max_size=20))
def test_no_point_of_the_front_is_dominated_and_every_other_is(points):
    rows = [candidate(str(i), top1=q, p50=t) for i, (q, t) in enumerate(points)]
    front = pareto(rows)
    assert front
    for c in rows:
        beaten = any(
            quality(o) >= quality(c)
            and o["latency"]["p50_ms"] <= c["latency"]["p50_ms"]
            and (quality(o) > quality(c) or o["latency"]["p50_ms"] < c["latency"]["p50_ms"])
            for o in rows
        )
        assert beaten == (c["name"] not in front)
