"""Limits for CI: ``p95 > 12ms``, ``pi:model.tflite:p95 > 12ms``, ``model~int8:size > 4MB``.

    [selector:]... metric [in unit] comparator number[unit]

- A limit names what must not be: the comparison that holds beyond doubt breaks it.
- It is broken only where the whole 95 % interval lies beyond it. Where the interval holds the limit, nothing is
  decided, and how many samples would is told; ``strict`` takes that for broken.
- A selector is a device or a model by name, or ``field~part`` or ``field=whole`` of FIELDS.
- What is misspelt, selects nothing or cannot be told from the samples is a UsageError: no limit is passed by mistake.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_edge.bench_report.metrics import METRICS, Figure, figure
from lepton_edge.errors import UsageError, did_you_mean

FIELDS = ("device", "model", "name", "format", "runtime", "batch", "kind")
EXAMPLE = "for example 'p95 > 12ms', 'pi:model.tflite:p50 > 0.9ms' or 'model~int8:size > 4MB'"
FOREVER = 10_000
_WHOLE = re.compile(r"(.*)(<=|>=|<|>)\s*([^<>=]*?)\s*", re.DOTALL)
_METRIC = re.compile(r"\s*(\S*?)(?:\s+in\s+(\S+))?\s*")
_VALUE = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)")
_FIELD = re.compile(r"(\w+)\s*([~=])\s*(.*)")


@dataclass(frozen=True)
class Selector:
    """Rows whose ``field`` ("": device or model) is ``text``, or holds it where ``part``."""

    text: str
    field: str = ""
    part: bool = False

    def takes(self, subject: Subject) -> bool:
        if not self.field:
            return self.text in (subject.facts["device"], subject.facts["model"], subject.facts["name"])
        value = subject.facts[self.field]
        return self.text.lower() in value.lower() if self.part else self.text == value


@dataclass(frozen=True)
class Limit:
    """A parsed limit; ``value`` is in the metric's own unit (see metrics)."""

    text: str
    selectors: tuple[Selector, ...]
    metric: str
    comparator: str
    value: float


@dataclass(frozen=True)
class Subject:
    """What limits are held against: a row of bench or a candidate of a run, with the names that selectors match.

    ``seconds`` is how long a model was measured; ``shipped`` is False for candidates that were not picked: they are
    tested only where they are selected.
    """

    facts: dict[str, str]
    row: dict[str, Any]
    seconds: float | None = None
    shipped: bool = True


def parse(text: str) -> Limit:
    """A limit from its text. Raises UsageError that names what is wrong, with what may be meant."""
    whole = _WHOLE.fullmatch(text.strip())
    if not whole:
        raise UsageError(f"--fail-if '{text}': no comparison (>, >=, < or <=) was found", EXAMPLE)
    left, comparator, right = whole.groups()
    *before, last = left.split(":")
    named = _METRIC.fullmatch(last)
    metric, unit = named.groups() if named else (last.strip(), None)
    if metric not in METRICS:
        known = list(METRICS)
        hint = did_you_mean(metric, known) if metric else f"the metrics: {', '.join(known)}"
        raise UsageError(f"--fail-if '{text}': unknown metric '{metric}'", hint)
    value = _VALUE.fullmatch(right)
    if not value:
        raise UsageError(f"--fail-if '{text}': '{right}' is not a number with a unit", EXAMPLE)
    if unit and value[2]:
        raise UsageError(f"--fail-if '{text}': the unit is given twice", "keep one of them")
    scale = _scale(text, metric, unit or value[2])
    return Limit(text.strip(), _selectors(text, before), metric, comparator, float(value[1]) * scale)


def _scale(text: str, metric: str, unit: str) -> float:
    known = METRICS[metric]
    unit = unit or known.default or ""
    if unit in known.units:
        return known.units[unit]
    said = f"unknown unit '{unit}' of {metric}" if unit else f"{metric} needs a unit"
    hint = did_you_mean(unit, list(known.units)) if unit else f"one of: {', '.join(known.units)}"
    raise UsageError(f"--fail-if '{text}': {said}", hint)


def _selectors(text: str, parts: Sequence[str]) -> tuple[Selector, ...]:
    found = []
    for part in (p.strip() for p in parts):
        if not part:
            raise UsageError(f"--fail-if '{text}': a selector is empty", EXAMPLE)
        field = _FIELD.fullmatch(part)
        if not field:
            found.append(Selector(part))
        elif field[1] not in FIELDS:
            hint = did_you_mean(field[1], FIELDS)
            raise UsageError(f"--fail-if '{text}': unknown field '{field[1]}' in a selector", hint)
        elif not field[3]:
            raise UsageError(f"--fail-if '{text}': a selector is empty", EXAMPLE)
        else:
            found.append(Selector(field[3], field[1], field[2] == "~"))
    return tuple(found)


def hold(limits: Sequence[Limit], subjects: Sequence[Subject]) -> list[dict[str, Any]]:
    """Every limit against every subject that it selects, as plain data, with a verdict each.

    Verdicts: "kept", "broken", "not decided" ("needs": about how many samples decide it, None: cannot be told),
    "not measured" (the row failed; "why"). Raises UsageError for a limit that selects nothing, and for a figure that
    was not asked for or that the samples do not support.
    """
    found = []
    for limit in limits:
        for subject in _selected(limit, subjects):
            found.append(_held(limit, subject))
    return found


def _selected(limit: Limit, subjects: Sequence[Subject]) -> list[Subject]:
    if not limit.selectors:
        return [s for s in subjects if s.shipped] or list(subjects)
    for selector in limit.selectors:
        if not any(selector.takes(s) for s in subjects):
            fields = [selector.field] if selector.field else ["device", "model"]
            names = sorted({s.facts[field] for s in subjects for field in fields})
            what = f"{selector.field or 'device or model'} {'holds' if selector.part else 'is named'} '{selector.text}'"
            raise UsageError(f"--fail-if '{limit.text}': no {what}", did_you_mean(selector.text, names))
    taken = [s for s in subjects if all(selector.takes(s) for selector in limit.selectors)]
    if not taken:
        raise UsageError(f"--fail-if '{limit.text}': nothing is selected by all of its selectors", "leave one out")
    return taken


def _held(limit: Limit, subject: Subject) -> dict[str, Any]:
    about = {
        "limit": limit.text,
        "row": subject.facts["name"],
        "device": subject.facts["device"],
        "kind": subject.facts["kind"],
        "metric": limit.metric,
        "bound": limit.value,
        "value": None,
        "ci95": None,
        "needs": None,
        "why": "",
    }
    got, error = figure(subject.row, limit.metric, subject.seconds), subject.row.get("error")
    if got.value is None and error:
        return about | {"verdict": "not measured", "why": error.get("message") or "it failed"}
    if got.value is None:
        where = f"{subject.facts['name']} on {subject.facts['device']}"
        raise UsageError(f"--fail-if '{limit.text}': {where}: {got.why}", got.hint)
    if math.isinf(got.value):  # JSON has no word for it
        return about | _verdict(limit, got) | {"why": "exact: no output differs"}
    return about | {"value": got.value, "ci95": list(got.ends) if got.ends else None} | _verdict(limit, got)


def _verdict(limit: Limit, got: Figure) -> dict[str, Any]:
    assert got.value is not None
    low, high = got.ends or (got.value, got.value)
    beyond = _COMPARE[limit.comparator]
    held = {beyond(end, limit.value) for end in (low, high)}
    if held == {True}:
        return {"verdict": "broken"}
    if held == {False}:
        return {"verdict": "kept"}
    return {"verdict": "not decided", "needs": needed(got.value, (low, high), limit.value, got.count)}


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def needed(value: float, ends: tuple[float, float], bound: float, count: int) -> int | None:
    """About how many samples bring the nearer end of the interval to the limit; None: no number can be told.

    An interval narrows with the square root of the samples, if they are spread over as many more processes. Two digits
    are told; more than FOREVER times the samples there are is no advice.
    """
    far = ends[0] if value > bound else ends[1]
    gap = abs(value - bound)
    if not gap or not count or (far - value) ** 2 > FOREVER * gap**2:
        return None
    wanted = max(count + 1.0, count * ((far - value) / gap) ** 2)
    step = 10 ** max(0, math.floor(math.log10(wanted)) - 1)
    return math.ceil(wanted / step) * step
