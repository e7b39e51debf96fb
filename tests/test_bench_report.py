"""Reports of results of bench: golden Markdown and CSV, pages that are whole, escaped and self-contained.

Write the golden files anew with LEPTON_EDGE_UPDATE_GOLDEN=1.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import data_bench
import data_run
import numpy as np
import pytest
from html_page import Page, assert_self_contained

from lepton_edge import reporting
from lepton_edge.bench_report import documents, drawing, render, view
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.reporting import Ask

GOLDEN = Path(__file__).parent / "golden"
SETS: dict[str, list[dict[str, Any]]] = {
    "two": [data_bench.two()],
    "six": [data_bench.six()],
    "wide": [data_bench.wide()],
    "fleet": [data_bench.fleet()],
    "hostile": [data_bench.hostile()],
    "bare": [data_bench.bare()],
    "days": [
        data_bench.two(),
        data_bench.two(1.1, 2, "2026-11-21T09:30:00+00:00", governor="powersave"),
        data_bench.two(1.0, 3, "2026-11-22T09:30:00+00:00", machine_id="00ff00ff00ff00ff", cpu="Another CPU 1"),
    ],
}
LIMITS = {"six": ("format=tflite:p95 > 0.27ms", "model~int8.t:p50 > 0.0823ms", "resnet8.int8.onnx:batch=1:top1 < 80%")}


def saved(folder: Path, found: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n, document in enumerate(found):
        name = "bench.json" if len(found) == 1 else f"{n}.json"
        (folder / name).write_text(json.dumps(document), encoding="utf-8")
    return folder


def texts(made: dict[str, Any]) -> dict[str, str]:
    return {k: Path(v).read_text(encoding="utf-8") for k, v in made.items() if isinstance(v, str)}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The texts of every set, rendered once."""
    made = {}
    for name, found in SETS.items():
        folder = saved(tmp_path_factory.mktemp(name) / name, found)
        made[name] = texts(reporting.report([folder], Ask(LIMITS.get(name, ()))))
    folder = tmp_path_factory.mktemp("changes")
    (folder / "old.json").write_text(json.dumps(data_bench.two()))
    (folder / "new.json").write_text(json.dumps(data_bench.two(1.1, 2)))
    made["changes"] = texts(reporting.report([folder / "new.json"], Ask(baseline=folder / "old.json")))
    return made


@pytest.mark.parametrize(
    ("name", "kind"),
    [(n, k) for n in ("six", "fleet", "days") for k in ("md", "csv")] + [("changes", "md"), ("changes", "comment")],
)
def test_golden(rendered: dict[str, dict[str, str]], name: str, kind: str) -> None:
    file = GOLDEN / f"bench_{name}{'_comment.md' if kind == 'comment' else f'.{kind}'}"
    if os.environ.get("LEPTON_EDGE_UPDATE_GOLDEN"):
        file.write_text(rendered[name][kind], encoding="utf-8", newline="\n")
    assert rendered[name][kind] == file.read_bytes().decode("utf-8")


@pytest.mark.parametrize("name", [*SETS, "changes"])
def test_pages_load_nothing_and_run_only_their_own_script(rendered: dict[str, dict[str, str]], name: str) -> None:
    assert_self_contained(rendered[name]["html"])


def test_attacks_stay_text(rendered: dict[str, dict[str, str]]) -> None:
    attack, page = '<script>alert("x")</script>', Page(rendered["hostile"]["html"])
    assert attack in page.text and page.tags.count("script") == 1 and "$\\frac{1}$" in page.text
    for text in rendered["hostile"].values():
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)
    markdown = rendered["hostile"]["md"]
    assert "<script" not in markdown and "<img" not in markdown and not re.search(r"(?<!\\)\]\(", markdown)
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    assert tables
    for table in tables:  # no name adds a column
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1, table
    for row in csv.reader(io.StringIO(rendered["hostile"]["csv"])):
        assert not any(value[:1] in "=+@" for value in row if value)


def test_the_page_says_what_was_found(rendered: dict[str, dict[str, str]]) -> None:
    text = Page(rendered["six"]["html"]).text
    for fact in (
        "the worker was killed (signal 9)",
        "it may need more memory than there is",
        "other processes kept 0.9 of 4 cores busy",
        "its time grew by",
        "not decided (needs about",
        "48 °C → 61 °C",
        "Accuracy against latency",
        "Throughput (measured)",
        "Batch sweep (measured)",
        "Energy, mJ",
    ):
        assert fact in text, fact
    assert rendered["six"]["html"].count("<svg") == 5


def test_every_device_says_what_its_numbers_are(rendered: dict[str, dict[str, str]]) -> None:
    html = rendered["fleet"]["html"]
    heads = re.findall(r'<h2>([^<]*?) <span class="badge">(\w+)</span></h2>', html)
    assert [kind for _, kind in heads] == ["measured", "measured", "measured", "emulated", "estimated"]
    text = Page(html).text
    assert "orin: connection lost; tried again" in text and "Estimated: computed by a model" in text
    assert "latency, ms (estimated)" in text and "latency, ms (emulated, 1 thread)" in text
    for fact in ("364,500", "90.0 % of operators on the NPU", "does not fit", "SOFTMAX probs is left to the CPU"):
        assert fact in text, fact
    rows = list(csv.DictReader(io.StringIO(rendered["fleet"]["csv"])))
    assert {r["kind"] for r in rows if r["device"] == "u55"} == {"estimated"}
    lost = [r for r in rows if r["error"]]
    assert [(r["device"], r["p50_ms"]) for r in lost] == [("orin", "")]


def test_machines_and_days_are_told_apart(rendered: dict[str, dict[str, str]]) -> None:
    text = Page(rendered["days"]["html"]).text
    assert "local, runs 1 and 2 are not comparable: governor: performance and powersave" in text
    assert "cpu: Example CPU 9000 and Another CPU 1" in text
    assert "local (this machine), Another CPU 1, 00ff00" in text and "resnet8.tflite · run 2" in text
    differing = re.findall(r'<tr class="differs"><th scope="row">([^<]+)<', rendered["days"]["html"])
    assert differing == ["CPU", "Frequency governor", "Machine"]


def test_a_percentile_without_support_is_a_dash_with_the_fix(rendered: dict[str, dict[str, str]]) -> None:
    found = re.findall(r'title="(its 40 samples[^"]*too few for a p95[^"]*)"', rendered["wide"]["html"])
    assert found and all("measure each model for about" in title for title in found)


def test_no_more_than_has_to_be_there(rendered: dict[str, dict[str, str]]) -> None:
    text = Page(rendered["bare"]["html"]).text
    assert "yesterday" in text and "not recorded" in rendered["bare"]["html"] and "<svg" not in rendered["bare"]["html"]


def test_a_folder_of_results_is_a_set_and_order_is_by_date(tmp_path: Path) -> None:
    saved(tmp_path / "a", [SETS["days"][1]])
    saved(tmp_path / "b", [SETS["days"][0]])
    (tmp_path / "notes.json").write_text("{}")
    found = documents.load([tmp_path, tmp_path / "a" / "bench.json"])
    assert [d.path.parent.name for d in found] == ["b", "a"]


def test_several_results_do_not_write_over_the_report_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = [saved(tmp_path / str(n), [found]) for n, found in enumerate(SETS["days"][:2])]
    made = reporting.report(paths, Ask())
    assert Path(made["html"]) == Path("lepton-report/report.html") and not (tmp_path / "0" / "report.html").exists()


def test_runs_and_results_are_told_by_what_they_are(tmp_path: Path) -> None:
    run, bench = tmp_path / "run", saved(tmp_path / "bench", [SETS["two"][0]])
    run.mkdir()
    (run / "run.json").write_text(json.dumps(data_run.full_run()))
    assert set(reporting.report([run], Ask())) == {"html", "md", "csv"}
    assert "compression report" in (run / "report.html").read_text()
    assert reporting.report([run, run], Ask())["candidates"]
    with pytest.raises(UsageError, match="do not go into one report"):
        reporting.report([run, bench], Ask())
    with pytest.raises(UsageError, match="more than two runs"):
        reporting.report([run] * 3, Ask())
    with pytest.raises(UsageError, match="compares results of"):
        reporting.report([run], Ask(baseline=run))
    saved(run, [SETS["two"][0]])
    before = (run / "report.html").read_bytes()
    with pytest.raises(UsageError, match="would be lost"):
        reporting.report([run / "bench.json"], Ask())
    assert (run / "report.html").read_bytes() == before
    with pytest.raises(LeptonError, match="no run to read"):
        reporting.report([tmp_path / "gone"], Ask())


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("rows", 0, "latency", "p50_ms"), "fast", r"rows\[0\].latency.p50_ms is text"),
        (("rows", 1, "device"), None, r"rows\[1\].device is missing"),
        (("rows",), {}, "rows is an object"),
        (("environments", "local", "host", "isa"), "avx2", r"environments.local.host.isa is text"),
        (("rows", 0, "latency", "samples_ns", 3, 2), "1", r"samples_ns\[3\]\[2\] is text"),
        (("rows", 0, "throughput"), [{"streams": 1}], r"throughput\[0\].threads is missing"),
    ],
)
def test_wrong_shapes_are_named(path: tuple[Any, ...], value: Any, said: str, tmp_path: Path) -> None:
    document: Any = copy.deepcopy(SETS["two"][0])
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(LeptonError, match=said):
        reporting.report([saved(tmp_path, [document])], Ask())
    assert [p.name for p in tmp_path.iterdir()] == ["bench.json"]


def leaves(value: Any, path: tuple = ()) -> Any:
    """The places of all numbers, of long lists those of the first two."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:2]):
            yield from leaves(inner, (*path, i))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def changed(document: dict[str, Any], path: tuple, value: Any) -> dict[str, Any]:
    copied: Any = copy.deepcopy(document)
    place = copied
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return copied


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_what_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    document = changed(SETS["two"][0], ("rows", 1, "latency", "samples_ns", 0, 1), value)
    with pytest.raises(LeptonError, match=r"rows\[1\]\.latency\.samples_ns\[0\]\[1\] is"):
        reporting.report([saved(tmp_path, [document])], Ask())


def test_no_number_breaks_a_report() -> None:
    document = data_bench.small()
    for path in leaves(document):
        for value in (0, -1, 1e-99, 1e99):
            one = documents.Document(Path("b.json"), documents.checked(changed(document, path, value), "b.json"))
            shown = view.view([one])
            assert shown["groups"] and render.csv_text(documents.entries([one])), (path, value)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("latency", "p50_ms"), 0),
        (("latency", "samples_ns"), [[0, -5], []]),
        (("latency", "samples_ns"), [[7, 7], [7]]),
        (("latency", "process_of_round"), [0]),
        (("latency", "p50_ci"), [-1, 1e99]),
        (("latency", "peak_rss_mb"), 0),
        (("throughput", 0, "streams"), 0),
        (("throughput", 0, "per_s"), 0),
        (("batch",), -3),
        (("accuracy", "top1"), 0),
        (("accuracy", "ci95"), [-5, 5]),
    ],
)
def test_no_number_breaks_a_drawing(path: tuple, value: Any) -> None:
    data = documents.checked(changed(data_bench.small(), ("rows", 0, *path), value), "b.json")
    shown = view.view([documents.Document(Path("b.json"), data)])
    assert_self_contained(render.html_text(shown))


def test_a_density_peaks_where_the_samples_are() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(np.concatenate([rng.normal(1.0, 0.01, 900), rng.normal(2.0, 0.01, 100)]))
    grid, height = drawing.density(values)
    assert abs(grid[height.argmax()] - 1.0) < 0.05 and height.max() == 1.0
    assert height[np.abs(grid - 1.5).argmin()] < 1e-3 < height[np.abs(grid - 2.0).argmin()]
    assert drawing.density(np.array([3.0, 3.0]))[1].tolist() == [1.0, 1.0]
