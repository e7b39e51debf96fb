"""A net cut into segments at places where little is alive, so that work on one layer runs only its segment.

What crosses a cut is kept per sample, in files where it is much: the cost of solving all layers in turn is then a few
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
HELD = 64 << 20  # bytes of one cut that stay in memory


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
    """What crosses one cut, sample by sample: the first HELD bytes in memory, the rest a file a sample."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder, self.names = folder, tuple(names)
        self._held: list[list[np.ndarray] | None] = []
        self._layouts: list[list[tuple[np.dtype, tuple[int, ...]]]] = []
        self._room = HELD

    def add(self, values: Sequence[np.ndarray]) -> None:
        """Take the next sample's values, in the order of `names`."""
        self._room -= sum(v.nbytes for v in values)
        self._layouts.append([(v.dtype, v.shape) for v in values])
        if self._room >= 0:
            self._held.append(list(values))
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / str(len(self._held))).open("wb") as file:
            for value in values:
                file.write(np.asarray(value, order="C").tobytes())
        self._held.append(None)

    def __len__(self) -> int:
        return len(self._held)

    def __getitem__(self, k: int) -> Sample:
        if not 0 <= k < len(self._held):
            raise IndexError(k)
        values = self._held[k]
        return dict(zip(self.names, self._read(k) if values is None else values, strict=True))

    def __iter__(self) -> Iterator[Sample]:
        return (self[k] for k in range(len(self)))

    def drop(self) -> None:
        """Delete the files."""
        for k, values in enumerate(self._held):
            if values is None:
                (self._folder / str(k)).unlink(missing_ok=True)
        self._held = []

    def _read(self, k: int) -> list[np.ndarray]:
        raw, at, values = (self._folder / str(k)).read_bytes(), 0, []
        for dtype, shape in self._layouts[k]:
            count = int(np.prod(shape, dtype=np.int64))
            values.append(np.frombuffer(raw, dtype, count, at).reshape(shape))
            at += count * dtype.itemsize
        return values


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
