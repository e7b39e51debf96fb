"""LSTM and GRU layers in the form in which converters recognise them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def fused_recurrent(layers: tuple[Any, ...], target: str) -> Iterator[None]:
    """Trace Keras 3 LSTM and GRU layers as the loop that converters know by its shape.

    Keras 3 traces a plain while loop, which TFLite and ONNX then run step by step and which no quantizer
    enters. The loop of Keras 2 (same arithmetic) is recognised: TFLite makes it UNIDIRECTIONAL_SEQUENCE_LSTM,
    tf2onnx makes it LSTM or GRU. Layers with other activations, masks or returned state keep their own loop.
    """
    kinds = {"tflite": ("LSTM",), "onnx": ("LSTM", "GRU")}.get(target, ())
    chosen = [layer for layer in layers if type(layer).__name__ in kinds and fusable(layer)]
    for layer in chosen:
        layer.__dict__["inner_loop"] = _recurrent_loop(layer, layer.inner_loop)
    try:
        yield
    finally:
        for layer in chosen:
            layer.__dict__.pop("inner_loop", None)


def fusable(layer: Any) -> bool:
    """Whether a Keras 3 LSTM or GRU layer computes what the recognised loop does, nothing more and nothing else."""
    names = [getattr(getattr(layer, key), "__name__", "") for key in ("activation", "recurrent_activation")]
    plain = names == ["tanh", "sigmoid"] and layer.use_bias and not layer.unroll
    return plain and not layer.stateful and not layer.return_state and getattr(layer, "reset_after", True)


def _recurrent_loop(layer: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    import tensorflow as tf

    lstm = type(layer).__name__ == "LSTM"
    weights = [w.value for w in (layer.cell.kernel, layer.cell.recurrent_kernel, layer.cell.bias)]
    attributes: dict[str, Any] = {"api_implements": f"{'lstm' if lstm else 'gru'}_{layer.name}"}
    attributes.update(api_preferred_device="CPU", time_major=False, go_backwards=bool(layer.go_backwards))

    def loop(x: Any, *rest: Any) -> Any:
        state, (kernel, recurrent, bias) = rest[:-3], rest[-3:]
        step, bias = (_lstm_step, bias) if lstm else (_gru_step, tf.unstack(bias))
        series = tf.transpose(x, [1, 0, 2])
        series = tf.reverse(series, [0]) if layer.go_backwards else series
        count = tf.shape(series)[0]
        given = tf.TensorArray(x.dtype, count).unstack(series)
        made = tf.TensorArray(x.dtype, count, element_shape=state[0].shape)

        def body(time: Any, made: Any, *state: Any) -> Any:
            new = step(given.read(time), state, kernel, recurrent, bias)
            return (time + 1, made.write(time, new[0]), *new)

        _, made, *new = tf.while_loop(lambda time, *_: time < count, body, (tf.constant(0), made, *state))
        outputs = tf.transpose(made.stack(), [1, 0, 2])
        outputs.set_shape([x.shape[0], x.shape[1], state[0].shape[-1]])
        last = outputs[:, -1]
        outputs = outputs if layer.return_sequences else tf.expand_dims(last, 1)
        return (last, outputs, *new, tf.constant(1.0, name="runtime"))

    def inner_loop(sequences: Any, initial_state: Any, mask: Any = None, training: bool = False) -> Any:
        state = list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]
        if mask is not None or sequences.dtype != tf.float32:
            return original(sequences, initial_state, mask, training=training)
        function = tf.function(loop, autograph=False, experimental_attributes=attributes)
        last, outputs, *new, _ = function(sequences, *state, *(tf.convert_to_tensor(w) for w in weights))
        return last, outputs, new

    return inner_loop


def _lstm_step(x: Any, state: Any, kernel: Any, recurrent: Any, bias: Any) -> list[Any]:
    import tensorflow as tf

    z = tf.nn.bias_add(tf.matmul(x, kernel) + tf.matmul(state[0], recurrent), bias)
    z0, z1, z2, z3 = tf.split(z, 4, axis=1)
    i, f = tf.sigmoid(z0), tf.sigmoid(z1)
    carry = f * state[1] + i * tf.tanh(z2)
    return [tf.sigmoid(z3) * tf.tanh(carry), carry]


def _gru_step(x: Any, state: Any, kernel: Any, recurrent: Any, bias: Any) -> list[Any]:
    import tensorflow as tf

    input_bias, recurrent_bias = bias
    x_z, x_r, x_h = tf.split(tf.nn.bias_add(tf.matmul(x, kernel), input_bias), 3, axis=1)
    h_z, h_r, h_h = tf.split(tf.nn.bias_add(tf.matmul(state[0], recurrent), recurrent_bias), 3, axis=1)
    z, r = tf.sigmoid(x_z + h_z), tf.sigmoid(x_r + h_r)
    return [z * state[0] + (1 - z) * tf.tanh(x_h + r * h_h)]
