"""Plain sentences from the figures of a sensitivity analysis: what to do, and which number says so."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lepton_edge.texts import number, percent

GOOD_DB = 30.0  # at the outputs; classifiers lose next to no top-1 there
FEW = 0.25  # of the layers that may make most of the noise, to be worth keeping in float
ONE_SIDED = 0.75  # of the noise of some layers, to be called that of weights or of activations
TELLING = 0.04  # of all noise: what brings less is not worth a sentence
OUTLIERS = 10.0  # peak over rms; that of a normal distribution is about 5, of what a Relu leaves 8
UNLIKE = 10.0  # largest over median peak of the channels
TIMES = 4.0  # by which a site's noise exceeds that of its layer's weights, to be named
MOST = 3  # sentences of one sort


def sentences(told: dict) -> list[str]:
    """What the figures of `measure.told` ask for, the most useful first; never empty."""
    total = told["total_db"]
    if total is None:
        return ["nothing stands out: int8 changes the outputs by nothing that can be measured"]
    found = [_verdict(total)]
    if len(told["layers"]) > 1:
        found.append(_concentration(told["layers"], total))
    if total < GOOD_DB:
        named = _sites(told)
        found += named + _channels(told["layers"], [s for line in named for s in line.split("'")[1:2]])
    return found


def _verdict(total: float) -> str:
    if total >= GOOD_DB:
        return (
            f"nothing stands out: all of it in int8 leaves {number(total, 1)} dB at the outputs, and from "
            f"{GOOD_DB:g} dB on top-1 seldom changes"
        )
    return (
        f"all of it in int8 leaves {number(total, 1)} dB at the outputs with plain rounding, less than the {GOOD_DB:g} "
        "dB from which on top-1 seldom changes; 'quantize' rounds better, so see its figures first"
    )


def worst(layers: Sequence[dict], share: float) -> list[dict]:
    """The fewest layers that together make `share` of all noise, worst first."""
    taken: list[dict] = []
    for layer in sorted(layers, key=lambda item: -item["share"]):
        if sum(item["share"] for item in taken) >= share:
            break
        taken.append(layer)
    return taken


def _concentration(layers: Sequence[dict], total: float) -> str:
    for share in (0.8, 0.5):
        few = worst(layers, share)
        made = sum(item["share"] for item in few)
        if made >= share and len(few) <= max(1, round(FEW * len(layers))):
            left = total - 10 * math.log10(max(1 - made, 1e-6))
            verb = "make" if few[1:] else "makes"
            head = f"{len(few)} of {len(layers)} layers {verb} {percent(made)} of the noise: {_list(few)}"
            fix = _fix(few) if total < GOOD_DB else "nothing has to be done about it"
            return f"{head}; {fix} (without that noise: {number(left, 1)} dB)"
    top = worst(layers, 0.0001)[0]
    weights = sum(item["weights_share"] for item in layers)
    side = f'weights make {percent(weights)} of it, and preset = "best" under [quantize] rounds them with most care'
    if weights < 0.5:
        side = f"activations make {percent(1 - weights)} of it, so 16 bits for all of them help"
    return (
        f"the noise is spread over the layers (the worst, {top['name']}, makes {percent(top['share'])}), so keeping a "
        f"few in float gains little; {side if total < GOOD_DB else 'nothing has to be done about it'}"
    )


def _list(few: Sequence[dict]) -> str:
    names = [item["name"] for item in few[:8]]
    return ", ".join(names) + (f" and {len(few) - 8} more" if len(few) > 8 else "")


def _fix(few: Sequence[dict]) -> str:
    weights, activations = (sum(item[f"{side}_share"] for item in few) for side in ("weights", "activations"))
    both = weights + activations
    if activations >= ONE_SIDED * both:
        return "most of it is that of activations: keep those at 16 bits, or the layers in float"
    if weights >= ONE_SIDED * both:
        return 'most of it is that of weights: try preset = "best" under [quantize], else keep the layers in float'
    return "weights and activations both count: keep these layers in float"


def _sites(told: dict) -> list[str]:
    """Activations that cost much more than the weights beside them."""
    by_name = {layer["name"]: layer for layer in told["layers"]}
    found = []
    for site in sorted(told["sites"], key=lambda item: -item["share"]):
        layer = by_name.get(site["layer"])
        against = layer["weights_share"] if layer else 0.0
        if site["share"] < TELLING or site["share"] < TIMES * against or site["noise_db"] is None:
            continue
        ratio = site["peak_over_rms"]
        what = (
            f"the input '{site['name']}' alone makes" if site["input"] else f"activations '{site['name']}' alone make"
        )
        where = f"{what} {percent(site['share'])} of the noise"
        if layer and against:
            where += f", {number(site['share'] / against, 1)}x that of the weights of {layer['name']}"
        if ratio is not None and ratio >= OUTLIERS:
            more = "give more samples" if told["ranges"] in ("auto", "mse") else 'set ranges = "auto" under [quantize]'
            found.append(
                f"{where}: the largest value is {ratio:.0f}x the typical one (rms), so few outliers set its range; "
                f"{more}, or keep it at 16 bits"
            )
        else:
            found.append(f"{where}, and it has no outliers: only 16 bits or float there help")
    return found[:MOST]


def _channels(layers: Sequence[dict], said: Sequence[str]) -> list[str]:
    """Layers whose output channels share one grid and are very unlike."""
    found = []
    for layer in sorted(layers, key=lambda item: -item["share"]):
        spread = layer["channel_spread"]
        if spread is None or spread < UNLIKE or layer["activations_share"] < TELLING / 2 or layer["kind"] == "dense":
            continue
        if layer["writes"] not in said:
            found.append(
                f"{layer['kind']} {layer['name']}: its largest channel is {spread:.0f}x the median one, after what "
                "could be equalized, and one range serves them all; keep its activations at 16 bits"
            )
    return found[:MOST]
