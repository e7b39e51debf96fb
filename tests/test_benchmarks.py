"""The parts of benchmarks/ that numbers depend on: metrics, accounting, streamed samples, sections of the page."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Import a module of benchmarks/ (or of a folder below it), and leave no trace of it."""
    before = set(sys.modules)
    for folder in ("rivals", "cases", "."):
        monkeypatch.syspath_prepend(str(FOLDER / folder))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(FOLDER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_compare(load):
    judging = load("judging")
    reference = np.array([[1.0, 2.0], [3.0, 0.0]])
    assert judging.compare(reference, reference)["sqnr_db"] is None
    near = judging.compare(reference, np.array([[1.0, 2.0], [0.0, 3.0]]))
    assert near["sqnr_db"] == pytest.approx(10 * np.log10(14 / 18))
    assert (near["agreement"], near["cosine_min"], near["cosine_mean"]) == (0.5, 0.0, pytest.approx(0.5))


def test_against_pairs_rounds(load):
    made = load("judging").against({"round_medians_ms": [1.0, 20.0, 3.0]}, {"round_medians_ms": [2.0, 40.0, 3.0]})
    assert (made["median"], made["min"], made["max"]) == (pytest.approx(0.5), 0.5, 1.0)


def test_page_sections_leave_each_other_alone(load, tmp_path, monkeypatch):
    page = load("page")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    page.update("one", ["first"])
    page.update("two", ["second"])
    page.update("one", ["changed", "lines"])
    assert page.PAGE.read_text() == (
        "<!-- begin one -->\nchanged\nlines\n<!-- end one -->\n\n<!-- begin two -->\nsecond\n<!-- end two -->\n"
    )
    assert page.table(["a", "b"], [["1|2", "3"]]) == ["| a | b |", "|---|---|", "| 1\\|2 | 3 |"]


def test_samples_are_streamed_in_order(load, tmp_path):
    a, b = np.arange(24, dtype=np.float32).reshape(4, 2, 3), np.arange(4, dtype=np.int64)[:, None]
    np.savez(tmp_path / "data.npz", a=a, b=b, y=np.zeros(4))
    samples = load("_shared").Samples(str(tmp_path / "data.npz"))
    assert len(samples) == 4
    for _ in range(2):
        for k, sample in enumerate(samples):
            assert set(sample) == {"a", "b"}
            np.testing.assert_array_equal(sample["a"], a[k : k + 1])
            np.testing.assert_array_equal(sample["b"], b[k : k + 1])
    few = load("_shared").Samples(str(tmp_path / "data.npz"), ["b"], 2)
    assert [int(s["b"][0, 0]) for s in few] == [0, 3]
    with pytest.raises(SystemExit, match="lacks z"):
        load("_shared").Samples(str(tmp_path / "data.npz"), ["z"])


def test_accounting_counts_children_and_stops_at_the_limit(load):
    accounting = load("accounting")
    hold = "import time; block = bytearray(200 << 20); time.sleep({})"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold.format(1)!r}])"
    done = accounting.measured([sys.executable, "-c", child])
    assert (done.code, done.ended) == (0, "") and done.peak_mb > 200
    done = accounting.measured([sys.executable, "-c", hold.format(60)], memory_mb=100)
    assert done.ended == "memory" and done.code != 0 and done.wall_s < 30
    done = accounting.measured([sys.executable, "-c", "import time; time.sleep(60)"], timeout_s=0.5)
    assert done.ended == "time" and done.wall_s < 30


def test_the_harness_pages(load):
    ratio = {"median": 1.01, "ci95": [0.99, 1.03], "verdict": "no difference", "of": "p50"}
    run = {**ratio, "wall_s": 19.0, "others_cores": 0.01, "p50_ms": [1, 1]}
    kept = {"overhead": {"p50_ns": 90.0, "loop_ns": 200.0}, "same": {"loop": [run, {**run, "verdict": "slower"}]}}
    text = "\n".join(load("harness").page(kept))
    assert "timed as 90 ns" in text and "1 no difference, 1 slower" in text and "±2.0 %" in text
    p50s = {"ours": [1.01] * 6, "bare": [0.9] * 6, "litert": [0.93] * 6, "loadgen": [1.0] * 6}
    text = "\n".join(load("cross_check").page({"file": {"p50_ms": p50s}}))
    assert "| with inputs and outputs | MLPerf LoadGen SingleStream | 1.01 | 1 | 1.010 [1.010, 1.010] | yes" in text
    assert "| the same call without | LiteRT (benchmark_litert_model) | 0.9 | 0.93 | 0.968 [0.968, 0.968] | no" in text
    tools = {f for f in vars(load("vendor_tool")) if not f.startswith("_")}
    assert set(load("cross_check").TITLES) <= tools and set(sum(load("cross_check").TOOLS.values(), ())) <= tools


def test_ctc_strings(load):
    case = load("ppocr_rec")
    steps = np.eye(4)[[[0, 1, 1, 0, 1, 2, 3, 3]]]
    assert case.decode(steps, ["", "a", "b", " "]) == ["aab "]


def test_cases_and_rivals_say_what_the_driver_reads(load):
    models, artefacts = load("models"), load("artefacts")
    for name in models.names():
        case = models.case(name)
        assert case.ABOUT and isinstance(case.TRANSFORMER, bool) and callable(case.prepare)
    found = artefacts.rivals()
    assert {"ort-minmax", "ort-entropy", "ort-percentile", "ort-dynamic", "nncf_ptq-onnx", "nncf_ptq-openvino"} <= set(
        found
    )
    for module, _ in found.values():
        assert (artefacts.ROOT / "constraints" / "rivals" / f"{module.ENVIRONMENT}.txt").is_file()
        assert set(module.CALIBRATES) <= set(module.METHODS)
