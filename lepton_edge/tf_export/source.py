"""A model as a function of tensors, whatever file it came from; here from a loaded Keras model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Port:
    """One input or output: its name in the source, shape (None: free) and NumPy dtype name."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Source:
    """A model as a function of tensors in the order of `inputs`, returning a list in the order of `outputs`."""

    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    call: Callable[..., list[Any]]
    keep: Any = None
    recurrent: tuple[Any, ...] = ()


def keras_source(model: Any) -> Source:
    """A Keras 3 or tf_keras model as a Source: inputs by layer name, outputs by dict key or layer name."""
    import tensorflow as tf

    legacy = not type(model).__module__.startswith("keras.")
    nest: Any = tf.nest
    if not legacy:
        import keras

        nest = keras.tree
    if legacy:
        history, output_names = list(model.input_names), list(model.output_names)
    else:
        history = [t._keras_history.operation.name for t in model.inputs]
        output_names = [t._keras_history.operation.name for t in model.outputs]
    structure = getattr(model, "_nested_outputs" if legacy else "_outputs_struct", None)
    if isinstance(structure, dict) and len(structure) == len(output_names):
        output_names = sorted(structure)
    inputs = tuple(
        Port(name, tuple(tensor.shape), tf.as_dtype(tensor.dtype).name)
        for name, tensor in zip(unique(history), model.inputs, strict=True)
    )
    packed = getattr(model, "_nested_inputs" if legacy else "_inputs_struct", None)

    def call(*tensors: Any) -> list[Any]:
        fed = tensors[0] if packed is None else nest.pack_sequence_as(packed, list(tensors))
        return nest.flatten(model(fed, training=False))

    recurrent = tuple(layer for layer in layers_of(model) if type(layer).__name__ in ("LSTM", "GRU"))
    return Source(inputs, unique(output_names), call, model, () if legacy else recurrent)


def layers_of(model: Any) -> list[Any]:
    """Every layer, those inside nested models and wrappers included."""
    return list(model._flatten_layers()) if hasattr(model, "_flatten_layers") else list(model.submodules)


def unique(names: list[str]) -> tuple[str, ...]:
    """The names, a repeated one numbered as Keras 2 does: `rnn, rnn_1, rnn_2`."""
    seen: set[str] = set()
    result = []
    for name in names:
        candidate, count = name, 0
        while candidate in seen:
            count += 1
            candidate = f"{name}_{count}"
        seen.add(candidate)
        result.append(candidate)
    return tuple(result)
