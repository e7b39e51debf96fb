"""The graph the writer works on: ONNX nodes with plain Python attributes, constants, shapes and types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Node:
    """One ONNX operation; `attrs` also holds what fusions add (`fused`: a TFLite activation name)."""

    op: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attrs: dict[str, Any] = field(default_factory=dict)

    def has(self, i: int) -> bool:
        """Whether optional input i is given."""
        return i < len(self.inputs) and bool(self.inputs[i])

    @property
    def out(self) -> str:
        return self.outputs[0]


@dataclass
class Graph:
    """Nodes in topological order; every tensor has a static shape and a numpy dtype."""

    nodes: list[Node]
    inputs: list[str]
    outputs: list[str]
    consts: dict[str, np.ndarray]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype]
    opset: int
    domains: dict[str, int] = field(default_factory=dict)
    quant: dict[str, Any] = field(default_factory=dict)

    def consumers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor (a node that reads it twice is listed twice)."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                if name:
                    users.setdefault(name, []).append(node)
        return users

    def producers(self) -> dict[str, Node]:
        """The node that writes each tensor."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    def scalar(self, name: str) -> float | None:
        """The value of a one-element constant, or None."""
        value = self.consts.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 else None

    def fresh(self, base: str, shape: tuple[int, ...], dtype: Any) -> str:
        """A new tensor name, registered with its shape and type."""
        name, i = base, 0
        while name in self.shapes:
            i += 1
            name = f"{base}_{i}"
        self.shapes[name] = tuple(int(d) for d in shape)
        self.dtypes[name] = np.dtype(dtype)
        return name

    def constant(self, base: str, value: np.ndarray) -> str:
        """A new constant."""
        name = self.fresh(base, value.shape, value.dtype)
        self.consts[name] = value
        return name
