"""The whole quantization on one screen: an ONNX file and samples in, a QuantSpec and the net it belongs to out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant import equalize, ranges, streams
from lepton_edge.quant.emit import emit
from lepton_edge.quant.grid import Grid, activation_grid
from lepton_edge.quant.net import Net
from lepton_edge.quant.observe import Observer
from lepton_edge.quant.place import Placement, Site, float_tensors, place
from lepton_edge.quant.prepare import prepare
from lepton_edge.quant.search import distance, search
from lepton_edge.quant.solve import Effort, solve
from lepton_edge.quant.spec import QuantSpec
from lepton_edge.quant.tap import Runner, Sample, each

Told = Callable[[int, int, str], None]
ROWS = 64  # channel vectors taken from each sample of a stream


@dataclass(frozen=True)
class Preset:
    """How many samples each stage looks at (0: the stage is left out), and how weights are rounded."""

    observed: int
    based: int
    equalized: int
    searched: int
    solved: int
    positions: int = 64
    learned: bool = True
    refit: bool = True


PRESETS = {
    "fast": Preset(observed=48, based=24, equalized=24, searched=0, solved=24, positions=32, learned=False),
    "default": Preset(observed=300, based=48, equalized=100, searched=24, solved=64),
    "best": Preset(observed=1000, based=100, equalized=200, searched=64, solved=200, positions=128),
}


@dataclass(frozen=True)
class Options:
    """`bits`: of weights (7 where U8S8 products saturate), of activations; `seed` of every random choice."""

    preset: Preset = PRESETS["default"]
    weight_bits: int = 8
    activation_bits: int = 8
    signed: bool = False
    symmetric: bool = False
    ranges: str = "auto"
    seed: int = 0
    memory: int = 1 << 30


@dataclass(frozen=True)
class Quantized:
    """`net` holds the corrected float weights that `spec` quantizes; `figures` are what was measured on the way."""

    net: Net
    spec: QuantSpec
    figures: dict = field(default_factory=dict)

    def proto(self) -> object:
        """The QDQ ModelProto."""
        from lepton_edge.quant.net import to_proto

        return to_proto(emit(self.net, self.spec))


def quantize(path: str, samples: Sequence[Sample], options: Options = Options(), told: Told | None = None) -> Quantized:
    """Quantize a float ONNX model with calibration samples {input: array}.

    Raises LeptonError for a file that cannot be prepared, for no samples, for a model with nothing to quantize, and for
    samples that hold NaN or do not fit.
    """
    tell = told or (lambda done, total, what: None)
    if not len(samples):
        raise LeptonError("no calibration samples", "give at least one; 100 to 500 are usual")
    net = prepare(path, 21 if options.activation_bits > 8 else 13)
    placement = place(net)
    if not placement.layers:
        raise LeptonError(
            f"{Path(path).name}: nothing in it can be quantized to int8",
            "it has no convolution or product with constant float32 weights; keep it float",
        )
    preset = options.preset
    if not placement.local:
        net = rebased(net, placement, take(samples, preset.based), options.seed)
        net = equalized(net, placement, take(samples, preset.equalized))
    seen = observed(net, placement, take(samples, preset.observed), options, tell)
    found = chosen(net, placement, seen, samples, options, tell)
    grids = {
        name: activation_grid(*pair, options.activation_bits, options.symmetric, options.signed)
        for name, pair in found.items()
    }
    effort = Effort(preset.positions, refit=preset.refit, learned=preset.learned, bits=options.weight_bits)
    solving = take(samples, preset.solved)
    made, weights = solve(
        net, placement, grids, solving, effort, lambda done, total: tell(done, total, "solving weights, layer")
    )
    spec = QuantSpec(placement, grids, weights)
    error = error_of(path_net=net, made=made, spec=spec, samples=take(samples, 32))
    figures = {
        "layers": len(placement.layers),
        "sites": len(placement.sites),
        "calibration_sqnr_db": round(-10 * float(np.log10(max(error, 1e-30))), 2),
    }
    return Quantized(made, spec, figures)


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


def rebased(net: Net, placement: Placement, samples: Sequence[Sample], seed: int) -> Net:
    """A copy with every linear residual stream in the basis that quantizes best."""
    made = net.copy()
    for stream in streams.find(net, placement):
        streams.change(made, stream, streams.basis(made, stream, _rows(net, stream, samples, seed), seed))
    return made


def _rows(net: Net, stream: streams.Stream, samples: Sequence[Sample], seed: int) -> np.ndarray:
    """Channel vectors [positions, channels] of a stream's tensors."""
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    each(net, stream.tensors, samples, lambda _, value: rows.append(streams.vectors(stream, value, ROWS, rng)))
    return np.concatenate(rows)


def equalized(net: Net, placement: Placement, samples: Sequence[Sample]) -> Net:
    """A copy with the channels of every other family of tensors brought nearer to one range."""
    linear = {tensor for stream in streams.find(net, placement) for tensor in stream.tensors}
    families = equalize.find(net, placement, skip=linear)
    peaks = equalize.extremes(net, families, samples)
    made = net.copy()
    sites = set(float_tensors(placement))
    for family in families:
        equalize.scale(made, family, equalize.factors(family, peaks, sites))
    return made


def observed(
    net: Net, placement: Placement, samples: Sequence[Sample], options: Options, tell: Told
) -> dict[str, Observer]:
    """What each site's tensors hold, by the site's name."""
    site_of = {tensor: site.name for site in placement.sites for tensor in site.tensors}
    seen = {site.name: Observer() for site in placement.sites}

    def note(tensor: str, value: np.ndarray) -> None:
        try:
            seen[site_of[tensor]].add(value)
        except ValueError as error:
            raise LeptonError(
                f"tensor '{tensor}' {error} for a calibration sample", "check the samples and their preprocessing"
            ) from error

    each(
        net, list(site_of), samples, note, budget=options.memory,
        told=lambda done: tell(done, len(samples), "calibration samples"),
    )  # fmt: skip
    return seen


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


def error_of(*, path_net: Net, made: Net, spec: QuantSpec, samples: Sequence[Sample]) -> float:
    """Noise over power of the quantized net's outputs against the float net's."""
    before, after = Runner(path_net), Runner(emit(made, spec), path_net.outputs)
    pairs = [(before.run(sample), after.run(sample)) for sample in samples]
    return distance([a for a, _ in pairs], [b for _, b in pairs])


def grid_table(spec: QuantSpec) -> dict[str, Grid]:
    """The grid of every quantized activation tensor by its name."""
    return {t: spec.activations[s.name] for s in spec.placement.sites if s.name in spec.activations for t in s.tensors}
