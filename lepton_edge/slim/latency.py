"""A share of the multiply-accumulates whose *measured* latency meets a limit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lepton_edge.errors import LimitError
from lepton_edge.quant.net import Net
from lepton_edge.slim.core import Options, Study, apply

TRIES = 6


def share_for(
    found: Study, options: Options, limit: float, time_of: Callable[[Net], float], *, tries: int = TRIES
) -> tuple[float, list[tuple[float, float]]]:
    """The largest share of a studied net's MACs whose latency is at most `limit`, and all (share, latency) measured.

    `time_of` takes a net and gives what is measured for it on the target, in the unit of `limit`: a time, or its ratio
    to the whole net's. Weights don't matter to it, so nets are not repaired. The share is halved in on `tries` times.
    Raises LimitError where even the narrowest net is above the limit.
    """
    lowest = found.meter.macs([curve.widths[0] for curve in found.curves]) / found.meter.total
    quick = replace(options, repair=False)

    def at(share: float) -> float:
        measured = time_of(apply(found, (), replace(quick, macs=share)).net)
        seen.append((round(share, 4), measured))
        return measured

    seen: list[tuple[float, float]] = []
    low, high = min(lowest * 1.001, 1.0), 1.0
    if at(low) > limit:
        raise LimitError(
            f"the limit is {limit:g}, and the narrowest net was measured at {seen[0][1]:g}",
            "allow more time, or a smaller round_to",
        )
    for _ in range(tries):
        middle = (low + high) / 2
        if at(middle) <= limit:
            low = middle
        else:
            high = middle
    return low, seen
