"""What changed since a baseline: differences that are there are found, others are not, machines are told apart."""

from __future__ import annotations

import copy
import json
import math
import random
from pathlib import Path
from typing import Any

import data_bench
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from lepton_edge.bench_report import changes, unpaired
from lepton_edge.bench_report.documents import Document, checked
from lepton_edge.cli import app
from lepton_edge.errors import LeptonError

DAY = "2026-11-21T09:30:00+00:00"


def document(data: dict[str, Any]) -> list[Document]:
    return [Document(Path("bench.json"), checked(data, "bench.json"))]


def compare(old: dict[str, Any], new: dict[str, Any], **how: Any) -> dict[str, Any]:
    found = changes.compare(document(old), document(new), **how)
    json.dumps(found, allow_nan=False)
    return found


def verdicts(found: dict[str, Any]) -> list[str]:
    return [r["verdict"] for r in found["rows"]]


def test_ten_percent_are_found_and_only_where_they_are() -> None:
    found = compare(data_bench.two(), data_bench.two(1.1, 2, DAY))
    assert verdicts(found) == ["slower", "no difference"]
    low, high = found["rows"][0]["latency"]["ci95"]
    assert 1.02 < low < 1.1 < high
    assert found["regressions"] == [found["rows"][0]["regressions"][0]] and "1.1" in found["regressions"][0]
    back = compare(data_bench.two(1.1, 2), data_bench.two(1.0, 1, DAY))
    assert verdicts(back) == ["faster", "no difference"] and not back["regressions"]


def test_the_same_model_again_is_no_regression() -> None:
    """Processes differ by 1 %, sessions by nothing: what is called a difference is noise alone."""
    rng = random.Random(7)
    latencies = [data_bench.latency(rng, 0.2, rounds=12, each=8) for _ in range(24)]
    pairs = [(a, b) for a in latencies[:12] for b in latencies[12:]]
    ratios = [unpaired.ratio(a, b)["ci95"] for a, b in pairs]
    assert sum(low > 1.02 or high < 1 / 1.02 for low, high in ratios) <= len(pairs) * 0.02
    assert sum(low > 1 or high < 1 for low, high in ratios) <= len(pairs) * 0.12  # the interval alone: about 5 %


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8), st.lists(st.floats(-2, 2), min_size=2, max_size=8))
def test_the_interval_is_that_of_welch(a: list[float], b: list[float]) -> None:
    middle, ends = unpaired.welch(a, b)
    other, back = unpaired.welch(b, a)
    assert ends and back and ends[0] <= middle <= ends[1]
    assert math.isclose(middle, -other, abs_tol=1e-12) and math.isclose(ends[0], -back[1], abs_tol=1e-12)


def test_welch_against_a_worked_example() -> None:
    # means 2 and 5, variances 1 and 4: se² = 1/3 + 4/3, df = (5/3)² / ((1/9)/2 + (16/9)/2) = 2.94, rounded down to 2
    middle, ends = unpaired.welch([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])
    assert middle == -3.0 and ends
    assert ends[1] - middle == pytest.approx(4.303 * math.sqrt(5 / 3), rel=1e-9)
    assert unpaired.welch([1.0], [2.0, 3.0])[1] is None


def test_times_beyond_all_measure_are_compared_all_the_same() -> None:
    old, new = data_bench.small(), data_bench.small()
    new["rows"][0]["latency"]["samples_ns"] = [[1], [1], [10**90], [10**90]]
    assert compare(old, new)["rows"][0]["verdict"] == "no difference"


def test_one_process_decides_nothing() -> None:
    old, new = data_bench.two(), data_bench.two(1.5, 2, DAY)
    for d in (old, new):
        for r in d["rows"]:
            r["latency"]["process_of_round"] = [0] * len(r["latency"]["samples_ns"])
    found = compare(old, new)
    assert verdicts(found) == ["not decided"] * 2 and not found["regressions"]
    assert len(changes.undecided(found)) == 2 and "--processes" in changes.undecided(found)[0]


def test_a_busy_machine_has_its_fastest_tenths_compared() -> None:
    new = data_bench.two(1.1, 2, DAY)
    new["rows"][0]["latency"]["others_cores"] = 0.9
    found = compare(data_bench.two(), new)
    assert [r["latency"]["of"] for r in found["rows"]] == ["p10", "p50"] and found["rows"][0]["verdict"] == "slower"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cpu": "Another CPU"}, "cpu: Example CPU 9000 and Another CPU"),
        ({"governor": "powersave"}, "governor: performance and powersave"),
        ({"machine_id": "0" * 16}, "machine_id: "),
        ({"isa": ["avx2", "amx_int8"]}, "isa: without fma, avx512_vnni and with amx_int8"),
    ],
)
def test_other_machines_are_refused(changed: dict[str, Any], said: str) -> None:
    old, new = data_bench.two(), data_bench.two(1.1, 2, DAY, **changed)
    with pytest.raises(LeptonError, match=said) as caught:
        compare(old, new)
    assert caught.value.exit_code == 1 and "--any-machine" in caught.value.hint
    found = compare(old, new, any_machine=True)
    assert any(said in text for text in found["warnings"]) and verdicts(found)[0] == "slower"


def test_a_machine_that_was_not_recorded_is_another_one() -> None:
    old = data_bench.two()
    old["environments"] = {}
    with pytest.raises(LeptonError, match="one of them was not recorded"):
        compare(old, data_bench.two(1.0, 2, DAY))


def test_files_memory_and_failures() -> None:
    old, new = data_bench.two(), data_bench.two(1.0, 2, DAY)
    first, second = new["rows"]
    first |= {"size_bytes": 400_000}
    first["latency"]["peak_rss_mb"] *= 1.2
    second |= {"latency": None, "runtime": None, "error": {"message": "the worker was killed", "hint": ""}}
    found = compare(old, new)
    assert found["rows"][0]["size"]["verdict"] == "larger" and found["rows"][0]["memory"]["verdict"] == "more"
    assert [text.partition(": ")[2].split()[0] for text in found["regressions"]] == ["file", "peak", "does"]
    assert "the worker was killed" in found["regressions"][2]
    assert compare(old, new, tolerance=0.5)["rows"][0]["size"]["verdict"] == "same"


def test_two_machines_of_one_name_are_not_mixed() -> None:
    days = document(data_bench.two()) + document(data_bench.two(1.0, 2, DAY, machine_id="0" * 16))
    with pytest.raises(LeptonError, match="two machines are called 'local'"):
        changes.compare(document(data_bench.two()), days)


def test_rows_are_paired_by_what_they_are() -> None:
    old, new = data_bench.two(), data_bench.two(1.0, 2, DAY)
    new["rows"][0]["runtime"] = {"runtime": "tflite-runtime", "version": "2.14"}
    new["rows"].append(copy.deepcopy(new["rows"][1]) | {"batch": 4, "name": "resnet8.int8.tflite batch 4"})
    found = compare(old, new)
    assert [r["name"] for r in found["rows"]] == ["resnet8.int8.tflite"]
    assert [r["runtime"] for r in found["gone"]] == ["ai-edge-litert"]
    assert [(r["runtime"], r["batch"]) for r in found["added"]] == [("tflite-runtime", 1), ("ai-edge-litert", 4)]
    for r in new["rows"]:
        r["device"] = {"name": "pi", "kind": "measured"}
    with pytest.raises(LeptonError, match="none of its models was measured on the same device"):
        compare(old, new)


def test_a_file_measured_twice_is_two_rows_and_the_latest_day_counts() -> None:
    old, new = data_bench.two(), data_bench.two(1.1, 2, DAY)
    for d in (old, new):
        d["rows"].append(copy.deepcopy(d["rows"][1]) | {"name": "resnet8.int8.tflite (2)"})
    assert len(compare(old, new)["rows"]) == 3
    days = document(data_bench.two(1.5, 4)) + document(data_bench.two(1.1, 5, DAY))
    found = changes.compare(days, document(new))
    assert found["rows"][0]["verdict"] == "no difference"


def test_what_was_measured_otherwise_is_not_compared() -> None:
    old, new = data_bench.two(), data_bench.two(2.0, 2, DAY)
    new["rows"][0]["latency"]["threads"] = 4
    row = compare(old, new)["rows"][0]
    assert row["verdict"] == "not compared" and "threads 1 and 4" in row["latency"]["why"] and not row["regressions"]
    new["rows"][1]["runtime"] = new["rows"][1]["runtime"] | {"version": "9.9.9"}
    assert any("version 2.3.0 → 9.9.9" in text for text in compare(old, new)["warnings"])


@pytest.mark.parametrize(
    ("top1", "verdict"), [(0.88, "no difference"), (0.86, "no difference"), (0.80, "lower"), (0.95, "higher")]
)
def test_accuracy_has_to_drop_beyond_its_interval(top1: float, verdict: str) -> None:
    old, new = data_bench.two(), data_bench.two(1.0, 2, DAY)
    old["rows"][0]["accuracy"], new["rows"][0]["accuracy"] = data_bench.accuracy(0.88), data_bench.accuracy(top1)
    found = compare(old, new)
    assert found["rows"][0]["accuracy"]["verdict"] == verdict
    assert bool(found["regressions"]) == (verdict == "lower")
    new["rows"][0]["data"]["sha256"] = "other samples"
    assert compare(old, new)["rows"][0]["accuracy"]["verdict"] == "not compared"


def test_newcombes_interval_is_the_published_one() -> None:
    # Newcombe 1998, table II, (a): 56/70 and 48/80, method 10: 0.0524 to 0.3339
    rows = [{"accuracy": {"top1": k / n, "count": n}} for k, n in ((48, 80), (56, 70))]
    rows[0]["accuracy"]["count"] = rows[1]["accuracy"]["count"] = None  # counts differ here, never in a report
    for r, (k, n) in zip(rows, ((48, 80), (56, 70)), strict=True):
        r["accuracy"]["ci95"] = list(data_bench.stats.proportion_interval(k, n))
    low, high = changes._accuracy(*rows)["ci95"]
    assert (low, high) == (pytest.approx(5.24, abs=0.02), pytest.approx(33.39, abs=0.02))


def test_estimates_have_no_noise() -> None:
    old, new = data_bench.fleet(), data_bench.fleet()
    for r in new["rows"]:
        if r["device"]["name"] == "u55":
            r["latency"] = r["latency"] | {"p50_ms": r["latency"]["p50_ms"] * 1.03}
    found = compare(old, new)
    rows = [r for r in found["rows"] if r["device"] == "u55"]
    assert [r["verdict"] for r in rows] == ["slower", "slower"] and rows[0]["latency"]["ci95"][0] == pytest.approx(1.03)
    lost = [r for r in found["rows"] if r["device"] == "orin" and r["latency"]["new"] is None]
    assert [r["verdict"] for r in lost] == ["not compared"]  # it failed in the baseline, too


def test_exit_codes_and_what_is_written(tmp_path: Path) -> None:
    for name, made in (
        ("old", data_bench.two()),
        ("same", data_bench.two(1.0, 3, DAY)),
        ("slow", data_bench.two(1.1, 2, DAY)),
        ("far", data_bench.two(1.0, 2, DAY, cpu="Another CPU")),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))

    def report(name: str, *more: str) -> Any:
        return CliRunner().invoke(
            app, ["report", str(tmp_path / name), "--baseline", str(tmp_path / "old.json"), *more]
        )

    same = report("same.json")
    assert same.exit_code == 0 and "2 no difference against old.json" in same.output
    slow = report("slow.json", "--json")
    told = json.loads(slow.stdout)
    assert slow.exit_code == 4 and told["error"]["message"].startswith("regressions: resnet8.tflite on local: 1.1")
    assert [r["verdict"] for r in told["changes"]["rows"]] == ["slower", "no difference"]
    comment = (tmp_path / "changes.md").read_text(encoding="utf-8")
    assert told["comment"] == str(tmp_path / "changes.md") and "| **slower** |" in comment
    assert report("slow.json", "--tolerance", "30%").exit_code == 0
    far = report("far.json")
    assert far.exit_code == 1 and "another machine than the baseline's" in far.output
    assert report("far.json", "--any-machine").exit_code == 0
    assert report("gone.json").exit_code == 1
    two = CliRunner().invoke(
        app, ["report", str(tmp_path / "old.json"), str(tmp_path / "slow.json"), "-o", str(tmp_path / "set")]
    )
    assert two.exit_code == 0 and (tmp_path / "set" / "report.html").is_file()
