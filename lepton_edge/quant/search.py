"""Ranges by the error that is measured at the outputs: what a site's grid costs there, the rest of the net in float.

A tensor's own error does not tell what its values are worth: clipping half of the range can gain or lose 10 dB at the
outputs. A site's quantizer is put into the float net with its scale as an input, so one session tries all ranges; the
range shrinks from the start as long as that helps. Only the net from the site's segment on is run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lepton_edge.quant.grid import activation_grid
from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Placement, Site
from lepton_edge.quant.segments import Kept, Segment, cut, run_all, sub_net
from lepton_edge.quant.tap import Runner, Sample

STEP = 0.84  # ratio of neighbouring ranges
PATIENCE = 2  # worse steps before a search ends
LEAST = 0.05  # of the start

Range = tuple[float, float]


def search(
    net: Net,
    placement: Placement,
    ranges: Mapping[str, Range],
    widest: Mapping[str, Range],
    samples: Sequence[Sample],
    *,
    bits: int = 8,
    told: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[Range, float]]:
    """For each site by name the best range and its error: noise over power at the outputs, averaged over them.

    `ranges` are where each search starts, `widest` what it never goes beyond. A site with a range that kernels
    prescribe keeps it.
    """
    found: dict[str, tuple[Range, float]] = {}
    ends = measured(net)
    runner = Runner(net, ends)
    expected = [runner.run(sample) for sample in samples]
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        for tail, sites, entering in _tails(net, ends, placement, samples, Path(folder)):
            for site in sites:
                found[site.name] = _site(
                    tail, ends, site, ranges[site.name], widest[site.name], entering, expected, bits
                )
                if told:
                    told(len(found), len(placement.sites))
    return found


def measured(net: Net) -> list[str]:
    """Where errors are measured: the outputs, or what goes into a Softmax or Sigmoid that makes one.

    Probabilities near 0 and 1 hide what a model would answer to other samples.
    """
    makers = (net.makers.get(name) for name in net.outputs)
    squashes = ("Softmax", "LogSoftmax", "Sigmoid")
    return [
        maker.input[0] if maker is not None and maker.op_type in squashes and maker.input[0] not in net.inputs else name
        for name, maker in zip(net.outputs, makers, strict=True)
    ]


def _tails(
    net: Net, ends: Sequence[str], placement: Placement, samples: Sequence[Sample], folder: Path
) -> Iterator[tuple[Net, list[Site], Sequence[Sample] | Kept]]:
    """The net from each segment on, the sites that begin in the segment, and the samples that enter it."""
    made_by = {out: k for k, node in enumerate(net.nodes) for out in node.output}
    entering: Sequence[Sample] | Kept = samples
    for k, segment in enumerate(cut(net, placement)):
        first = -1 if segment.first == 0 else segment.first
        starts = {s.name: min(made_by.get(t, -1) for t in s.tensors) for s in placement.sites}
        sites = [s for s in placement.sites if first <= starts[s.name] < segment.last]
        rest = Segment(segment.first, len(net.nodes), segment.takes, tuple(ends), ())
        if sites:
            yield sub_net(net, rest), sites, entering
        after = Kept(folder / str(k), segment.gives)
        if segment.last < len(net.nodes):
            run_all(sub_net(net, segment), entering, after)
        if isinstance(entering, Kept):
            entering.drop()
        entering = after


def _site(
    net: Net,
    ends: Sequence[str],
    site: Site,
    start: Range,
    widest: Range,
    samples: Sequence[Sample] | Kept,
    expected: Sequence[Sequence[np.ndarray]],
    bits: int,
) -> tuple[Range, float]:
    probe = _probe(net, site, bits)
    back = {t: f"{t}_probed" for t in site.tensors if any(f"{t}_probed" in n.output for n in probe.nodes)}
    runner = Runner(probe, [back.get(name, name) for name in ends])

    def error(low: float, high: float) -> float:
        grid = activation_grid(low, high, bits)
        fed = {
            "lepton_scale": grid.scale.reshape(()),
            "lepton_zero": grid.zero.astype(np.uint8 if bits <= 8 else np.uint16).reshape(()),
        }
        return distance(expected, [runner.run({**sample, **fed}) for sample in samples])

    low, high = start
    best, kept = error(low, high), start
    if site.fixed is not None or high <= low:
        return kept, best
    for direction in (STEP, 1 / STEP):
        factor, worse, moved = direction, 0, False
        while worse < PATIENCE and factor > LEAST:
            tried = max(low * factor, widest[0]), min(high * factor, widest[1])
            if tried == kept:
                break
            cost = error(*tried)
            if cost < best:
                best, kept, worse, moved = cost, tried, 0, True
            else:
                worse += 1
            factor *= direction
        if moved:
            break
    return kept, best


def distance(expected: Sequence[Sequence[np.ndarray]], got: Sequence[Sequence[np.ndarray]]) -> float:
    """Noise over power, averaged over the outputs so that none outweighs another by its scale."""
    shares = []
    for port in range(len(expected[0])):
        wanted = [np.asarray(values[port], np.float64) for values in expected]
        noise = sum(float(((a - b[port]) ** 2).sum()) for a, b in zip(wanted, got, strict=True))
        power = sum(float((a**2).sum()) for a in wanted)
        shares.append(noise / power if power else noise)
    return sum(shares) / len(shares)


def _probe(net: Net, site: Site, bits: int = 8) -> Net:
    """The float net with one site's tensors quantized and dequantized, scale and zero point as inputs."""
    from onnx import TensorProto, helper

    made = net.copy()
    base = type(made.base)()
    base.CopyFrom(made.base)
    kind = TensorProto.UINT8 if bits <= 8 else TensorProto.UINT16
    base.graph.input.append(helper.make_tensor_value_info("lepton_scale", TensorProto.FLOAT, []))
    base.graph.input.append(helper.make_tensor_value_info("lepton_zero", kind, []))
    if bits > 8:
        for item in base.opset_import:
            if item.domain in ("", "ai.onnx"):
                item.version = max(item.version, 21)
        base.ir_version = max(base.ir_version, 10)
    made.base = base
    made.inputs = [*made.inputs, "lepton_scale", "lepton_zero"]
    nodes = list(made.nodes)
    for tensor in site.tensors:
        if tensor not in made.users and tensor not in made.outputs:
            continue
        source, back, readers = tensor, f"{tensor}_probed", made.users.get(tensor, [])
        if tensor in made.outputs:
            if tensor not in made.makers:
                continue
            source, back = f"{tensor}_unprobed", tensor
            maker = made.makers[tensor]
            maker.output[list(maker.output).index(tensor)] = source
        else:
            for reader in readers:
                for k, name in enumerate(reader.input):
                    if name == tensor:
                        reader.input[k] = back
        q = helper.make_node("QuantizeLinear", [source, "lepton_scale", "lepton_zero"], [f"{tensor}_integer"])
        d = helper.make_node("DequantizeLinear", [f"{tensor}_integer", "lepton_scale", "lepton_zero"], [back])
        at = next((i + 1 for i, n in enumerate(nodes) if source in n.output), 0)
        nodes[at:at] = [q, d]
    made.nodes = nodes
    made.link()
    return made
