"""Elementwise operators: they take whatever axis order their inputs are stored in."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node

_FUSED = {"ADD", "SUB", "MUL", "DIV"}
_WIDER = {"int8": np.int32, "uint8": np.int32, "int16": np.int32, "uint16": np.int32, "uint32": np.int64,
          "uint64": np.int64}  # fmt: skip


def unary(code: str, **options: Any):
    """One TFLite operator, same shape in and out."""

    def apply(e: Emitter, n: Node) -> None:
        perm = e.perm(n.inputs[0])
        e.emit(code, [e.get(n.inputs[0], perm)], n.out, perm, **options)

    return apply


def broadcast(code: str):
    """One TFLite operator that broadcasts two operands."""

    def apply(e: Emitter, n: Node) -> None:
        binary(e, code, n.inputs, n)

    return apply


def binary(e: Emitter, code: str, names: list[str], n: Node) -> int:
    """Emits `code` on operands that meet in their common order."""
    rank = e.rank(n.out)
    if rank > 6 or (rank > 5 and code in ("DIV", "POW")):
        raise Unsupported(f"{n.op} '{n.name}': TFLite broadcasts up to six axes, this has {rank}")
    perm = e.common(names, rank)
    options = {"fusedActivationFunction": n.attrs.get("fused", "NONE")} if code in _FUSED else {}
    ins = [e.operand(x, perm, rank) for x in names]
    wide = _wider(e, names[0])
    if wide is None:
        return e.emit(code, ins, n.out, perm, **options)
    ins = [_cast(e, i, wide) for i in ins]
    if e.dtype(n.out) == np.bool_:
        return e.emit(code, ins, n.out, perm, **options)
    made = e.add(code, ins, e.stored(n.out, perm), wide, **options)
    return e.emit("CAST", [made], n.out, perm, inDataType=np.dtype(wide), outDataType=e.dtype(n.out))


def _wider(e: Emitter, name: str) -> type | None:
    """The type in which to compute on plain small or unsigned integers: TFLite takes those for quantized ones."""
    if e.quant(name) is not None:
        return None
    return _WIDER.get(e.dtype(name).name)


def _cast(e: Emitter, index: int, dtype: type) -> int:
    t = e.writer.tensors[index]
    if t.data is not None:
        return e.constant(t.data.astype(dtype))
    return e.like("CAST", [index], index, dtype, inDataType=t.dtype, outDataType=np.dtype(dtype))


def variadic(code: str):
    """Sum, Max, Min over any number of operands."""

    def apply(e: Emitter, n: Node) -> Any:
        perm, rank = e.common(n.inputs, e.rank(n.out)), e.rank(n.out)
        operands, wide = [e.operand(x, perm, rank) for x in n.inputs], _wider(e, n.inputs[0])
        if wide is not None:
            operands = [_cast(e, i, wide) for i in operands]
        total = operands[0]
        for other in operands[1:]:
            shape = np.broadcast_shapes(e.writer.tensors[total].shape, e.writer.tensors[other].shape)
            total = e.add(code, [total, other], shape, wide or e.dtype(n.out), n.out)
        if wide is not None:
            return e.emit("CAST", [total], n.out, perm, inDataType=np.dtype(wide), outDataType=e.dtype(n.out))
        e.put(n.out, e.reshape(total, e.stored(n.out, perm)), perm)

    return apply


def mean(e: Emitter, n: Node) -> None:
    """Mean of several tensors."""
    total = e.graph.fresh(f"{n.out}_sum", e.shape(n.out), e.dtype(n.out))
    variadic("ADD")(e, Node("Sum", n.name, n.inputs, [total]))
    perm = e.perm(total)
    share = e.constant(np.asarray(1 / len(n.inputs), e.dtype(n.out)))
    e.emit("MUL", [e.get(total, perm), share], n.out, perm)


class Maths:
    """Little arithmetic on tensors of one shape, for operators that are written out."""

    def __init__(self, e: Emitter, like: int) -> None:
        self.e, self.like = e, like

    def const(self, value: float) -> int:
        return self.e.constant(np.asarray(value, self.e.writer.tensors[self.like].dtype))

    def __call__(self, code: str, *args: int | float, **options: Any) -> int:
        ins = [self.const(a) if isinstance(a, float) else a for a in args]
        return self.e.like(code, ins, self.like, **options)

    def done(self, n: Node, code: str, *args: int | float, **options: Any) -> None:
        """The last operation, whose output is the node's."""
        ins = [self.const(a) if isinstance(a, float) else a for a in args]
        self.e.emit(code, ins, n.out, self.e.perm(n.inputs[0]), **options)


def start(e: Emitter, n: Node) -> tuple[int, Maths]:
    """The node's input as stored, and arithmetic on its shape."""
    index = e.get(n.inputs[0], e.perm(n.inputs[0]))
    return index, Maths(e, index)


def clip(e: Emitter, n: Node) -> Any:
    """Clip as RELU, RELU6, RELU_N1_TO_1, or MAXIMUM and MINIMUM."""
    low, high = bounds(e, n)
    code = {(0.0, math.inf): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get((low, high))
    if code and e.dtype(n.out).kind == "f":
        return unary(code)(e, n)
    x, m = start(e, n)
    steps = [("MAXIMUM", low)] * (low > -math.inf) + [("MINIMUM", high)] * (high < math.inf)
    for code, limit in steps:
        x = m(code, x, float(limit))
    e.put(n.out, x, e.perm(n.inputs[0]))


def bounds(e: Any, n: Node) -> tuple[float, float]:
    """A Clip's constant limits, infinite where absent."""
    low, high = n.attrs.get("min", -math.inf), n.attrs.get("max", math.inf)
    if n.has(1):
        low = float(e.need(n, 1, "min"))
    if n.has(2):
        high = float(e.need(n, 2, "max"))
    return low, high


def hard_sigmoid(e: Emitter, n: Node) -> None:
    """clip(alpha x + beta, 0, 1), as relu6(6 alpha x + 6 beta) / 6: the clip is then fused."""
    x, m = start(e, n)
    alpha, beta = 6 * n.attrs.get("alpha", 0.2), 6 * n.attrs.get("beta", 0.5)
    if not math.isclose(alpha, 1.0, rel_tol=1e-6):
        x = m("MUL", x, float(alpha))
    m.done(n, "MUL", m("ADD", x, float(beta), fusedActivationFunction="RELU6"), 1 / 6)


def elu(e: Emitter, n: Node) -> None:
    """Elu; alpha other than 1 scales the negative side."""
    alpha = float(n.attrs.get("alpha", 1.0))
    if alpha == 1:
        return unary("ELU")(e, n)
    x, m = start(e, n)
    negative = m("MUL", m("ELU", m("MINIMUM", x, 0.0)), alpha)
    m.done(n, "ADD", m("RELU", x), negative)


def selu(e: Emitter, n: Node) -> None:
    """gamma * elu(x, alpha)."""
    x, m = start(e, n)
    alpha, gamma = n.attrs.get("alpha", 1.6732632), n.attrs.get("gamma", 1.0507010)
    negative = m("MUL", m("ELU", m("MINIMUM", x, 0.0)), float(alpha * gamma))
    m.done(n, "ADD", m("MUL", m("RELU", x), float(gamma)), negative)


def celu(e: Emitter, n: Node) -> None:
    """max(0, x) + min(0, alpha (exp(x / alpha) - 1))."""
    x, m = start(e, n)
    alpha = float(n.attrs.get("alpha", 1.0))
    negative = m("MUL", m("ELU", m("MINIMUM", m("MUL", x, 1 / alpha), 0.0)), alpha)
    m.done(n, "ADD", m("RELU", x), negative)


def thresholded_relu(e: Emitter, n: Node) -> None:
    """x where x > alpha, else 0."""
    x, m = start(e, n)
    keep = e.like("GREATER", [x, m.const(float(n.attrs.get("alpha", 1.0)))], x, np.bool_)
    m.done(n, "SELECT_V2", keep, x, 0.0)


def shrink(e: Emitter, n: Node) -> None:
    """x + bias below -lambd, x - bias above lambd, else 0."""
    x, m = start(e, n)
    bias, edge = float(n.attrs.get("bias", 0.0)), float(n.attrs.get("lambd", 0.5))
    above = e.like("GREATER", [x, m.const(edge)], x, np.bool_)
    below = e.like("LESS", [x, m.const(-edge)], x, np.bool_)
    inner = m("SELECT_V2", below, m("ADD", x, bias), 0.0)
    m.done(n, "SELECT_V2", above, m("SUB", x, bias), inner)


def softplus(e: Emitter, n: Node) -> None:
    """log(1 + exp(x)), written so that nothing overflows: max(x, 0) + log(1 + exp(-|x|))."""
    x, m = start(e, n)
    small = m("LOG", m("ADD", m("EXP", m("NEG", m("ABS", x))), 1.0))
    m.done(n, "ADD", m("RELU", x), small)


def mish(e: Emitter, n: Node) -> None:
    """x * tanh(softplus(x))."""
    x, m = start(e, n)
    small = m("LOG", m("ADD", m("EXP", m("NEG", m("ABS", x))), 1.0))
    m.done(n, "MUL", x, m("TANH", m("ADD", m("RELU", x), small)))


def softsign(e: Emitter, n: Node) -> None:
    """x / (1 + |x|)."""
    x, m = start(e, n)
    m.done(n, "DIV", x, m("ADD", m("ABS", x), 1.0))


def swish(e: Emitter, n: Node) -> None:
    """x * sigmoid(alpha x)."""
    x, m = start(e, n)
    alpha = float(n.attrs.get("alpha", 1.0))
    m.done(n, "MUL", x, m("LOGISTIC", x if alpha == 1 else m("MUL", x, alpha)))


def reciprocal(e: Emitter, n: Node) -> None:
    """1 / x."""
    x, m = start(e, n)
    m.done(n, "DIV", 1.0, x)


def erf(e: Emitter, n: Node) -> None:
    """erf by Abramowitz and Stegun 7.1.26 (absolute error 1.5e-7), for an Erf that isn't part of a GELU."""
    x, m = start(e, n)
    size = m("ABS", x)
    t = m("DIV", 1.0, m("ADD", m("MUL", size, 0.3275911), 1.0))
    total = m("MUL", t, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        total = m("MUL", m("ADD", total, factor), t)
    value = m("SUB", 1.0, m("MUL", total, m("EXP", m("NEG", m("MUL", x, x)))))
    negative = e.like("LESS", [x, m.const(0.0)], x, np.bool_)
    m.done(n, "SELECT_V2", negative, m("NEG", value), value)


def tan(e: Emitter, n: Node) -> None:
    """sin / cos."""
    x, m = start(e, n)
    m.done(n, "DIV", m("SIN", x), m("COS", x))


def hyperbolic(sign: str, scale_by: float = 0.5):
    """sinh and cosh from exponentials."""

    def apply(e: Emitter, n: Node) -> None:
        x, m = start(e, n)
        m.done(n, "MUL", m(sign, m("EXP", x), m("EXP", m("NEG", x))), scale_by)

    return apply


def arc(sine: bool):
    """asin and acos by ATAN2 of the two sides of the triangle."""

    def apply(e: Emitter, n: Node) -> None:
        x, m = start(e, n)
        other = m("SQRT", m("SUB", 1.0, m("MUL", x, x)))
        m.done(n, "ATAN2", *((x, other) if sine else (other, x)))

    return apply


def arctan(e: Emitter, n: Node) -> None:
    """atan2(x, 1)."""
    x, m = start(e, n)
    ones = m("ADD", m("MUL", x, 0.0), 1.0)
    m.done(n, "ATAN2", x, ones)


def gelu(e: Emitter, n: Node) -> None:
    """Gelu, exact or by tanh."""
    unary("GELU", approximate=n.attrs.get("approximate", "none") == "tanh")(e, n)


def prelu(e: Emitter, n: Node) -> Any:
    """PRelu: LEAKY_RELU for one slope, PRELU for slopes along the last stored axis, else written out."""
    slope = e.value(n.inputs[1])
    if slope is not None and slope.size == 1:
        return unary("LEAKY_RELU", alpha=float(slope.reshape(-1)[0]))(e, n)
    if e.dtype(n.out).kind != "f":
        raise Unsupported(f"PRelu '{n.name}': TFLite's takes floats only")
    rank, perm = e.rank(n.out), e.perm(n.inputs[0])
    index = e.operand(n.inputs[1], perm, rank)
    stored = e.writer.tensors[index].shape
    if slope is not None and len(stored) == 1 and stored[0] == e.stored(n.out, perm)[-1]:
        row = e.reshape(index, (*[1] * (len(perm) - 2), *stored))
        e.emit("PRELU", [e.get(n.inputs[0], perm), row], n.out, perm)
        return
    x, m = start(e, n)
    m.done(n, "ADD", m("RELU", x), m("MUL", m("MINIMUM", x, 0.0), index))


def power(e: Emitter, n: Node) -> Any:
    """Pow; constant exponents 2, 1/2, -1/2, -1, 1 and 3 have cheaper operators."""
    exponent = e.value(n.inputs[1])
    plain = exponent is not None and exponent.size == 1 and e.shape(n.out) == e.shape(n.inputs[0])
    if plain and e.dtype(n.inputs[0]).kind == "f":
        x, m = start(e, n)
        value = float(exponent.reshape(-1)[0])
        if value == 2:
            return m.done(n, "MUL", x, x)
        if value in (0.5, -0.5):
            return m.done(n, "SQRT" if value > 0 else "RSQRT", x)
        if value == 3:
            return m.done(n, "MUL", m("MUL", x, x), x)
        if value == -1:
            return m.done(n, "DIV", 1.0, x)
    names = list(n.inputs)
    if e.dtype(names[1]) != e.dtype(n.out):
        if exponent is None:
            raise Unsupported(f"Pow '{n.name}': base and exponent have different types")
        if not np.array_equal(exponent, exponent.astype(e.dtype(n.out))):
            raise Unsupported(f"Pow '{n.name}': an integer to a fractional power")
        names[1] = e.graph.constant(f"{names[1]}_as_base", exponent.astype(e.dtype(n.out)))
    binary(e, "POW", names, n)


def modulo(e: Emitter, n: Node) -> Any:
    """Mod: FLOOR_MOD follows the divisor's sign; fmod follows the dividend's."""
    if not n.attrs.get("fmod", 0):
        return binary(e, "FLOOR_MOD", n.inputs, n)
    a, b = n.inputs
    size_a = e.graph.fresh(f"{n.out}_abs_a", e.shape(a), e.dtype(a))
    size_b = e.graph.fresh(f"{n.out}_abs_b", e.shape(b), e.dtype(b))
    rest = e.graph.fresh(f"{n.out}_rest", e.shape(n.out), e.dtype(n.out))
    sign = e.graph.fresh(f"{n.out}_sign", e.shape(a), e.dtype(a))
    for name, out in ((a, size_a), (b, size_b)):
        e.views.setdefault(name, {})
        perm = e.perm(name) if e.views[name] or e.value(name) is not None else ()
        e.emit("ABS", [e.get(name, perm)], out, perm)
    binary(e, "FLOOR_MOD", [size_a, size_b], Node("Mod", n.name, [size_a, size_b], [rest]))
    perm = e.perm(a)
    e.emit("SIGN", [e.get(a, perm)], sign, perm)
    binary(e, "MUL", [rest, sign], n)


def divide(e: Emitter, n: Node) -> Any:
    """Div; a constant float divisor multiplies by its inverse where that is exact (powers of two)."""
    divisor = e.value(n.inputs[1])
    if divisor is not None and divisor.dtype == np.float32 and divisor.size:
        mantissa = np.abs(np.frexp(divisor)[0])
        if (mantissa == 0.5).all():
            inverse = e.graph.constant(f"{n.inputs[1]}_inverse", (1 / divisor).astype(np.float32))
            return binary(e, "MUL", [n.inputs[0], inverse], n)
    if e.dtype(n.out) in (np.int64, np.uint32, np.uint64):
        raise Unsupported(f"Div '{n.name}': TFLite doesn't divide {e.dtype(n.out)}")
    binary(e, "DIV", n.inputs, n)


def xor(e: Emitter, n: Node) -> None:
    """Booleans differ."""
    binary(e, "NOT_EQUAL", n.inputs, n)


def where(e: Emitter, n: Node) -> None:
    """Where as SELECT_V2."""
    rank = e.rank(n.out)
    if rank > 5:
        raise Unsupported(f"Where '{n.name}': TFLite selects over up to five axes, this has {rank}")
    perm = e.common(n.inputs, rank)
    e.emit("SELECT_V2", [e.operand(x, perm, rank) for x in n.inputs], n.out, perm)


def cast(e: Emitter, n: Node) -> None:
    """Cast; booleans from numbers are a comparison with zero."""
    source, target, perm = e.dtype(n.inputs[0]), e.dtype(n.out), e.perm(n.inputs[0])
    index = e.get(n.inputs[0], perm)
    if source == target:
        return e.put(n.out, index, perm)
    if target == np.bool_:
        e.emit("NOT_EQUAL", [index, e.constant(np.zeros((), source))], n.out, perm)
    else:
        e.emit("CAST", [index], n.out, perm, inDataType=source, outDataType=target)


def is_nan(e: Emitter, n: Node) -> None:
    """x differs from itself."""
    perm = e.perm(n.inputs[0])
    index = e.get(n.inputs[0], perm)
    e.emit("NOT_EQUAL", [index, index], n.out, perm)


def is_inf(e: Emitter, n: Node) -> None:
    """x equals plus or minus infinity."""
    perm = e.perm(n.inputs[0])
    index = e.get(n.inputs[0], perm)
    signs = [s for s, key in ((np.inf, "detect_positive"), (-np.inf, "detect_negative")) if n.attrs.get(key, 1)]
    found = [e.like("EQUAL", [index, e.constant(np.asarray(s, np.float32))], index, np.bool_) for s in signs]
    if len(found) == 2:
        e.emit("LOGICAL_OR", found, n.out, perm)
    else:
        e.put(n.out, found[0] if found else e.constant(np.zeros(e.stored(n.out, perm), bool)), perm)


OPS = {
    **{op: unary(code) for op, code in {
        "Relu": "RELU", "Sigmoid": "LOGISTIC", "Tanh": "TANH", "Exp": "EXP", "Log": "LOG", "Sqrt": "SQRT",
        "Abs": "ABS", "Floor": "FLOOR", "Ceil": "CEIL", "Round": "ROUND", "Sin": "SIN", "Cos": "COS",
        "Not": "LOGICAL_NOT", "HardSwish": "HARD_SWISH", "Sign": "SIGN", "Neg": "NEG", "Rsqrt": "RSQRT",
    }.items()},
    **{op: broadcast(code) for op, code in {
        "Add": "ADD", "Sub": "SUB", "Mul": "MUL", "Equal": "EQUAL", "Less": "LESS", "Greater": "GREATER",
        "LessOrEqual": "LESS_EQUAL", "GreaterOrEqual": "GREATER_EQUAL", "And": "LOGICAL_AND", "Or": "LOGICAL_OR",
    }.items()},
    "Sum": variadic("ADD"), "Max": variadic("MAXIMUM"), "Min": variadic("MINIMUM"), "Mean": mean,
    "Clip": clip, "HardSigmoid": hard_sigmoid, "Elu": elu, "Selu": selu, "Celu": celu,
    "ThresholdedRelu": thresholded_relu, "Shrink": shrink, "Softplus": softplus, "Mish": mish,
    "Softsign": softsign, "Swish": swish, "Reciprocal": reciprocal, "Erf": erf, "Tan": tan,
    "Asin": arc(True), "Acos": arc(False), "Atan": arctan,
    "Sinh": hyperbolic("SUB"), "Cosh": hyperbolic("ADD"), "Gelu": gelu, "PRelu": prelu, "Pow": power,
    "Mod": modulo, "Div": divide, "Xor": xor, "Where": where, "Cast": cast, "CastLike": cast,
    "IsNaN": is_nan, "IsInf": is_inf,
}  # fmt: skip


def leaky_relu(e: Emitter, n: Node) -> None:
    """LeakyRelu."""
    unary("LEAKY_RELU", alpha=float(n.attrs.get("alpha", 0.01)))(e, n)


OPS["LeakyRelu"] = leaky_relu
