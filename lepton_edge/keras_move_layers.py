"""One Keras 3 layer as a tf_keras layer.

Rules, in this order:
1. a layer whose class tf_keras has, and whose configuration its constructor takes without loss, becomes it;
2. anything else Keras 3 can run (operator nodes such as keras.ops.add, newer layers, options tf_keras lacks)
   is carried: a tf_keras layer that calls a copy of the Keras 3 one, with its TensorFlow variables;
3. what is neither a layer nor an operation, or has a quantized data type, is refused by name.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

from lepton_edge.errors import LeptonError

# Activations with one meaning in both libraries; every other one is carried as a function.
# (hard_sigmoid is not the same: 0.2x+0.5 in tf_keras, relu6(x+3)/6 in Keras 3.)
SAME_ACTIVATIONS = frozenset(
    {"linear", "relu", "tanh", "sigmoid", "softmax", "elu", "selu", "softplus", "softsign", "exponential"}
    | {"silu", "swish", "gelu"}
)
RENAMED = {"LeakyReLU": {"negative_slope": "alpha"}}
# Keys that steer only how weights are first drawn, how random numbers come, or how a saved file is rebuilt.
IRRELEVANT = frozenset(
    {"seed", "quantization_config", "build_config", "query_shape", "key_shape", "value_shape"}
    | {"batch_shape", "batch_input_shape"}
)
BASE_KEYS = frozenset({"name", "trainable", "dtype", "activity_regularizer"})
WRAPPERS = frozenset({"Bidirectional", "TimeDistributed", "RNN", "StackedRNNCells"})


class Unmapped(Exception):
    """tf_keras has no exact counterpart of a layer; the text says what is missing."""


def constructor_keys(cls: type) -> set[str]:
    """The keyword names a layer's constructor spells out."""
    return set(inspect.signature(cls).parameters) - {"args", "kwargs"}


def constructor_defaults(cls: type) -> dict[str, Any]:
    """Defaults of a constructor's keywords, along the class's bases."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[:-1]):
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            found.update({p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty})
    return found


def native_activation(value: Any) -> Any:
    """The activation of a Keras 3 configuration (a name or a serialized function) for a tf_keras layer."""
    import keras

    if value is None:
        return None
    function = keras.activations.get(value)
    name = getattr(function, "__name__", "")
    if name in SAME_ACTIVATIONS and getattr(keras.activations, name, None) is function:
        return name
    return function


def native_regularizer(value: Any, module: Any) -> Any:
    """A serialized Keras 3 regularizer or constraint from tf_keras's `module`; Unmapped where it has none."""
    if value is None:
        return None
    name = value.get("class_name") if isinstance(value, dict) else value
    cls = getattr(module, str(name), None)
    if cls is None:
        raise Unmapped(f"no {name} in {module.__name__}")
    return cls(**(value.get("config") or {})) if isinstance(value, dict) else cls()


def policy_name(layer: Any) -> str:
    """The name of a layer's dtype policy, such as float32 or mixed_float16; LeptonError if quantized."""
    name = layer.dtype_policy.name
    if getattr(layer.dtype_policy, "quantization_mode", None):
        raise LeptonError(
            f"layer '{layer.name}' is already quantized ({name}); it cannot be moved to tf_keras",
            hint="start from the float model",
        )
    return name


def native_config(cls: type, source_cls: type, config: dict[str, Any], name: str) -> dict[str, Any]:
    """Constructor arguments of the tf_keras class `cls` from a Keras 3 configuration.

    A key the constructor does not know is dropped where it is off or holds its default; else Unmapped.
    """
    import tf_keras

    known = constructor_keys(cls) | BASE_KEYS
    if issubclass(cls, tf_keras.layers.RNN):
        known.add("zero_output_for_mask")  # taken out of **kwargs by the base class
    defaults = constructor_defaults(source_cls)
    renamed = RENAMED.get(cls.__name__, {})
    out: dict[str, Any] = {}
    for key, value in config.items():
        key_out = renamed.get(key, key)
        if key in IRRELEVANT or key.endswith("_initializer") or key == "dtype":
            continue
        if key_out not in known:
            off = value is None or value is False or (key in defaults and value == defaults[key])
            if off or (key == "data_format" and value == "channels_last"):
                continue
            raise Unmapped(f"tf_keras's {cls.__name__} has no '{key}' (here {value!r})")
        if key.endswith("activation"):
            value = native_activation(value)
        elif key.endswith("_regularizer"):
            value = native_regularizer(value, tf_keras.regularizers)
        elif key.endswith("_constraint"):
            value = native_regularizer(value, tf_keras.constraints)
        elif key in ("layer", "cell", "backward_layer") and isinstance(value, dict):
            value = native_from_config(value)
        elif key == "cells" and isinstance(value, list):
            value = [native_from_config(v) for v in value]
        elif isinstance(value, dict) and "class_name" in value:
            raise Unmapped(f"'{key}' of {name} is an object of its own")
        out[key_out] = value
    if out.get("data_format") == "channels_first":
        raise Unmapped("tf_keras cannot compute channels_first on a CPU")
    if "stateful" in out:
        out["stateful"] = False  # samples of a feed are independent
    return out


def native_from_config(serialized: dict[str, Any]) -> Any:
    """The tf_keras layer of a serialized inner layer (of Bidirectional, TimeDistributed, RNN)."""
    import keras

    config = dict(serialized["config"])
    source_cls = getattr(keras.layers, serialized["class_name"], None)
    if source_cls is None or not str(serialized.get("module", "")).startswith("keras"):
        raise Unmapped(f"inner layer {serialized['class_name']}")
    dtype = config.get("dtype")
    policy = dtype["config"]["name"] if isinstance(dtype, dict) else dtype
    return build_native(source_cls, config, str(policy or "float32"))


def build_native(source_cls: type, config: dict[str, Any], policy: str) -> Any:
    """The tf_keras layer for a Keras 3 class and configuration; raises Unmapped where there is none."""
    import keras
    import tf_keras

    name = source_cls.__name__
    cls = getattr(tf_keras.layers, name, None)
    if cls is None or getattr(keras.layers, name, None) is not source_cls:
        raise Unmapped(f"tf_keras has no layer {name}")
    if name not in WRAPPERS and issubclass(cls, tf_keras.layers.Wrapper):
        raise Unmapped(f"wrapper {name}")
    arguments = native_config(cls, source_cls, config, str(config.get("name", name)))
    try:
        return cls(**arguments, dtype=policy)
    except (TypeError, ValueError) as error:
        raise Unmapped(f"tf_keras's {name} refuses its configuration: {error}") from error


def native_layer(layer: Any) -> Any:
    """The tf_keras layer for a live Keras 3 layer; raises Unmapped where there is none."""
    return build_native(type(layer), layer.get_config(), policy_name(layer))


def native_call(layer: Any, native: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """A Keras 3 call's arguments for the tf_keras layer: the first one positional, the others by name.

    Of a recorded `training` only False is kept: Keras 3 overrides a recorded True when the model predicts.
    """
    bound = inspect.signature(layer.call).bind(*args, **kwargs).arguments
    names = list(bound)
    accepted = set(inspect.signature(native.call).parameters) | set(inspect.signature(type(native).__call__).parameters)
    extra: dict[str, Any] = {}
    for key in names[1:]:
        if bound[key] is None:
            continue
        if key == "kwargs" or (key not in accepted and key not in ("training", "mask")):
            raise Unmapped(f"tf_keras's {type(native).__name__} is not called with '{key}'")
        if key == "training" and (bound[key] or "training" not in accepted):
            continue
        extra[key] = bound[key]
    return (bound[names[0]],), extra


@functools.cache
def carrier() -> type:
    """The tf_keras layer class that runs a Keras 3 layer or operation on TensorFlow tensors."""
    import keras
    import tf_keras

    class Carried(tf_keras.layers.Layer):
        """Calls a Keras 3 operation with `args`/`kwargs`, whose symbolic tensors are replaced in order."""

        def __init__(self, inner: Any, args: tuple, kwargs: dict[str, Any], name: str) -> None:
            is_layer = isinstance(inner, keras.layers.Layer)
            super().__init__(
                name=name,
                trainable=bool(getattr(inner, "trainable", True)),
                dtype=policy_name(inner) if is_layer else None,
                autocast=False,
            )
            # Behind a function, so that tf_keras does not take the Keras 3 layer for one of its own.
            self._inner = lambda: inner
            self._arguments = lambda: (args, kwargs)
            self._takes_training = is_layer and "training" in inspect.signature(inner.call).parameters
            self.supports_masking = True
            self.variables_of_inner = [v.value for v in getattr(inner, "weights", [])]
            self.names_of_inner = [v.name for v in getattr(inner, "weights", [])]

        def call(self, tensors: Any, training: Any = None) -> Any:
            """The Keras 3 result for the list `tensors`; masks are explicit arguments in a Keras 3 graph."""
            waiting = iter(tensors)

            def fill(x: Any) -> Any:
                return next(waiting) if isinstance(x, keras.KerasTensor) else x

            args, kwargs = keras.tree.map_structure(fill, self._arguments())
            if self._takes_training:
                kwargs = {**kwargs, "training": bool(training) and kwargs.get("training") is not False}
            return self._inner()(*args, **kwargs)

        def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
            """No mask: the Keras 3 graph spells out every mask it uses."""
            return None

    return Carried


def rebuilt(layer: Any) -> Any:
    """A copy of a Keras 3 layer with variables of its own, so that training leaves the original alone."""
    copy = type(layer).from_config(layer.get_config())
    copy.build_from_config(layer.get_build_config() or {})
    if [w.shape for w in copy.weights] != [w.shape for w in layer.weights]:
        raise LeptonError(
            f"layer '{layer.name}' ({type(layer).__name__}) cannot be rebuilt from its configuration",
            hint="prune a model made of built-in Keras layers",
        )
    copy.set_weights(layer.get_weights())
    finalize(copy)
    return copy


def finalize(layer: Any) -> None:
    """Let a layer that computes with values derived from its weights (Normalization) derive them again."""
    if callable(getattr(layer, "finalize_state", None)):
        layer.finalize_state()
