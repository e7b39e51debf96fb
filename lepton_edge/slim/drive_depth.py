"""Depth pruning on one screen: an ONNX file and samples in, a net with fewer residual branches out, nothing trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lepton_edge.errors import LeptonError
from lepton_edge.quant.core import decibels, distance_of, take
from lepton_edge.quant.net import Net
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.tap import Sample
from lepton_edge.slim.branches import Branch, branches, muted, net_macs, without
from lepton_edge.slim.core import JUDGED, REPAIRED, Pruned, Told, divided, scaled
from lepton_edge.slim.remove import renewed
from lepton_edge.slim.repair import layers_of, repaired


def prune(path: str, samples: Sequence[Sample], share: float, told: Told | None = None) -> Pruned:
    """Take branches of residual sums away until `share` of the multiply-accumulates is left, the one first that costs
    the outputs least for what it saves; layers that stay are fitted to what the whole net gives.

    Raises LeptonError for a file that cannot be prepared, for no samples or such that do not fit, for a model without
    such branches, and for a share that it is above without all of them.
    """
    tell = told or (lambda done, total, what: None)
    if not len(samples):
        raise LeptonError("no calibration samples", "give at least one; 100 to 500 are usual")
    name, net = Path(path).name, prepare(path)
    total = macs(net)
    _, judged = divided(samples)
    judged = take(judged, scaled(JUDGED, total))
    if not branches(net):
        raise LeptonError(f"{name}: it has no residual sum with a branch to take away", "use method channels")
    gone = chosen(net, judged, share * total, name, tell)
    made = fitted(net, gone, take(samples, scaled(REPAIRED, total)), tell)
    figures = {
        "macs": {"before": total, "after": macs(made)},
        "branches": [branch.y for branch in gone],
        "left": {},
        "calibration_sqnr_db": decibels(distance_of(net, made, take(samples, 32))),
    }
    return Pruned(made, figures)


def chosen(net: Net, samples: Sequence[Sample], target: float, name: str, tell: Told) -> list[Branch]:
    """The branches to take away so that at most `target` multiply-accumulates are left, in order."""
    total, made, gone = macs(net), net, list[Branch]()
    while (left := macs(made)) > target:
        priced, found = [], branches(made)
        for k, branch in enumerate(found):
            other = renewed(without(made, branch))
            if (saved := left - macs(other)) > 0:
                priced.append((distance_of(net, other, samples) / saved, k, branch, other))
            tell(k + 1, len(found), f"measuring what branches are worth, {left / total:.0%} of the work left, branch")
        if not priced:
            raise LeptonError(
                f"{name}: without all of its branches it takes {left / total:.2f} of the multiply-accumulates, "
                f"{target / total:g} was asked for",
                "ask for a larger share, and remove channels as well: method channels",
            )
        _, _, branch, made = min(priced, key=lambda one: one[:2])
        gone.append(branch)
    for branch in gone[:-1]:  # what the last one saved too much is given back
        fewer = [other for other in gone if other is not branch]
        if (kept := stripped(net, fewer)) is not None and macs(kept[0]) <= target:
            gone = kept[1]
    return gone


def stripped(net: Net, wanted: Sequence[Branch]) -> tuple[Net, list[Branch]] | None:
    """The net without these branches, and what they are made of then; None where one is none any more."""
    found = list[Branch]()
    for branch in wanted:
        own = next((b for b in branches(net) if (b.y, b.port) == (branch.y, branch.port)), None)
        if own is None:
            return None
        found.append(own)
        net = renewed(without(net, own))
    return net, found


def fitted(net: Net, gone: Sequence[Branch], samples: Sequence[Sample], tell: Told) -> Net:
    """The net without these branches, its other layers fitted."""
    silent = net
    for branch in gone:
        silent = muted(silent, branch)
    lost = {y for branch in gone for y in branch.nodes}
    kept = {layer.y: None for layer in layers_of(net) if layer.y in lost}
    made = repaired(
        net, silent, kept, samples, told=lambda done, count: tell(done, count, "fitting weights, layer")
    )  # fmt: skip
    for branch in gone:
        made = without(made, branch)
    return renewed(made)


def macs(net: Net) -> int:
    """Multiply-accumulates for one sample."""
    return sum(net_macs(net, node) for node in net.nodes)
