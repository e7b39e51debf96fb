"""Pooling: MaxPool, AveragePool, their global forms, LpPool."""

from __future__ import annotations

import itertools

import numpy as np

from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node
from lepton_edge.tflite_writer.ops_conv import Window, image_perm, pad_image, padding, window


def _prepare(e: Emitter, n: Node) -> tuple[Window, tuple[int, ...], tuple[int, ...]]:
    """The window, with pads extended to what ceil_mode reads, and input and output sizes."""
    x = n.inputs[0]
    rank = e.rank(x)
    if rank not in (3, 4):
        raise Unsupported(f"{n.op} '{n.name}': TFLite pools over one or two axes, this has {rank - 2}")
    w = window(n, e.shape(x)[2:], tuple(n.attrs["kernel_shape"]))
    size = (1, e.shape(x)[2]) if rank == 3 else e.shape(x)[2:]
    out = (1, e.shape(n.out)[2]) if rank == 3 else e.shape(n.out)[2:]
    ends = [
        max((out[i] - 1) * w.strides[i] + (w.kernel[i] - 1) * w.dilations[i] + 1 - size[i] - w.pads[i], 0)
        for i in (0, 1)
    ]
    # Rows beyond the last window are never read, so the end pads shrink or grow to what is read.
    plain = padding(w, size)
    if plain is None or _covered(w, size, plain) != tuple(out):
        w = Window(w.kernel, w.strides, w.dilations, (w.pads[0], w.pads[1], ends[0], ends[1]))
    return w, size, (out[0], out[1])


def _covered(w: Window, size: tuple[int, ...], mode: str) -> tuple[int, ...]:
    """TFLite's output size."""
    if mode == "SAME":
        return -(-size[0] // w.strides[0]), -(-size[1] // w.strides[1])
    reach = [(w.kernel[i] - 1) * w.dilations[i] + 1 for i in (0, 1)]
    return (size[0] - reach[0]) // w.strides[0] + 1, (size[1] - reach[1]) // w.strides[1] + 1


def _options(w: Window, mode: str, n: Node) -> dict:
    return {
        "padding": mode, "strideH": w.strides[0], "strideW": w.strides[1], "filterHeight": w.kernel[0],
        "filterWidth": w.kernel[1], "fusedActivationFunction": n.attrs.get("fused", "NONE"),
    }  # fmt: skip


def max_pool(e: Emitter, n: Node) -> None:
    """MaxPool; dilated windows become a MAXIMUM over shifted slices."""
    if len(n.outputs) > 1 and n.outputs[1] and (n.outputs[1] in e.graph.consumers() or n.outputs[1] in e.graph.outputs):
        raise Unsupported(f"MaxPool '{n.name}': its Indices output has no TFLite counterpart")
    w, size, out = _prepare(e, n)
    perm = image_perm(e.rank(n.inputs[0]))
    index, mode = e.get(n.inputs[0], perm), padding(w, size)
    if mode is None or _covered(w, size, mode) != out:
        index, mode = pad_image(e, index, w.pads, _lowest(e.dtype(n.inputs[0]))), "VALID"
    if w.dilations == (1, 1):
        e.emit("MAX_POOL_2D", [index], n.out, perm, **_options(w, mode, n))
    else:
        if mode == "SAME":
            index = pad_image(e, index, w.pads, _lowest(e.dtype(n.inputs[0])))
        e.put(n.out, _shifted_max(e, index, w, out), perm)


def _lowest(dtype: np.dtype) -> float:
    return float(np.finfo(dtype).min) if dtype.kind == "f" else float(np.iinfo(dtype).min)


def _shifted_max(e: Emitter, index: int, w: Window, out: tuple[int, ...]) -> int:
    t, best = e.writer.tensors[index], -1
    shape = (t.shape[0], *out, t.shape[3])
    for i, j in itertools.product(range(w.kernel[0]), range(w.kernel[1])):
        at = (i * w.dilations[0], j * w.dilations[1])
        end = [at[k] + (out[k] - 1) * w.strides[k] + 1 for k in (0, 1)]
        ins = [
            index, e.shape_const([0, *at, 0]), e.shape_const([t.shape[0], *end, t.shape[3]]),
            e.shape_const([1, *w.strides, 1]),
        ]  # fmt: skip
        part = e.add("STRIDED_SLICE", ins, shape, t.dtype, quant=t.quant)
        best = part if best < 0 else e.add("MAXIMUM", [best, part], shape, t.dtype, quant=t.quant)
    return best


def average_pool(e: Emitter, n: Node) -> None:
    """AveragePool; where TFLite counts other pixels than ONNX, a constant factor map corrects it."""
    w, size, out = _prepare(e, n)
    if w.dilations != (1, 1):
        raise Unsupported(f"AveragePool '{n.name}': dilations have no TFLite counterpart")
    perm = image_perm(e.rank(n.inputs[0]))
    index, mode = e.get(n.inputs[0], perm), padding(w, size)
    counts = _counts(n, w, size, out, window(n, e.shape(n.inputs[0])[2:], tuple(n.attrs["kernel_shape"])).pads)
    area = w.kernel[0] * w.kernel[1]
    if mode == "VALID" and _covered(w, size, mode) == out and (counts == area).all():
        e.emit("AVERAGE_POOL_2D", [index], n.out, perm, **_options(w, mode, n))
        return
    outside = n.attrs.get("count_include_pad", 0) == 0 or not any(w.pads)
    if mode == "SAME" and outside and _covered(w, size, mode) == out:
        e.emit("AVERAGE_POOL_2D", [index], n.out, perm, **_options(w, mode, n))
        return
    index = pad_image(e, index, w.pads)
    if (counts == area).all():
        e.emit("AVERAGE_POOL_2D", [index], n.out, perm, **_options(w, "VALID", n))
        return
    options = _options(w, "VALID", n) | {"fusedActivationFunction": "NONE"}
    pooled = e.add("AVERAGE_POOL_2D", [index], e.stored(n.out, perm), e.dtype(n.out), quant=e.quant(n.out), **options)
    factor = e.constant((area / counts).astype(np.float32)[None, :, :, None], "pool_factor")
    e.emit("MUL", [pooled, factor], n.out, perm, fusedActivationFunction=n.attrs.get("fused", "NONE"))


def _counts(n: Node, w: Window, size: tuple[int, ...], out: tuple[int, ...], pads: tuple[int, ...]) -> np.ndarray:
    """How many pixels ONNX divides by, for every output pixel [H, W]."""
    include = n.attrs.get("count_include_pad", 0)
    axes = []
    for i in (0, 1):
        low, high = (-pads[i], size[i] + pads[i + 2]) if include else (0, size[i])
        start = np.arange(out[i]) * w.strides[i] - pads[i]
        axes.append(np.minimum(start + w.kernel[i], high) - np.maximum(start, low))
    return np.outer(axes[0], axes[1])


def _global(code: str):
    def pool(e: Emitter, n: Node) -> None:
        """A reduction over every axis but batch and channels."""
        perm = e.perm(n.inputs[0])
        axes = [k for k, p in enumerate(perm) if p >= 2]
        index = e.get(n.inputs[0], perm)
        e.emit(code, [index, e.shape_const(axes)], n.out, perm, keepDims=True)

    return pool


OPS = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": _global("MEAN"),
    "GlobalMaxPool": _global("REDUCE_MAX"),
}
