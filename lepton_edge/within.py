"""`prune --latency`: the share of the multiply-accumulates at which the pruned model meets a latency on its device.

A share is tried, the model made without training, brought to its format and timed in turn beside the whole model where
it is to run; the next share follows from what was measured. Kernels don't take time in proportion to what they
multiply, so no share is taken on trust.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lepton_edge import benching, boards, registry, stages
from lepton_edge.device import Device, get_device
from lepton_edge.elsewhere import Subject
from lepton_edge.errors import LeptonError, LimitError, UsageError
from lepton_edge.feeds import Feed
from lepton_edge.recipe import Recipe
from lepton_edge.stages import Model, Road

TRIES = 5
CLOSE = 0.97  # of the limit: a share that comes so near is not improved on
AIM = 0.985  # of the limit: what the next share aims at
LEAST = 0.05  # share
FAILURES = 3  # before any share could be timed: the model cannot be made at all
TRAINING = ("epochs", "rounds")  # options of a pass that cost time and change no latency

Ratio = Mapping[str, Any]  # as bench.ratios gives it: "median", "ci95", ...


def settle(limit: float, ratio: Callable[[float], Ratio]) -> tuple[float, list[tuple[float, Ratio]]]:
    """The largest share tried whose time is at most ``limit`` of the whole model's, and all (share, ratio) tried.

    ``ratio`` makes and times the model at a share; where it cannot be made at one (too few channels are left) larger
    ones are tried. Raises LimitError where no share that can be had meets it, and the LeptonError of a model that can
    be made at none.
    """
    tried: list[tuple[float, Ratio]] = []
    low, high, share = 0.0, 1.0, limit  # shares too large are from `high` on, those too small to be had up to `low`
    refused: LeptonError | None = None
    failures = 0
    while len(tried) < TRIES and high - max(low, LEAST) > 0.01:
        try:
            tried.append((share, ratio(share)))
        except LimitError:
            raise
        except LeptonError as error:
            failures += 1
            if failures == FAILURES and not tried:
                raise
            refused, low = error, share
            share = (low + high) / 2
            continue
        met = [one for one in tried if one[1]["median"] <= limit]
        if met and max(met, key=lambda one: one[0])[1]["median"] >= CLOSE * limit:
            break
        best = max((one[0] for one in met), default=low)
        high = min((one[0] for one in tried if one[1]["median"] > limit), default=1.0)
        share = _next(tried[-1], limit, best, high)
    met = [one for one in tried if one[1]["median"] <= limit]
    if not met:
        share, least = min(((s, r["median"]) for s, r in tried), key=lambda one: one[1], default=(1.0, 1.0))
        why = f"; {refused.message}" if refused else ""
        raise LimitError(
            f"at {share:.0%} of the multiply-accumulates it takes {least:.2f} of its time, {limit:g} was asked for"
            + why,
            "allow more, or prune with --macs and see what the runtime makes of it",
        )
    return max(met, key=lambda one: one[0])[0], tried


def _next(last: tuple[float, Ratio], limit: float, low: float, high: float) -> float:
    """Where a line from the whole model through what was measured last meets the limit, well within the bounds."""
    share, found = last[0], last[1]["median"]
    slope = (1 - found) / (1 - share) if found < 1 else 0.5
    wanted = 1 - (1 - AIM * limit) / max(slope, 0.1)
    room = 0.15 * (high - low)
    return max(min(wanted, high - room), low + room, LEAST)


def check(limit: float, asked: Mapping[str, Any], device: Device) -> None:
    """Raise UsageError for a limit that makes no sense, beside options of a pruning that leave nothing to settle, and
    for a device that there is no way to: the time of another would be no answer."""
    if not 0 < limit < 1:
        raise UsageError(f"latency is a share of the model's own, not {limit:g}", "0.65 is at most 65 % of its time")
    if asked.get("method") not in (None, "", "channels") or asked.get("sparsity") or asked.get("macs"):
        raise UsageError(
            "latency takes the place of macs, and settles how many channels go", "leave macs, sparsity and method out"
        )
    if not device.is_here and not device.is_reached:
        raise UsageError(
            f"the latency on '{device.name}' cannot be measured: it is only described",
            "add your board with 'lepton-edge devices add', or leave --device out",
        )


def share_of(
    road: Road,
    start: Model,
    target: str,
    options: dict[str, dict],
    feeds: dict[str, Feed],
    evaluation: Feed,
    recipe: Recipe,
    limit: float,
) -> tuple[float, list[dict]]:
    """settle() for a model and its ``target`` format, on the recipe's device: the share, and a row for each tried."""
    plain = {name: value for name, value in options.get("prune", {}).items() if name not in TRAINING}
    whole = stages.travel(road, start, target, (), options, {})

    def ratio(share: float) -> Ratio:
        road.progress.stage(f"trying {share:.1%} of the multiply-accumulates")
        asked = {**options, "prune": {**plain, "macs": round(share, 4)}}
        return timed(road, whole, stages.travel(road, start, target, ("prune",), asked, feeds), evaluation, recipe)

    share, tried = settle(limit, ratio)
    return round(share, 4), [{"macs": round(s, 4), "ratio": dict(r)} for s, r in tried]


def timed(road: Road, whole: Model, made: Model, evaluation: Feed, recipe: Recipe) -> Ratio:
    """The time of ``made`` as a ratio of that of ``whole``, in turn, on the recipe's device."""
    device, runtime = get_device(recipe.compress.device), registry.runtime_for(made.art.format)
    subjects = [
        Subject(name, model, runtime, stages.feed_for(road, model, evaluation))
        for name, model in (("whole", whole), ("pruned", made))
    ]
    (visit,) = boards.visit_all(road, [device], benching.work(subjects, recipe, benching.Ask()))
    rows, _ = benching.gathered([visit], subjects, benching.Ask())
    failed = visit.error or next((LeptonError(**r["error"]) for r in rows if r["error"]), None)
    if failed:
        raise LimitError(f"its latency could not be measured: {failed.message}", failed.hint)
    return next(row["ratio"] for row in rows if row["name"] == "pruned")


def settled(options: dict[str, dict], share: float) -> dict[str, dict]:
    """The options of the pruning that is made in the end."""
    return {**options, "prune": {**options.get("prune", {}), "macs": share}}
