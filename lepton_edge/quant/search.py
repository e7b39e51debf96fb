"""Ranges by the error that is measured at the outputs: what a site's grid costs there, the rest of the net in float.

A tensor's own error does not tell what its values are worth: clipping half of the range can gain or lose 10 dB at the
outputs. A site's quantizer is put into the float net with its scale as an input, so one session tries all ranges; the
range shrinks from the extremes as long as that helps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lepton_edge.quant.grid import activation_grid
from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Placement, Site
from lepton_edge.quant.tap import Runner, Sample

STEP = 0.84  # ratio of neighbouring ranges
PATIENCE = 2  # worse steps before a search ends
LEAST = 0.05  # of the widest range


def search(
    net: Net,
    placement: Placement,
    ranges: Mapping[str, tuple[float, float]],
    widest: Mapping[str, tuple[float, float]],
    samples: Sequence[Sample],
    *,
    bits: int = 8,
    told: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[tuple[float, float], float]]:
    """For each site by name the best range and its error: noise over power at the outputs, averaged over them.

    `ranges` are where each search starts, `widest` what it never goes beyond. A site with a range that kernels
    prescribe keeps it.
    """
    runner = Runner(net)
    expected = [runner.run(sample) for sample in samples]
    found = {}
    for k, site in enumerate(placement.sites):
        found[site.name] = _site(net, site, ranges[site.name], widest[site.name], samples, expected, bits)
        if told:
            told(k + 1, len(placement.sites))
    return found


def _site(
    net: Net,
    site: Site,
    start: tuple[float, float],
    widest: tuple[float, float],
    samples: Sequence[Sample],
    expected: Sequence[Sequence[np.ndarray]],
    bits: int,
) -> tuple[tuple[float, float], float]:
    probe = _probe(net, site)
    runner = Runner(probe, net.outputs)

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
        while worse < PATIENCE and LEAST < factor <= 1 / STEP**3:
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
    made.base = base
    made.inputs = [*made.inputs, "lepton_scale", "lepton_zero"]
    nodes = list(made.nodes)
    for tensor in site.tensors:
        if tensor not in made.users and tensor not in made.outputs:
            continue
        source, back, readers = tensor, f"{tensor}_probed", made.users.get(tensor, [])
        if tensor in made.outputs:
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
