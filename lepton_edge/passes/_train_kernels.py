"""The kernels of a model moved to tf_keras: which weights they are, and which of their axes a scale may belong to.

The axes are those of the quantizer (quant/place.py): one scale an output channel, one a row of a look-up table. Weights
that it leaves in float (recurrent ones) have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepton_edge.errors import UsageError, did_you_mean
from lepton_edge.keras_move import Moved, Pair

NAMES = frozenset({"kernel", "recurrent_kernel", "pointwise_kernel", "embeddings"})
DEPTHWISE = frozenset({"depthwise_kernel"})
RECURRENT = ("LSTM", "GRU", "SimpleRNN", "RNN", "Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D")


@dataclass(frozen=True)
class Kernel:
    """A layer's weight: `path` of the layer, `name` of the weight, its tf.Variable.

    `shared` are the axes that one scale spans; None where the quantizer leaves it in float. `inputs` is the axis of the
    input channels, None where there is no single one.
    """

    path: str
    name: str
    variable: Any
    depthwise: bool
    shared: tuple[int, ...] | None
    inputs: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weight."""
        return tuple(self.variable.shape)


def find(moved: Moved) -> list[Kernel]:
    """Every kernel of rank 2 or more, in the order of the layers."""
    return [kernel for pair in moved.pairs for kernel in _of(pair)]


def _of(pair: Pair) -> list[Kernel]:
    layer = pair.target
    names = getattr(layer, "names_of_inner", None)
    variables = layer.weights if names is None else layer.variables_of_inner
    long = [v.name.split(":")[0] for v in variables] if names is None else [w.path for w in pair.source.weights]
    found = []
    for variable, where in zip(variables, long, strict=True):
        name = where.split("/")[-1]
        rank = len(variable.shape)
        own = type(pair.source).__name__
        depthwise = name in DEPTHWISE or (own.startswith("DepthwiseConv") and name == "kernel")
        if rank < 2 or not (depthwise or name in NAMES):
            continue
        shared, inputs = axes(pair.source, own, name, where, rank, depthwise)
        found.append(Kernel(pair.path, name, variable, depthwise, shared, inputs))
    return found


def axes(
    layer: Any, kind: str, name: str, where: str, rank: int, depthwise: bool
) -> tuple[tuple[int, ...] | None, int | None]:
    """(axes that share a scale, axis of the input channels) of a weight of a Keras 3 layer."""
    every = tuple(range(rank))
    if kind in RECURRENT or name == "recurrent_kernel":
        return None, 0 if rank == 2 else None
    if name == "embeddings":
        return (1,), None
    if depthwise:
        return every[:-2], None
    if kind.endswith("Transpose"):  # [..., out, in]
        return (*every[:-2], rank - 1), rank - 1
    if kind == "MultiHeadAttention":
        return ((0, 1), None) if "attention_output" in where else ((0,), 0)
    if kind == "EinsumDense":
        left, out = layer.equation.replace(" ", "").split("->")
        letters = left.split(",")[1]
        inner = tuple(i for i, letter in enumerate(letters) if letter not in out)
        return (inner or None), inner[0] if len(inner) == 1 else None
    if kind == "GroupedQueryAttention":
        return None, None
    return every[:-1], rank - 2


def chosen(kernels: list[Kernel], keep: str) -> list[Kernel]:
    """Those kernels whose layers are not named in `keep` (names or paths, with commas).

    Raises UsageError for a name that no layer has.
    """
    names = {name.strip() for name in keep.split(",") if name.strip()}
    known = {alias: None for k in kernels for alias in (k.path, k.path.split("/")[-1])}
    for name in names:
        if name not in known:
            raise UsageError(
                f"keep names '{name}', and no layer with weights is called so", did_you_mean(name, [*known])
            )
    return [k for k in kernels if not names & {k.path, k.path.split("/")[-1]}]


def left_notes(left: dict[str, str]) -> list[str]:
    """A note on the layers that are left as they are, and why."""
    if not left:
        return []
    shown = "; ".join(f"{path}: {why}" for path, why in list(left.items())[:3])
    return [f"{len(left)} layers are left as they are ({shown}{'; ...' if len(left) > 3 else ''})"]
