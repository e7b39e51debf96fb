"""Convolutions, pools, matrix products and recurrent layers, with ONNX's ways to pad."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from lepton_edge.gradients.call import Call

Op = Callable[..., Any]


def pads(c: Call, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]):
    """What is put before and behind each axis, by `pads` or `auto_pad`: two lists of integers."""
    way = c.get("auto_pad", "NOTSET")
    if way in ("SAME_UPPER", "SAME_LOWER"):
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
        total = [
            max((math.ceil(n / s) - 1) * s + span - n, 0) for n, s, span in zip(sizes, strides, spans, strict=True)
        ]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        return (less, more) if way == "SAME_UPPER" else (more, less)
    given = c.get("pads") if way != "VALID" else None
    given = given or [0] * (2 * len(kernel))
    return list(given[: len(kernel)]), list(given[len(kernel) :])


def padded(x: Any, before: Sequence[int], behind: Sequence[int], value: float = 0.0) -> Any:
    """The last axes of `x` padded with a value; negative numbers cut."""
    from torch.nn import functional as F

    if not any(before) and not any(behind):
        return x
    both = [n for pair in zip(reversed(before), reversed(behind), strict=True) for n in pair]
    return F.pad(x, both, value=value)


def conv(c: Call, x: Any, w: Any, b: Any = None) -> Any:
    """Conv on one, two or three axes."""
    from torch.nn import functional as F

    rank = x.dim() - 2
    kernel = list(w.shape[2:])
    strides, dilations = c.get("strides") or [1] * rank, c.get("dilations") or [1] * rank
    before, behind = pads(c, x.shape[2:], kernel, strides, dilations)
    same = before == behind and min(before) >= 0
    if not same:
        x = padded(x, before, behind)
    run = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return run(x, w, b, strides, before if same else 0, dilations, c.get("group", 1))


def conv_transpose(c: Call, x: Any, w: Any, b: Any = None) -> Any:
    """ConvTranspose: computed without pads, which are then cut away."""
    from torch.nn import functional as F

    rank = x.dim() - 2
    kernel = list(w.shape[2:])
    strides, dilations = c.get("strides") or [1] * rank, c.get("dilations") or [1] * rank
    extra = c.get("output_padding") or [0] * rank
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra, strict=True)
    ]
    wanted, way = c.get("output_shape"), c.get("auto_pad", "NOTSET")
    if wanted is None and way in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if wanted is not None:
        total = [f - n for f, n in zip(full, wanted[-rank:], strict=True)]
        less, more = [t // 2 for t in total], [t - t // 2 for t in total]
        before, behind = (less, more) if way == "SAME_UPPER" else (more, less)
    else:
        before, behind = pads(c, x.shape[2:], kernel, strides, dilations)
    run = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[rank - 1]
    fits = all(e < max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True))
    y = run(x, w, b, strides, 0, extra if fits else 0, c.get("group", 1), dilations)
    if not fits:
        raise c.refuse("an output_padding above its strides")
    return padded(y, [-n for n in before], [-n for n in behind])


def max_pool(c: Call, x: Any) -> Any:
    """MaxPool without indices."""
    from torch.nn import functional as F

    if c.outputs > 1:
        raise c.refuse("indices")
    kernel = c.get("kernel_shape")
    rank = len(kernel)
    strides, dilations = c.get("strides") or [1] * rank, c.get("dilations") or [1] * rank
    before, behind = pads(c, x.shape[2:], kernel, strides, dilations)
    behind = _whole(c, x.shape[2:], kernel, strides, dilations, before, behind)[0]
    x = padded(x, before, behind, -math.inf)
    return (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1](x, kernel, strides, 0, dilations)


def _whole(
    c: Call,
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    before: Sequence[int],
    behind: Sequence[int],
) -> tuple[list[int], list[int]]:
    """The pads behind with what `ceil_mode` adds, and how much of it that is: a last window that starts inside."""
    if not c.get("ceil_mode", 0):
        return list(behind), [0] * len(kernel)
    added = []
    for n, k, s, d, low, high in zip(sizes, kernel, strides, dilations, before, behind, strict=True):
        span = (k - 1) * d + 1
        count = math.ceil((n + low + high - span) / s) + 1
        if (count - 1) * s >= n + low:
            count -= 1
        added.append(max((count - 1) * s + span - (n + low + high), 0))
    return [b + a for b, a in zip(behind, added, strict=True)], added


def average_pool(c: Call, x: Any) -> Any:
    """AveragePool: sums over counts of what is there, or of the pads too."""
    import torch
    from torch.nn import functional as F

    kernel = c.get("kernel_shape")
    rank = len(kernel)
    strides, dilations = c.get("strides") or [1] * rank, c.get("dilations") or [1] * rank
    if any(d != 1 for d in dilations):
        raise c.refuse("dilations")
    before, behind = pads(c, x.shape[2:], kernel, strides, dilations)
    whole, added = _whole(c, x.shape[2:], kernel, strides, dilations, before, behind)
    run = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    y = run(padded(x, before, whole), kernel, strides)
    if not any(before) and not any(whole):
        return y
    there = torch.ones((1, 1, *x.shape[2:]), dtype=x.dtype, device=x.device)
    if c.get("count_include_pad", 0):
        there = padded(padded(there, before, behind, 1.0), [0] * rank, added)
    else:
        there = padded(there, before, whole)
    return y / run(there, kernel, strides)


def gemm(c: Call, a: Any, b: Any, bias: Any = None) -> Any:
    """alpha A B + beta C."""
    a = a.transpose(0, 1) if c.get("transA", 0) else a
    b = b.transpose(0, 1) if c.get("transB", 0) else b
    y = a @ b
    alpha, beta = c.get("alpha", 1.0), c.get("beta", 1.0)
    y = y if alpha == 1.0 else y * alpha
    if bias is None:
        return y
    return y + (bias if beta == 1.0 else bias * beta)


def _gates(c: Call, xs: tuple[Any, ...], count: int) -> Any:
    """Inputs of a recurrent layer for each direction: (x [steps, batch, in], W, R, b_w, b_r, h0, reverse)."""
    import torch

    x, w, r, b, lengths, h0 = (*xs, *[None] * 6)[:6]
    if lengths is not None or c.get("layout", 0):
        raise c.refuse("lengths of sequences" if lengths is not None else "layout 1")
    way, size = c.get("direction", "forward"), c.get("hidden_size")
    if c.get("clip") is not None or c.get("input_forget", 0):
        raise c.refuse("clip or coupled gates")
    made = []
    for d in range(w.shape[0]):
        bias = b[d] if b is not None else torch.zeros(2 * count * size, dtype=x.dtype, device=x.device)
        first = h0[d] if h0 is not None else torch.zeros((x.shape[1], size), dtype=x.dtype, device=x.device)
        made.append((w[d], r[d], bias[: count * size], bias[count * size :], first, way == "reverse" or d == 1))
    return made


def _functions(c: Call, defaults: Sequence[str], directions: int) -> list[list[Op]]:
    import torch

    known = {"Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Relu": torch.relu}
    names = c.get("activations") or list(defaults) * directions
    for name in names:
        if name not in known:
            raise c.refuse(f"the activation {name}")
    each = len(defaults)
    return [[known[n] for n in names[d * each : (d + 1) * each]] for d in range(directions)]


def lstm(c: Call, *xs: Any) -> Any:
    """LSTM with gates in the order i, o, f, c; all hidden states, the last one, the last cell."""
    import torch

    if len(xs) > 7 and xs[7] is not None:
        raise c.refuse("peepholes")
    x, c0 = xs[0], xs[6] if len(xs) > 6 else None
    gates = _gates(c, xs, 4)
    states, lasts, cells = [], [], []
    for d, ((w, r, bw, br, h, reverse), (f, g, out)) in enumerate(
        zip(gates, _functions(c, ("Sigmoid", "Tanh", "Tanh"), len(gates)), strict=True)
    ):
        cell = c0[d] if c0 is not None else torch.zeros_like(h)
        given = x @ w.transpose(0, 1) + (bw + br)
        seen = []
        for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
            i, o, forget, new = torch.chunk(given[t] + h @ r.transpose(0, 1), 4, -1)
            cell = f(forget) * cell + f(i) * g(new)
            h = f(o) * out(cell)
            seen.append(h)
        states.append(torch.stack(seen[::-1] if reverse else seen))
        lasts.append(h)
        cells.append(cell)
    return torch.stack(states, 1), torch.stack(lasts), torch.stack(cells)


def gru(c: Call, *xs: Any) -> Any:
    """GRU with gates in the order z, r, h; all hidden states, and the last one."""
    import torch

    x = xs[0]
    gates = _gates(c, xs, 3)
    late = c.get("linear_before_reset", 0)
    states, lasts = [], []
    for (w, r, bw, br, h, reverse), (f, g) in zip(gates, _functions(c, ("Sigmoid", "Tanh"), len(gates)), strict=True):
        given = x @ w.transpose(0, 1) + bw
        rz, rr, rh = torch.chunk(r, 3, 0)
        bz, b_r, bh = torch.chunk(br, 3, -1)
        seen = []
        for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
            iz, ir, ih = torch.chunk(given[t], 3, -1)
            z = f(iz + h @ rz.transpose(0, 1) + bz)
            reset = f(ir + h @ rr.transpose(0, 1) + b_r)
            inner = reset * (h @ rh.transpose(0, 1) + bh) if late else (reset * h) @ rh.transpose(0, 1) + bh
            h = (1 - z) * g(ih + inner) + z * h
            seen.append(h)
        states.append(torch.stack(seen[::-1] if reverse else seen))
        lasts.append(h)
    return torch.stack(states, 1), torch.stack(lasts)


def rnn(c: Call, *xs: Any) -> Any:
    """A plain recurrent layer; all hidden states, and the last one."""
    import torch

    x = xs[0]
    gates = _gates(c, xs, 1)
    states, lasts = [], []
    for (w, r, bw, br, h, reverse), (f,) in zip(gates, _functions(c, ("Tanh",), len(gates)), strict=True):
        given = x @ w.transpose(0, 1) + (bw + br)
        seen = []
        for t in reversed(range(x.shape[0])) if reverse else range(x.shape[0]):
            h = f(given[t] + h @ r.transpose(0, 1))
            seen.append(h)
        states.append(torch.stack(seen[::-1] if reverse else seen))
        lasts.append(h)
    return torch.stack(states, 1), torch.stack(lasts)


def table() -> dict[str, Op]:
    """All of them."""
    import torch

    def pooled(x: Any) -> list[int]:
        return list(range(2, x.dim()))

    return {
        "Conv": conv,
        "ConvTranspose": conv_transpose,
        "MaxPool": max_pool,
        "AveragePool": average_pool,
        "GlobalAveragePool": lambda c, x: x.mean(pooled(x), keepdim=True),
        "GlobalMaxPool": lambda c, x: torch.amax(x, pooled(x), keepdim=True),
        "Gemm": gemm,
        "MatMul": lambda c, a, b: torch.matmul(a, b),
        "Einsum": lambda c, *xs: torch.einsum(c.get("equation"), *xs),
        "LSTM": lstm,
        "GRU": gru,
        "RNN": rnn,
    }
