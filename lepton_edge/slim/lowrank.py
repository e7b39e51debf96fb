"""Weights of a layer as a product of two smaller matrices, nearest in what the layer gives on real inputs.

For inputs of covariance C = L L^T, the rank-r weights that change a layer's output least are those of the singular
value decomposition of L^T W^T, cut to r: Chen et al., "DRONE: Data-aware Low-rank Compression for Large NLP Models"
(NeurIPS 2021); Wang et al., "SVD-LLM" (arXiv:2403.07378). With weights fitted to the inputs at hand before that it is
reduced-rank regression (Izenman, 1975). Weights are [outputs, inputs].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_edge.errors import LeptonError

BISECTIONS = 50


@dataclass(frozen=True)
class Spectrum:
    """What each rank of a layer costs and brings: `left` [full + 1], by rank the share of the output's power that is
    then missing; `macs` of the layer as it is; `each`, those of one rank; `ranks` it may take, ascending, one
    at least."""

    name: str
    left: np.ndarray
    macs: int
    each: int
    ranks: tuple[int, ...]


def decomposed(weight: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular values [k], and factors: rank r of `weight` is left[:, :r] @ right[:r]; `spread` [inputs, inputs] is
    the positive definite second moment or covariance of the inputs."""
    lower = np.linalg.cholesky(spread)
    u, values, vt = np.linalg.svd(weight.astype(np.float64) @ lower, full_matrices=False)
    return values, u, values[:, None] * np.linalg.solve(lower.T, vt.T).T


def cut(weight: np.ndarray, spread: np.ndarray, rank: int) -> np.ndarray:
    """The nearest weights of that rank."""
    _, left, right = decomposed(weight, spread)
    return left[:, :rank] @ right[:rank]


def factors(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """`weight`, which has that rank already, as [outputs, rank] @ [rank, inputs], of like sizes, so that neither is
    hard to quantize."""
    u, values, vt = np.linalg.svd(weight, full_matrices=False)
    root = np.sqrt(values[:rank])
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def missing(values: np.ndarray) -> np.ndarray:
    """By rank, from 0 up, the share of the power of the output that singular values leave out: float64 [k + 1]."""
    power = values**2
    total = max(float(power.sum()), 1e-30)
    return np.concatenate([np.cumsum(power[::-1])[::-1], [0.0]]) / total


def worth(inputs: int, outputs: int, round_to: int) -> tuple[int, ...]:
    """Ranks, multiples of `round_to`, at which two products take fewer multiply-accumulates than one."""
    ranks = range(round_to, min(inputs, outputs), round_to)
    return tuple(r for r in ranks if r * (inputs + outputs) < inputs * outputs)


def allocate(layers: Sequence[Spectrum], total: int, share: float, model: str) -> dict[str, int]:
    """Ranks by layer, of those that are worth it, so that at most `share` of `total` multiply-accumulates is left and
    the sum of what is missing is little: one price for a multiply-accumulate, found by bisection, then what fits.

    Raises LeptonError where the smallest ranks of all leave more.
    """
    wanted = share * total
    rest = total - sum(layer.macs for layer in layers)
    least = rest + sum(layer.each * layer.ranks[0] for layer in layers)
    if least > wanted:
        raise LeptonError(
            f"{model}: its layers at their smallest ranks leave {least / total:.1%} of the multiply-accumulates,"
            f" {share:.1%} was asked for",
            f"ask for {min(0.999, np.ceil(least / total * 100) / 100):g}, or a smaller round_to",
        )

    def taken(price: float) -> tuple[dict[str, int], float]:
        ranks, macs = {}, float(rest)
        for layer in layers:
            costs = [(price * layer.macs, 0)]
            costs += [(float(layer.left[r]) + price * layer.each * r, r) for r in layer.ranks]
            _, best = min(costs)
            macs += layer.each * best if best else layer.macs
            if best:
                ranks[layer.name] = best
        return ranks, macs

    low, high = 0.0, 1.0 / max(min((layer.each for layer in layers), default=1), 1)
    while taken(high)[1] > wanted:
        high *= 2
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if taken(middle)[1] <= wanted else (middle, high)
    ranks, macs = taken(high)
    return filled(layers, ranks, wanted - macs)


def filled(layers: Sequence[Spectrum], ranks: Mapping[str, int], room: float) -> dict[str, int]:
    """The ranks raised, where most is gained first, by what still fits: a price only finds corners of the choice."""
    made = dict(ranks)
    while True:
        raises = []
        for layer in layers:
            if layer.name not in made:
                continue
            now = made[layer.name]
            more = [(layer.each * r, float(layer.left[r]), r) for r in layer.ranks if r > now] + [(layer.macs, 0.0, 0)]
            raises += [
                (float(layer.left[now]) - left, macs - layer.each * now, layer.name, r)
                for macs, left, r in more
                if macs - layer.each * now <= room
            ]
        gain, cost, name, rank = max(raises, default=(0.0, 0, "", 0))
        if gain <= 0:
            return made
        room -= cost
        if rank:
            made[name] = rank
        else:
            del made[name]


def summed(layers: Sequence[Spectrum], ranks: Mapping[str, int], total: int) -> int:
    """Multiply-accumulates of the model at these ranks."""
    return total + sum(layer.each * ranks[layer.name] - layer.macs for layer in layers if layer.name in ranks)
