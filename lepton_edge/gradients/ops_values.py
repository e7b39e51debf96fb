"""Operators that compute element by element, compare, reduce or normalize."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lepton_edge.gradients.call import Call

Op = Callable[..., Any]


def unary() -> dict[str, Op]:
    """Functions of one tensor."""
    import torch
    from torch.nn import functional as F

    def gelu(c: Call, x: Any) -> Any:
        return F.gelu(x, approximate=c.get("approximate", "none"))

    def dropout(c: Call, x: Any, ratio: Any = None, training: Any = None) -> Any:
        if c.numbers(2, (x, ratio, training), False) is True:
            raise c.refuse("training_mode")
        return x, torch.ones_like(x, dtype=torch.bool)

    def is_inf(c: Call, x: Any) -> Any:
        above, below = torch.isposinf(x), torch.isneginf(x)
        return (above & bool(c.get("detect_positive", 1))) | (below & bool(c.get("detect_negative", 1)))

    def clip(c: Call, x: Any, low: Any = None, high: Any = None) -> Any:
        low = low if low is not None else c.get("min")
        high = high if high is not None else c.get("max")
        for limit, bound in ((low, torch.maximum), (high, torch.minimum)):
            if limit is not None:
                x = bound(x, torch.as_tensor(limit, dtype=x.dtype, device=x.device))
        return x

    def hard_sigmoid(c: Call, x: Any) -> Any:
        return torch.clamp(c.get("alpha", 0.2) * x + c.get("beta", 0.5), 0.0, 1.0)

    plain = {
        "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Erf": torch.erf, "Mish": F.mish,
        "Softplus": F.softplus, "Softsign": F.softsign, "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt,
        "Reciprocal": torch.reciprocal, "Neg": torch.neg, "Abs": torch.abs, "Sign": torch.sign, "Floor": torch.floor,
        "Ceil": torch.ceil, "Round": torch.round, "Not": torch.logical_not, "IsNaN": torch.isnan,
        "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan, "Asin": torch.asin, "Acos": torch.acos,
        "Atan": torch.atan, "Sinh": torch.sinh, "Cosh": torch.cosh, "Asinh": torch.asinh, "Acosh": torch.acosh,
        "Atanh": torch.atanh, "HardSwish": F.hardswish,
    }  # fmt: skip
    made: dict[str, Op] = {name: (lambda c, x, f=f: f(x)) for name, f in plain.items()}
    made |= {
        "Identity": lambda c, x: x,
        "Dropout": dropout,
        "IsInf": is_inf,
        "Gelu": gelu,
        "Clip": clip,
        "HardSigmoid": hard_sigmoid,
        "LeakyRelu": lambda c, x: F.leaky_relu(x, c.get("alpha", 0.01)),
        "Elu": lambda c, x: F.elu(x, c.get("alpha", 1.0)),
        "Celu": lambda c, x: F.celu(x, c.get("alpha", 1.0)),
        "Selu": lambda c, x: (
            c.get("gamma", 1.05070102214813232421875) * F.elu(x, c.get("alpha", 1.67326319217681884765625))
        ),
        "ThresholdedRelu": lambda c, x: torch.where(x > c.get("alpha", 1.0), x, torch.zeros_like(x)),
        "Swish": lambda c, x: x * torch.sigmoid(c.get("alpha", 1.0) * x),
        "Cast": lambda c, x: x.to(dtype(c.get("to"))),
        "CastLike": lambda c, x, like: x.to(like.dtype),
        "Softmax": lambda c, x: torch.softmax(x, c.get("axis", -1)),
        "LogSoftmax": lambda c, x: torch.log_softmax(x, c.get("axis", -1)),
        "CumSum": cumsum,
        "Trilu": trilu,
    }
    return made


def cumsum(c: Call, x: Any, axis: Any) -> Any:
    """Sums along an axis, from either end, with or without the element itself."""
    import torch

    at = c.numbers(1, (x, axis))
    at = at[0] if isinstance(at, list) else at
    y = torch.flip(x, [at]) if c.get("reverse", 0) else x
    total = torch.cumsum(y, at)
    if c.get("exclusive", 0):
        total = total - y
    return torch.flip(total, [at]) if c.get("reverse", 0) else total


def trilu(c: Call, x: Any, k: Any = None) -> Any:
    """A triangle of the last two axes."""
    import torch

    at = c.numbers(1, (x, k), 0)
    at = at[0] if isinstance(at, list) else at
    return torch.triu(x, at) if c.get("upper", 1) else torch.tril(x, at)


def dtype(number: int) -> Any:
    """PyTorch's type for ONNX's number of one; half precision is computed in float32."""
    import torch

    table = {
        1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64,
        9: torch.bool, 10: torch.float32, 11: torch.float64, 16: torch.float32,
    }  # fmt: skip
    return table[number]


def several() -> dict[str, Op]:
    """Functions of several tensors that are broadcast."""
    from functools import reduce

    import torch

    def div(c: Call, a: Any, b: Any) -> Any:
        return a / b if a.dtype.is_floating_point else torch.div(a, b, rounding_mode="trunc")

    def mod(c: Call, a: Any, b: Any) -> Any:
        return torch.fmod(a, b) if c.get("fmod", 0) else torch.remainder(a, b)

    def prelu(c: Call, x: Any, slope: Any) -> Any:
        return torch.where(x > 0, x, x * slope)

    def mean(c: Call, *xs: Any) -> Any:
        return reduce(torch.add, xs) / len(xs)

    pairs = {
        "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Equal": torch.eq, "Greater": torch.gt,
        "GreaterOrEqual": torch.ge, "Less": torch.lt, "LessOrEqual": torch.le, "And": torch.logical_and,
        "Or": torch.logical_or, "Xor": torch.logical_xor,
    }  # fmt: skip
    made: dict[str, Op] = {name: (lambda c, a, b, f=f: f(a, b)) for name, f in pairs.items()}
    many = {"Sum": torch.add, "Min": torch.minimum, "Max": torch.maximum}
    made |= {name: (lambda c, *xs, f=f: reduce(f, xs)) for name, f in many.items()}
    return made | {
        "Div": div,
        "Mod": mod,
        "Mean": mean,
        "PRelu": prelu,
        "Pow": lambda c, a, b: torch.pow(a, b).to(a.dtype),
        "Where": lambda c, w, a, b: torch.where(w, a, b),
    }


def reductions() -> dict[str, Op]:
    """Functions over axes, named by an attribute or by the second input."""
    import torch

    def over(f: Op) -> Op:
        def reduced(c: Call, x: Any, axes: Any = None) -> Any:
            wanted = c.numbers(1, (x, axes), c.get("axes"))
            if not wanted:
                if c.get("noop_with_empty_axes", 0):
                    return x
                wanted = list(range(x.dim()))
            return f(x, [a % x.dim() for a in wanted], bool(c.get("keepdims", 1)))

        return reduced

    def one_by_one(f: Op) -> Op:
        def product(x: Any, axes: list[int], keep: bool) -> Any:
            for axis in sorted(axes, reverse=True):
                x = f(x, axis, keep)
            return x

        return product

    def arg(f: Op) -> Op:
        def found(c: Call, x: Any) -> Any:
            axis, keep = c.get("axis", 0), bool(c.get("keepdims", 1))
            if c.get("select_last_index", 0):
                size = x.shape[axis]
                return size - 1 - f(torch.flip(x, [axis]), dim=axis, keepdim=keep)
            return f(x, dim=axis, keepdim=keep)

        return found

    made = {
        "ReduceMean": lambda x, a, k: x.mean(a, keepdim=k),
        "ReduceSum": lambda x, a, k: x.sum(a, keepdim=k),
        "ReduceMax": lambda x, a, k: torch.amax(x, a, keepdim=k),
        "ReduceMin": lambda x, a, k: torch.amin(x, a, keepdim=k),
        "ReduceProd": one_by_one(lambda x, a, k: torch.prod(x, a, keepdim=k)),
        "ReduceL1": lambda x, a, k: x.abs().sum(a, keepdim=k),
        "ReduceL2": lambda x, a, k: torch.linalg.vector_norm(x, dim=a, keepdim=k),
        "ReduceLogSumExp": lambda x, a, k: torch.logsumexp(x, a, keepdim=k),
        "ReduceSumSquare": lambda x, a, k: x.square().sum(a, keepdim=k),
        "ReduceLogSum": lambda x, a, k: x.sum(a, keepdim=k).log(),
    }
    return {name: over(f) for name, f in made.items()} | {"ArgMax": arg(torch.argmax), "ArgMin": arg(torch.argmin)}


def norms() -> dict[str, Op]:
    """Normalizations, with the statistics of a sample or, of a batch norm, those in the file."""
    import torch
    from torch.nn import functional as F

    def along(x: Any, values: Any) -> Any:
        return values.reshape(1, -1, *[1] * (x.dim() - 2))

    def batch(c: Call, x: Any, scale: Any, bias: Any, mean: Any, var: Any) -> Any:
        if c.get("training_mode", 0):
            raise c.refuse("training_mode")
        factor = scale / torch.sqrt(var + c.get("epsilon", 1e-5))
        return x * along(x, factor) + along(x, bias - mean * factor)

    def layer(c: Call, x: Any, scale: Any, bias: Any = None) -> Any:
        axis, epsilon = c.get("axis", -1) % x.dim(), c.get("epsilon", 1e-5)
        y = F.layer_norm(x, x.shape[axis:], eps=epsilon) * scale
        y = y if bias is None else y + bias
        if c.outputs == 1:
            return y
        axes = list(range(axis, x.dim()))
        mean = x.mean(axes, keepdim=True)
        return y, mean, torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)

    def rms(c: Call, x: Any, scale: Any) -> Any:
        axes = list(range(c.get("axis", -1) % x.dim(), x.dim()))
        return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + c.get("epsilon", 1e-5)) * scale

    def spread(x: Any, axes: list[int], epsilon: float) -> Any:
        centred = x - x.mean(axes, keepdim=True)
        return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)

    def instance(c: Call, x: Any, scale: Any, bias: Any) -> Any:
        y = spread(x, list(range(2, x.dim())), c.get("epsilon", 1e-5))
        return y * along(x, scale) + along(x, bias)

    def group(c: Call, x: Any, scale: Any, bias: Any) -> Any:
        groups, shape = c.get("num_groups"), x.shape
        y = spread(x.reshape(shape[0], groups, -1), [2], c.get("epsilon", 1e-5)).reshape(shape)
        if scale.numel() == groups and groups != shape[1]:  # before opset 21: one number a group
            scale, bias = (v.repeat_interleave(shape[1] // groups) for v in (scale, bias))
        return y * along(x, scale) + along(x, bias)

    def lp(c: Call, x: Any) -> Any:
        axis = c.get("axis", -1)
        norm = torch.linalg.vector_norm(x, ord=c.get("p", 2), dim=axis, keepdim=True)
        return x / torch.where(norm == 0, torch.ones_like(norm), norm)

    def mean_variance(c: Call, x: Any) -> Any:
        return spread(x, c.get("axes", [0, 2, 3]), 1e-9)

    def local(c: Call, x: Any) -> Any:
        size = c.get("size")
        low = math.floor((size - 1) / 2)
        squares = F.pad(x.square().unsqueeze(1), [0, 0] * (x.dim() - 2) + [low, size - 1 - low])
        total = sum(squares[:, 0, k : k + x.shape[1]] for k in range(size))
        return x / torch.pow(c.get("bias", 1.0) + c.get("alpha", 1e-4) / size * total, c.get("beta", 0.75))

    return {
        "BatchNormalization": batch,
        "LayerNormalization": layer,
        "RMSNormalization": rms,
        "InstanceNormalization": instance,
        "GroupNormalization": group,
        "LpNormalization": lp,
        "MeanVarianceNormalization": mean_variance,
        "LRN": local,
    }


def table() -> dict[str, Op]:
    """All of them."""
    return unary() | several() | reductions() | norms()
