"""Widths of all families for a share of the multiply-accumulates, at the least error by the measured curves."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_edge.errors import LeptonError
from lepton_edge.slim.cost import Meter
from lepton_edge.slim.families import Family
from lepton_edge.slim.sensitivity import Curve, levels

POINTS = 24  # widths of a family that are tried


def allocate(meter: Meter, families: Sequence[Family], curves: Sequence[Curve], share: float) -> list[int]:
    """Widths whose MACs are at most `share` of the whole net's.

    Again and again the step is taken, of any family to any lower width, that costs least error for each MAC it saves;
    what the last one saved too much is given back. Errors of families are taken to add up.

    Raises LeptonError where the narrowest net is above the share.
    """
    target = share * meter.total
    tried = [levels(family, POINTS) for family in families]
    widths = [len(family.members) for family in families]
    least = [steps[0] for steps in tried]
    if meter.macs(least) > target:
        raise LeptonError(
            f"macs is {share:g}, and at the narrowest widths it takes {meter.macs(least) / meter.total:.2f} of them",
            "ask for a larger share, or for a smaller round_to",
        )
    left = meter.total
    while left > target:
        best: tuple[float, int, int, int] | None = None
        for f, steps in enumerate(tried):
            for width in steps:
                if width >= widths[f]:
                    break
                saved = meter.change(widths, f, width)
                price = (curves[f].error(width) - curves[f].error(widths[f])) / max(saved, 1e-9)
                if saved > 0 and (best is None or price < best[0]):
                    best = price, f, width, saved
        if best is None:
            raise LeptonError(
                f"macs is {share:g}, and nothing that can be removed saves more", "ask for a larger share"
            )
        widths[best[1]], left = best[2], left - best[3]
    for f in sorted(range(len(families)), key=lambda f: -curves[f].error(widths[f])):
        whole = len(families[f].members)
        for width in [step for step in tried[f] if step > widths[f]] + [whole]:
            more = -meter.change(widths, f, width)
            if left + more > target:
                break
            widths[f], left = width, left + more
    return widths
