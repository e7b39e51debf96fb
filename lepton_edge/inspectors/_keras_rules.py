"""Output shapes and MACs of Keras layers from their configs alone, so that no framework is needed.

A rule takes (config, input shapes) and returns (output shape or None, MACs or None). Shapes include the batch
as their first dimension, free (None); MACs are for a batch of one. `macs` None means: this layer computes
something that cannot be known from the config. Semantics: keras.io/api/layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any

from lepton_edge.inspectors._common import einsum_macs, size_of, times

Dims = list[int | None]
Result = tuple[Dims | None, int | None]

SAME_SHAPE = frozenset((
    "Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "ThresholdedReLU", "Dropout",
    "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise", "GaussianDropout",
    "AlphaDropout", "ActivityRegularization", "BatchNormalization", "SyncBatchNormalization",
    "LayerNormalization", "GroupNormalization", "UnitNormalization", "RMSNormalization", "Rescaling",
    "Normalization", "Masking", "Identity", "RandomFlip", "RandomRotation", "RandomZoom",
    "RandomTranslation", "RandomContrast", "RandomBrightness", "Relu", "Relu6", "Sigmoid", "Silu", "Gelu",
    "Tanh", "HardSilu", "HardSigmoid", "Swish",
))  # fmt: skip
MERGES = ("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Divide", "TrueDivide", "AddV2")
UNKNOWN_WORK = frozenset((
    "Lambda", "TFOpLambda", "SlicingOpLambda", "Dot", "Matmul", "Einsum", "Tensordot", "Conv",
    "ConvTranspose", "DepthwiseConv", "SeparableConv", "Attention", "AdditiveAttention",
    "GroupedQueryAttention", "RNN", "StackedRNNCells", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D",
    "Inner", "Outer", "Vdot", "Correlate",
    "SpectralNormalization", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "TFSMLayer", "Bilinear",
))  # fmt: skip
OPS_MODULES = ("keras.src.ops", "keras.ops", "keras.src.layers", "keras.layers", "keras.src.models")


def apply(kind: str, config: dict, shapes: Sequence[Dims | None], standard: bool) -> Result:
    """The result for one call of a layer; anything not known to be free of products has MACs None."""
    rule = RULES.get(kind) if standard else None
    if rule is not None:
        if not shapes or shapes[0] is None:
            return None, None if kind in WORKING else 0
        return rule(config, [*shapes])  # type: ignore[list-item]  # a rule looks at the first, and at others with care
    if not standard or kind in UNKNOWN_WORK:
        return None, None
    if kind in SAME_SHAPE:
        return (shapes[0] if shapes else None), 0
    return (_broadcast(shapes) if kind in MERGES else None), 0


def _broadcast(shapes: Sequence[Dims | None]) -> Dims | None:
    known = [shape for shape in shapes if shape is not None]
    if len(known) != len(shapes) or not known:
        return None
    rank = max(len(shape) for shape in known)
    padded = [_padded(shape, rank) for shape in known]
    return [_widest(dims) for dims in zip(*padded, strict=True)]


def _padded(shape: Dims, rank: int) -> Dims:
    ones: Dims = [1] * (rank - len(shape))
    return ones + shape


def _widest(dims: Sequence[int | None]) -> int | None:
    sizes = {dim for dim in dims if dim != 1}
    return 1 if not sizes else sizes.pop() if len(sizes) == 1 else None


def _tuple(value: Any, rank: int) -> list[int]:
    return [int(value)] * rank if isinstance(value, int) else [int(v) for v in value]


def _split(shape: Dims, config: dict) -> tuple[Dims, int | None]:
    """(spatial dimensions, channels)."""
    first = config.get("data_format") == "channels_first"
    return (shape[2:], shape[1]) if first else (shape[1:-1], shape[-1])


def _join(batch: int | None, space: Dims, channels: int | None, config: dict) -> Dims:
    first = config.get("data_format") == "channels_first"
    return [batch, channels, *space] if first else [batch, *space, channels]


def _window(size: int | None, kernel: int, stride: int, dilation: int, padding: str) -> int | None:
    if size is None:
        return None
    if padding in ("same", "causal"):
        return ceil(size / stride)
    return max(0, (size - dilation * (kernel - 1) - 1) // stride + 1)


def _geometry(config: dict, rank: int, kernel: str = "kernel_size") -> tuple[list[int], list[int], list[int]]:
    size = _tuple(config[kernel], rank)
    strides = config.get("strides")
    if strides is None:  # a pooling moves by its own size
        strides = size if kernel == "pool_size" else 1
    return size, _tuple(strides, rank), _tuple(config.get("dilation_rate", 1), rank)


def _slide(config: dict, shape: Dims, kernel: str = "kernel_size") -> tuple[Dims, list[int], int | None]:
    """(spatial output, kernel, input channels) of a convolution or a pooling."""
    space, channels = _split(shape, config)
    size, stride, dilation = _geometry(config, len(space), kernel)
    padding = config.get("padding", "valid")
    parts = zip(space, size, stride, dilation, strict=True)
    return [_window(*part, padding) for part in parts], size, channels


def _conv(config: dict, shapes: list[Dims]) -> Result:
    space, kernel, channels = _slide(config, shapes[0])
    filters, groups = int(config["filters"]), int(config.get("groups") or 1)
    output = _join(shapes[0][0], space, filters, config)
    per_group = None if channels is None else channels // groups
    return output, times(size_of(space), filters, size_of(kernel), per_group)


def _depthwise(config: dict, shapes: list[Dims]) -> Result:
    space, kernel, channels = _slide(config, shapes[0])
    wide = times(channels, int(config.get("depth_multiplier", 1)))
    return _join(shapes[0][0], space, wide, config), times(size_of(space), wide, size_of(kernel))


def _separable(config: dict, shapes: list[Dims]) -> Result:
    space, kernel, channels = _slide(config, shapes[0])
    wide, filters = times(channels, int(config.get("depth_multiplier", 1))), int(config["filters"])
    each = None if wide is None else wide * (size_of(kernel) or 0) + wide * filters
    return _join(shapes[0][0], space, filters, config), times(size_of(space), each)


def _conv_transpose(config: dict, shapes: list[Dims]) -> Result:
    """Every input element meets the whole kernel once."""
    space, channels = _split(shapes[0], config)
    kernel, stride, dilation = _geometry(config, len(space))
    extra = config.get("output_padding")
    extras = [None] * len(space) if extra is None else _tuple(extra, len(space))
    padding, filters = config.get("padding", "valid"), int(config["filters"])
    parts = zip(space, kernel, stride, dilation, extras, strict=True)
    output = [_stretched(*part, padding) for part in parts]
    macs = times(size_of(space), channels, filters, size_of(kernel))
    return _join(shapes[0][0], output, filters, config), macs


def _stretched(
    size: int | None, kernel: int, stride: int, dilation: int, extra: int | None, padding: str
) -> int | None:
    if size is None:
        return None
    wide = (kernel - 1) * dilation + 1
    if extra is None:
        return size * stride if padding == "same" else size * stride + max(wide - stride, 0)
    pad = wide // 2 if padding == "same" else 0
    return (size - 1) * stride + wide - 2 * pad + extra


def _dense(config: dict, shapes: list[Dims]) -> Result:
    units, shape = int(config["units"]), shapes[0]
    return [*shape[:-1], units], times(size_of(shape[1:]), units)


def _einsum_dense(config: dict, shapes: list[Dims]) -> Result:
    """The kernel's sizes come from the input and from output_shape, by their letters."""
    terms, result = config["equation"].replace(" ", "").split("->")
    data, kernel = terms.split(",")
    given = config["output_shape"] if isinstance(config["output_shape"], list) else [config["output_shape"]]
    if "." in terms or len(data) != len(shapes[0]):
        return None, None
    sizes: dict[str, int | None] = dict(zip(data, [1, *shapes[0][1:]], strict=True))
    for letter, size in zip(result[-len(given) :], given, strict=True):
        if sizes.get(letter) is None:
            sizes[letter] = size
    output = [sizes.get(letter) for letter in result]
    macs = einsum_macs(terms, [[1, *shapes[0][1:]], [sizes.get(letter) for letter in kernel]])
    return [shapes[0][0], *output[1:]], macs


def _pool(config: dict, shapes: list[Dims]) -> Result:
    space, _, channels = _slide(config, shapes[0], "pool_size")
    return _join(shapes[0][0], space, channels, config), 0


def _global_pool(config: dict, shapes: list[Dims]) -> Result:
    space, channels = _split(shapes[0], config)
    ones: Dims = [1] * len(space)
    return (_join(shapes[0][0], ones, channels, config) if config.get("keepdims") else [shapes[0][0], channels]), 0


def _flatten(config: dict, shapes: list[Dims]) -> Result:
    return [shapes[0][0], size_of(shapes[0][1:])], 0


def _reshape(config: dict, shapes: list[Dims]) -> Result:
    target = [int(d) for d in config["target_shape"]]
    if -1 in target:
        total, rest = size_of(shapes[0][1:]), size_of([d for d in target if d != -1])
        filled = None if total is None or not rest else total // rest
        return [shapes[0][0], *(filled if d == -1 else d for d in target)], 0
    return [shapes[0][0], *target], 0


def _permute(config: dict, shapes: list[Dims]) -> Result:
    return [shapes[0][0], *(shapes[0][d] for d in config["dims"])], 0


def _repeat(config: dict, shapes: list[Dims]) -> Result:
    return [shapes[0][0], int(config["n"]), *shapes[0][1:]], 0


def _pairs(value: Any, rank: int) -> list[tuple[int, int]]:
    if isinstance(value, int):
        return [(value, value)] * rank
    if rank == 1 and all(isinstance(v, int) for v in value):
        return [(value[0], value[-1])]
    return [(v, v) if isinstance(v, int) else (int(v[0]), int(v[1])) for v in value]


def _resized(sign: int, key: str) -> Callable[[dict, list[Dims]], Result]:
    def rule(config: dict, shapes: list[Dims]) -> Result:
        space, channels = _split(shapes[0], config)
        pads = _pairs(config[key], len(space))
        output = [None if s is None else s + sign * sum(p) for s, p in zip(space, pads, strict=True)]
        return _join(shapes[0][0], output, channels, config), 0

    return rule


def _upsample(config: dict, shapes: list[Dims]) -> Result:
    space, channels = _split(shapes[0], config)
    factors = _tuple(config["size"], len(space))
    output = [times(s, f) for s, f in zip(space, factors, strict=True)]
    return _join(shapes[0][0], output, channels, config), 0


def _sized(config: dict, shapes: list[Dims]) -> Result:
    _, channels = _split(shapes[0], config)
    return _join(shapes[0][0], [int(config["height"]), int(config["width"])], channels, config), 0


def _concatenate(config: dict, shapes: list[Dims]) -> Result:
    if any(shape is None for shape in shapes):
        return None, 0
    axis = int(config.get("axis", -1)) % len(shapes[0])
    parts = [shape[axis] for shape in shapes]
    total = None if any(p is None for p in parts) else sum(p for p in parts if p is not None)
    return [*shapes[0][:axis], total, *shapes[0][axis + 1 :]], 0


def _embedding(config: dict, shapes: list[Dims]) -> Result:
    return [*shapes[0], int(config["output_dim"])], 0


def _recurrent(gates: int) -> Callable[[dict, list[Dims]], Result]:
    def rule(config: dict, shapes: list[Dims]) -> Result:
        batch, steps, width = shapes[0]
        units = int(config["units"])
        output: Dims = [batch, steps, units] if config.get("return_sequences") else [batch, units]
        rows = None if width is None else width + units
        return output, times(steps, gates * units, rows)

    return rule


def _bidirectional(config: dict, shapes: list[Dims]) -> Result:
    inner = config["layer"]
    output, macs = apply(inner["class_name"], inner["config"], shapes, True)
    if output is not None and config.get("merge_mode", "concat") == "concat":
        output = [*output[:-1], times(output[-1], 2)]
    return (output if config.get("merge_mode", "concat") is not None else None), times(macs, 2)


def _time_distributed(config: dict, shapes: list[Dims]) -> Result:
    inner, shape = config["layer"], shapes[0]
    if inner["class_name"] in ("Functional", "Sequential", "Model"):
        return None, None
    output, macs = apply(inner["class_name"], inner["config"], [[shape[0], *shape[2:]]], True)
    return (None if output is None else [shape[0], shape[1], *output[1:]]), times(macs, shape[1])


def _attention(config: dict, shapes: list[Dims]) -> Result:
    """Three projections, scores, weighted values, output projection; one attention axis only."""
    query, value = shapes[0], shapes[1] if len(shapes) > 1 and shapes[1] else shapes[0]
    key = shapes[2] if len(shapes) > 2 and shapes[2] else value
    last = config.get("output_shape")
    width = query[-1] if last is None else last if isinstance(last, int) else size_of(last)
    output = [*query[:-1], *([width] if last is None or isinstance(last, int) else last)]
    if len(query) != 3 or config.get("use_gate") or config.get("sliding_window"):
        return output, None
    heads, key_dim = int(config["num_heads"]), int(config["key_dim"])
    value_dim = int(config.get("value_dim") or key_dim)
    rows, columns = query[1], value[1]
    parts = [
        times(rows, query[-1], heads * key_dim),
        times(columns, key[-1], heads * key_dim),
        times(columns, value[-1], heads * value_dim),
        times(rows, columns, heads * (key_dim + value_dim)),
        times(rows, width, heads * value_dim),
    ]
    return output, None if None in parts else sum(part for part in parts if part is not None)


def _mean(config: dict, shapes: list[Dims]) -> Result:
    """The reductions of keras.ops: axis may be an int, a list or None (everything)."""
    shape, axis = shapes[0], config.get("axis")
    axes = range(len(shape)) if axis is None else [axis] if isinstance(axis, int) else axis
    gone = {a % len(shape) for a in axes}
    if config.get("keepdims"):
        return [1 if i in gone else d for i, d in enumerate(shape)], 0
    return [d for i, d in enumerate(shape) if i not in gone], 0


RULES: dict[str, Callable[[dict, list[Dims]], Result]] = {
    **{f"Conv{n}D": _conv for n in (1, 2, 3)},
    **{f"Convolution{n}D": _conv for n in (1, 2, 3)},
    **{f"Conv{n}DTranspose": _conv_transpose for n in (1, 2, 3)},
    **{f"DepthwiseConv{n}D": _depthwise for n in (1, 2)},
    **{f"SeparableConv{n}D": _separable for n in (1, 2)},
    **{f"{kind}Pooling{n}D": _pool for kind in ("Max", "Average") for n in (1, 2, 3)},
    **{f"Global{kind}Pooling{n}D": _global_pool for kind in ("Max", "Average") for n in (1, 2, 3)},
    **{f"ZeroPadding{n}D": _resized(1, "padding") for n in (1, 2, 3)},
    **{f"Cropping{n}D": _resized(-1, "cropping") for n in (1, 2, 3)},
    **{f"UpSampling{n}D": _upsample for n in (1, 2, 3)},
    **{kind: _sized for kind in ("Resizing", "CenterCrop", "RandomCrop")},
    **{kind: _mean for kind in ("Mean", "Sum", "Max", "Min", "Prod")},
    "Dense": _dense,
    "EinsumDense": _einsum_dense,
    "Flatten": _flatten,
    "Reshape": _reshape,
    "Permute": _permute,
    "RepeatVector": _repeat,
    "Concatenate": _concatenate,
    "Embedding": _embedding,
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "SimpleRNN": _recurrent(1),
    "Bidirectional": _bidirectional,
    "TimeDistributed": _time_distributed,
    "MultiHeadAttention": _attention,
}
KNOWN = frozenset((*RULES, *SAME_SHAPE, *MERGES, "InputLayer"))
WORKING = frozenset(
    kind
    for kind, rule in RULES.items()
    if rule in (_conv, _conv_transpose, _depthwise, _separable, _dense, _einsum_dense, _attention)
    or kind in ("LSTM", "GRU", "SimpleRNN", "Bidirectional", "TimeDistributed")
)
