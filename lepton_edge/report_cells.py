"""One candidate's figures as cells of a table: the text, what explains it, and the number to sort by.

A number that was not measured is an en dash that says why; nothing is filled in.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from lepton_edge.report_schema import finite
from lepton_edge.texts import DASH, MINUS, decimals, interval, number, size


@dataclass(frozen=True)
class Cell:
    """One value as printed.

    `sub` and `note` are the smaller lines under it, `title` explains, `sort` is the raw number.
    """

    text: str
    sub: str = ""
    title: str = ""
    sort: float | None = None
    missing: bool = False
    note: str = ""


def percent_places(count: float | None) -> int:
    """One more image changes the percentage by 100/count: more decimals than that say nothing."""
    return 2 if count and count > 1000 else 1


def missing(why: str) -> Cell:
    """A dash, and why there is no number."""
    return Cell(DASH, title=why, missing=True)


# ---------------------------------------------------------------- one candidate


def baseline(run: dict[str, Any], c: dict[str, Any]) -> dict[str, Any] | None:
    """The float32 candidate of the same format that `c` is compared with; None for that one itself."""
    to = (c.get("ratio") or {}).get("to")
    for other in run["candidates"]:
        same = other["name"] == to if to else (other["format"], other["scheme"]) == (c["format"], "float32")
        if same and other["status"] == "ok" and other is not c:
            return other
    return None


def accuracy_cell(c: dict[str, Any], run: dict[str, Any]) -> Cell:
    """Top-1 in percent with its interval."""
    acc = c.get("accuracy")
    if not acc or not finite(acc["top1"]):
        labels = ((run.get("data") or {}).get("evaluation") or {}).get("labels")
        return missing("accuracy was not measured" if labels else "the evaluation data has no labels")
    places = percent_places(acc.get("count"))
    n = f" on {acc['count']:,} samples" if acc.get("count") else ""
    top5 = f"; top-5 {number(acc['top5'] * 100, places)} %" if finite(acc.get("top5")) else ""
    return Cell(
        f"{number(acc['top1'] * 100, places)} %",
        interval(acc.get("ci95"), 100, places),
        f"top-1{n}, with its 95 % interval{top5}",
        acc["top1"],
    )


def drop_cell(c: dict[str, Any], run: dict[str, Any]) -> Cell:
    """Percentage points lost against the reference, with their paired interval."""
    drop = c.get("drop_points")
    if not finite(drop):
        return missing("no accuracy to compare with the reference's")
    places = percent_places((c.get("accuracy") or {}).get("count"))
    limit = run["settings"].get("max_drop")
    over = limit is not None and drop > limit
    ends = interval(c.get("drop_ci95"), places=places)
    where = (
        "percentage points below the reference" if drop >= 0 else "percentage points: more accurate than the reference"
    )
    return Cell(
        number(drop, places),
        ends,
        f"{where}, with its paired 95 % interval" if ends else where,
        drop,
        note="over the limit" if over else "",
    )


def sqnr_cell(p: dict[str, Any] | None) -> Cell:
    """SQNR in dB from figures of parity; "exact" where nothing differs."""
    if not p:
        return missing("outputs were not compared")
    db, worst = p.get("sqnr_db"), p.get("max_abs")
    if db is None or db == math.inf:
        if worst is None or worst == 0:
            return Cell("exact", title="no output differs from the source model's", sort=math.inf)
        db = -math.inf
    if db == -math.inf:
        return missing("the source model's outputs are all zero: no ratio exists")
    if not math.isfinite(db):
        return missing("an output held a value that is not a number")
    return Cell(f"{number(db, 1)} dB", title=_count_title(p, "signal to error ratio of all outputs"), sort=db)


def agreement_cell(p: dict[str, Any] | None) -> Cell:
    """The share of samples with the same top-1, from figures of parity."""
    if not p:
        return missing("outputs were not compared")
    if not finite(p.get("agreement")):
        return missing("the outputs are not class scores: there is no top-1 to agree on")
    places = percent_places(p.get("count"))
    return Cell(
        f"{number(p['agreement'] * 100, places)} %",
        title=_count_title(p, "same top-1 as the source model"),
        sort=p["agreement"],
    )


def _count_title(p: dict[str, Any], text: str) -> str:
    return f"{text}, {p['count']:,} samples" if p.get("count") else text


def plain_cell(p: dict[str, Any], key: str, text: str) -> Cell:
    """Another figure of parity: the largest error or the cosine."""
    value = p.get(key)
    if value is not None and not math.isfinite(value):
        return missing("an output held a value that is not a number")
    if value is None:
        return missing(f"{text} was not computed")
    return Cell(
        f"{value:.6f}" if key == "cosine" else f"{value:.2e}".replace("-", MINUS) if value else "0",
        sort=value,
    )


def size_cell(c: dict[str, Any], run: dict[str, Any]) -> Cell:
    """Bytes on disk, and their share of the float file."""
    if not finite(c.get("size_bytes")):
        return missing("there is no file")
    float_file = baseline(run, c)
    ratio = ""
    if float_file and float_file.get("size_bytes") and c["size_bytes"]:
        ratio = f"{number(c['size_bytes'] / float_file['size_bytes'], 2)}× float"
    return Cell(size(c["size_bytes"]), ratio, f"{c['size_bytes']:,} bytes on disk", c["size_bytes"])


def zip_cell(c: dict[str, Any]) -> Cell:
    """Bytes when zipped."""
    if not finite(c.get("zip_bytes")):
        return missing("the file was not zipped")
    return Cell(size(c["zip_bytes"]), title=f"{c['zip_bytes']:,} bytes when zipped", sort=c["zip_bytes"])


def time_cell(c: dict[str, Any], key: str) -> Cell:
    """p50, p95 and the like in ms; the interval below where there is one."""
    latency = c.get("latency")
    if not latency:
        return missing("latency was not measured")
    value = latency.get(f"{key}_ms")
    if not finite(value):
        n = f" ({latency['count']:,})" if latency.get("count") else ""
        tail = key in ("p90", "p95", "p99")
        return missing(f"too few samples{n} for a {key}" if tail else "not recorded")
    places = decimals(value)
    runs = f"{latency['count']:,} runs" if latency.get("count") else "number of runs not recorded"
    return Cell(
        number(value, places),
        interval(latency.get(f"{key}_ci"), places=places),
        f"ms, {latency.get('kind', 'kind not recorded')}, {runs}",
        value,
    )


def speed(c: dict[str, Any]) -> tuple[float, tuple[float, float] | None, str] | None:
    """How many times as fast as its float file a candidate is, the interval and the verdict.

    run.json holds the ratio of times, below 1 for a faster candidate: this is its inverse.
    None if it was not measured.
    """
    ratio = c.get("ratio")
    if not ratio or not finite(ratio["median"]) or ratio["median"] <= 0:
        return None
    pair = ratio.get("ci95")
    known = pair is not None and finite(pair) and all(v > 0 for v in pair)
    word = ratio.get("verdict") or ("faster" if ratio["median"] < 1 else "slower")
    return 1 / ratio["median"], (1 / pair[1], 1 / pair[0]) if known else None, word


def speed_cell(c: dict[str, Any]) -> Cell:
    """Times the speed of the float file, with the interval or "no difference"."""
    found = speed(c)
    if not found:
        own = c["scheme"] == "float32"
        return missing("this is the float file itself" if own else "no float file of this format was measured")
    times, pair, word = found
    places = decimals(times)
    ends = interval(pair, places=places)
    title = f"{word} {'to' if word == 'no difference' else 'than'} {c['ratio']['to']}"
    return Cell(
        f"{number(times, places)}×",
        word if word == "no difference" else ends,
        f"{title}, 95 % interval {ends}" if ends else f"{title}; too few rounds for an interval",
        times,
    )


def runtime_text(info: Any) -> str:
    """Everything a runtime said about itself: 'ai-edge-litert 2.3.0, delegate xnnpack'."""
    if not isinstance(info, dict):
        return str(info or "")
    more = [
        f"{k} {setting_text(v)}"
        for k, v in info.items()
        if k not in ("runtime", "version") and v not in (None, "", [], {})
    ]
    return ", ".join([f"{info.get('runtime', '')} {info.get('version', '')}".strip(), *more]).strip(", ")


def setting_text(value: Any) -> str:
    """A setting as it reads in a file: text as it is, everything else as JSON."""
    return value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def kind_of(c: dict[str, Any]) -> str:
    """What a latency is: measured, emulated or estimated."""
    return (c.get("latency") or {}).get("kind") or "kind not recorded"
