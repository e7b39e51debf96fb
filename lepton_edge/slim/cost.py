"""Multiply-accumulates of a net whose families have other widths, without making it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_edge.inspectors._onnx_macs import macs_of
from lepton_edge.slim.families import Family
from lepton_edge.slim.trace import Trace

Dim = tuple[int, dict[int, int]]  # what stays, and how many elements each member of a family brings


class Meter:
    """MACs for one sample (free axes count 1) as a function of the families' widths."""

    def __init__(self, t: Trace, families: Sequence[Family]) -> None:
        roots = t.channels.roots()
        self._of = {int(root): k for k, family in enumerate(families) for root in family.members}
        self._widths = [len(family.members) for family in families]
        self._nodes: list[tuple[Any, dict[str, list[Dim]]]] = []
        self._touching: list[list[int]] = [[] for _ in families]
        cuts: dict[tuple[int, int], dict[int, np.ndarray]] = {}
        for cut in t.cuts:
            cuts.setdefault((cut.node, cut.port), {})[cut.axis] = cut.channels
        for k, node in enumerate(t.net.nodes):
            dims = {}
            for port, name in enumerate(node.input):
                if (shape := t.net.shapes.get(name)) is not None:
                    dims[name] = self._dims(shape, cuts.get((k, port), t.of(name)), roots)
            for name in node.output:
                if (shape := t.net.shapes.get(name)) is not None:
                    dims[name] = self._dims(shape, t.of(name), roots)
            self._nodes.append((node, dims))
            if self._node(len(self._nodes) - 1, self._widths):
                for family in {f for sizes in dims.values() for _, parts in sizes for f in parts}:
                    self._touching[family].append(len(self._nodes) - 1)
            else:
                self._nodes.pop()
        self._full = [self._node(k, self._widths) for k in range(len(self._nodes))]

    def _dims(self, shape: Sequence[int | None], axes: dict[int, np.ndarray], roots: np.ndarray) -> list[Dim]:
        made: list[Dim] = []
        for axis, size in enumerate(shape):
            owners = Counter(self._of.get(root, -1) for root in roots[axes[axis]].tolist()) if axis in axes else {}
            fixed = owners.pop(-1, 0) if owners else int(size or 1)
            made.append((fixed, {f: count // self._widths[f] for f, count in owners.items()}))
        return made

    def _node(self, k: int, widths: Sequence[int]) -> int:
        node, dims = self._nodes[k]
        shapes: dict[str, Any] = {
            name: [fixed + sum(widths[f] * each for f, each in parts.items()) for fixed, parts in sizes]
            for name, sizes in dims.items()
        }
        return macs_of(node, shapes, True) or 0

    @property
    def total(self) -> int:
        """MACs of the net as it is."""
        return sum(self._full)

    def macs(self, widths: Sequence[int]) -> int:
        """MACs at these widths, one for each family."""
        return sum(self._node(k, widths) for k in range(len(self._nodes)))

    def change(self, widths: Sequence[int], family: int, width: int) -> int:
        """How many MACs fewer it takes when one family gets another width."""
        other = list(widths)
        other[family] = width
        return sum(self._node(k, widths) - self._node(k, other) for k in self._touching[family])
