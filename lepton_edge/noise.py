"""What disturbed a measurement: from readings of the place around it, and from the samples themselves.

Each finding is one sentence: what was seen, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lepton_edge.place import Place
from lepton_edge.stats import PERCENTILES, median, samples_needed, trend

READINGS = Path(__file__).parent / "ondevice" / "readings.py"
Windows = Sequence[tuple[dict, dict]]
#: From here on it is said: cores kept busy by others; change over the rounds; share of time that a hypervisor took;
#: clock at the end against that at the start; times a second that the scheduler took the processor away.
BUSY_CORES, DRIFT, STEAL, CLOCK, TAKEN = 0.2, 0.05, 0.02, 0.9, 50.0


def reading(place: Place, pids: Sequence[int]) -> dict[str, Any]:
    """The readings of a place at this moment; ``pids`` are our processes there."""
    return place.call(READINGS, "snapshot", pids=list(pids))


def others(windows: Windows) -> float | None:
    """Cores that other processes kept busy on average; None where the system does not tell. Steal counts as others."""
    all_, ours, wall = (_spent(windows, key) for key in ("busy_cpu_s", "ours_cpu_s", "wall_s"))
    if all_ is None or ours is None or not wall:
        return None
    return max(0.0, (all_ - ours) / wall)


def _spent(windows: Windows, key: str) -> float | None:
    """How much a counter grew over the windows; None where it cannot be read."""
    if not windows or any(w.get(key) is None for pair in windows for w in pair):
        return None
    return sum(after[key] - before[key] for before, after in windows)


def doubts(windows: Windows) -> list[str]:
    """What the readings of a place say against figures taken between them."""
    if not windows:
        return []
    first, last = windows[0][0], windows[-1][1]
    found = [_throttled(windows), _clock(first, last), _quota(windows), _busy(windows), _stolen(windows)]
    return [text for text in (*found, _governor(last), _battery(windows)) if text]


def _throttled(windows: Windows) -> str:
    events = _spent(windows, "throttle_events") or 0
    flags = [flag for _, after in windows for flag in (after.get("throttle_flags") or {}).get("now", [])]
    cooling = max((after.get("cooling") or 0 for _, after in windows), default=0)
    if not (events or flags or cooling):
        return ""
    hottest = max((after["temperature_c"] for _, after in windows if after.get("temperature_c")), default=None)
    heat = f" at {hottest:g} °C" if hottest else ""
    names = list(dict.fromkeys(flags))
    said = ", ".join(names) if names else f"{events:g} events" if events else "it is being cooled by a slower clock"
    fix = "use the board's own power supply" if "under-voltage" in names else "cool it, or measure with pauses"
    return f"the processor was throttled while it was measured ({said}){heat}: {fix}"


def _clock(first: dict, last: dict) -> str:
    if not first.get("frequency_mhz") or not last.get("frequency_mhz"):
        return ""
    before, after = max(first["frequency_mhz"]), max(last["frequency_mhz"])
    if after >= CLOCK * before:
        return ""
    return f"the clock fell from {before:.0f} to {after:.0f} MHz: cool the machine, or fix its clock, and measure again"


def _quota(windows: Windows) -> str:
    pairs = [(b["quota"], a["quota"]) for b, a in windows if b.get("quota") and a.get("quota")]
    times = sum(a["throttled"] - b["throttled"] for b, a in pairs)
    seconds = sum(a["seconds"] - b["seconds"] for b, a in pairs)
    if times <= 0:
        return ""
    return (
        f"the CPU quota of the container stopped its processes {times:g} times ({seconds:.2f} s): "
        "raise the quota, or use fewer --threads than it allows"
    )


def _busy(windows: Windows) -> str:
    busy = others(windows) or 0.0
    if busy <= BUSY_CORES:
        return ""
    return (
        f"other processes kept {busy:.1f} of {windows[-1][1]['cores']} cores busy while latency was measured: "
        "the times are those of a shared machine; end them, or keep away from them with --cpus"
    )


def _stolen(windows: Windows) -> str:
    stolen, busy = _spent(windows, "steal_cpu_s") or 0.0, _spent(windows, "busy_cpu_s") or 0.0
    if not busy or stolen < STEAL * busy:
        return ""
    return (
        f"the hypervisor gave {stolen / busy:.0%} of the processor time to other virtual machines: "
        "measure on a machine of your own"
    )


def _governor(last: dict) -> str:
    named = last.get("governor") or {}
    # intel_pstate and amd-pstate call their usual, dynamic mode "powersave".
    if "powersave" not in named.get("governor", "") or "pstate" in named.get("driver", ""):
        return ""
    return "the governor 'powersave' keeps the clock low: sudo cpupower frequency-set -g performance"


def _battery(windows: Windows) -> str:
    if not any(after.get("on_battery") for _, after in windows):
        return ""
    return "the machine ran on its battery, which may keep the clock low: plug it in"


def row_doubts(latency: dict[str, Any]) -> list[str]:
    """What the samples of one model say against its own figures."""
    found = []
    if not latency["settled"]:
        limit = max(w["seconds"] for w in latency["warmup"])
        found.append(f"it was not steady after {limit:.1f} s of warm-up: the first rounds may be slower or faster")
    change = trend([median(r) for r in latency["samples_ns"] if r])
    if change is not None and abs(change) >= DRIFT:
        way = "grew" if change > 0 else "fell"
        fix = "let the machine cool" if change > 0 else "see what else runs there"
        found.append(f"its time {way} by {abs(change):.0%} over the rounds: {fix}, and measure for longer")
    if latency["involuntary_per_s"] > TAKEN:
        found.append(
            f"the scheduler took its processor away {latency['involuntary_per_s']:.0f} times a second: "
            "end other work, or use fewer --threads"
        )
    missing = [p for p in PERCENTILES if p != 50 and latency[f"p{p}_ms"] is None]
    if missing:
        found.append(_too_few(latency, missing))
    return found


def _too_few(latency: dict[str, Any], missing: Sequence[int]) -> str:
    worth, needed = latency[f"p{missing[-1]}_worth"], samples_needed(missing[-1] / 100)
    names = ", ".join(f"p{p}" for p in missing)
    counted = f"{latency['count']} samples"
    if worth < latency["count"]:
        counted += f", worth {worth} independent ones,"
    return f"{counted} are too few for {names} (p{missing[-1]} needs {needed}): measure for longer with --seconds"
