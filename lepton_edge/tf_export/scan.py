"""The scan of a model's config: what carries code, or is not Keras's own, is refused before anything is built."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from lepton_edge.errors import LeptonError

UNSAFE_CLASSES = {"Lambda": "Python code", "__lambda__": "Python code", "TFSMLayer": "a path to another model"}
# What a Keras 2 TFOpLambda may name: pure arithmetic. Anything else (tf.io, tf.raw_ops, ...) is refused.
PURE_TF_SYMBOL = re.compile(
    r"(__operators__|math|nn|linalg|signal|image|keras\.activations|keras\.backend|compat\.v1\.(nn|math))\.[\w.]+"
    r"|reshape|concat|stack|unstack|split|transpose|cast|expand_dims|squeeze|clip_by_value|identity|shape|tile|pad"
    r"|gather|reverse|strided_slice|slice|where|ones_like|zeros_like|zeros|ones|fill|range|one_hot|repeat|roll"
    r"|convert_to_tensor|broadcast_to|einsum|matmul|tensordot|reduce_\w+|abs|exp|sqrt|square|tanh|sigmoid|minimum"
    r"|maximum|add|subtract|multiply|divide|pow|sin|cos|norm|argmax|argmin|round|sign|stop_gradient"
)
# Parts of Keras that no model is made of: a config that names them wants something else done.
NOT_LAYERS = re.compile(r"\.(utils|config|saving|backend|datasets)(\.|$)")


def scan_config(config: Any, known: Callable[[str], bool], source: str, layer: str = "") -> None:
    """Refuse, before anything is built, a config that carries code or classes that are not Keras's own.

    `known` tells whether a class name without a module (legacy files) is a Keras layer. How the model
    was compiled (custom losses, metrics) is not looked at: it is never loaded.
    """
    if isinstance(config, list):
        for item in config:
            scan_config(item, known, source, layer)
    if not isinstance(config, dict):
        return
    name, inner, module = config.get("class_name"), config.get("config"), config.get("module")
    if isinstance(name, str) and "config" in config:
        is_layer = isinstance(inner, dict) and isinstance(inner.get("name"), str)
        layer = str(inner["name"]) if isinstance(inner, dict) and is_layer else layer
        _refuse_class(config, name, module, is_layer, known, source, layer or name)
    for key, value in config.items():
        if key not in ("compile_config", "build_config"):
            scan_config(value, known, source, layer)


def _refuse_class(
    config: dict, name: str, module: Any, is_layer: bool, known: Callable[[str], bool], source: str, layer: str
) -> None:
    if name in UNSAFE_CLASSES:
        raise LeptonError(
            f"'{source}' has a {name.strip('_')} layer '{layer}', which carries {UNSAFE_CLASSES[name]}: refused",
            hint="rebuild that layer from Keras layers or keras.ops and save the model again",
        )
    if name == "TFOpLambda":
        symbol = str((config["config"] or {}).get("function", ""))
        if not PURE_TF_SYMBOL.fullmatch(symbol):
            raise LeptonError(
                f"'{source}' calls tf.{symbol} in layer '{layer}': refused", hint="rebuild that layer from Keras layers"
            )
    registered = config.get("registered_name")
    root = module.split(".")[0] if isinstance(module, str) else None
    what = None
    if name == "function":
        what = None if known(str(config["config"])) else str(config["config"])
    elif isinstance(registered, str) and ">" in registered:
        what = registered
    elif root == "builtins":
        what = None if name.startswith("__") else f"{module}.{name}"
    elif root not in (None, "keras", "tf_keras"):
        what = name
    elif root and NOT_LAYERS.search(module):
        what = f"{module}.{name}"
    elif root is None and is_layer and not known(name):
        if "module" not in config and _is_operator(name):
            raise LeptonError(
                f"'{source}' holds keras.ops '{name}' (layer '{layer}'), which Keras cannot load back from HDF5",
                hint="save the model as .keras where it was made",
            )
        what = name
    if what:
        raise LeptonError(
            f"'{source}' has a custom object '{what}' in layer '{layer}': its code is not in the file",
            hint="export it where its code is (model.export('folder') makes a SavedModel) and convert that",
        )


def _is_operator(name: str) -> bool:
    import keras

    return name.lower() in {operator.replace("_", "") for operator in dir(keras.ops)}
