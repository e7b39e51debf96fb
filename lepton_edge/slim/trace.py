"""Which channels of a net go together, found in one pass over its nodes.

Every output channel of a layer with constant weights is a number (channels.py). An axis of a tensor that holds such
channels carries the vector of their numbers, and each operator says what becomes of it (rules_*.py): a sum joins the
vectors of its operands, a concatenation appends them, a reshape of heads repeats them, and what an operator can't take
apart is pinned with the reason. To prune is then to name numbers; the edits that follow from it are noted on the way:
`Cut` (constants to be sliced), `Count` (sizes written in constants and attributes), `Remap` (indices).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lepton_edge.quant.net import Net, reads
from lepton_edge.slim.channels import Channels

Rule = Callable[["Trace", int, Any], None]


@dataclass(frozen=True)
class Cut:
    """Input `port` of node `node` is a constant that loses what `channels` lose along `axis`."""

    node: int
    port: int
    axis: int
    channels: np.ndarray


@dataclass(frozen=True)
class Count:
    """A number that is how many of `channels` are left: element `at` of a constant input, or an attribute."""

    node: int
    port: int
    at: int
    channels: np.ndarray
    attribute: str = ""


@dataclass(frozen=True)
class Remap:
    """Input `port` is a constant of indices into an axis of `channels`."""

    node: int
    port: int
    channels: np.ndarray


@dataclass(frozen=True)
class Consumer:
    """A layer that sums over the channels of axis `axis` of tensor `x`, which run along `weight_axis` of its weight."""

    node: int
    x: str
    axis: int
    weight: str
    weight_axis: int
    channels: np.ndarray


@dataclass
class Trace:
    """What is known of channels. `axes` is {tensor: {axis: channels}}, `producers` {output tensor: channels}."""

    net: Net
    channels: Channels = field(default_factory=Channels)
    axes: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)
    cuts: list[Cut] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    remaps: list[Remap] = field(default_factory=list)
    consumers: list[Consumer] = field(default_factory=list)
    producers: dict[str, np.ndarray] = field(default_factory=dict)

    def of(self, tensor: str) -> dict[int, np.ndarray]:
        """The axes of a tensor that hold channels."""
        return self.axes.get(tensor, {})

    def rank(self, tensor: str) -> int | None:
        """How many axes a tensor has, None where that is not known."""
        shape = self.net.shapes.get(tensor)
        return None if shape is None else len(shape)

    def give(self, tensor: str, axis: int, channels: np.ndarray) -> None:
        """An axis of a tensor holds these channels."""
        if tensor:
            self.axes.setdefault(tensor, {})[axis] = channels
            if len(channels) == 1:
                self.channels.pin(channels, "alone on its axis")

    def make(self, tensor: str, axis: int, count: int) -> np.ndarray:
        """New channels on an axis of a layer's output."""
        found = self.channels.fresh(count)
        self.producers[tensor] = found
        self.give(tensor, axis, found)
        return found

    def pin(self, tensor: str, reason: str, axes: tuple[int, ...] | None = None) -> None:
        """The channels of a tensor stay: those of `axes`, or all."""
        for axis, channels in self.of(tensor).items():
            if axes is None or axis in axes:
                self.channels.pin(channels, reason)

    def pin_but(self, tensor: str, kept: tuple[int, ...], reason: str) -> None:
        """The channels of all axes but those `kept` stay."""
        for axis, channels in self.of(tensor).items():
            if axis not in kept:
                self.channels.pin(channels, reason)

    def stop(self, node: Any) -> None:
        """Nothing is known of the operator: all that it reads stays as it is."""
        for name in reads(node):
            self.pin(name, f"read by {node.op_type}")

    def const(self, node: Any, port: int) -> np.ndarray | None:
        """A constant input of a node, None where it is computed or left out."""
        name = node.input[port] if port < len(node.input) else ""
        return self.net.consts.get(name) if name else None


def trace(net: Net) -> Trace:
    """Follow the channels of a prepared net to its outputs, which keep theirs."""
    from lepton_edge.slim import rules_layers, rules_moves, rules_values

    rules: dict[str, Rule] = {**rules_layers.RULES, **rules_values.RULES, **rules_moves.RULES}
    found = Trace(net)
    for k, node in enumerate(net.nodes):
        rule = rules.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        carries = any(found.of(name) for name in reads(node))
        if rule is None or any(attribute.HasField("g") for attribute in node.attribute):
            found.stop(node)
        elif carries or rule in rules_layers.MAKERS:
            rule(found, k, node)
    for name in net.outputs:
        found.pin(name, f"output '{name}'")
    return found
