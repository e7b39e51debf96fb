"""Where int8 costs: the noise that each layer and each activation site alone brings to a net's outputs.

Everything is simulated in float: weights rounded to their grid, activations through a QDQ pair, so the figures are
those of the numbers and not of one CPU's kernels. The net is cut into segments; what crosses the cuts is kept on disk,
once for the float net and once for the net quantized so far, and each measurement runs from its segment to the end.

Noise is a share: squared error over squared value, averaged over the outputs. Noises of separate parts add up nearly.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lepton_edge.quant.emit import emit
from lepton_edge.quant.grid import Grid, dequantize, nearest, weight_grid
from lepton_edge.quant.net import Net, reads
from lepton_edge.quant.place import Layer, Placement, Site
from lepton_edge.quant.segments import Kept, Segment, cut, run_all, sub_net
from lepton_edge.quant.spec import QuantSpec
from lepton_edge.quant.tap import Runner, Sample

LAYERS = 3  # of a segment

Told = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerNoise:
    """Noise at the outputs: of the rounded `weights` alone, of the sites it reads and writes (`reads`, `writes`; 0
    where it has none), of weights and sites together (`alone`), of all layers up to this one (`accumulated`)."""

    layer: Layer
    weights: float
    reads: float
    writes: float
    alone: float
    accumulated: float

    @property
    def activations(self) -> float:
        """Of both sites: separate noises add up."""
        return self.reads + self.writes


@dataclass(frozen=True)
class SiteNoise:
    """Noise of one activation site; `owner` is the output `y` of the layer it is booked to, or "": the layer that
    writes it, else the first that reads it."""

    site: Site
    noise: float
    owner: str


@dataclass(frozen=True)
class Sensitivity:
    """`layers` and `sites` in graph order; `total` is the noise with all of them quantized."""

    layers: tuple[LayerNoise, ...]
    sites: tuple[SiteNoise, ...]
    total: float

    def shares(self) -> dict[str, float]:
        """The part of all noise that each layer is answerable for, by its `y`; with "" they sum to 1.

        A layer answers for its weights and for the sites booked to it, so nothing counts twice; "" stands for sites
        that no layer touches.
        """
        booked = {item.layer.y: item.weights for item in self.layers}
        for item in self.sites:
            booked[item.owner] = booked.get(item.owner, 0.0) + item.noise
        whole = sum(booked.values())
        return {y: noise / whole if whole else 0.0 for y, noise in booked.items()}

    def ranked(self) -> list[Layer]:
        """Layers by the noise they bring alone, worst first: what to keep in float, in this order."""
        return [item.layer for item in sorted(self.layers, key=lambda item: -item.alone)]


def measure(
    net: Net,
    placement: Placement,
    grids: Mapping[str, Grid],
    samples: Sequence[Sample],
    *,
    weight_bits: int = 8,
    told: Told | None = None,
) -> Sensitivity:
    """The sensitivity of a prepared float net to the activation `grids` (by site name) and to rounded weights.

    Weights are rounded to the nearest. Memory holds one sample's tensors, once a core; the disk holds what crosses one
    cut for all samples. Raises LeptonError where ONNX Runtime refuses the net or a sample.
    """
    parts = _Parts(net, placement, grids, weight_bits)
    segments = cut(net, placement, LAYERS)
    total = 3 * len(placement.layers) + len(parts.sites)
    found: dict[tuple[str, str], float] = {}
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder, ThreadPoolExecutor(_cores()) as pool:
        expected = Kept(Path(folder) / "expected", net.outputs)
        run_all(net, samples, expected)
        floats: Sequence[Sample] | Kept = samples
        quants: Sequence[Sample] | Kept = samples
        for k, segment in enumerate(segments):
            rest = _rest(net, segment)

            def noise(task: _Task, rest: Net = rest, streams: tuple = (floats, quants)) -> float:
                return _noise(parts.made(rest, task.layers, task.sites), streams[task.late], expected)

            tasks = list(_tasks(segment, parts))
            for task, figure in zip(tasks, pool.map(noise, tasks), strict=True):
                found[task.what, task.name] = figure
                if told:
                    told(len(found), total)
            if k + 1 < len(segments):
                floats, quants = _across(net, segment, parts, (floats, quants), Path(folder) / str(k))
        whole = parts.made(_rest(net, segments[-1]), placement.layers, parts.sites)
        everything = _noise(whole, quants, expected)
    sites = {site.name: found["site", site.name] for site in parts.sites}
    layers = tuple(
        LayerNoise(
            layer, found["weights", layer.y], parts.cost(layer.x, sites), parts.cost(layer.out, sites),
            found["alone", layer.y], found["accumulated", layer.y],
        )
        for layer in placement.layers
    )  # fmt: skip
    booked = tuple(SiteNoise(s, sites[s.name], parts.owner(s)) for s in parts.sites)
    return Sensitivity(layers, booked, everything)


@dataclass(frozen=True)
class _Task:
    """One measurement: `what` of `name` it is, and what is quantized; `late`: after all that comes before it."""

    what: str
    name: str
    layers: Sequence[Layer]
    sites: Sequence[Site]
    late: bool = False


def _tasks(segment: Segment, parts: _Parts) -> Iterator[_Task]:
    for layer in segment.layers:
        yield _Task("weights", layer.y, [layer], [])
        yield _Task("alone", layer.y, [layer], parts.of(layer))
        yield _Task("accumulated", layer.y, *parts.until(layer), late=True)
    for site in parts.sites:
        if segment.first <= parts.at[site.name] < segment.last:
            yield _Task("site", site.name, [], [site])


class _Parts:
    """What can be quantized, one by one, and where in the graph it begins."""

    def __init__(self, net: Net, placement: Placement, grids: Mapping[str, Grid], bits: int) -> None:
        self._net, self._placement, self._grids, self._bits = net, placement, grids, bits
        self.sites = [site for site in placement.sites if site.name in grids]
        self._site_of = {tensor: site for site in self.sites for tensor in site.tensors}
        first: dict[str, int] = {}
        for k, node in enumerate(net.nodes):
            for name in (*reads(node), *node.output):
                first.setdefault(name, k)
        self.at = {site.name: min(first.get(t, 0) for t in site.tensors) for site in self.sites}
        self._ends = {layer.y: first[layer.out] for layer in placement.layers}

    def of(self, layer: Layer) -> list[Site]:
        """The sites that a layer reads and writes."""
        found = {s.name: s for t in (layer.x, layer.out) if (s := self._site_of.get(t)) is not None}
        return list(found.values())

    def until(self, layer: Layer) -> tuple[list[Layer], list[Site]]:
        """All layers up to `layer`, with their sites and those in between."""
        end = self._ends[layer.y]
        layers = [item for item in self._placement.layers if self._ends[item.y] <= end]
        touched = {site.name for item in layers for site in self.of(item)}
        return layers, [site for site in self.sites if site.name in touched or self.at[site.name] <= end]

    def cost(self, tensor: str, noise: Mapping[str, float]) -> float:
        """The noise of a tensor's site; of one that several layers read, all of it."""
        site = self._site_of.get(tensor)
        return noise[site.name] if site else 0.0

    def owner(self, site: Site) -> str:
        """See SiteNoise."""
        for side in ("out", "x"):
            if found := [layer.y for layer in self._placement.layers if getattr(layer, side) in site.tensors]:
                return found[0]
        return ""

    def made(self, part: Net, layers: Iterable[Layer], sites: Sequence[Site]) -> Net:
        """A copy of `part` with these layers' weights rounded and these sites quantized; the rest is float."""
        made, chosen = part.copy(), list(layers)
        for layer in chosen:
            if layer.y in made.makers:
                name = made.fresh(f"{layer.weight}_rounded")
                made.consts[name] = rounded(part.consts[layer.weight], layer.axis, self._bits)
                made.makers[layer.y].input[1] = name
        made.link()
        # A local grid is only for integer readers: those chosen, or all of them where a site stands alone.
        readers = [layer.y for layer in chosen or self._placement.layers]
        placement = replace(self._placement, layers=(), sites=tuple(sites), constants=self._constants(made, sites))
        marks = dict.fromkeys(readers, (np.zeros(0), weight_grid(np.ones(1), None)))
        return emit(made, QuantSpec(placement, {site.name: self._grids[site.name] for site in sites}, marks))

    def _constants(self, made: Net, sites: Sequence[Site]) -> tuple[str, ...]:
        """Constant operands of the sums and products that give these sites."""
        tensors = {t for site in sites for t in site.tensors}
        found = []
        for name in self._placement.constants:
            for user in made.users.get(name, []):
                out = user.output[0]
                after = {o for node in made.users.get(out, []) for o in node.output}
                if tensors & ({out} | after):
                    found.append(name)
                    break
        return tuple(found)


def _cores() -> int:
    return min(os.cpu_count() or 1, 4)


def rounded(weight: np.ndarray, axis: int | None, bits: int = 8) -> np.ndarray:
    """`weight` rounded to the nearest on a symmetric grid, one scale a channel along `axis`; float32, same shape."""
    return dequantize(*nearest(weight, axis, bits))


def _rest(net: Net, segment: Segment) -> Net:
    """The net from the beginning of a segment to its outputs."""
    return sub_net(net, replace(segment, last=len(net.nodes), gives=tuple(net.outputs)))


def _across(
    net: Net, segment: Segment, parts: _Parts, streams: tuple[Sequence[Sample] | Kept, Sequence[Sample] | Kept],
    folder: Path,
) -> tuple[Kept, Kept]:  # fmt: skip
    """What the segment gives, of the float net and of the net quantized so far; what it took is dropped."""
    part = sub_net(net, segment)
    chosen = parts.until(segment.layers[-1]) if segment.layers else ([], [])
    kept = []
    for name, made, stream in zip(("f", "q"), (part, parts.made(part, *chosen)), streams, strict=True):
        into = Kept(folder / name, segment.gives)
        run_all(made, stream, into, weights_as_they_are=True)
        kept.append(into)
    for old in streams:
        if isinstance(old, Kept):
            old.drop()
    return kept[0], kept[1]


def _noise(net: Net, samples: Sequence[Sample] | Kept, expected: Kept) -> float:
    """Noise over power at the outputs, as search.distance has it, one sample in memory at a time."""
    runner = Runner(net, expected.names, threads=1, weights_as_they_are=True)
    noise, power = np.zeros(len(expected.names)), np.zeros(len(expected.names))
    for sample, wanted in zip(samples, expected, strict=True):
        got = runner.run({name: sample[name] for name in net.inputs})
        for k, name in enumerate(expected.names):
            want = wanted[name].astype(np.float64)
            noise[k] += float(((want - got[k]) ** 2).sum())
            power[k] += float((want**2).sum())
    return float(np.mean(noise / np.where(power > 0, power, 1.0)))
