"""Convolutions: Conv (1-D, 2-D, groups, depthwise, dilations) and ConvTranspose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.graph import Node
from lepton_edge.tflite_writer.layout import Perm

ACTIVATION = {"": "NONE", "RELU": "RELU", "RELU6": "RELU6", "RELU_N1_TO_1": "RELU_N1_TO_1"}


@dataclass(frozen=True)
class Window:
    """A sliding window in two dimensions (H, W); `pads` are (top, left, bottom, right)."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]


def image_perm(rank: int) -> Perm:
    """How images are stored: NHWC, a 1-D signal as an image of height one."""
    return (0, -1, 2, 1) if rank == 3 else layout.channels_last(rank)


def window(node: Node, size: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """The window of a Conv or pooling node with `size` input pixels, auto_pad resolved, made two-dimensional."""
    n = len(kernel)
    strides = tuple(node.attrs.get("strides", [1] * n))
    dilations = tuple(node.attrs.get("dilations", [1] * n))
    pads = auto_pads(node, size, kernel, strides, dilations)
    if n == 1:
        return Window((1, *kernel), (1, *strides), (1, *dilations), (0, pads[0], 0, pads[1]))
    return Window(tuple(kernel), strides, dilations, tuple(pads))


def auto_pads(node: Node, size: Any, kernel: Any, strides: Any, dilations: Any) -> list[int]:
    """The pads (all begins, all ends) an ONNX node asks for."""
    mode, n = node.attrs.get("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", ""):
        return [int(p) for p in node.attrs.get("pads", [0] * (2 * n))]
    if mode == "VALID":
        return [0] * (2 * n)
    begins, ends = [], []
    for i, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max((-(-i // s) - 1) * s + (k - 1) * d + 1 - i, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if mode == "SAME_UPPER" else large)
        ends.append(large if mode == "SAME_UPPER" else small)
    return begins + ends


def padding(w: Window, size: tuple[int, ...]) -> str | None:
    """'VALID' or 'SAME' when TFLite's own padding equals the pads, else None."""
    if not any(w.pads):
        return "VALID"
    for i in (0, 1):
        total = max(
            (-(-size[i] // w.strides[i]) - 1) * w.strides[i] + (w.kernel[i] - 1) * w.dilations[i] + 1 - size[i], 0
        )
        if (w.pads[i], w.pads[i + 2]) != (total // 2, total - total // 2):
            return None
    return "SAME"


def pad_image(e: Emitter, index: int, pads: tuple[int, ...], value: float = 0.0) -> int:
    """An NHWC tensor with explicit pads around H and W; negative ones crop."""
    t = e.writer.tensors[index]
    crop = [max(-p, 0) for p in pads]
    grow = [max(p, 0) for p in pads]
    if any(crop):
        shape = (t.shape[0], t.shape[1] - crop[0] - crop[2], t.shape[2] - crop[1] - crop[3], t.shape[3])
        begin = e.shape_const([0, crop[0], crop[1], 0])
        index = e.add("SLICE", [index, begin, e.shape_const(shape)], shape, t.dtype, quant=t.quant)
        t = e.writer.tensors[index]
    if not any(grow):
        return index
    shape = (t.shape[0], t.shape[1] + grow[0] + grow[2], t.shape[2] + grow[1] + grow[3], t.shape[3])
    amounts = e.shape_const([[0, 0], [grow[0], grow[2]], [grow[1], grow[3]], [0, 0]])
    if value == 0:
        return e.add("PAD", [index, amounts], shape, t.dtype, f"{t.name}_pad", t.quant)
    fill = e.constant(np.asarray(value, t.dtype), "pad_value", t.quant)
    return e.add("PADV2", [index, amounts, fill], shape, t.dtype, f"{t.name}_pad", t.quant)


def conv(e: Emitter, n: Node) -> None:
    """Conv with constant or computed weights [M, C/group, kernel]."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    if rank == 5:
        return conv3d(e, n)
    if rank not in (3, 4):
        raise Unsupported(f"Conv '{n.name}': TFLite has 1-D to 3-D convolutions, this one has {rank - 2} axes")
    group, channels = n.attrs.get("group", 1), e.shape(x)[1]
    filters = e.shape(n.inputs[1])
    w = window(n, e.shape(x)[2:], filters[2:])
    size = (1, e.shape(x)[2]) if rank == 3 else e.shape(x)[2:]
    mode, index = padding(w, size), e.get(x, image_perm(rank))
    if mode is None:
        index, mode = pad_image(e, index, w.pads), "VALID"
    options = {"padding": mode, **_strides(w), "fusedActivationFunction": n.attrs.get("fused", "NONE")}
    depthwise = group > 1 and group == channels and (group > 1 or filters[0] > 1)
    if depthwise:
        weights = e.get(n.inputs[1], (1, -1, 2, 0) if rank == 3 else (1, 2, 3, 0))
        options["depthMultiplier"] = filters[0] // channels
    else:
        weights = e.get(n.inputs[1], image_perm(rank))
    bias = _bias(e, n, filters[0])
    e.emit("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [index, weights, bias], n.out, image_perm(rank), **options)


def _strides(w: Window) -> dict[str, int]:
    return {
        "strideH": w.strides[0], "strideW": w.strides[1],
        "dilationHFactor": w.dilations[0], "dilationWFactor": w.dilations[1],
    }  # fmt: skip


def _bias(e: Emitter, n: Node, filters: int) -> int:
    return e.get(n.inputs[2]) if n.has(2) else e.constant(np.zeros(filters, np.float32), f"{n.name}_bias")


def conv3d(e: Emitter, n: Node) -> None:
    """Conv over three axes; weights become DHWIO."""
    x, filters = n.inputs[0], e.shape(n.inputs[1])
    if n.attrs.get("group", 1) != 1:
        raise Unsupported(f"Conv '{n.name}': TFLite's 3-D convolution has no groups")
    strides, dilations = n.attrs.get("strides", [1] * 3), n.attrs.get("dilations", [1] * 3)
    pads = auto_pads(n, e.shape(x)[2:], filters[2:], strides, dilations)
    index = e.get(x, (0, 2, 3, 4, 1))
    if any(pads):
        t = e.writer.tensors[index]
        around = [(0, 0), *zip(pads[:3], pads[3:], strict=True), (0, 0)]
        shape = [d + a + b for d, (a, b) in zip(t.shape, around, strict=True)]
        index = e.add("PAD", [index, e.shape_const(around)], shape, t.dtype)
    weights = e.get(n.inputs[1], (2, 3, 4, 1, 0))
    e.emit(
        "CONV_3D", [index, weights, _bias(e, n, filters[0])], n.out, (0, 2, 3, 4, 1), padding="VALID",
        strideD=strides[0], strideH=strides[1], strideW=strides[2], dilationDFactor=dilations[0],
        dilationHFactor=dilations[1], dilationWFactor=dilations[2],
        fusedActivationFunction=n.attrs.get("fused", "NONE"),
    )  # fmt: skip


def conv_transpose(e: Emitter, n: Node) -> None:
    """ConvTranspose: TRANSPOSE_CONV, or zeros put between the pixels and a convolution (groups, dilations)."""
    x, rank = n.inputs[0], e.rank(n.inputs[0])
    if rank not in (3, 4):
        raise Unsupported(f"ConvTranspose '{n.name}': only 1-D and 2-D have a TFLite counterpart")
    filters, out = e.shape(n.inputs[1]), e.shape(n.out)
    kernel, spatial = _two(filters[2:], 1), _two(out[2:], 1)
    strides = _two(n.attrs.get("strides", [1] * (rank - 2)), 1)
    dilations = _two(n.attrs.get("dilations", [1] * (rank - 2)), 1)
    size = _two(e.shape(x)[2:], 1)
    begins = _transpose_begins(n, size, spatial, kernel, strides, dilations)
    if n.attrs.get("group", 1) == 1 and dilations == (1, 1):
        index = _transpose_conv(e, n, size, spatial, kernel, strides, begins)
    else:
        index = _dilated_conv(e, n, size, spatial, kernel, strides, dilations, begins)
    e.put(n.out, index, image_perm(rank))


def _two(values: Any, fill: int) -> tuple[int, int]:
    return (fill, int(values[0])) if len(values) == 1 else (int(values[0]), int(values[1]))


def _transpose_begins(n: Node, size: Any, out: Any, kernel: Any, strides: Any, dilations: Any) -> tuple[int, int]:
    """How many rows and columns are cut off before the first output pixel."""
    pads = n.attrs.get("pads")
    mode = n.attrs.get("auto_pad", "NOTSET")
    if mode in ("NOTSET", "") and "output_shape" not in n.attrs:
        return _two([*pads][: len(pads) // 2], 0) if pads else (0, 0)
    extra = _two(n.attrs.get("output_padding", [0] * (len(n.attrs.get("kernel_shape", kernel)))), 0)
    begins = []
    for i in (0, 1):
        total = max((size[i] - 1) * strides[i] + extra[i] + (kernel[i] - 1) * dilations[i] + 1 - out[i], 0)
        begins.append(total - total // 2 if mode == "SAME_LOWER" else total // 2)
    return begins[0], begins[1]


def _transpose_conv(e: Emitter, n: Node, size: Any, out: Any, kernel: Any, strides: Any, begins: Any) -> int:
    x, rank, filters = n.inputs[0], e.rank(n.inputs[0]), e.shape(n.inputs[1])[1]
    index = e.get(x, image_perm(rank))
    weights = e.get(n.inputs[1], (1, -1, 2, 0) if rank == 3 else (1, 2, 3, 0))
    same = all(
        -(-out[i] // strides[i]) == size[i]
        and max((size[i] - 1) * strides[i] + kernel[i] - out[i], 0) // 2 == begins[i]
        for i in (0, 1)
    )
    batch, dtype = e.shape(x)[0], e.dtype(n.out)
    need = [begins[i] + out[i] for i in (0, 1)]
    full = [
        max((size[i] - 1) * strides[i] + kernel[i], min(need[i], size[i] * strides[i] + kernel[i] - 1)) for i in (0, 1)
    ]
    shape = (batch, *(out if same else full), filters)
    ins = [e.shape_const(shape), weights, index]
    if not same and any(need[i] > full[i] for i in (0, 1)):
        raise Unsupported(f"ConvTranspose '{n.name}': output_padding beyond the stride")
    if n.has(2):
        ins.append(e.get(n.inputs[2]))
    made = e.add(
        "TRANSPOSE_CONV", ins, shape, dtype, n.out, e.quant(n.out), padding="SAME" if same else "VALID",
        strideH=strides[0], strideW=strides[1],
    )  # fmt: skip
    if same:
        return made
    ends = [full[i] - need[i] for i in (0, 1)]
    return pad_image(e, made, (-begins[0], -begins[1], -ends[0], -ends[1]))


def _dilated_conv(
    e: Emitter, n: Node, size: Any, out: Any, kernel: Any, strides: Any, dilations: Any, begins: Any
) -> int:
    """Zeros between the pixels, then a convolution with the kernel turned around."""
    x, rank, group = n.inputs[0], e.rank(n.inputs[0]), n.attrs.get("group", 1)
    weights = e.need(n, 1, "the kernel")
    weights = weights.reshape(weights.shape[0], weights.shape[1], *kernel)[:, :, ::-1, ::-1]
    channels, per_group = weights.shape[:2]
    index = spread(e, e.get(x, image_perm(rank)), strides)
    reach = [(kernel[i] - 1) * dilations[i] for i in (0, 1)]
    now = [(size[i] - 1) * strides[i] + 1 for i in (0, 1)]
    before = [reach[i] - begins[i] for i in (0, 1)]
    after = [out[i] + reach[i] - now[i] - before[i] for i in (0, 1)]
    index = pad_image(e, index, (before[0], before[1], after[0], after[1]))
    filters = per_group * group
    options = {
        "padding": "VALID", "strideH": 1, "strideW": 1, "dilationHFactor": dilations[0],
        "dilationWFactor": dilations[1], "fusedActivationFunction": "NONE",
    }  # fmt: skip
    if group == channels:
        code, kernel_data = "DEPTHWISE_CONV_2D", weights.transpose(2, 3, 0, 1).reshape(1, *kernel, filters)
        options["depthMultiplier"] = per_group
    else:
        split = weights.reshape(group, channels // group, per_group, *kernel).transpose(0, 2, 3, 4, 1)
        code, kernel_data = "CONV_2D", split.reshape(filters, *kernel, channels // group)
    ins = [index, e.constant(kernel_data, n.inputs[1]), _bias(e, n, filters)]
    return e.add(code, ins, (e.shape(x)[0], *out, filters), e.dtype(n.out), n.out, e.quant(n.out), **options)


def spread(e: Emitter, index: int, strides: tuple[int, int]) -> int:
    """An NHWC tensor with strides - 1 zeros between neighbouring pixels."""
    for axis in (1, 2):
        s, t = strides[axis - 1], e.writer.tensors[index]
        if s == 1 or t.shape[axis] == 1:
            continue
        outer, pixels = int(np.prod(t.shape[:axis])), t.shape[axis]
        inner = int(np.prod(t.shape[axis + 1 :]))
        flat = e.reshape(index, (outer, pixels, 1, inner))
        amounts = e.shape_const([[0, 0], [0, 0], [0, s - 1], [0, 0]])
        wide = e.add("PAD", [flat, amounts], (outer, pixels, s, inner), t.dtype, quant=t.quant)
        shape = list(t.shape)
        shape[axis] = pixels * s
        index = e.reshape(wide, shape)
        cut = [0, 0, 0, 0]
        cut[axis + 1] = -(s - 1)
        index = pad_image(e, index, tuple(cut))
    return index


OPS = {"Conv": conv, "ConvTranspose": conv_transpose}
