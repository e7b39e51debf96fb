"""Patterns TFLite has one operator for.

- x * HardSigmoid(x), x * Clip(x + 3, 0, 6) / 6        -> HardSwish
- x / 2 * (1 + Erf(x / sqrt 2)), and the tanh form       -> Gelu
- Conv, ConvTranspose, Gemm + BatchNormalization         -> one with other weights
- MatMul with a constant matrix + a constant row         -> MatMul with a bias
- Relu, Clip(0, 6), Clip(-1, 1) behind an operator       -> its fused activation
"""

from __future__ import annotations

import math

import numpy as np

from lepton_edge.tflite_writer.fold import sweep
from lepton_edge.tflite_writer.graph import Graph, Node

_CLIPS = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}
_TAKES_ACTIVATION = {"Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "MaxPool", "AveragePool"}


def fuse(graph: Graph) -> None:
    """Applies every rule in place."""
    for rule in (hard_swish, gelu, batch_norm, matmul_bias, activations):
        rule(graph)
        sweep(graph)


class Links:
    """Who makes and who reads each tensor."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.users, self.makers = graph, graph.consumers(), graph.producers()

    def maker(self, name: str, *ops: str) -> Node | None:
        """The node that makes a tensor, when it is one of `ops`."""
        node = self.makers.get(name)
        return node if node is not None and node.op in ops else None

    def alone(self, name: str) -> bool:
        """Whether exactly one node reads the tensor and it is not an output."""
        return len(self.users.get(name, [])) == 1 and name not in self.graph.outputs

    def with_scalar(self, node: Node | None, value: float) -> str | None:
        """The other operand, when one operand of a two-operand node is this constant."""
        if node is None or len(node.inputs) != 2:
            return None
        for i in (0, 1):
            found = self.graph.scalar(node.inputs[i])
            if found is not None and math.isclose(found, value, rel_tol=2e-3, abs_tol=1e-6):
                return node.inputs[1 - i]
        return None

    def scaled(self, name: str, factor: float) -> str | None:
        """x, when `name` is x * factor or x / (1 / factor), within the rounding exporters do."""
        node = self.maker(name, "Mul", "Div")
        if node is None:
            return None
        if node.op == "Mul":
            return self.with_scalar(node, factor)
        divisor = self.graph.scalar(node.inputs[1])
        return node.inputs[0] if divisor and math.isclose(divisor, 1 / factor, rel_tol=2e-3) else None


def hard_swish(graph: Graph) -> None:
    """x times its hard sigmoid, in the three ways exporters write it."""
    links = Links(graph)
    for node in graph.nodes:
        if node.op in ("Mul", "Div") and graph.dtypes[node.out] == np.float32:
            x = _hard_swish_input(links, node)
            if x is not None and graph.shapes[x] == graph.shapes[node.out]:
                node.op, node.inputs, node.attrs = "HardSwish", [x], {}


def _hard_swish_input(links: Links, node: Node) -> str | None:
    whole = links.scaled(node.out, 1 / 6)
    if whole is not None:  # (x * clip(x + 3)) / 6
        product = links.maker(whole, "Mul")
        return _times(links, product, lambda name, x: _is_clip(links, name, x)) if product else None
    if node.op != "Mul":
        return None
    return _times(links, node, lambda name, x: _is_hard_sigmoid(links, name, x))


def _times(links: Links, product: Node, matches) -> str | None:
    """x, when a product's operands are x and something of x."""
    for i in (0, 1):
        x, other = product.inputs[1 - i], product.inputs[i]
        if matches(other, x):
            return x
    return None


def _is_clip(links: Links, name: str, x: str) -> bool:
    """name is Clip(x + 3, 0, 6)."""
    clip = links.maker(name, "Clip", "Relu6")
    if clip is None or limits_of(links.graph, clip) != (0.0, 6.0):
        return False
    return links.with_scalar(links.maker(clip.inputs[0], "Add"), 3.0) == x


def _is_hard_sigmoid(links: Links, name: str, x: str) -> bool:
    node = links.maker(name, "HardSigmoid")
    if node is not None:
        alpha, beta = node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
        return node.inputs[0] == x and math.isclose(alpha, 1 / 6, rel_tol=1e-4) and beta == 0.5
    inner = links.scaled(name, 1 / 6)
    return inner is not None and _is_clip(links, inner, x)


def gelu(graph: Graph) -> None:
    """x * (1 + f(x)) / 2 in any order of its products; f is erf or the tanh approximation."""
    links = Links(graph)
    for node in graph.nodes:
        if node.op != "Mul" or graph.dtypes[node.out] != np.float32:
            continue
        for x, kind in _gelu_candidates(links, node):
            if graph.shapes[x] == graph.shapes[node.out]:
                node.op, node.inputs, node.attrs = "Gelu", [x], {"approximate": kind}
                break


def _gelu_candidates(links: Links, node: Node) -> list[tuple[str, str]]:
    """(x, approximation) for every way in which the product is 0.5 * x * (1 + f(x))."""
    found = []
    factors = _factors(links, node.out, 3)
    for half in (f for f in factors if isinstance(f, float) and math.isclose(f, 0.5, rel_tol=1e-4)):
        rest = list(factors)
        rest.remove(half)
        for gate, x in ((rest[0], rest[-1]), (rest[-1], rest[0])):
            if len(rest) == 2 and isinstance(gate, str) and isinstance(x, str):
                kind = _gelu_gate(links, gate, x)
                if kind:
                    found.append((x, kind))
    return found


def _factors(links: Links, name: str, limit: int) -> list[str | float]:
    """The operands of nested products, constants as numbers."""
    factors: list[str | float] = [name]
    while len(factors) < limit:
        for k, f in enumerate(factors):
            node = links.maker(f, "Mul", "Div") if isinstance(f, str) else None
            if node is None or (len(factors) > 1 and not links.alone(str(f))):
                continue
            values = [links.graph.scalar(i) for i in node.inputs]
            if node.op == "Div" and not values[1]:
                continue
            pair: list[str | float] = [n if v is None else v for n, v in zip(node.inputs, values, strict=True)]
            if node.op == "Div":
                pair[1] = 1 / (values[1] or 1.0)
            factors[k : k + 1] = pair
            break
        else:
            return factors
    return factors


def _gelu_gate(links: Links, gate: str, x: str) -> str | None:
    """'none' or 'tanh' when gate is 1 + f(x)."""
    minus = links.maker(gate, "Sub")  # erfc(-x / sqrt 2)
    if minus is not None and links.graph.scalar(minus.inputs[0]) == 1:
        erf = links.maker(minus.inputs[1], "Erf")
        return "none" if erf is not None and _negated(links, erf.inputs[0], x) else None
    inner = links.with_scalar(links.maker(gate, "Add"), 1.0)
    if inner is None:
        return None
    erf = links.maker(inner, "Erf")
    if erf is not None and links.scaled(erf.inputs[0], math.sqrt(0.5)) == x:
        return "none"
    tanh = links.maker(inner, "Tanh")
    cubic = tanh and links.scaled(tanh.inputs[0], math.sqrt(2 / math.pi))
    total = links.maker(cubic, "Add") if cubic else None
    if total is None or x not in total.inputs:
        return None
    other = total.inputs[1 - total.inputs.index(x)]
    cube = links.scaled(other, 0.044715)
    return "tanh" if cube and _is_cube(links, cube, x) else None


def _negated(links: Links, name: str, x: str) -> bool:
    """name is -x / sqrt 2 in any order."""
    if links.scaled(name, -math.sqrt(0.5)) == x:
        return True
    inner, root = links.maker(name, "Neg"), math.sqrt(0.5)
    if inner is not None:
        return links.scaled(inner.inputs[0], root) == x
    scaled = links.scaled(name, root)
    inner = links.maker(scaled, "Neg") if scaled else None
    return inner is not None and inner.inputs[0] == x


def _is_cube(links: Links, name: str, x: str) -> bool:
    power = links.maker(name, "Pow")
    if power is not None:
        return power.inputs[0] == x and links.graph.scalar(power.inputs[1]) == 3
    return _factors(links, name, 3) == [x, x, x]


def batch_norm(graph: Graph) -> None:
    """BatchNormalization into the constant weights before it."""
    links = Links(graph)
    for node in graph.nodes:
        maker = (
            links.maker(node.inputs[0], "Conv", "ConvTranspose", "Gemm") if node.op == "BatchNormalization" else None
        )
        if maker is None or not links.alone(node.inputs[0]) or len([o for o in node.outputs if o]) > 1:
            continue
        params = [graph.consts.get(n) for n in node.inputs[1:5]]
        weights = graph.consts.get(maker.inputs[1])
        bias = graph.consts.get(maker.inputs[2]) if maker.has(2) else None
        if weights is None or any(p is None for p in params) or (maker.has(2) and bias is None):
            continue
        if maker.op == "ConvTranspose" and maker.attrs.get("group", 1) != 1:
            continue
        if maker.op == "Gemm" and (maker.attrs.get("alpha", 1.0) != 1 or maker.attrs.get("beta", 1.0) != 1):
            continue
        _fold_norm(graph, node, maker, weights, bias, params)
        links = Links(graph)


def _fold_norm(
    graph: Graph, node: Node, maker: Node, weights: np.ndarray, bias: np.ndarray | None, params: list
) -> None:
    scale, offset, mean, variance = (p.astype(np.float64) for p in params)
    factor = scale / np.sqrt(variance + node.attrs.get("epsilon", 1e-5))
    first = maker.op == "Conv" or (maker.op == "Gemm" and maker.attrs.get("transB"))
    shape = [1] * weights.ndim
    shape[0 if first else 1] = -1
    moved = (weights * factor.reshape(shape)).astype(np.float32)
    shift = offset - mean * factor + (0 if bias is None else bias.reshape(-1) * factor)
    maker.inputs = [
        maker.inputs[0],
        graph.constant(f"{maker.inputs[1]}_bn", moved),
        graph.constant(f"{maker.name}_bias_bn", shift.astype(np.float32)),
    ]
    maker.outputs = [node.out]
    node.outputs = []


def matmul_bias(graph: Graph) -> None:
    """An Add of a constant row into the MatMul before it."""
    links = Links(graph)
    for node in graph.nodes:
        if node.op != "Add":
            continue
        for i in (0, 1):
            product, row = links.maker(node.inputs[i], "MatMul"), graph.consts.get(node.inputs[1 - i])
            if product is None or row is None or len(product.inputs) > 2 or not links.alone(node.inputs[i]):
                continue
            weights, shape = graph.consts.get(product.inputs[1]), graph.shapes[node.inputs[i]]
            if weights is None or weights.ndim != 2 or graph.shapes[node.out] != shape or row.dtype != np.float32:
                continue
            if product.inputs[0] in graph.consts or row.size != shape[-1] or row.shape[-1:] != shape[-1:]:
                continue
            product.inputs = [*product.inputs, node.inputs[1 - i]]
            if "fused" in node.attrs:
                product.attrs["fused"] = node.attrs["fused"]
            product.outputs, node.outputs = [node.out], []
            links.makers[product.out] = product
            break
    sweep(graph)


def activations(graph: Graph) -> None:
    """Relu, Clip(0, 6) and Clip(-1, 1) move into the operator before them."""
    links = Links(graph)
    gone = set()
    for node in graph.nodes:
        kind = _activation(graph, node)
        maker = links.maker(node.inputs[0], *_TAKES_ACTIVATION) if kind else None
        if maker is None or "fused" in maker.attrs or not links.alone(node.inputs[0]) or len(maker.outputs) > 1:
            continue
        if graph.dtypes[node.out] == np.float32:
            maker.attrs["fused"], maker.outputs = kind, [node.out]
            links.makers[node.out] = maker
            gone.add(id(node))
    graph.nodes = [n for n in graph.nodes if id(n) not in gone]


def _activation(graph: Graph, node: Node) -> str | None:
    if node.op == "Relu":
        return "RELU"
    limits = limits_of(graph, node) if node.op == "Clip" else None
    return _CLIPS.get(limits) if limits else None


def limits_of(graph: Graph, node: Node) -> tuple[float, float] | None:
    """A Clip's constant limits; None when they are computed."""
    limits = [node.attrs.get("min", -math.inf), node.attrs.get("max", math.inf)]
    for i in (1, 2):
        if node.has(i):
            value = graph.scalar(node.inputs[i])
            if value is None:
                return None
            limits[i - 1] = value
    return limits[0], limits[1]
