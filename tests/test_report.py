"""Reports: golden Markdown and CSV, and an HTML page that is whole, escaped, self-contained and repeatable.

Write the golden files anew with LEPTON_EDGE_UPDATE_GOLDEN=1.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import data_run
import pytest
from html_page import Page, assert_self_contained
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_edge import choose, plots, plots_labels, plots_style, report, report_cells, report_figures, show, texts
from lepton_edge.errors import LeptonError

GOLDEN = Path(__file__).parent / "golden"
RUNS = {
    "full": data_run.full_run,
    "two": data_run.two_run,
    "unlabelled": data_run.unlabelled_run,
    "rejected": data_run.rejected_run,
    "broken": data_run.broken_run,
    "wide": data_run.wide_run,
    "hostile": data_run.hostile_run,
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The texts of every run of data_run, rendered once, which leaves the run as it was."""
    made = {}
    for name, make in RUNS.items():
        run = make()
        paths = report.render(run, tmp_path_factory.mktemp(name))
        assert run == make()
        made[name] = {kind: path.read_text(encoding="utf-8") for kind, path in paths.items()}
    return made


@pytest.mark.parametrize("kind", ["md", "csv"])
@pytest.mark.parametrize("name", ["full", "unlabelled", "rejected"])
def test_golden(rendered: dict[str, dict[str, str]], name: str, kind: str) -> None:
    file = GOLDEN / f"report_{name}.{kind}"
    if os.environ.get("LEPTON_EDGE_UPDATE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(rendered[name][kind], encoding="utf-8", newline="\n")
    assert rendered[name][kind] == file.read_bytes().decode("utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_page_is_whole_and_self_contained(rendered: dict[str, dict[str, str]], name: str) -> None:
    assert_self_contained(rendered[name]["html"])


def test_page_says_what_matters(rendered: dict[str, dict[str, str]]) -> None:
    html = rendered["full"]["html"]
    text = Page(html).text
    for fact in (
        "fashion_cnn.keras",
        "Picked tflite-int8 : the fastest of the 6 that meet the limits.",
        "3.73× smaller",
        "2.70× faster",
        "[2.62, 2.78] against tflite-float32",
        "0.28 points lost",
        "91.04 %",
        "[90.25, 91.83]",
        "31.4 dB",
        "99.12 %",
        "110 kB",
        "84.3 kB",
        "0.0431",
        "[0.0430, 0.0433]",
        "over the limit",
        "node 'Gather_12' has an int64 output",
        "quantize_tflite",
        "from the store",
        "per_channel = true",
        "ai-edge-litert 2.3.0, delegate xnnpack",
        "avx2, avx512_vnni",
        "Example CPU 9000",
        "train.npz, 300 samples",
        "9372c470eead",
        "governor could not be read",
        "Latency is measured on this machine with 1 thread",
    ):
        assert fact in text, fact
    heads = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert heads == [
        "Candidates",
        "Plots",
        "Parity by output",
        "Latency in detail",
        "Steps and provenance",
        "Environment",
        "Data and preprocessing",
        "Warnings",
        "How to read this",
    ]
    assert html.count("<svg") == 3


def test_render_is_deterministic(rendered: dict[str, dict[str, str]], tmp_path: Path) -> None:
    code = (
        "import data_run, pathlib, sys; from lepton_edge import report; "
        "report.render(data_run.wide_run(), pathlib.Path(sys.argv[1]))"
    )
    tests = Path(__file__).parent
    env = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\n")
    env["MATPLOTLIBRC"] = str(tmp_path / "matplotlibrc")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=env)
    for kind, text in rendered["wide"].items():
        assert (tmp_path / f"report.{kind}").read_text(encoding="utf-8") == text


def test_attacks_stay_text(rendered: dict[str, dict[str, str]]) -> None:
    attack = '<script>alert("x")</script>'
    assert attack in Page(rendered["hostile"]["html"]).text
    for text in rendered["hostile"].values():
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    assert "<script" not in rendered["hostile"]["md"] and "<img" not in rendered["hostile"]["md"]
    table = [x for x in rendered["hostile"]["md"].splitlines() if x.startswith("|")]
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table[:9]}
    assert len(widths) == 1  # no name adds a column
    for row in csv.reader(io.StringIO(rendered["hostile"]["csv"])):
        assert not any(value[:1] in "=+@" for value in row if value)
    assert "$\\frac{1}$" in Page(rendered["hostile"]["html"]).text  # never typeset


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("2.70× faster", "2.70× faster"),
        ("a | b", r"a \| b"),
        ("keras_to_tflite _x_", r"keras_to_tflite \_x\_"),
        ("# head", r"\# head"),
        ("1. item", r"1\. item"),
        ("[click](http://x)", r"[click\](http://x)"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("`x` *y*", r"\`x\` \*y\*"),
    ],
)
def test_markdown_escape(text: str, escaped: str) -> None:
    assert report.markdown_escape(text) == escaped


def test_missing_numbers_say_why(rendered: dict[str, dict[str, str]]) -> None:
    html = rendered["unlabelled"]["html"]
    assert "too few samples (60) for a p95" in html
    assert "this is the float file itself" in html
    assert "SQNR against latency" in html and "top-1 accuracy" not in html
    assert "exact" in Page(html).text
    assert "Drop, points" not in html
    assert "no labels, so no accuracy" in html


def test_the_drop_has_its_paired_interval(rendered: dict[str, dict[str, str]]) -> None:
    text = Page(rendered["full"]["html"]).text
    assert "0.28 [0.02, 0.54]" in text and "1.10 [0.62, 1.58] over the limit" in text
    assert "[0.02, 0.54] points; 91.04 %, reference 91.32 %" in text and "paired" in text
    assert "0.28 [0.02, 0.54]" in rendered["full"]["md"]
    row = list(csv.DictReader(io.StringIO(rendered["full"]["csv"])))[1]
    assert float(row["drop_points_lo"]) == pytest.approx(0.02, abs=0.005)
    assert float(row["drop_points_hi"]) == pytest.approx(0.54, abs=0.005)
    assert "1.10 over the limit" in Page(rendered["rejected"]["html"]).text


def test_nothing_met_the_limits(rendered: dict[str, dict[str, str]]) -> None:
    text = Page(rendered["rejected"]["html"]).text
    assert "Nothing met the limits: drop at most 1 point, size at most 100 kB, p50 at most 5 ms." in text
    assert "Smallest: tflite-int8" in text and "Fastest: tflite-pruned-int8" in text
    assert "every candidate failed" in Page(rendered["broken"]["html"]).text
    assert "<svg" not in rendered["broken"]["html"]


def test_run_with_the_required_keys_only(tmp_path: Path) -> None:
    run = {
        "schema": "lepton-edge.run/1",
        "created": "yesterday",
        "tool": {"name": "lepton-edge", "version": "0"},
        "host": {},
        "device": {"name": "local"},
        "model": {"name": "m", "format": "onnx"},
        "settings": {},
        "candidates": [{"name": "c", "format": "onnx", "scheme": "int8", "status": "ok"}],
    }
    for candidates in (run["candidates"], []):
        text = report.render(run | {"candidates": candidates}, tmp_path)["html"].read_text(encoding="utf-8")
        assert "yesterday" in Page(text).text


def test_numbers_that_are_none_of_the_kind(tmp_path: Path) -> None:
    run = data_run.two_run()
    run["candidates"][0]["parity"] |= {
        "sqnr_db": float("nan"),
        "max_abs": float("nan"),
        "cosine": float("nan"),
    }
    run["candidates"][1]["parity"] |= {"sqnr_db": None, "max_abs": 3.0}
    run["candidates"][1]["latency"] |= {"p50_ci": None, "samples_ns": []}
    run["candidates"][1]["ratio"] |= {"ci95": None, "verdict": "no difference"}
    paths = report.render(run, tmp_path)
    cells = [report_cells.sqnr_cell(c["parity"]) for c in run["candidates"]]
    assert all(c.missing for c in cells)
    assert "not a number" in cells[0].title and "all zero" in cells[1].title
    html = paths["html"].read_text(encoding="utf-8")
    assert "nan" not in Page(html).text.lower().split() and "no difference" in html


def test_speed_is_the_inverse_of_the_ratio_of_times() -> None:
    found = report_cells.speed({"ratio": {"to": "f", "median": 0.5, "ci95": [0.4, 0.8], "verdict": "faster"}})
    assert found == (2.0, (1.25, 2.5), "faster")
    assert report_cells.speed({"ratio": None}) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0431, "0.0431"), (9.996, "10.0"), (1234.5, "1,234"), (0, "0"), (-0.3, "−0.300"), (1e-9, "1.0e−09")],
)
def test_number(value: float, text: str) -> None:
    assert texts.number(value) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (98_496, "98.5 kB"),
        (999, "999 B"),
        (999_800, "1.00 MB"),
        (0, "0 B"),
        (13_978_112, "14.0 MB"),
        (2e9, "2.00 GB"),
    ],
)
def test_size(count: float, text: str) -> None:
    assert texts.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (59.7, "1 min 0 s"), (192.4, "3 min 12 s"), (3900, "1 h 5 min")]
)
def test_duration(seconds: float, text: str) -> None:
    assert texts.duration(seconds) == text


# ---------------------------------------------------------------- reading


def test_load_run_takes_a_folder_or_a_file(tmp_path: Path) -> None:
    run = data_run.full_run()
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    assert report.load_run(tmp_path) == report.load_run(tmp_path / "run.json") == run


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not valid JSON"),
        (b'{"schema": "lepton-edge.run/1", "cand', "not valid JSON"),
        (b"\xff\xfe\x00run", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "not a Lepton Edge run"),
        (b"{}", "not a Lepton Edge run"),
        (b'{"schema": "lepton-edge.run/2"}', "written by another lepton-edge"),
        (b'{"schema": "lepton-edge.run/1"}', "created is missing"),
    ],
)
def test_load_run_refuses_what_is_no_run(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(LeptonError, match=said) as caught:
        report.load_run(tmp_path)
    assert "run.json" in caught.value.message and "\n" not in caught.value.message and caught.value.hint


def test_load_run_of_nothing(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "gone", tmp_path / "gone" / "run.json"):
        with pytest.raises(LeptonError, match="no run to read"):
            report.load_run(path)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            ("candidates", 2, "latency", "p50_ms"),
            "fast",
            r"candidates\[2\].latency.p50_ms is text, a number was",
        ),
        (("candidates", 1, "size_bytes"), True, r"candidates\[1\].size_bytes is true or false"),
        (("candidates", 0, "latency", "p50_ci"), [1], r"p50_ci is a list, a pair of numbers"),
        (("candidates", 0, "name"), None, r"candidates\[0\].name is missing"),
        (("candidates",), {}, "candidates is an object, a list was expected"),
        (("candidates", 1, "name"), "tflite-float32", "two candidates are named 'tflite-float32'"),
        (("host", "packages"), {"numpy": 2}, "host.packages.numpy is a number, text was expected"),
        (("picked",), "ghost", "picked 'ghost', which is not among"),
        (("model",), 3, "model is a number"),
    ],
)
def test_wrong_shapes_are_named(path: tuple[Any, ...], value: Any, said: str, tmp_path: Path) -> None:
    run: Any = data_run.full_run()
    place = run
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(LeptonError, match=said):
        report.render(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def refuse(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(LeptonError, match="No space left"):
        report.render(data_run.broken_run(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


# ---------------------------------------------------------------- plots


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=1, max_size=25))
def test_front_holds_no_beaten_point_and_beats_the_rest(points: list[tuple[float, float]]) -> None:
    kept = plots.front(points)
    for x, y in points:
        assert any(fx <= x and fy >= y for fx, fy in kept)
    for x, y in kept:
        assert not any((px <= x and py >= y) and (px, py) != (x, y) for px, py in points)


@pytest.mark.parametrize("name", ["full", "unlabelled", "wide"])
def test_the_drawn_front_is_the_one_that_is_flagged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr(plots, "front", lambda points, find=plots.front: drawn.extend(find(points)) or drawn[:])
    run = RUNS[name]()
    ok = [c for c in run["candidates"] if c["status"] == "ok"]
    style = plots_style.style_of({c["format"] for c in ok}, {c["scheme"] for c in ok})
    report_figures._tradeoff(run, ok, style)
    flagged = choose.pareto(run["candidates"])
    labelled = bool(ok[0]["accuracy"])
    at = {c["name"]: (c["latency"]["p50_ms"], choose.quality(c) * (100 if labelled else 1)) for c in ok}
    assert set(drawn) == {at[n] for n in flagged} and len(drawn) > 1
    assert {c["name"] for c in ok if c["pareto"]} == flagged


@given(st.text(min_size=1, max_size=80), st.integers(3, 40))
def test_shorten_keeps_both_ends(text: str, limit: int) -> None:
    short = plots_style.shorten(text, limit)
    assert len(short) <= limit and (len(text) > limit or short == text)
    assert short[0] == text[0] and short[-1] == text[-1]


def test_style_depends_on_names_only() -> None:
    one = plots_style.style_of(["tflite", "ncnn", "mnn"], ["w4", "int8"])
    two = plots_style.style_of(["mnn", "tflite", "ncnn"], ["int8", "w4"])
    assert one == two and one.colours["ncnn"] != one.colours["mnn"] != one.colours["tflite"]
    assert len({one.shapes[s] for s in ("float32", "float16", "int8", "w4")}) == 4


def test_free_place_avoids_what_is_taken_and_gives_up_when_full() -> None:
    from matplotlib.transforms import Bbox

    frame = Bbox.from_extents(0, 0, 200, 100)
    taken = [(95.0, 45.0, 105.0, 55.0), (105.0, 30.0, 200.0, 70.0)]
    place = plots_labels.free_place((100.0, 50.0), 40, 10, frame, taken, [], 9)
    assert place and not any(plots_labels.overlap(place, t) for t in taken)
    assert place[0] >= 0 and place[2] <= 200 and place[1] >= 0 and place[3] <= 100
    assert plots_labels.free_place((100.0, 50.0), 40, 10, frame, [(0.0, 0.0, 200.0, 100.0)], [], 9) is None


@pytest.mark.parametrize("name", ["full", "wide", "unlabelled", "two"])
def test_names_in_the_plot_do_not_overlap(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[tuple[float, ...]] = []
    find = plots_labels.free_place

    def spy(*args: Any) -> Any:
        place = find(*args)
        places.append(place)
        return place

    monkeypatch.setattr(plots_labels, "free_place", spy)
    run = RUNS[name]()
    timed = [c for c in run["candidates"] if c["latency"]]
    style = plots_style.style_of({c["format"] for c in timed}, {c["scheme"] for c in timed})
    report_figures._tradeoff(run, timed, style)
    assert len(places) == len(timed)
    assert all(places), "every candidate is named"
    for i, a in enumerate(places):
        assert not any(plots_labels.overlap(a, b) for b in places[:i])


# ---------------------------------------------------------------- two runs


def test_diff_of_a_run_with_itself() -> None:
    run = data_run.full_run()
    found = report.diff(run, copy.deepcopy(run))
    assert found["added"] == found["removed"] == found["warnings"] == []
    verdicts = {(c["accuracy"]["verdict"], c["size"]["verdict"], c["latency"]["verdict"]) for c in found["candidates"]}
    assert verdicts == {("same", "same file", "no difference"), ("not measured",) * 3}


def test_diff_names_what_changed() -> None:
    a, b = data_run.full_run(), data_run.full_run()
    b["candidates"][1]["latency"] |= {"p50_ms": 0.05, "p50_ci": [0.049, 0.051]}
    b["candidates"][3]["latency"] |= {"p50_ms": 0.1094}
    b["candidates"][1]["size_bytes"] //= 2
    b["candidates"][1]["accuracy"] |= {"top1": 0.80, "ci95": [0.79, 0.81]}
    b["candidates"][4]["accuracy"] |= {"top1": 0.91}
    b["candidates"][0]["name"] = "tflite-float16"
    b["host"]["packages"]["onnxruntime"] = "1.33.0"
    b["host"] |= {"os": "Linux 6.6", "memory_gb": 15.8}
    b["picked"] = None
    found = report.diff(a, b)
    assert (found["added"], found["removed"]) == (["tflite-float16"], ["tflite-float32"])
    by_name = {c["name"]: c for c in found["candidates"]}
    assert by_name["tflite-int8"]["latency"]["verdict"] == "slower"
    assert by_name["tflite-int8"]["size"] == {"a": 110_496, "b": 55_248, "ratio": 0.5, "verdict": "smaller"}
    assert by_name["tflite-int8"]["accuracy"]["verdict"] == "lower"
    assert by_name["tflite-int8"]["accuracy"]["delta_points"] == pytest.approx(-11.04)
    assert by_name["onnx-float32"]["latency"]["verdict"] == "no difference"
    assert by_name["onnx-int8"]["accuracy"]["verdict"] == "higher, within the intervals"
    assert any("onnxruntime 1.32.0 → 1.33.0" in w for w in found["warnings"])
    assert any("operating system changed" in w for w in found["warnings"]) and found["comparable"]["latency"]
    rows = report.diff_rows(found)
    assert {len(r) for r in rows} == {5} and all(isinstance(v, str) for r in rows for v in r)
    text = report.render_diff_text(found)
    assert "0.0431 → 0.0500 ms (slower, 1.16×)" in text and "picked: tflite-int8 → nothing" in text
    assert "91.04 → 80.00 % (−11.04 points, lower)" in text and "110 kB → 55.2 kB (smaller, 0.50×)" in text


def test_diff_on_a_terminal_says_what_the_text_says(capsys: pytest.CaptureFixture[str]) -> None:
    a, b = data_run.full_run(), data_run.full_run()
    b |= {"picked": "onnx-int8", "created": "2026-04-01T00:00:00+00:00"}
    b["host"]["packages"]["onnxruntime"] = "1.33.0"
    found = report.diff(a, b)
    show.change(found)
    shown = capsys.readouterr().out
    for line in report.render_diff_text(found).splitlines():
        if line.startswith(("a: ", "b: ", "picked: ", "warning: ")):
            assert line in shown, line
    assert "a: fashion_cnn.keras, 2026-03-14" in shown and "picked: tflite-int8 → onnx-int8" in shown


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("host", "cpu", "Another CPU"),
        ("host", "isa", ["neon"]),
        ("device", "kind", "emulated"),
        ("host", "cores", 2),
    ],
)
def test_diff_never_compares_times_of_two_machines(where: str, key: str, value: Any) -> None:
    a, b = data_run.full_run(), data_run.full_run()
    b[where][key] = value
    b["candidates"][1]["latency"] |= {"p50_ms": 9.0, "p50_ci": [8.9, 9.1]}
    found = report.diff(a, b)
    assert not found["comparable"]["latency"]
    assert found["warnings"][0].startswith("different machines") and "not compared" in found["warnings"][0]
    measured = [c["latency"] for c in found["candidates"] if c["latency"]["a"]]
    assert {(c["verdict"], c["ratio"]) for c in measured} == {("not compared", None)}
    assert "×)" not in "".join(r[3] for r in report.diff_rows(found))


def test_diff_compares_accuracy_on_the_same_data_only() -> None:
    a, b = data_run.full_run(), data_run.full_run()
    b["data"]["evaluation"]["source"] = "other.npz"
    b["model"]["sha256"] = "0" * 64
    found = report.diff(a, b)
    assert found["candidates"][0]["accuracy"]["verdict"] == "not compared"
    assert any("other.npz" in w for w in found["warnings"]) and any(
        "source models differ" in w for w in found["warnings"]
    )


def test_diff_without_intervals_does_not_guess() -> None:
    a, b = data_run.two_run(), data_run.two_run()
    b["candidates"][0]["latency"] |= {"p50_ms": 0.2, "p50_ci": None}
    b["candidates"][1]["latency"] |= {"threads": 2}
    verdicts = [c["latency"]["verdict"] for c in report.diff(a, b)["candidates"]]
    assert verdicts == ["no interval to tell", "not compared"]
