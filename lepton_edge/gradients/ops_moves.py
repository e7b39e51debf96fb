"""Operators that move, repeat, select or resize values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from lepton_edge.gradients.call import Call

Op = Callable[..., Any]


def reshape(c: Call, x: Any, shape: Any) -> Any:
    """Reshape; 0 keeps a size."""
    sizes = list(c.numbers(1, (x, shape)))
    if not c.get("allowzero", 0):
        sizes = [x.shape[k] if n == 0 else n for k, n in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(c: Call, x: Any) -> Any:
    """Two axes, parted at `axis`."""
    axis = c.get("axis", 1)
    axis += x.dim() if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), -1)


def squeeze(c: Call, x: Any, axes: Any = None) -> Any:
    """Axes of size 1 taken out."""
    wanted = c.numbers(1, (x, axes), c.get("axes"))
    if wanted is None:
        wanted = [k for k, n in enumerate(x.shape) if n == 1]
    for axis in sorted((a % x.dim() for a in wanted), reverse=True):
        x = x.squeeze(axis)
    return x


def unsqueeze(c: Call, x: Any, axes: Any = None) -> Any:
    """Axes of size 1 put in."""
    wanted = c.numbers(1, (x, axes), c.get("axes"))
    wanted = [wanted] if isinstance(wanted, int) else wanted
    rank = x.dim() + len(wanted)
    for axis in sorted(a % rank for a in wanted):
        x = x.unsqueeze(axis)
    return x


def transpose(c: Call, x: Any) -> Any:
    """Axes in another order."""
    return x.permute(c.get("perm") or list(reversed(range(x.dim()))))


def split(c: Call, x: Any, sizes: Any = None) -> Any:
    """Parts of an axis."""
    import torch

    axis = c.get("axis", 0)
    parts = c.numbers(1, (x, sizes), c.get("split"))
    if parts is None:
        each = math.ceil(x.shape[axis] / c.outputs)
        parts = [each] * (c.outputs - 1) + [x.shape[axis] - each * (c.outputs - 1)]
    return torch.split(x, list(parts), axis)


def slices(c: Call, x: Any, *more: Any) -> Any:
    """Runs of axes, with steps of any sign."""
    import torch

    xs = (x, *more)
    starts, ends = c.numbers(1, xs, c.get("starts")), c.numbers(2, xs, c.get("ends"))
    axes = c.numbers(3, xs, c.get("axes")) or list(range(len(starts)))
    steps = c.numbers(4, xs) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        # Python's own slices read -1 as the last element; ONNX's ends below that mean "before the first".
        low, high, step = slice(start, None if step < 0 and end < -size else end, step).indices(size)
        if step > 0:
            index = (slice(None),) * (axis % x.dim())
            x = x[(*index, slice(low, high, step))]
        else:
            chosen = torch.arange(low, high, step, device=x.device)
            x = torch.index_select(x, axis, chosen)
    return x


def gather(c: Call, x: Any, indices: Any) -> Any:
    """Elements of an axis; indices of any rank take its place."""
    import torch

    axis = c.get("axis", 0) % x.dim()
    size = x.shape[axis]
    flat = indices.reshape(-1).long()
    flat = torch.where(flat < 0, flat + size, flat)
    if axis == 0 and x.dim() == 2 and x.dtype.is_floating_point:
        taken = torch.nn.functional.embedding(flat, x)
    else:
        taken = torch.index_select(x, axis, flat)
    return taken.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(c: Call, x: Any, indices: Any) -> Any:
    """torch.gather, with indices counted from the end too."""
    import torch

    axis = c.get("axis", 0)
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices).long())


def gather_nd(c: Call, x: Any, indices: Any) -> Any:
    """Slices by tuples of indices, without axes of a batch."""
    if c.get("batch_dims", 0):
        raise c.refuse("batch_dims")
    return x[tuple(indices[..., k].long() for k in range(indices.shape[-1]))]


def expand(c: Call, x: Any, shape: Any) -> Any:
    """Broadcast to a shape, in both directions."""
    sizes = list(c.numbers(1, (x, shape)))
    sizes = [1] * (x.dim() - len(sizes)) + sizes
    own = [1] * (len(sizes) - x.dim()) + list(x.shape)
    return x.expand([max(a, b) if 0 not in (a, b) else 0 for a, b in zip(sizes, own, strict=True)])


def pad(c: Call, x: Any, given: Any = None, value: Any = None, axes: Any = None) -> Any:
    """Pads with a constant, by reflection, with the edge or around; they may cut."""
    import torch

    from lepton_edge.gradients.ops_layers import padded

    xs = (x, given, value, axes)
    sizes = c.numbers(1, xs, c.get("pads"))
    wanted = c.numbers(3, xs) or list(range(len(sizes) // 2))
    before, behind = [0] * x.dim(), [0] * x.dim()
    for k, axis in enumerate(wanted):
        before[axis], behind[axis] = sizes[k], sizes[k + len(wanted)]
    mode = c.get("mode", "constant")
    if mode == "constant":
        constant = c.numbers(2, xs, c.get("value", 0.0))
        constant = constant[0] if isinstance(constant, list) else constant
        return padded(x, before, behind, constant)
    for axis, (low, high) in enumerate(zip(before, behind, strict=True)):
        if low or high:
            at = np.arange(-low, x.shape[axis] + high)
            top = x.shape[axis] - 1
            if mode == "edge":
                at = np.clip(at, 0, top)
            elif mode == "wrap":
                at = at % (top + 1)
            else:
                at = top - np.abs(top - np.abs(at) % max(2 * top, 1))
            x = torch.index_select(x, axis, torch.as_tensor(at, device=x.device))
    return x


def depth_to_space(c: Call, x: Any) -> Any:
    """Channels to blocks of positions."""
    n, ch, h, w = x.shape
    b = c.get("blocksize")
    if c.get("mode", "DCR") == "DCR":
        y = x.reshape(n, b, b, ch // b**2, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, ch // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, ch // b**2, h * b, w * b)


def space_to_depth(c: Call, x: Any) -> Any:
    """Blocks of positions to channels."""
    n, ch, h, w = x.shape
    b = c.get("blocksize")
    order = (0, 1, 3, 5, 2, 4) if c.get("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    y = x.reshape(n, ch, h // b, b, w // b, b).permute(order)
    return y.reshape(n, ch * b**2, h // b, w // b)


def resize(c: Call, x: Any, *more: Any) -> Any:
    """Resize by one small matrix an axis, as ONNX defines it."""
    import torch

    xs = (x, *more)
    scales, sizes = c.numbers(2, xs, []), c.numbers(3, xs, [])
    mode, transform = c.get("mode", "nearest"), c.get("coordinate_transformation_mode", "half_pixel")
    policy = c.get("keep_aspect_ratio_policy", "stretch")
    if c.get("antialias", 0) or transform == "tf_crop_and_resize" or policy != "stretch":
        raise c.refuse("antialias, a crop or a kept aspect ratio")
    axes = [a % x.dim() for a in (c.get("axes") or range(x.dim()))]
    for k, axis in enumerate(axes):
        size = x.shape[axis]
        scale = scales[k] if scales else sizes[k] / size
        out = sizes[k] if sizes else math.floor(size * scale)
        if out == size and scale == 1:
            continue
        weights = _weights(c, size, out, scale, mode, transform)
        matrix = torch.as_tensor(weights, dtype=x.dtype, device=x.device)
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix.T, -1, axis)
    return x


def _weights(c: Call, size: int, out: int, scale: float, mode: str, transform: str) -> np.ndarray:
    """What each output position takes of each input position: float64 [out, size]."""
    at = np.arange(out, dtype=np.float64)
    if transform == "align_corners":
        at = at * (size - 1) / (size * scale - 1) if size * scale > 1 else np.zeros(out)
    elif transform == "asymmetric":
        at = at / scale
    elif transform == "pytorch_half_pixel" and out == 1:
        at = np.zeros(1)
    elif transform == "half_pixel_symmetric":
        centre = size / 2 * (1 - out / (scale * size))
        at = centre + (at + 0.5) / scale - 0.5
    else:
        at = (at + 0.5) / scale - 0.5
    made = np.zeros((out, size))
    rows = np.arange(out)
    if mode == "nearest":
        way = c.get("nearest_mode", "round_prefer_floor")
        rounded = {
            "floor": np.floor(at), "ceil": np.ceil(at), "round_prefer_ceil": np.floor(at + 0.5),
            "round_prefer_floor": np.ceil(at - 0.5),
        }[way]  # fmt: skip
        made[rows, np.clip(rounded, 0, size - 1).astype(int)] = 1
        return made
    low = np.floor(at)
    part = at - low
    if mode == "linear":
        at = np.clip(at, 0, size - 1)
        low = np.floor(at)
        part = at - low
        taps = {0: 1 - part, 1: part}
    else:
        a = c.get("cubic_coeff_a", -0.75)
        taps = {
            -1: ((a * (part + 1) - 5 * a) * (part + 1) + 8 * a) * (part + 1) - 4 * a,
            0: ((a + 2) * part - (a + 3)) * part**2 + 1,
            1: ((a + 2) * (1 - part) - (a + 3)) * (1 - part) ** 2 + 1,
            2: ((a * (2 - part) - 5 * a) * (2 - part) + 8 * a) * (2 - part) - 4 * a,
        }
    for step, weight in taps.items():
        place = low + step
        weight = np.where((place < 0) | (place > size - 1), 0, weight) if c.get("exclude_outside", 0) else weight
        np.add.at(made, (rows, np.clip(place, 0, size - 1).astype(int)), weight)
    return made / made.sum(1, keepdims=True) if c.get("exclude_outside", 0) else made


def topk(c: Call, x: Any, k: Any) -> Any:
    """The largest or smallest elements and where they are."""
    import torch

    count = c.numbers(1, (x, k))
    count = count[0] if isinstance(count, list) else count
    axis = c.get("axis", -1)
    values, places = torch.sort(x, dim=axis, descending=bool(c.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def one_hot(c: Call, indices: Any, depth: Any, values: Any) -> Any:
    """One value at an index of a new axis, another one elsewhere."""
    import torch

    count = c.numbers(1, (indices, depth))
    count = int(count[0] if isinstance(count, list) else count)
    axis = c.get("axis", -1)
    places = torch.arange(count, device=indices.device)
    rank = indices.dim() + 1
    shape = [1] * rank
    shape[axis] = count
    wanted = indices.long()
    wanted = torch.where(wanted < 0, wanted + count, wanted)  # what is out of range is no place
    hot = wanted.unsqueeze(axis % rank) == places.reshape(shape)
    return torch.where(hot, values[1], values[0])


def constant_of_shape(c: Call, shape: Any) -> Any:
    """One value everywhere."""
    import torch

    value = c.get("value")
    value = np.zeros(1, np.float32) if value is None else np.asarray(value)
    return torch.full(c.numbers(0, (shape,)), value.reshape(-1)[0].item(), dtype=torch.from_numpy(value.copy()).dtype)


def shape(c: Call, x: Any) -> Any:
    """The sizes of a tensor, or a run of them."""
    import torch

    return torch.tensor(list(x.shape)[c.get("start", 0) : c.get("end")], dtype=torch.int64)


def table() -> dict[str, Op]:
    """All of them."""
    import torch

    def one(value: Any) -> Any:
        return value[0] if isinstance(value, list) else value

    def arange(c: Call, *xs: Any) -> Any:
        return torch.arange(*(one(c.numbers(k, xs)) for k in range(3)), dtype=xs[0].dtype)

    return {
        "Reshape": reshape,
        "Flatten": flatten,
        "Squeeze": squeeze,
        "Unsqueeze": unsqueeze,
        "Transpose": transpose,
        "Concat": lambda c, *xs: torch.cat(xs, c.get("axis")),
        "Split": split,
        "Slice": slices,
        "Gather": gather,
        "GatherElements": gather_elements,
        "GatherND": gather_nd,
        "Expand": expand,
        "Tile": lambda c, x, n: x.tile(c.numbers(1, (x, n))),
        "Pad": pad,
        "DepthToSpace": depth_to_space,
        "SpaceToDepth": space_to_depth,
        "Resize": resize,
        "TopK": topk,
        "OneHot": one_hot,
        "ConstantOfShape": constant_of_shape,
        "Shape": shape,
        "Size": lambda c, x: torch.tensor(x.numel()),
        "Range": arange,
    }
