"""QuantSpec: all numbers of a quantized model, before they are written into a format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lepton_edge.quant.grid import Grid
from lepton_edge.quant.place import Placement


@dataclass(frozen=True)
class QuantSpec:
    """`activations`: grid of each site by its name. `weights`: integers (int64, the weight's shape) and grid by the
    layer's output `y`. Sites and layers that are absent stay float."""

    placement: Placement
    activations: Mapping[str, Grid]
    weights: Mapping[str, tuple[np.ndarray, Grid]] = field(default_factory=dict)

    def grid_of(self, tensor: str) -> Grid | None:
        """The grid of an activation tensor."""
        site = next((s for s in self.placement.sites if tensor in s.tensors), None)
        return self.activations.get(site.name) if site else None

    def to_json(self) -> dict:
        """Scales, zero points and hashes of the integer weights, for golden tests and reports."""
        return {
            "activations": {
                name: {"scale": float(g.scale[0]), "zero_point": int(g.zero[0]), "bits": g.bits}
                for name, g in self.activations.items()
            },
            "weights": {
                name: {
                    "scale": [float(s) for s in g.scale],
                    "axis": g.axis,
                    "bits": g.bits,
                    "sha256": hashlib.sha256(q.astype(np.int8).tobytes()).hexdigest(),
                }
                for name, (q, g) in self.weights.items()
            },
        }
