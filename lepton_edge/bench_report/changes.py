"""What changed since a baseline: the same models on the same machines, measured in another session.

Rules:
- Rows are the same by device, model file, format, runtime and batch; of several documents the latest counts.
- Latencies of different machines are refused, unless ``any_machine``: then the difference is a warning.
- A regression is beyond the noise: the whole 95 % interval of the ratio of times above 1 + tolerance, a file larger by
  more than the tolerance, peak memory above MEMORY, an accuracy whose difference has an interval wholly below 0, or
  a model that does not run any more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lepton_edge import bench_record
from lepton_edge.bench_report.documents import Document, Entry, entries
from lepton_edge.bench_report.facts import software_changes
from lepton_edge.bench_report.unpaired import ratio
from lepton_edge.errors import LeptonError
from lepton_edge.report_schema import clean, finite
from lepton_edge.stats import proportion_interval
from lepton_edge.texts import interval, number, size

#: By how much one file on one machine differs from session to session, without a word from the processes of either
#: (benchmarks/sessions.py measures it); and growth of peak memory that is called a regression.
TOLERANCE, MEMORY = 0.02, 0.10

Key = tuple[str, str, str, str, int, int]


def compare(
    old: Sequence[Document], new: Sequence[Document], tolerance: float = TOLERANCE, *, any_machine: bool = False
) -> dict[str, Any]:
    """The rows of ``new`` against those of ``old``, as plain data.

    {"baseline", "new", "tolerance", "warnings", "rows": [{"device", "name", ..., "latency", "size", "memory",
    "accuracy": {"old", "new", "verdict", ...}, "verdict", "regressions"}], "added", "gone", "regressions"}.
    Raises LeptonError where the machines differ, or where no row of one is in the other.
    """
    before, after = _latest(old), _latest(new)
    pairs = _paired(before, after)
    if not pairs:
        raise LeptonError(
            f"{new[-1].path}: none of its models was measured on the same device in the baseline {old[-1].path}",
            "rows are paired by device, model file name, format, runtime and batch",
        )
    warnings = _machines(pairs, any_machine)
    rows = [_row(a, b, tolerance) for a, b in pairs]
    olds, news = {id(a) for a, _ in pairs}, {id(b) for _, b in pairs}
    return {
        "baseline": _identity(old),
        "new": _identity(new),
        "tolerance": tolerance,
        "warnings": list(dict.fromkeys(warnings + [text for a, b in pairs for text in software_changes(a, b)])),
        "rows": rows,
        "added": [_about(e) for e in after.values() if id(e) not in news],
        "gone": [_about(e) for e in before.values() if id(e) not in olds],
        "regressions": [text for row in rows for text in row["regressions"]],
    }


def undecided(changes: dict[str, Any]) -> list[str]:
    """The rows whose latency may have regressed for all that is known."""
    allowed = f"more than {100 * changes['tolerance']:g} % slower cannot be excluded"
    return [
        f"{r['name']} on {r['device']}: {allowed} ({r['latency']['why'] or 'see its interval'})"
        for r in changes["rows"]
        if not r["latency"]["decided"]
    ]


def _identity(documents: Sequence[Document]) -> dict[str, str]:
    last = documents[-1]
    return {
        "path": clean(str(last.path)),
        "created": last.data["created"],
        "tool": f"{last.data['tool']['name']} {last.data['tool']['version']}",
    }


def _latest(documents: Sequence[Document]) -> dict[Key, Entry]:
    """The latest entry of each key; a file that one document measures twice has two."""
    found: dict[Key, Entry] = {}
    seen: Counter = Counter()
    machines: dict[str, Entry] = {}
    for e in entries(documents):
        other = machines.setdefault(e.row["device"]["name"], e)
        if other.machine != e.machine:
            raise LeptonError(
                f"{e.document.path} and {other.document.path}: two machines are called '{e.row['device']['name']}'",
                "compare one of them at a time with its baseline",
            )
        base = (e.row["device"]["name"], e.row["model"], e.row["format"], e.runtime, e.batch)
        found[(*base, seen[e.run, base])] = e
        seen[e.run, base] += 1
    return found


def _paired(before: dict[Key, Entry], after: dict[Key, Entry]) -> list[tuple[Entry, Entry]]:
    """Entries of equal keys; one that failed before its runtime told its name goes with any runtime."""
    left = dict(before)
    pairs = []
    for key, entry in after.items():
        match = next((k for k in left if _same(k, key)), None)
        if match:
            pairs.append((left.pop(match), entry))
    return pairs


def _same(a: Key, b: Key) -> bool:
    return a[:3] + a[4:] == b[:3] + b[4:] and (a[3] == b[3] or not a[3] or not b[3])


def _machines(pairs: Sequence[tuple[Entry, Entry]], any_machine: bool) -> list[str]:
    found: dict[str, list[str]] = {}
    for a, b in pairs:
        if "estimated" not in (a.kind, b.kind):
            device = b.row["device"]["name"]
            found[device] = found.get(device) or bench_record.differences(a.environment, b.environment)
    texts = [f"{device}: another machine than the baseline's ({'; '.join(d)})" for device, d in found.items() if d]
    if texts and not any_machine:
        raise LeptonError(
            texts[0], "measure the baseline anew on this machine, or compare them all the same with --any-machine"
        )
    return [f"{text}: what is slower may be the machine" for text in texts]


def _about(e: Entry) -> dict[str, Any]:
    return {
        "device": e.row["device"]["name"],
        "name": e.row["name"],
        "model": e.row["model"],
        "format": e.row["format"],
        "runtime": e.runtime,
        "batch": e.batch,
        "kind": e.kind,
    }


def _row(a: Entry, b: Entry, tolerance: float) -> dict[str, Any]:
    changes = {
        "latency": _latency(a, b, tolerance),
        "size": _scaled(a.row.get("size_bytes"), b.row.get("size_bytes"), tolerance, ("smaller", "larger")),
        "memory": _scaled(a.latency.get("peak_rss_mb"), b.latency.get("peak_rss_mb"), MEMORY, ("less", "more")),
        "accuracy": _accuracy(a.row, b.row),
    }
    bad = {"latency": ("slower", "failed"), "size": ("larger",), "memory": ("more",), "accuracy": ("lower",)}
    worse = [key for key, words in bad.items() if changes[key]["verdict"] in words]
    name = f"{b.row['name']} on {b.row['device']['name']}"
    said = [f"{name}: {_said(key, changes[key], b.kind)}" for key in worse]
    verdict = changes["latency"]["verdict"]
    return _about(b) | changes | {"verdict": verdict, "regressions": said}


def _latency(a: Entry, b: Entry, tolerance: float) -> dict[str, Any]:
    old, new = a.latency.get("p50_ms"), b.latency.get("p50_ms")
    change: dict[str, Any] = {
        "old": old, "new": new, "ratio": None, "ci95": None, "of": None, "why": "", "decided": True
    }  # fmt: skip
    if old is None:
        return change | {"verdict": "not compared", "why": "the baseline has no latency of it"}
    if new is None:
        error = b.row.get("error") or {}
        return change | {"verdict": "failed", "why": error.get("message") or "it was not measured any more"}
    for key, x, y in (
        ("kind", a.kind, b.kind),
        *((key, a.latency.get(key), b.latency.get(key)) for key in ("threads", "cpus")),
    ):
        if x != y:
            return change | {"verdict": "not compared", "why": f"measured otherwise: {key} {x} and {y}"}
    if b.kind == "estimated":
        exact = new / old
        return change | {"ratio": exact, "ci95": [exact, exact], "of": "p50"} | _verdict(exact, exact, tolerance)
    found = ratio(a.latency, b.latency)
    change |= {"ratio": found["median"], "ci95": found["ci95"], "of": found["of"]}
    if not found["ci95"]:
        why = "what differs from process to process is not known: measure both with --processes 6"
        return change | {"verdict": "not decided", "decided": False, "why": why}
    low, high = found["ci95"]
    return change | _verdict(low, high, tolerance)


def _verdict(low: float, high: float, tolerance: float) -> dict[str, Any]:
    most = 1 + tolerance
    word = "slower" if low > most else "faster" if high < 1 / most else "no difference"
    return {"verdict": word, "decided": low > most or high <= most}


def _scaled(old: Any, new: Any, allowed: float, words: tuple[str, str]) -> dict[str, Any]:
    """A figure without noise of its own: smaller or larger where it changed by more than is allowed."""
    if not finite(old) or not finite(new) or old <= 0 or new <= 0:
        return {"old": old, "new": new, "ratio": None, "verdict": "not compared"}
    times = new / old
    word = words[0] if times < 1 / (1 + allowed) else words[1] if times > 1 + allowed else "same"
    return {"old": old, "new": new, "ratio": times, "verdict": word}


def _accuracy(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """The difference in top-1, in points, with Newcombe's interval.

    Both models answer the same samples, whose answers are not here to be paired: the interval is that of independent
    proportions, which is wider (Newcombe, Statistics in Medicine 17, 1998, method 10).
    """
    old, new = a.get("accuracy") or {}, b.get("accuracy") or {}
    change = {"old": old.get("top1"), "new": new.get("top1"), "points": None, "ci95": None, "verdict": "not compared"}
    same = (a.get("data") or {}).get("sha256") == (b.get("data") or {}).get("sha256")
    if not finite(change["old"]) or not finite(change["new"]) or not same or old.get("count") != new.get("count"):
        return change
    (l1, u1), (l2, u2) = _score_interval(old), _score_interval(new)
    points = new["top1"] - old["top1"]
    low = points - math.hypot(new["top1"] - l2, u1 - old["top1"])
    high = points + math.hypot(u2 - new["top1"], old["top1"] - l1)
    word = "lower" if high < 0 else "higher" if low > 0 else "no difference"
    return change | {"points": 100 * points, "ci95": [100 * low, 100 * high], "verdict": word}


def _score_interval(accuracy: dict[str, Any]) -> tuple[float, float]:
    count, top1 = accuracy.get("count"), accuracy["top1"]
    if count:
        return proportion_interval(round(top1 * count), int(count))
    known = accuracy.get("ci95")
    return (known[0], known[1]) if known else (0.0, 1.0)


def _said(key: str, change: dict[str, Any], kind: str) -> str:
    """A regression as words."""
    if change["verdict"] == "failed":
        return f"does not run any more ({change['why']})"
    if key == "latency":
        times = f"p50 {number(change['old'])} → {number(change['new'])} ms"
        return f"{number(change['ratio'], 3)}x the time {interval(change['ci95'], places=3)}, {times}, {kind}"
    if key == "accuracy":
        ends = interval(change["ci95"], places=2)
        return f"top-1 {number(change['points'], 2)} points {ends}"
    show = size if key == "size" else lambda value: f"{number(value)} MB"
    what = "file" if key == "size" else "peak memory"
    return f"{what} {show(change['old'])} → {show(change['new'])} ({number(change['ratio'], 2)}x)"
