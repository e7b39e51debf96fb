"""What changed between two runs. Latencies are compared only on the same machine, and "no difference" is an answer."""

from __future__ import annotations

from typing import Any

from lepton_edge.report_schema import check_run, clean, finite
from lepton_edge.texts import DASH, number, size

SAME_MACHINE = ("cpu", "machine", "cores", "isa")


def diff(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What changed from run `a` to run `b`.

    Latencies are compared only when both were taken on the same machine and device in the same way; where
    their p50 intervals overlap the answer is "no difference". Accuracies are compared only on the same data.
    Returns {"a", "b", "comparable": {"latency", "accuracy"}, "warnings", "added", "removed", "candidates",
    "picked"}; every candidate holds "accuracy", "size" and "latency" as {"a", "b", "delta_points" or "ratio",
    "verdict"}.
    """
    check_run(a, "first run")
    check_run(b, "second run")
    a, b = clean(a), clean(b)
    hosts = _host_differences(a, b)
    data = _changed((a.get("data") or {}).get("evaluation") or {}, (b.get("data") or {}).get("evaluation") or {})
    warnings = []
    if hosts:
        warnings.append(f"different machines ({'; '.join(hosts)}): latencies are not compared")
    if data:
        warnings.append(f"different evaluation data ({'; '.join(data)}): accuracies are not compared")
    if a["model"].get("sha256") != b["model"].get("sha256"):
        warnings.append("the source models differ: the changes below are not the tool's alone")
    for key, name in (("governor", "frequency governor"), ("os", "operating system")):
        if not hosts and a["host"].get(key) != b["host"].get(key):
            warnings.append(f"the {name} changed between the runs: latencies may differ for that reason")
    packages = _changed(a["host"].get("packages") or {}, b["host"].get("packages") or {})
    if packages:
        warnings.append(f"package versions changed: {'; '.join(packages)}")
    before, after = ({c["name"]: c for c in run["candidates"]} for run in (a, b))
    return {
        "a": _identity(a),
        "b": _identity(b),
        "comparable": {"latency": not hosts, "accuracy": not data},
        "warnings": warnings,
        "added": [n for n in after if n not in before],
        "removed": [n for n in before if n not in after],
        "candidates": [
            _changes(before[n], after[n], latency=not hosts, accuracy=not data) for n in before if n in after
        ],
        "picked": {"a": a.get("picked"), "b": b.get("picked")},
    }


def _identity(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": run["model"]["name"],
        "sha256": run["model"].get("sha256"),
        "created": run["created"],
        "device": run["device"].get("title") or run["device"]["name"],
        "tool": run["tool"]["version"],
    }


def _host_differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    def machine(run: dict[str, Any]) -> dict[str, Any]:
        host = {k: run["host"].get(k) for k in SAME_MACHINE}
        host["isa"] = sorted(host["isa"] or [])
        host["memory, GB"] = round(run["host"].get("memory_gb") or 0)
        device = {"device": run["device"]["name"], "device kind": run["device"].get("kind")}
        return host | device

    return _changed(machine(a), machine(b))


def _changed(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys whose values differ, as 'key old → new'."""
    keys = dict.fromkeys([*a, *b])
    return [f"{k} {_short(a.get(k))} → {_short(b.get(k))}" for k in keys if a.get(k) != b.get(k)]


def _short(value: Any) -> str:
    return "none" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _changes(a: dict[str, Any], b: dict[str, Any], *, latency: bool, accuracy: bool) -> dict[str, Any]:
    return {
        "name": a["name"],
        "status": {"a": a["status"], "b": b["status"]},
        "accuracy": _accuracy_change(a.get("accuracy") or {}, b.get("accuracy") or {}, accuracy),
        "size": _size_change(a, b),
        "latency": _latency_change(a.get("latency") or {}, b.get("latency") or {}, latency),
    }


def _accuracy_change(a: dict[str, Any], b: dict[str, Any], comparable: bool) -> dict[str, Any]:
    old, new = a.get("top1"), b.get("top1")
    change: dict[str, Any] = {"a": old, "b": new, "delta_points": None, "verdict": "not measured"}
    if not finite(old) or not finite(new):
        return change
    if not comparable or a.get("count") != b.get("count"):
        return change | {"verdict": "not compared"}
    delta = (new - old) * 100
    if delta == 0:
        return change | {"delta_points": 0.0, "verdict": "same"}
    word = "higher" if delta > 0 else "lower"
    if _touch(a.get("ci95"), b.get("ci95")):
        word += ", within the intervals"
    return change | {"delta_points": delta, "verdict": word}


def _size_change(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    old, new = a.get("size_bytes"), b.get("size_bytes")
    if not finite(old) or not finite(new) or not old:
        return {"a": old, "b": new, "ratio": None, "verdict": "not measured"}
    word = "same" if old == new else "smaller" if new < old else "larger"
    if word == "same" and a.get("sha256") and a["sha256"] == b.get("sha256"):
        word = "same file"
    return {"a": old, "b": new, "ratio": new / old, "verdict": word}


def _latency_change(a: dict[str, Any], b: dict[str, Any], comparable: bool) -> dict[str, Any]:
    old, new = a.get("p50_ms"), b.get("p50_ms")
    change: dict[str, Any] = {"a": old, "b": new, "ratio": None, "verdict": "not measured"}
    if not finite(old) or not finite(new) or old <= 0:
        return change
    if not comparable or any(a.get(k) != b.get(k) for k in ("kind", "threads")):
        return change | {"verdict": "not compared"}
    change["ratio"] = new / old
    if not finite(a.get("p50_ci") or ("",)) or not finite(b.get("p50_ci") or ("",)):
        return change | {"verdict": "no interval to tell"}
    if _touch(a["p50_ci"], b["p50_ci"]):
        return change | {"verdict": "no difference"}
    return change | {"verdict": "faster" if new < old else "slower"}


def _touch(a: Any, b: Any) -> bool:
    """True when two intervals share a point."""
    return bool(a and b and finite(a) and finite(b) and a[0] <= b[1] and b[0] <= a[1])


def diff_rows(d: dict[str, Any]) -> list[list[str]]:
    """The comparison as a table for a terminal: the first row is the heading."""
    rows = [["candidate", "accuracy", "size", "latency p50", "status"]]
    for c in d["candidates"]:
        old, new = c["status"]["a"], c["status"]["b"]
        rows.append(
            [
                c["name"],
                _accuracy_text(c["accuracy"]),
                _size_text(c["size"]),
                _latency_text(c["latency"]),
                old if old == new else f"{old} → {new}",
            ]
        )
    rows += [[name, DASH, DASH, DASH, "added"] for name in d["added"]]
    rows += [[name, DASH, DASH, DASH, "removed"] for name in d["removed"]]
    return rows


def _accuracy_text(c: dict[str, Any]) -> str:
    if c["delta_points"] is None:
        return c["verdict"]
    old, new = (number(c[k] * 100, 2) for k in ("a", "b"))
    if c["verdict"] == "same":
        return f"{new} % (same)"
    sign = "+" if c["delta_points"] > 0 else ""
    return f"{old} → {new} % ({sign}{number(c['delta_points'], 2)} points, {c['verdict']})"


def _size_text(c: dict[str, Any]) -> str:
    if c["ratio"] is None:
        return c["verdict"]
    if c["a"] == c["b"]:
        return f"{size(c['b'])} ({c['verdict']})"
    return f"{size(c['a'])} → {size(c['b'])} ({c['verdict']}, {number(c['ratio'], 2)}×)"


def _latency_text(c: dict[str, Any]) -> str:
    if c["a"] is None or c["b"] is None:
        return c["verdict"]
    if c["ratio"] is None:
        return f"{number(c['a'])} ms and {number(c['b'])} ms ({c['verdict']})"
    times = f"{number(c['a'])} → {number(c['b'])} ms"
    return (
        f"{times} ({c['verdict']})"
        if c["verdict"].startswith("no ")
        else f"{times} ({c['verdict']}, {number(c['ratio'], 2)}×)"
    )


def diff_heading(d: dict[str, Any]) -> list[str]:
    """Which run is a and which is b, a line each."""
    return [f"{k}: {d[k]['model']}, {d[k]['created']}, {d[k]['device']}" for k in ("a", "b")]


def diff_picked(d: dict[str, Any]) -> str:
    """What was picked in both, or how it changed."""
    old, new = (d["picked"][k] or "nothing" for k in ("a", "b"))
    return f"picked: {new}" if old == new else f"picked: {old} → {new}"


def render_diff_text(d: dict[str, Any]) -> str:
    """The comparison as plain text: what is compared, the table, what was picked, and the warnings."""
    rows = diff_rows(d)
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [*diff_heading(d), ""]
    lines += ["  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", diff_picked(d)]
    lines += [f"warning: {w}" for w in d["warnings"]]
    return "\n".join(lines) + "\n"
