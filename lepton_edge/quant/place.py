"""What is quantized and where: weighted layers, activation sites, and which of them share a grid.

The rules follow what the integer kernels of ONNX Runtime, TFLite and OpenVINO fuse: a quantizer stands after the
activation function, not between it and its layer; operators that only move values keep one grid on both sides;
residual sums are integer; what no runtime has integer kernels for stays float between two sites.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.quant.net import Net, attribute

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
COMPUTES = {"Add", "Sub", "Mul", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "MatMul", "ReduceMean"}
MOVES = {
    "MaxPool", "GlobalMaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Gather",
    "Pad", "Resize", "Identity", "Expand", "Tile", "DepthToSpace", "SpaceToDepth", "Dropout",
}  # fmt: skip
ACTIVATIONS = {"Relu", "Clip"}
FIXED = {"Sigmoid": (0.0, 255 / 256), "Softmax": (0.0, 255 / 256), "Tanh": (-1.0, 127 / 128)}
FLOAT = 1


@dataclass(frozen=True)
class Layer:
    """A node with constant weights: reads `x`, gives `y`; `out` is `y` after a fused activation.

    `axis` is that of the output channels in the weight (None: one scale for the whole), `bias` its constant or "".
    """

    node: str
    op: str
    x: str
    weight: str
    bias: str
    y: str
    out: str
    axis: int | None
    group: int = 1


@dataclass(frozen=True)
class Site:
    """Activation tensors on one grid. `limits` is what a Clip or Relu leaves; `fixed` a range kernels prescribe."""

    tensors: tuple[str, ...]
    limits: tuple[float, float] | None = None
    fixed: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        return self.tensors[0]


@dataclass(frozen=True)
class Placement:
    """`layers` and `sites` in graph order. `local`: a site's grid is only for the integer readers of its tensors, whose
    other readers get float; `constants` are the constant operands of integer sums and products."""

    layers: tuple[Layer, ...]
    sites: tuple[Site, ...]
    constants: tuple[str, ...]
    local: bool
    integer: frozenset[str]  # names (first outputs) of nodes that compute in integers


def place(net: Net, kept: Collection[str] = (), whole: bool = False) -> Placement:
    """Decide for a prepared net. With attention only weighted layers are integer: the rest loses more than it gains.

    Layers with an output in `kept` stay float. `whole` is for hardware without float: softmax, tanh and what gives the
    model's outputs are integer as well, though there they only lose.
    """
    attention = has_attention(net)
    layers = tuple(layer for node in net.nodes if node.output[0] not in kept and (layer := _layer(net, node)))
    integer = {layer.y for layer in layers}
    wanted: dict[str, None] = {}
    constants: dict[str, None] = {}
    if attention:
        wanted = dict.fromkeys(layer.x for layer in layers)
        return Placement(layers, tuple(Site((t,), fixed=None) for t in wanted), (), True, frozenset(integer))
    groups = _Groups()
    inner = {layer.y for layer in layers if layer.out != layer.y}
    for node in net.nodes:
        out = node.output[0]
        if out in integer:
            layer = next(item for item in layers if item.y == out)
            wanted[layer.x] = wanted[layer.out] = None
            continue
        data = _data(net, node) if out not in kept else None
        if data is None:
            continue
        if node.op_type in MOVES or node.op_type == "Concat":
            outs = [o for o in node.output if o and net.dtypes.get(o, FLOAT) == FLOAT]
            if not (node.op_type == "Concat" and any(t in net.consts for t in data)):
                integer.add(out)
                for tensor in (*data, *outs):
                    groups.join(data[0], tensor)
        elif node.op_type in COMPUTES | (set(FIXED) if whole else set()) and (whole or not _last(net, node)):
            integer.add(out)
            after = _activated(net, out)
            if after != out:
                inner.add(out)
            wanted[after] = None
            for tensor in data:
                (constants if tensor in net.consts else wanted)[tensor] = None
    # Moves take part where they touch a tensor that is quantized anyway.
    anchored = {groups.root(t) for t in wanted}
    for node in net.nodes:
        if node.op_type in MOVES | {"Concat"} and node.output[0] in integer:
            if groups.root(node.output[0]) in anchored:
                wanted.update(dict.fromkeys(t for t in (*node.input, *node.output) if groups.has(t)))
            else:
                integer.discard(node.output[0])
    for tensor in inner | set(net.consts):
        wanted.pop(tensor, None)
    order = {t: k for k, t in enumerate([*net.inputs, *(o for n in net.nodes for o in n.output)])}
    tied: dict[str, list[str]] = {}
    for tensor in sorted(wanted, key=lambda t: order.get(t, -1)):
        tied.setdefault(groups.root(tensor), []).append(tensor)
    sites = tuple(_site(net, tensors) for tensors in tied.values())
    return Placement(layers, sites, tuple(constants), False, frozenset(integer))


def _site(net: Net, tensors: list[str]) -> Site:
    """Limits hold where every member that is computed is limited; a prescribed range wins."""
    limits, fixed = [], None
    for tensor in tensors:
        maker = net.makers.get(tensor)
        if maker is not None and maker.op_type in FIXED:
            fixed = FIXED[maker.op_type]
        if maker is None or maker.op_type not in MOVES | {"Concat"}:
            limits.append(clip_limits(net, maker) if maker is not None else None)
    known = [pair for pair in limits if pair is not None]
    both = (min(p[0] for p in known), max(p[1] for p in known)) if known and len(known) == len(limits) else None
    return Site(tuple(tensors), both, fixed if len(limits) == 1 else None)


def clip_limits(net: Net, node: Any) -> tuple[float, float] | None:
    """What the output of a Relu or Clip lies in; None for other nodes and computed limits."""
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    names = [node.input[k] if len(node.input) > k else "" for k in (1, 2)]
    if any(name and name not in net.consts for name in names):
        return None
    low, high = (float(net.consts[name]) if name else None for name in names)
    return (-float("inf") if low is None else low), (float("inf") if high is None else high)


def _layer(net: Net, node: Any) -> Layer | None:
    if node.op_type not in WEIGHTED or len(node.input) < 2 or node.domain not in ("", "ai.onnx"):
        return None
    x, weight = node.input[0], node.input[1]
    array = net.consts.get(weight)
    if array is None or x in net.consts or array.dtype != np.float32 or not array.size or not np.isfinite(array).all():
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and bias not in net.consts:
        return None
    group = int(attribute(node, "group", 1))
    if node.op_type == "Conv":
        axis: int | None = 0
    elif node.op_type == "ConvTranspose":
        axis = 1 if group == 1 else None
    elif node.op_type == "Gemm":
        if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1:
            return None
        axis = 0 if attribute(node, "transB", 0) else 1
    elif array.ndim == 2:
        axis = 1
    else:
        return None
    y = node.output[0]
    return Layer(node.name, node.op_type, x, weight, bias, y, _activated(net, y), axis, group)


def _activated(net: Net, tensor: str) -> str:
    """The tensor after the Relu or Clip that alone reads `tensor`, or `tensor` itself."""
    user = net.alone(tensor)
    if user is not None and user.op_type in ACTIVATIONS and user.input[0] == tensor and clip_limits(net, user):
        return user.output[0]
    return tensor


def _data(net: Net, node: Any) -> list[str] | None:
    """The float tensors that a node computes on; None where they aren't all float32."""
    count = len(node.input) if node.op_type in ("Add", "Sub", "Mul", "Concat", "MatMul") else 1
    names = list(node.input)[:count]
    for name in names:
        if name in net.consts:
            if net.consts[name].dtype != np.float32:
                return None
        elif net.dtypes.get(name) != FLOAT:
            return None
    return names if names and not all(n in net.consts for n in names) else None


def _last(net: Net, node: Any) -> bool:
    """A Sigmoid whose only reader is the caller: in integers it would only lose."""
    return node.op_type in FIXED and node.output[0] in net.outputs


def has_attention(net: Net) -> bool:
    """A Softmax whose result goes into a product of two computed tensors, or an attention operator."""
    todo = [n for n in net.nodes if n.op_type == "Softmax"]
    seen: set[str] = set()
    passes = {"Dropout", "Cast", "Reshape", "Transpose", "Where", "Identity", "Mul"}
    while todo:
        node = todo.pop()
        for user in (u for out in node.output for u in net.users.get(out, ())):
            if user.op_type == "MatMul" and not net.consts.keys() & set(user.input):
                return True
            if user.op_type in passes and user.output[0] not in seen:
                seen.add(user.output[0])
                todo.append(user)
    return any("Attention" in n.op_type for n in net.nodes)


class _Groups:
    """Union-find over tensor names."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def has(self, name: str) -> bool:
        return name in self._parent

    def root(self, name: str) -> str:
        while self._parent.get(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        self._parent.setdefault(a, a)
        self._parent.setdefault(b, b)
        self._parent[self.root(b)] = self.root(a)


def float_tensors(placement: Placement) -> Iterable[str]:
    """Every tensor whose range has to be observed."""
    return dict.fromkeys(t for site in placement.sites for t in site.tensors)
