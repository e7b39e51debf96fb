"""Limits for CI: the grammar, the verdicts, and the exit codes of ``report --fail-if``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import data_bench
import data_run
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lepton_edge.bench_report import limits
from lepton_edge.bench_report.limits import Selector, Subject, parse
from lepton_edge.bench_report.metrics import METRICS
from lepton_edge.cli import app
from lepton_edge.errors import UsageError


@pytest.mark.parametrize(
    ("text", "metric", "comparator", "value"),
    [
        ("p95 > 12ms", "p95", ">", 12.0),
        ("p95>=12 ms", "p95", ">=", 12.0),
        ("p50 in us > 900", "p50", ">", 0.9),
        ("mean > 1.5e-3 s", "mean", ">", 1.5),
        ("size > 4MB", "size", ">", 4e6),
        ("peak_mb > 64", "peak_mb", ">", 64.0),
        ("peak_mb > 64000kB", "peak_mb", ">", 64.0),
        ("top1 < 91.5%", "top1", "<", 91.5),
        ("drop > -0.5", "drop", ">", -0.5),
        ("sqnr <= 30dB", "sqnr", "<=", 30.0),
        ("energy_mj > 0.002J", "energy_mj", ">", 2.0),
        ("throughput < 100", "throughput", "<", 100.0),
    ],
)
def test_what_limits_mean(text: str, metric: str, comparator: str, value: float) -> None:
    limit = parse(text)
    assert (limit.metric, limit.comparator, limit.selectors) == (metric, comparator, ())
    assert limit.value == pytest.approx(value)


def test_selectors() -> None:
    assert parse("pi:model.tflite:p95 > 12ms").selectors == (Selector("pi"), Selector("model.tflite"))
    found = parse("model~int8 : runtime = ai-edge-litert:p95 > 12ms").selectors
    assert found == (Selector("int8", "model", True), Selector("ai-edge-litert", "runtime"))


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("", "no comparison", "for example"),
        ("p95", "no comparison", "for example"),
        ("p95 == 12ms", "no comparison", "for example"),
        ("p94 > 12ms", "unknown metric 'p94'", "did you mean 'p9"),
        ("latency > 12ms", "unknown metric 'latency'", "known: p50"),
        ("p95 > 12", "p95 needs a unit", "us, µs, ms, s"),
        ("p95 > 12min", "unknown unit 'min'", "did you mean|known"),
        ("p95 > 12MS", "unknown unit 'MS'", "did you mean 'ms'"),
        ("p95 in ms > 12us", "the unit is given twice", "keep one"),
        ("size > 4", "size needs a unit", "kB"),
        ("top1 < 0.9", "top1 needs a unit", "%"),
        ("p95 > fast", "'fast' is not a number", "for example"),
        ("p95 > 12,5ms", "'12,5ms' is not a number|unknown unit", ""),
        ("p95 > nan ms", "is not a number", "for example"),
        ("p95 > __import__('os')", "is not a number", "for example"),
        ("p95 > p50", "is not a number", "for example"),
        ("modle~int8:p95 > 1ms", "unknown field 'modle'", "did you mean 'model'"),
        ("model~:p95 > 1ms", "a selector is empty", "for example"),
        ("::p95 > 1ms", "a selector is empty", "for example"),
    ],
)
def test_what_limits_do_not_mean(text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse(text)
    assert caught.value.message.startswith(f"--fail-if '{text}'")
    assert any(part in caught.value.hint for part in hint.split("|"))


@given(
    st.sampled_from(sorted(METRICS)),
    st.sampled_from([">", ">=", "<", "<="]),
    st.floats(-1e6, 1e6),
    st.lists(st.sampled_from([" ", "  ", ""]), min_size=3, max_size=3),
    st.data(),
)
def test_every_limit_that_is_written_is_read(
    metric: str, comparator: str, value: float, gaps: list[str], data: st.DataObject
) -> None:
    unit, scale = data.draw(st.sampled_from(sorted(METRICS[metric].units.items())))
    limit = parse(f"{metric}{gaps[0]}{comparator}{gaps[1]}{value!r}{gaps[2]}{unit}")
    assert (limit.metric, limit.comparator) == (metric, comparator)
    assert limit.value == pytest.approx(value * scale, rel=1e-9, abs=1e-300)


@given(st.one_of(st.text(max_size=30), st.text(alphabet="p95 <>=:~.inmsx%12", max_size=20)))
def test_no_text_is_more_than_wrong(text: str) -> None:
    try:
        limit = parse(text)
    except UsageError:
        return
    assert limit.metric in METRICS and limit.comparator in (">", ">=", "<", "<=")


def subject(row: dict[str, Any], **facts: str) -> Subject:
    named = {
        "device": "pi",
        "model": "m.tflite",
        "name": "m.tflite",
        "format": "tflite",
        "runtime": "r",
        "batch": "1",
        "kind": "measured",
    }
    return Subject({**named, **facts}, row, 3.0)


def timed(low: float, p50: float, high: float, count: int = 600) -> dict[str, Any]:
    return {"latency": {"p50_ms": p50, "p50_ci": [low, high], "count": count}}


@given(
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3, unique=True).map(sorted),
    st.floats(0.05, 12),
    st.sampled_from([">", ">=", "<", "<="]),
)
def test_a_limit_is_broken_only_beyond_the_whole_interval(ends: list[float], bound: float, sign: str) -> None:
    (found,) = limits.hold([parse(f"p50 {sign} {bound!r}ms")], [subject(timed(*ends))])
    low, _, high = ends
    bound = found["bound"]
    beyond = {">": low > bound, ">=": low >= bound, "<": high < bound, "<=": high <= bound}[sign]
    clear = {">": high <= bound, ">=": high < bound, "<": low >= bound, "<=": low > bound}[sign]
    assert found["verdict"] == ("broken" if beyond else "kept" if clear else "not decided")
    assert (found["needs"] is None or found["needs"] > 600) and (found["needs"] is None or not (beyond or clear))


def test_samples_that_decide_grow_as_the_square() -> None:
    assert limits.needed(1.0, (0.9, 1.1), 1.05, 100) == 400
    assert limits.needed(1.0, (0.9, 1.1), 0.99, 100) == 10_000
    assert limits.needed(1.0, (0.9, 1.1), 1.0, 100) is None
    assert limits.needed(1.0, (0.9, 1.1), 1.0 + 1e-6, 100) is None


def test_figures_without_an_interval_are_points() -> None:
    row = {
        "size_bytes": 4_000_001,
        "parity": {"sqnr_db": None, "max_abs": 0.0},
        "latency": {"p50_ms": 1.0, "first_ms": 9.0},
    }
    found = limits.hold([parse("size > 4MB"), parse("sqnr < 30dB"), parse("first > 9ms")], [subject(row)])
    assert [f["verdict"] for f in found] == ["broken", "kept", "kept"]
    json.dumps(found, allow_nan=False)


def test_the_best_of_a_sweep_is_held() -> None:
    row = {
        "throughput": [
            {"streams": s, "threads": 1, "per_s": 100.0 * s, "per_s_ci": [95.0 * s, 105.0 * s]} for s in (1, 2)
        ]
    }
    found = limits.hold([parse("throughput < 150"), parse("throughput < 220")], [subject(row)])
    assert [f["verdict"] for f in found] == ["kept", "broken"] and found[0]["ci95"] == [190.0, 210.0]


def test_selection() -> None:
    rows = [
        subject(timed(1, 2, 3), device=d, model=m, name=m)
        for d in ("pi", "orin")
        for m in ("a.tflite", "a.int8.tflite")
    ]

    def names(text: str) -> list[tuple[str, str]]:
        return [(v["device"], v["row"]) for v in limits.hold([parse(f"{text}p50 > 9ms")], rows)]

    assert len(names("")) == 4
    assert names("pi:a.tflite:") == [("pi", "a.tflite")] == names("device=pi:model=a.tflite:")
    assert names("model~INT8:") == [("pi", "a.int8.tflite"), ("orin", "a.int8.tflite")]
    for text, hint in (
        ("p:", "did you mean 'pi'"),
        ("a.tflit:", "did you mean 'a.tflite'"),
        ("format=onnx:", "tflite"),
    ):
        with pytest.raises(UsageError, match="no ") as caught:
            names(text)
        assert hint in caught.value.hint


def test_a_percentile_that_the_samples_do_not_support_tells_how_long_to_measure() -> None:
    latency = {"p50_ms": 10.0, "p99_ms": None, "p99_worth": 100, "count": 300}
    with pytest.raises(UsageError, match="300 samples, worth 100 independent ones, are too few for a p99") as caught:
        limits.hold([parse("p99 > 1ms")], [subject({"latency": latency})])
    seconds = float(caught.value.hint.rpartition(" ")[2])
    assert 3 * 368 / 100 < seconds <= 3 * 500 / 100  # p99 needs 368 and more; a margin on top


def test_an_estimate_has_no_percentiles() -> None:
    estimate = subject({"latency": {"kind": "estimated", "p50_ms": 2.0}})
    assert [v["verdict"] for v in limits.hold([parse("p50 > 1ms"), parse("p50 > 2ms")], [estimate])] == [
        "broken",
        "kept",
    ]
    with pytest.raises(UsageError, match="an estimate has no p95"):
        limits.hold([parse("p95 > 1ms")], [estimate])


@pytest.mark.parametrize("metric", ["top1", "drop", "sqnr", "energy_mj", "throughput"])
def test_what_was_not_measured_is_not_passed(metric: str) -> None:
    unit = next(iter(METRICS[metric].units))
    with pytest.raises(UsageError, match="was not measured") as caught:
        limits.hold([parse(f"{metric} < 1{unit}")], [subject(timed(1, 2, 3))])
    assert caught.value.hint


# ---------------------------------------------------------------- the command


def report(*args: str | Path) -> Any:
    return CliRunner().invoke(app, ["report", *map(str, args)])


@pytest.fixture
def bench(tmp_path: Path) -> Path:
    (tmp_path / "bench.json").write_text(json.dumps(data_bench.two()))
    return tmp_path / "bench.json"


def test_exit_codes(bench: Path) -> None:
    kept = report(bench, "--fail-if", "p95 > 12ms", "--fail-if", "size > 1MB")
    assert kept.exit_code == 0 and "kept" in kept.output
    broken = report(bench, "--fail-if", "resnet8.tflite:p50 > 0.2ms", "--fail-if", "size > 90kB", "--json")
    assert broken.exit_code == 4
    told = json.loads(broken.stdout)
    assert [v["verdict"] for v in told["limits"]] == ["broken"] * 3 and told["error"]["exit_code"] == 4
    for part in ("'resnet8.tflite:p50 > 0.2ms': resnet8.tflite on local: 0.2", "resnet8.int8.tflite on local: 98.5 kB"):
        assert part in told["error"]["message"]
    assert Path(told["html"]).is_file()
    low, high = data_bench.two()["rows"][0]["latency"]["p50_ci"]
    between = f"resnet8.tflite:p50 > {(low + high) / 2}ms"
    assert "not decided" in report(bench, "--fail-if", between).output
    assert report(bench, "--fail-if", between).exit_code == 0
    assert report(bench, "--fail-if", between, "--strict").exit_code == 4
    assert report(bench, "--fail-if", "p95 >> 12ms").exit_code == 2
    assert report(bench, "--tolerance", "3%").exit_code == 2
    assert report(bench, "--baseline", bench, "--tolerance", "3").exit_code == 2


def test_a_usage_error_writes_no_report(bench: Path) -> None:
    assert report(bench, "--fail-if", "top1 < 90%").exit_code == 2
    assert [p.name for p in bench.parent.iterdir()] == ["bench.json"]


def test_a_row_that_failed_does_not_pass(bench: Path) -> None:
    document = data_bench.two()
    document["rows"][1] |= {"latency": None, "error": {"message": "the connection was lost", "hint": ""}}
    bench.write_text(json.dumps(document))
    lost = report(bench, "--fail-if", "p50 > 1s")
    assert lost.exit_code == 1 and "the connection was lost" in lost.output
    assert report(bench, "--fail-if", "resnet8.tflite:p50 > 1s").exit_code == 0
    assert report(bench, "--fail-if", "p50 > 1us").exit_code == 4


def test_an_error_of_something_else_does_not_hide_a_latency() -> None:
    row = timed(1, 2, 3) | {"error": {"message": "a stream of m.tflite ran out of memory", "hint": ""}}
    found = limits.hold([parse("p50 > 9ms"), parse("throughput < 9")], [subject(row)])
    assert [v["verdict"] for v in found] == ["kept", "not measured"] and "out of memory" in found[1]["why"]


def test_limits_of_a_run_hold_for_what_was_picked(tmp_path: Path) -> None:
    run = data_run.full_run()
    (tmp_path / "run.json").write_text(json.dumps(run))
    done = report(tmp_path, "--fail-if", "p50 > 0.1ms", "--fail-if", "drop > 1", "--json")
    assert done.exit_code == 0
    assert {v["row"] for v in json.loads(done.stdout)["limits"]} == {run["picked"]}
    assert report(tmp_path, "--fail-if", "name~float32:p50 > 0.01ms").exit_code == 4
    assert report(tmp_path, "--fail-if", "nmae~float32:p50 > 0.01ms").exit_code == 2
    assert report(tmp_path, "--fail-if", "energy_mj > 1").exit_code == 2
