"""Residual streams without activation function: any invertible change of basis of their channels is exact.

Tensors that sums link, written by linear layers and read by layers, may be seen in another basis T: writers become
T W, T b, readers W T^-1. The basis is chosen so that one grid for the whole tensor hurts least. With C = E[x x^T] of
the stream and M = sum W^T W of its readers, quantization noise of equal variance in all channels costs
tr(T^-1 T^-T M), and what the grid must cover grows with tr(T C T^T); their product is least for
T^T T = C^-1 # M, the geometric mean of the two matrices. An orthogonal mix then spreads outliers over all channels, as
in QuaRot (Ashkboos et al., arXiv:2404.00456); the one of several that needs the least range is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lepton_edge.quant.net import Net
from lepton_edge.quant.place import Layer, Placement
from lepton_edge.quant.prepare import set_bias

LINEAR = {"Add", "AveragePool", "GlobalAveragePool"}
TRIES = 8
Basis = Callable[[Net, "Stream", np.ndarray, int], np.ndarray]
FLOOR = 1e-4  # of the largest eigenvalue: directions with less signal are not blown up further


@dataclass(frozen=True)
class Stream:
    """Linked tensors, [batch, channels, ...], with the layers that write and read them."""

    tensors: tuple[str, ...]
    writers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    channels: int


def find(net: Net, placement: Placement) -> list[Stream]:
    """All streams whose basis is free: every writer and reader is a layer, linear between."""
    by_y = {layer.y: layer for layer in placement.layers if layer.out == layer.y}
    by_x: dict[str, list[Layer]] = {}
    for layer in placement.layers:
        by_x.setdefault(layer.x, []).append(layer)
    seen: set[str] = set()
    found = []
    for start in by_y:
        if start in seen:
            continue
        stream = _walk(net, start, by_y, by_x)
        if stream is not None:
            seen.update(stream.tensors)
            found.append(stream)
    return found


def _walk(net: Net, start: str, by_y: dict[str, Layer], by_x: dict[str, list[Layer]]) -> Stream | None:
    todo = [start]
    tensors: dict[str, None] = {}
    writers: dict[str, Layer] = {}
    readers: dict[str, Layer] = {}
    while todo:
        tensor = todo.pop()
        if tensor in tensors:
            continue
        tensors[tensor] = None
        maker = net.makers.get(tensor)
        if tensor in net.outputs or maker is None:
            return None
        if tensor in by_y:
            if not _plain(net, by_y[tensor]) or (by_y[tensor].op == "Conv") != (by_y[start].op == "Conv"):
                return None
            writers[tensor] = by_y[tensor]
        elif maker.op_type in LINEAR:
            sides = list(maker.input)[: 2 if maker.op_type == "Add" else 1]
            if any(side in net.consts for side in sides):
                return None
            if maker.op_type == "Add" and len({net.shapes.get(s) for s in sides}) != 1:
                return None
            todo += sides
        else:
            return None
        for user in net.users.get(tensor, []):
            layer = next((item for item in by_x.get(tensor, []) if item.y == user.output[0]), None)
            if layer is not None and _plain(net, layer):
                readers[layer.y] = layer
            elif user.op_type in LINEAR:
                todo.append(user.output[0])
            else:
                return None
    first = next(iter(writers.values()))
    channels = net.consts[first.weight].shape[0 if first.axis == 0 else 1]
    pools = LINEAR - {"Add"}
    if not readers or channels < 2 or (first.op != "Conv" and any(net.makers[t].op_type in pools for t in tensors)):
        return None
    return Stream(tuple(tensors), tuple(writers.values()), tuple(readers.values()), channels)


def _plain(net: Net, layer: Layer) -> bool:
    return layer.op in ("Conv", "Gemm", "MatMul") and layer.group == 1 and net.private(layer.weight)


def vectors(stream: Stream, value: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """At most `most` channel vectors [positions, channels] of one tensor's value."""
    rows = np.moveaxis(value, 1, -1).reshape(-1, stream.channels) if value.ndim > 2 else value
    rows = rows.reshape(-1, stream.channels)
    return rows if len(rows) <= most else rows[rng.choice(len(rows), most, replace=False)]


def basis(net: Net, stream: Stream, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """T [channels, channels] for a stream, from its vectors `rows` [positions, channels]."""
    rng = np.random.default_rng(seed)
    rows = rows.astype(np.float64)
    root = _geometric_root(rows.T @ rows / len(rows), _cost(net, stream))
    mixed = rows @ root.T
    best, kept = np.inf, root
    for _ in range(TRIES):
        turn, _ = np.linalg.qr(rng.standard_normal(root.shape))
        seen = mixed @ turn.T
        span = float(seen.max() - seen.min())
        if span < best:
            best, kept = span, turn @ root
    return kept


def principal(net: Net, stream: Stream, rows: np.ndarray, seed: int = 0) -> np.ndarray:
    """T [channels, channels] whose channels are uncorrelated and matter to readers as much as they vary, most first.

    With M = sum W^T W and the covariance C, T = V^T M^1/2 for the eigenvectors V of M^1/2 C M^1/2: removing channels is
    then what costs the readers least of all subspaces (as SliceGPT does, Ashkboos et al., arXiv:2401.15024, there
    without M).
    """
    rows = rows.astype(np.float64)
    root = _power(_floored(_cost(net, stream)), 0.5)
    return np.linalg.eigh(root @ np.cov(rows, rowvar=False, bias=True) @ root)[1].T[::-1] @ root


def _cost(net: Net, stream: Stream) -> np.ndarray:
    """M [channels, channels]: what an error of the stream costs the outputs of its readers."""
    return np.asarray(sum(np.einsum("oif,ojf->ij", w, w) for w in (_reads(net, layer) for layer in stream.readers)))


def _reads(net: Net, layer: Layer) -> np.ndarray:
    """A reader's weight as [outputs, channels, kernel]."""
    w = net.consts[layer.weight].astype(np.float64)
    if layer.op == "Conv":
        return w.reshape(*w.shape[:2], -1)
    return (w if layer.axis == 0 else w.T)[:, :, None]


def _geometric_root(c: np.ndarray, m: np.ndarray) -> np.ndarray:
    """A symmetric T with T T = C^-1 # M = C^-1/2 (C^1/2 M C^1/2)^1/2 C^-1/2."""
    c, m = _floored(c), _floored(m)
    half, inverse = _power(c, 0.5), _power(c, -0.5)
    return _power(inverse @ _power(half @ m @ half, 0.5) @ inverse, 0.5)


def _floored(a: np.ndarray) -> np.ndarray:
    return a + FLOOR * max(float(np.linalg.eigvalsh(a)[-1]), 1e-30) * np.eye(len(a))


def _power(a: np.ndarray, exponent: float) -> np.ndarray:
    values, vectors_ = np.linalg.eigh((a + a.T) / 2)
    values = np.maximum(values, 1e-12 * values[-1])
    return (vectors_ * values**exponent) @ vectors_.T


def change(net: Net, stream: Stream, t: np.ndarray) -> None:
    """Write the basis into the weights of a stream's writers and readers."""
    inverse = np.linalg.inv(t)
    for layer in stream.writers:
        w = net.consts[layer.weight].astype(np.float64)
        made = np.tensordot(t, w, axes=(1, 0)) if layer.op == "Conv" or layer.axis == 0 else w @ t.T
        net.consts[layer.weight] = made.astype(np.float32)
        if layer.bias:
            set_bias(net, net.makers[layer.y], (t @ net.consts[layer.bias].astype(np.float64)).astype(np.float32))
    for layer in stream.readers:
        w = net.consts[layer.weight].astype(np.float64)
        if layer.op == "Conv":
            made = np.moveaxis(np.tensordot(w, inverse, axes=(1, 0)), -1, 1)
        else:
            made = w @ inverse if layer.axis == 0 else inverse.T @ w
        net.consts[layer.weight] = made.astype(np.float32)
    net.link()
