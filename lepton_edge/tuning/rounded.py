"""Weights and activations that train in float and compute as the integers that they will be.

A weight keeps a float twin, of which every batch sees the nearest whole steps; the gradient goes straight through the
rounding to the twin (Bengio et al., arXiv:1308.3432; Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference", CVPR 2018) and to the step (Esser et al., "Learned Step Size
Quantization", arXiv:1902.08153). What training starts from are the very integers of a QuantSpec: nothing that
calibration won is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.quant.grid import Grid
from lepton_edge.quant.net import Net
from lepton_edge.quant.spec import QuantSpec

# Steps by which a twin may lie off its integer at the start: near the edge of its cell rounding would swing.
INSIDE = 0.05


@dataclass(frozen=True)
class _Weight:
    """A weight's steps as the quantizer left them, and the least and greatest integer."""

    step: Any
    low: int
    high: int


class Rounded:
    """The grids of a net. `params` are the logarithms of what the steps of each weight have grown by."""

    def __init__(self, spec: QuantSpec, net: Net, device: str = "cpu", *, activations: bool = True) -> None:
        """`net` is the one that the spec belongs to; `activations`: theirs are rounded, too, but beside attention."""
        import torch

        self.weights: dict[str, _Weight] = {}
        self.params: dict[str, Any] = {}
        for name, integers, grid in _weights(net, spec):
            step = torch.from_numpy(grid.shaped(integers.ndim)[0].astype(np.float32)).to(device)
            self.weights[name] = _Weight(step, grid.low, grid.high)
            self.params[f"growth/{name}"] = torch.zeros_like(step, requires_grad=True)
        rounds = activations and not spec.placement.local
        sites = [(site, spec.activations[site.name]) for site in spec.placement.sites if site.name in spec.activations]
        self.sites: dict[str, Grid] = {t: grid for site, grid in sites for t in site.tensors} if rounds else {}

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The weights as they ship, by name, of the twins in `params`."""
        made = {}
        for name, own in self.weights.items():
            step = own.step * self.params[f"growth/{name}"].exp()
            made[name] = _whole((params[name] / step).clamp(own.low, own.high)) * step
        return made

    def __call__(self, tensor: str, value: Any) -> Any:
        """What becomes of an activation: rounded where the spec has a grid for it."""
        if tensor not in self.sites:
            return value
        grid = self.sites[tensor]
        step, zero = float(grid.scale[0]), int(grid.zero[0])
        return _whole((value / step).clamp(grid.low - zero, grid.high - zero)) * step

    def written(self, net: Net, params: Mapping[str, Any]) -> Net:
        """The net with the weights as they ship."""
        for name, value in self.values(params).items():
            net.consts[name] = value.detach().cpu().numpy().astype(net.consts[name].dtype)
        return net


def twins(net: Net, spec: QuantSpec) -> Net:
    """A copy whose weights lie within INSIDE steps of their integers, towards the float ones."""
    made = net.copy()
    for name, integers, grid in _weights(net, spec):
        weight, step = net.consts[name], grid.shaped(integers.ndim)[0].astype(np.float64)
        off = np.clip(weight / step - integers, -INSIDE, INSIDE)
        twin = ((integers + off) * step).astype(np.float32)
        made.consts[name] = np.where((weight == 0) & (integers == 0), np.float32(0), twin)
    return made


def _weights(net: Net, spec: QuantSpec) -> Iterator[tuple[str, np.ndarray, Grid]]:
    """The weights that are a layer's alone: name, integers, grid."""
    for layer in spec.placement.layers:
        if layer.y in spec.weights and net.private(layer.weight):
            yield layer.weight, *spec.weights[layer.y]


def _whole(x: Any) -> Any:
    """Rounded half to even; its gradient passes straight through."""
    return x + (x.round() - x).detach()
