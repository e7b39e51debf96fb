"""The whole quantization on one screen: an ONNX file and samples in, a QuantSpec and the net it belongs to out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant import emit_weights, equalize, held, ranges, sensitivity, smooth, streams, weight_only
from lepton_edge.quant.emit import emit
from lepton_edge.quant.grid import Grid, activation_grid
from lepton_edge.quant.net import Net, to_proto
from lepton_edge.quant.observe import Observer
from lepton_edge.quant.place import Placement, Site, float_tensors, place
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.search import distance, search
from lepton_edge.quant.solve import Effort, on_grid, solve
from lepton_edge.quant.spec import QuantSpec
from lepton_edge.quant.tap import Runner, Sample, each, finite, not_finite

Told = Callable[[int, int, str], None]
TYPICAL = 300_000_000  # MobileNetV2 at 224 x 224
LADDER = ("minmax", "ranges", "balance", "bias", "rounding")  # what the whole preset does, step by step
JUDGED = 16  # samples that tell the worst layers
ROWS = 64  # channel vectors taken from each sample of a stream


@dataclass(frozen=True)
class Preset:
    """How many samples each stage looks at (0: the stage is left out), and how weights are rounded.

    `searched` and `solved` are for a model of TYPICAL multiply-accumulates; see scaled().
    """

    observed: int
    based: int
    equalized: int
    searched: int
    solved: int
    positions: int = 64
    corrected: bool = True
    learned: bool = True
    refit: bool = True

    def scaled(self, macs: int) -> Preset:
        """More samples for the stages that run the model often where that is cheap, fewer where it is dear."""
        factor = min(max(TYPICAL / max(macs, 1), 1 / 3), 6.0)
        return replace(self, searched=round(self.searched * factor), solved=max(round(self.solved * factor), 16))

    def limited(self, rung: str) -> Preset:
        """The preset with no more than what a rung of LADDER and those below it do; see rescue."""
        at = LADDER.index(rung)
        made = self
        if at < LADDER.index("rounding"):
            made = replace(made, learned=False, refit=False)
        if at < LADDER.index("bias"):
            made = replace(made, corrected=False)
        if at < LADDER.index("balance"):
            made = replace(made, based=0, equalized=0)
        return replace(made, searched=0) if at < LADDER.index("ranges") else made


PRESETS = {
    "fast": Preset(48, based=24, equalized=24, searched=0, solved=16, positions=32, learned=False, refit=False),
    "default": Preset(observed=300, based=48, equalized=100, searched=32, solved=96),
    "best": Preset(observed=1000, based=100, equalized=200, searched=64, solved=200, positions=128),
}


@dataclass(frozen=True)
class Options:
    """`bits`: of weights (7 where U8S8 products saturate), of activations; `seed` of every random choice; `memory` in
    bytes for observed tensors. `wide` and `kept` are shares of the noise: the worst layers that make it read and write
    16 bits, or stay float. `whole`: nothing stays float that has an integer form."""

    preset: Preset = PRESETS["default"]
    weight_bits: int = 8
    activation_bits: int = 8
    signed: bool = False
    symmetric: bool = False
    ranges: str = "auto"
    seed: int = 0
    memory: int = 1 << 30
    wide: float = 0.0
    kept: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class Quantized:
    """`net` holds the corrected float weights that `spec` quantizes; `figures` are what was measured on the way."""

    net: Net
    spec: QuantSpec
    figures: dict = field(default_factory=dict)

    def proto(self) -> object:
        """The QDQ ModelProto."""
        return to_proto(written(self.net, self.spec))


def quantize(path: str, samples: Sequence[Sample], options: Options = Options(), told: Told | None = None) -> Quantized:
    """Quantize a float ONNX model with calibration samples {input: array}.

    Raises LeptonError for a file that cannot be prepared, for no samples, for a model with nothing to quantize, and for
    samples that hold NaN or do not fit.
    """
    tell = told or (lambda done, total, what: None)
    if not len(samples):
        raise LeptonError("no calibration samples", "give at least one; 100 to 500 are usual")
    net = prepare(path, 21 if options.activation_bits > 8 else 13)
    placement = place(net, whole=options.whole)
    if not placement.layers:
        raise LeptonError(
            f"{Path(path).name}: nothing in it can be quantized to int8",
            "it has no convolution or product with constant float32 weights; keep it float",
        )
    preset = options.preset.scaled(macs(net, placement))
    options = replace(options, preset=preset)
    trained = on_grid(net, placement, options.weight_bits)
    net, placement = balanced(net, placement, samples, left_alone(net, placement, trained, options))
    seen, growth = observed(net, placement, take(samples, preset.observed), options, tell)
    found = chosen(net, placement, seen, samples, options, tell)
    placement, grids = rescued(net, placement, found, samples, options, tell)
    effort = Effort(
        preset.positions,
        refit=preset.refit,
        learned=preset.learned,
        corrected=preset.corrected,
        bits=options.weight_bits,
        whole=trained,
    )
    solving = take(samples, preset.solved)
    made, weights = solve(
        net, placement, grids, solving, effort, lambda done, total: tell(done, total, "solving weights, layer")
    )
    spec = QuantSpec(placement, grids, weights)
    figures = {
        "layers": len(placement.layers),
        "sites": len(placement.sites),
        "observed": min(preset.observed, len(samples)),
        "growth": growth,
        "whole": len(trained),
        "sparse": sum(held.zeros(net.consts[y.weight]) is not None for y in placement.layers),
        "calibration_sqnr_db": decibels(distance_of(net, written(made, spec), take(solving, 32))),
    }
    return Quantized(made, spec, figures)


def written(net: Net, spec: QuantSpec) -> Net:
    """The QDQ net, with embedding tables as int8 by row, which costs no operator more than a small Cast and Mul."""
    made = emit(net, spec)
    found = weight_only.tables(net)
    return emit_weights.write(made, [], {}, found) if found else made


def macs(net: Net, placement: Placement) -> int:
    """Multiply-accumulates of the weighted layers for one sample; free axes count 1."""
    total = 0
    for layer in placement.layers:
        shape = net.shapes.get(layer.y) or ()
        places = shape[2:] if layer.op in ("Conv", "ConvTranspose") else shape[1:-1]
        total += net.consts[layer.weight].size * int(np.prod([d or 1 for d in places], dtype=np.int64))
    return total


def take(samples: Sequence[Sample], most: int) -> list[Sample] | Sequence[Sample]:
    """At most `most` samples, spread evenly."""
    if len(samples) <= most:
        return samples
    return Picked(samples, np.unique(np.linspace(0, len(samples) - 1, most).astype(int)))


class Picked(Sequence):
    """Some of the samples of another sequence, read when they are asked for."""

    def __init__(self, samples: Sequence[Sample], indices: np.ndarray) -> None:
        self._samples, self._indices = samples, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, k):  # type: ignore[no-untyped-def]
        if not -len(self) <= k < len(self):
            raise IndexError(k)
        return self._samples[int(self._indices[k])]


def balanced(net: Net, placement: Placement, samples: Sequence[Sample], options: Options) -> tuple[Net, Placement]:
    """A net of the same float outputs whose channels fill their grids better, and its placement."""
    preset = options.preset
    if placement.local and preset.equalized:
        bits = options.activation_bits, options.weight_bits
        made = smooth.smoothed(net, placement, take(samples, preset.equalized), bits, options.memory)
        return made, place(made)
    if preset.based:
        net = rebased(net, placement, take(samples, preset.based), options)
    if preset.equalized:
        net = equalized(net, placement, take(samples, preset.equalized), options.memory)
    return net, placement


def left_alone(net: Net, placement: Placement, trained: Collection[str], options: Options) -> Options:
    """The options without what would undo the weights' training: a scale for each input channel takes them off their
    grid, another basis also fills their zeros. It takes the greater part of the weights to ask for it."""
    sizes = {y.y: net.consts[y.weight].size for y in placement.layers}
    sparse = [y.y for y in placement.layers if held.zeros(net.consts[y.weight]) is not None]
    preset, half = options.preset, sum(sizes.values()) / 2
    if sum(sizes[y] for y in trained) > half:
        preset = replace(preset, based=0, equalized=0)
    elif sum(sizes[y] for y in sparse) > half:
        preset = replace(preset, based=0)
    return replace(options, preset=preset)


def rescued(
    net: Net,
    placement: Placement,
    found: dict[str, tuple[float, float]],
    samples: Sequence[Sample],
    options: Options,
    tell: Told,
) -> tuple[Placement, dict[str, Grid]]:
    """The placement and the grids by site, with the worst layers left in float or given 16-bit activations."""
    bits, symmetric, signed = options.activation_bits, options.symmetric, options.signed
    grids = {name: activation_grid(*pair, bits, symmetric, signed) for name, pair in found.items()}
    if not options.wide and not options.kept:
        return placement, grids
    told = sensitivity.measure(
        net, placement, grids, take(samples, JUDGED), weight_bits=options.weight_bits,
        told=lambda done, total: tell(done, total, "measuring which layers cost most"),
    )  # fmt: skip
    worst = worst_layers(told, max(options.wide, options.kept))
    if options.kept:
        placement = place(net, worst, options.whole)
        return placement, {site.name: grids[site.name] for site in placement.sites if site.name in grids}
    touched = {t for layer in placement.layers if layer.y in worst for t in (layer.x, layer.out)}
    for site in placement.sites:
        if touched & set(site.tensors):
            grids[site.name] = activation_grid(*found[site.name], 16, symmetric=True, signed=True)
    return placement, grids


def worst_layers(told: sensitivity.Sensitivity, share: float) -> frozenset[str]:
    """The fewest layers, by output, that answer for `share` of the noise."""
    chosen_, sum_ = [], 0.0
    shares = {y: part for y, part in told.shares().items() if y}
    for y, part in sorted(shares.items(), key=lambda item: -item[1]):
        chosen_.append(y)
        sum_ += part
        if sum_ >= share * sum(shares.values()):
            break
    return frozenset(chosen_)


def rebased(
    net: Net, placement: Placement, samples: Sequence[Sample], options: Options, basis: streams.Basis = streams.basis
) -> Net:
    """A copy with every linear residual stream in another basis, by default the one that quantizes best."""
    found = streams.find(net, placement)
    of = {tensor: k for k, stream in enumerate(found) for tensor in stream.tensors}
    rngs = [np.random.default_rng((options.seed, k)) for k in range(len(found))]
    rows: list[list[np.ndarray]] = [[] for _ in found]

    def take_rows(name: str, value: np.ndarray) -> None:
        k = of[name]
        rows[k].append(finite(name, streams.vectors(found[k], value, ROWS, rngs[k])))

    each(net, list(of), samples, take_rows, budget=options.memory)
    made = net.copy()
    for stream, taken in zip(found, rows, strict=True):
        streams.change(made, stream, basis(made, stream, np.concatenate(taken), options.seed))
    return made


def equalized(net: Net, placement: Placement, samples: Sequence[Sample], memory: int) -> Net:
    """A copy with the channels of every other family of tensors brought nearer to one range."""
    linear = {tensor for stream in streams.find(net, placement) for tensor in stream.tensors}
    families = equalize.find(net, placement, skip=linear)
    peaks = equalize.extremes(net, families, samples, memory)
    made = net.copy()
    sites = set(float_tensors(placement))
    for family in families:
        equalize.scale(made, family, equalize.factors(family, peaks, sites))
    return made


def observed(
    net: Net, placement: Placement, samples: Sequence[Sample], options: Options, tell: Told
) -> tuple[dict[str, Observer], dict[str, float]]:
    """What each site's tensors hold, and how much its range still grew in the second half of the samples (a share)."""
    site_of = {tensor: site.name for site in placement.sites for tensor in site.tensors}
    seen = {site.name: Observer() for site in placement.sites}
    counts = dict.fromkeys(site_of, 0)
    early: dict[str, tuple[float, float]] = {}

    def note(tensor: str, value: np.ndarray) -> None:
        name = site_of[tensor]
        try:
            low, high = seen[name].add(value)
        except ValueError as error:
            raise not_finite(tensor) from error
        counts[tensor] += 1
        if counts[tensor] <= len(samples) // 2:
            first = early.get(name, (low, high))
            early[name] = min(first[0], low), max(first[1], high)

    each(
        net, list(site_of), samples, note, budget=options.memory,
        told=lambda done: tell(done, len(samples), "calibration samples"),
    )  # fmt: skip
    growth = {
        name: (seen[name].high - seen[name].low) / (high - low) - 1 for name, (low, high) in early.items() if high > low
    }
    return seen, growth


def chosen(
    net: Net,
    placement: Placement,
    seen: dict[str, Observer],
    samples: Sequence[Sample],
    options: Options,
    tell: Told,
) -> dict[str, tuple[float, float]]:
    """The range of each site: by one method, or the measured error ("auto") starting from the least squared one."""
    method = "mse" if options.ranges == "auto" else options.ranges
    start = {site.name: _start(site, seen[site.name], method, options.activation_bits) for site in placement.sites}
    if options.ranges != "auto" or not options.preset.searched:
        return start
    widest = {site.name: _start(site, seen[site.name], "minmax", options.activation_bits) for site in placement.sites}
    found = search(
        net, placement, start, widest, list(take(samples, options.preset.searched)), bits=options.activation_bits,
        told=lambda done, total: tell(done, total, "measuring ranges, tensor"),
    )  # fmt: skip
    return {name: pair for name, (pair, _) in found.items()}


def _start(site: Site, observer: Observer, method: str, bits: int) -> tuple[float, float]:
    if site.fixed is not None:
        return site.fixed
    low, high = ranges.choose(observer, method, bits)
    if site.limits is not None:
        low, high = max(low, site.limits[0]), min(high, site.limits[1])
    return low, high


def distance_of(net: Net, made: Net, samples: Sequence[Sample]) -> float:
    """Noise over power of a quantized net's outputs against the float net's."""
    before, after = Runner(net), Runner(made, net.outputs)
    pairs = [(before.run(sample), after.run(sample)) for sample in samples]
    return distance([a for a, _ in pairs], [b for _, b in pairs])


def decibels(noise: float) -> float:
    """The SQNR of noise over power, two decimals."""
    return round(-10 * float(np.log10(max(noise, 1e-30))), 2)
