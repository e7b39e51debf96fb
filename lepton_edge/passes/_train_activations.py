"""Activations rounded to 8 bits while a model trains, where the quantizer rounds them.

Jacob et al. (CVPR 2018), section 3.1; ranges are those of some batches before training begins, and the gradient goes
straight through within them. The places follow quant/place.py: after the activation function, not between it and its
layer; not beside attention, whose products the quantizer leaves in float. The ranges are for training only: the
quantizer chooses its own.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from lepton_edge.keras_move import is_model

WEIGHTED = ("Dense", "EinsumDense", "Conv", "DepthwiseConv", "SeparableConv")
COMPUTES = frozenset(
    {"BatchNormalization", "ReLU", "Add", "Subtract", "Multiply", "Concatenate", "GlobalAveragePooling2D"}
    | {"AveragePooling2D", "LeakyReLU", "InputLayer"}
)
ATTENTION = frozenset({"MultiHeadAttention", "GroupedQueryAttention", "Attention", "AdditiveAttention"})
BOUNDED = frozenset({"relu", "relu6", "linear"})
OFF, OBSERVES, ROUNDS = 0, 1, 2


def takes_part(layers: Sequence[Any]) -> bool:
    """Whether activations of a model are rounded at all."""
    return not any(type(layer).__name__ in ATTENTION for layer in layers)


def rounds(operation: Any, users: Sequence[Any]) -> bool:
    """Whether the output of a Keras 3 operation, read by `users`, is rounded."""
    if is_model(operation):
        return False
    name = type(operation).__name__
    if name == "Activation":
        return _activation(operation) in BOUNDED
    if name.startswith(WEIGHTED):
        return _activation(operation) in BOUNDED and not _fused(users)
    return name in COMPUTES and not (name in ("BatchNormalization", "Add") and _fused(users))


def _activation(operation: Any) -> str:
    return getattr(getattr(operation, "activation", None), "__name__", "linear")


def _fused(users: Sequence[Any]) -> bool:
    """Whether the only reader is a normalisation or an activation, which becomes one operator with it."""
    if len(users) != 1:
        return False
    name = type(users[0]).__name__
    return name in ("BatchNormalization", "ReLU", "Softmax", "Activation")


@functools.cache
def rounding_layer() -> type:
    """The tf_keras layer that rounds: exactly the identity until its mode says otherwise."""
    import tensorflow as tf
    import tf_keras

    class Rounding(tf_keras.layers.Layer):
        """`mode` is OFF, OBSERVES (the range grows by what comes) or ROUNDS (within it)."""

        def build(self, shape: Any) -> None:
            self.low, self.high = (
                self.add_weight(n, (), initializer="zeros", trainable=False) for n in ("low", "high")
            )
            self.mode = self.add_weight("mode", (), "int32", initializer="zeros", trainable=False)

        def call(self, x: Any) -> Any:
            def observed() -> Any:
                self.low.assign(tf.minimum(self.low, tf.reduce_min(x)))  # it starts at 0, and so holds it
                self.high.assign(tf.maximum(self.high, tf.reduce_max(x)))
                return tf.identity(x)

            def rounded() -> Any:
                top = tf.maximum(self.high, self.low + 1e-6)
                return tf.quantization.fake_quant_with_min_max_vars(x, self.low, top, num_bits=8)

            return tf.switch_case(tf.convert_to_tensor(self.mode), [lambda: tf.identity(x), observed, rounded])

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            return mask

    return Rounding


def after(operation: Any, users: Sequence[Any], tensor: Any) -> Any:
    """For keras_move.move: the tf_keras tensor, rounded where it has to be."""
    import tensorflow as tf

    if tensor.dtype != tf.float32 or not rounds(operation, users):
        return tensor
    return rounding_layer()()(tensor)


def layers_of(model: Any) -> list[Any]:
    """The rounding layers of a tf_keras model, nested models' too."""
    found = []
    for layer in model.layers:
        if isinstance(layer, rounding_layer()):
            found.append(layer)
        elif hasattr(layer, "layers"):
            found += layers_of(layer)
    return found
