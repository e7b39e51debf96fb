"""A net cut into segments at places where little is alive, so that work on one layer runs only its segment.

What crosses a cut is kept per sample in a file, not in memory: the cost of solving all layers in turn is then a few
runs of the net, whatever its depth, and memory does not grow with the samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.quant.net import Net, reads
from lepton_edge.quant.place import Layer, Placement
from lepton_edge.quant.tap import Runner, Sample

WIDEST = 3  # tensors that may cross a cut


@dataclass(frozen=True)
class Segment:
    """`nodes` of the net by index from `first` to `last` (exclusive); `takes` and `gives` are what crosses the cuts."""

    first: int
    last: int
    takes: tuple[str, ...]
    gives: tuple[str, ...]
    layers: tuple[Layer, ...]


def cut(net: Net, placement: Placement, layers: int = 3) -> list[Segment]:
    """Segments of about `layers` weighted layers each, in order; at most WIDEST tensors cross from one to the next."""
    at = {layer.y: layer for layer in placement.layers}
    last_use: dict[str, int] = {}
    for k, node in enumerate(net.nodes):
        for name in reads(node):
            last_use[name] = k
    for name in net.outputs:
        last_use[name] = len(net.nodes)
    alive: dict[str, int] = {name: last_use.get(name, 0) for name in net.inputs}
    made: list[Segment] = []
    first, takes = 0, tuple(net.inputs)
    held: list[Layer] = []
    for k, node in enumerate(net.nodes):
        for out in node.output:
            if out in at:
                held.append(at[out])
            if out:
                alive[out] = last_use.get(out, k)
        alive = {name: end for name, end in alive.items() if end > k}
        is_end = k + 1 == len(net.nodes)
        crossing = tuple(alive)
        fused = any(layer.y in alive and layer.out != layer.y for layer in held)
        if is_end or (len(held) >= layers and len(crossing) <= WIDEST and not fused):
            made.append(Segment(first, k + 1, takes, crossing, tuple(held)))
            first, takes, held = k + 1, crossing, []
    return made


def sub_net(net: Net, segment: Segment) -> Net:
    """The segment as a net of its own; its nodes are copies."""
    from onnx import helper

    base = type(net.base)()
    base.CopyFrom(net.base)
    del base.graph.input[:], base.graph.output[:]
    inputs = [name for name in segment.takes]
    known = {item.name: item for item in (*net.base.graph.input, *net.base.graph.output)}
    for name in inputs:
        if name in known:
            base.graph.input.append(known[name])
        else:
            base.graph.input.append(helper.make_tensor_value_info(name, net.dtypes.get(name, 1), None))
    for name in segment.gives:
        if name not in inputs:  # else it only passes by
            base.graph.output.add().name = name
    part = Net(
        net.nodes[segment.first : segment.last], net.consts, inputs, list(segment.gives), net.shapes, net.dtypes, base
    )
    part.link()
    return part.copy()


class Kept:
    """What crosses one cut, a file a sample: a list of samples that lie on disk."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(parents=True)
        self._folder, self.names, self._count = folder, tuple(names), 0

    def add(self, values: Sequence[np.ndarray]) -> None:
        """Take the next sample's values, in the order of `names`."""
        np.savez(self._folder / f"{self._count}.npz", **{str(k): v for k, v in enumerate(values)})
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, k: int) -> Sample:
        if not 0 <= k < self._count:
            raise IndexError(k)
        with np.load(self._folder / f"{k}.npz", allow_pickle=False) as held:
            return {name: held[str(j)] for j, name in enumerate(self.names)}

    def __iter__(self) -> Iterator[Sample]:
        return (self[k] for k in range(self._count))

    def drop(self) -> None:
        """Delete the files."""
        for k in range(self._count):
            (self._folder / f"{k}.npz").unlink(missing_ok=True)


def waves(part: Net, layers: Sequence[Layer]) -> list[list[Layer]]:
    """Layers in groups that depend only on layers of earlier groups."""
    depth: dict[str, int] = {}
    at = {layer.y for layer in layers}
    for node in part.nodes:
        level = max((depth.get(name, 0) for name in node.input), default=0)
        for out in node.output:
            depth[out] = level + (out in at)
    groups: dict[int, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(depth[layer.y], []).append(layer)
    return [groups[level] for level in sorted(groups)]


def run_all(part: Net, samples: Sequence[Sample] | Kept, into: Kept, **options: Any) -> None:
    """Run a segment on every sample and keep what it gives."""
    runner = Runner(part, list(into.names), **options)
    for sample in samples:
        into.add(runner.run({name: sample[name] for name in part.inputs}))
