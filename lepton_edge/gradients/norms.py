"""Batch norms for the time of training: folded into the weights of a file, they are put back, and folded again after.

Without them a network whose weights change loses the scale of its channels, and learns many times slower. Ioffe &
Szegedy, "Batch Normalization" (arXiv:1502.03167). Statistics that a file is left with are taken from clean samples once
training is over, not from a moving average: Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (arXiv:2105.07576).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.quant.net import Net

EPS = 1e-5


@dataclass(frozen=True)
class Place:
    """A convolution: the tensor that it makes, and the names of its weight and bias."""

    y: str
    weight: str
    bias: str


def places(net: Net, trained: Iterable[str]) -> list[Place]:
    """Convolutions whose weights are trained, are theirs alone, and that have a bias (slim/explicit.py)."""
    mine, found = set(trained), []
    for node in net.nodes:
        if node.op_type != "Conv" or len(node.input) < 3:
            continue
        weight, bias = node.input[1], node.input[2]
        if weight in mine and net.private(weight) and net.private(bias):
            found.append(Place(node.output[0], weight, bias))
    return found


class Norms:
    """The batch norms of a graph. `params` are their scales and shifts [channels], `running` their statistics."""

    def __init__(self, net: Net, where: Iterable[Place], device: str = "cpu") -> None:
        import torch

        self.at = {place.y: place for place in where}
        self.params: dict[str, Any] = {}
        self.running: dict[str, Any] = {}
        for y, place in self.at.items():
            channels = net.consts[place.weight].shape[0]
            for kind, start in (("scale", 1.0), ("shift", 0.0)):
                self.params[f"{kind}/{y}"] = torch.full((channels,), start, device=device, requires_grad=True)
            self.running[f"mean/{y}"] = torch.zeros(channels, device=device)
            self.running[f"var/{y}"] = torch.ones(channels, device=device)
        self._sums: dict[str, list[Any]] | None = None
        self.learning = False
        self.on = False

    def __call__(self, y: str, value: Any) -> Any:
        """What becomes of a convolution's output [samples, 1, channels, ...]."""
        if y not in self.at:
            return value
        from torch.nn import functional as F

        flat = value.flatten(0, 1)
        counted = self._sums is not None or self.learning
        if self._sums is not None:
            axes = [k for k in range(flat.dim()) if k != 1]
            self._sums.setdefault(y, []).append((flat.mean(axes), flat.square().mean(axes)))
        if not self.on:
            return value
        mean, var = (None, None) if counted else (self.running[f"mean/{y}"], self.running[f"var/{y}"])
        made = F.batch_norm(flat, mean, var, self.params[f"scale/{y}"], self.params[f"shift/{y}"], counted, 0.0, EPS)
        return made.reshape(value.shape)

    def begin(self, run: Callable[[], None]) -> None:
        """Take the statistics of what `run` shows the graph, and norms that change nothing of it."""
        import torch

        self.settle(run)
        with torch.no_grad():
            for y in self.at:
                self.params[f"scale/{y}"].copy_((self.running[f"var/{y}"] + EPS).sqrt())
                self.params[f"shift/{y}"].copy_(self.running[f"mean/{y}"])
        self.on = True

    def settle(self, run: Callable[[], None]) -> None:
        """Take the statistics of what `run` shows the graph, layer by layer behind norms by batch."""
        import torch

        self._sums = {}
        with torch.no_grad():
            run()
        for y, seen in self._sums.items():
            mean, square = (torch.stack(part).mean(0) for part in zip(*seen, strict=True))
            self.running[f"mean/{y}"].copy_(mean)
            self.running[f"var/{y}"].copy_((square - mean.square()).clamp(min=0))
        self._sums = None

    def folded(self, net: Net) -> Net:
        """The net with the norms in its weights and biases."""
        kept = {n: v.detach().cpu().numpy().astype(np.float64) for n, v in {**self.params, **self.running}.items()}
        for y, place in self.at.items():
            weight, bias = net.consts[place.weight], net.consts[place.bias]
            factor = kept[f"scale/{y}"] / np.sqrt(kept[f"var/{y}"] + EPS)
            wide = factor.reshape(-1, *[1] * (weight.ndim - 1))
            net.consts[place.weight] = (weight * wide).astype(weight.dtype)
            net.consts[place.bias] = ((bias - kept[f"mean/{y}"]) * factor + kept[f"shift/{y}"]).astype(bias.dtype)
        return net


def of_state(norms: Norms | None) -> Mapping[str, Any]:
    """All tensors that a state has to hold."""
    return {} if norms is None else {**norms.params, **norms.running}
