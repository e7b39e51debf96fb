"""A Keras 3 model carried to tf_keras exactly, and its weights carried back.

tensorflow-model-optimization works on tf_keras (Keras 2) only, and no file of Keras 3 loads there. So the graph
is replayed node by node with tf_keras layers (keras_move_layers makes one layer), the weights are copied, and the
outputs of both models on seeded inputs must agree before anyone gets to use the result.
Both libraries live in one process: `keras` is Keras 3 on TensorFlow, `tf_keras` is Keras 2.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.keras_move_layers import Unmapped, carrier, native_call, native_layer, rebuilt

TOLERANCE = 1e-5  # largest difference of an output, relative to its largest magnitude
TOLERANCE_HALF = 2e-2  # the same where layers compute in 16 bits


@dataclass(frozen=True)
class Pair:
    """A Keras 3 layer with weights, its tf_keras counterpart, and its path of layer names."""

    path: str
    source: Any
    target: Any


@dataclass(frozen=True)
class Moved:
    """A model moved to tf_keras. `carried` names the nodes run by Keras 3 itself; `difference` is the largest
    relative output difference measured."""

    source: Any
    model: Any
    pairs: tuple[Pair, ...]
    carried: tuple[str, ...]
    difference: float


@dataclass
class _State:
    pairs: list[Pair] = field(default_factory=list)
    carried: list[str] = field(default_factory=list)
    made: dict[int, Any] = field(default_factory=dict)  # id of a Keras 3 layer or model: its tf_keras twin
    copies: dict[int, Any] = field(default_factory=dict)  # id of a carried Keras 3 layer: its copy
    names: set[str] = field(default_factory=set)


def _objects(tree: Any) -> Iterator[dict[str, Any]]:
    """Every serialized object of a Keras configuration."""
    if isinstance(tree, dict):
        if "class_name" in tree:
            yield tree
        for value in tree.values():
            yield from _objects(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _objects(value)


def check_safe(path: str | Path) -> None:
    """Refuse a .keras file that is broken, or whose loading would need code of its own.

    Errors: LeptonError for a file that is no .keras archive, for Lambda layers, and for custom classes.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise LeptonError(
            f"{Path(path).name} is not a readable .keras file: {error}",
            hint="save it with model.save('x.keras')",
        ) from error
    for item in _objects(config):
        name = str((item.get("config") or {}).get("name", "")) if isinstance(item.get("config"), dict) else ""
        label = f"'{name}' ({item['class_name']})" if name else f"'{item['class_name']}'"
        if item["class_name"] in ("Lambda", "__lambda__"):
            raise LeptonError(
                f"{Path(path).name}: layer {label} holds code, which is never run from a model file",
                hint="replace the Lambda layer by keras.ops or a built-in layer and save the model again",
            )
        module = item.get("module")
        root = str(module or "").split(".")[0]
        custom = root not in ("keras", "builtins", "") or (module is None and item.get("registered_name"))
        if custom:
            raise LeptonError(
                f"{Path(path).name}: {label} is a custom class, whose code is not in the model file",
                hint="rebuild the model from built-in Keras layers",
            )


def load_keras(path: str | Path) -> Any:
    """The Keras 3 model of a .keras file, uncompiled, loaded in safe mode.

    Errors: LeptonError for unsafe or broken files and where Keras does not run on TensorFlow.
    """
    check_safe(path)
    import keras

    if not keras.__version__.startswith("3"):
        raise LeptonError(f"Keras 3 is needed, found {keras.__version__}", hint="pip install 'keras>=3.8'")
    if keras.backend.backend() != "tensorflow":
        raise LeptonError(
            f"Keras runs on {keras.backend.backend()}; this needs TensorFlow",
            hint="set KERAS_BACKEND=tensorflow",
        )
    try:
        return keras.saving.load_model(str(path), compile=False, safe_mode=True)
    except (ValueError, TypeError, KeyError, OSError, AttributeError, ImportError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise LeptonError(
            f"Keras cannot load {Path(path).name}: {first[:300]}",
            hint="save it again with the installed Keras",
        ) from error


def graph_of(model: Any) -> Any:
    """The functional graph of a Keras 3 model or built Sequential; LeptonError for one without such a graph."""
    import keras

    if isinstance(model, keras.Sequential):
        if getattr(model, "_functional", None) is None:
            raise LeptonError(
                f"Sequential model '{model.name}' has no input shape",
                hint="build it (an Input first, or model.build(shape)) and save it again",
            )
        return model._functional
    if not hasattr(model, "_nodes_by_depth"):
        raise LeptonError(
            f"model '{model.name}' ({type(model).__name__}) is subclassed: it has no layer graph to move",
            hint="express it as a functional or Sequential Keras model",
        )
    return model


def is_model(operation: Any) -> bool:
    """Whether an operation of a graph is itself a model (nested functional or Sequential)."""
    import keras

    return isinstance(operation, keras.Model)


def _fill(tree: Any, values: dict[int, Any]) -> Any:
    import keras

    return keras.tree.map_structure(lambda x: values[id(x)] if isinstance(x, keras.KerasTensor) else x, tree)


def _flat(tree: Any) -> list[Any]:
    import keras

    return [x for x in keras.tree.flatten(tree) if isinstance(x, keras.KerasTensor)]


def _copy_weights(path: str, source: Any, target: Any) -> None:
    """Give the tf_keras layer the Keras 3 layer's weights. Errors: LeptonError where their shapes differ."""
    import tensorflow as tf

    arrays = [np.asarray(tf.convert_to_tensor(w.value)) for w in source.weights]
    wanted = [tuple(w.shape) for w in target.weights]
    if type(source).__name__ == "Normalization" and len(wanted) == len(arrays) + 1:
        arrays.append(np.zeros(wanted[-1], np.int64))  # tf_keras also counts the samples it adapted to
    if [a.shape for a in arrays] != wanted:
        raise LeptonError(
            f"layer '{path}' ({type(source).__name__}): weights {[a.shape for a in arrays]} in Keras 3 but"
            f" {wanted} in tf_keras",
            hint="this layer cannot be moved exactly; please report it",
        )
    target.set_weights(arrays)


def _call_model(operation: Any, args: tuple, kwargs: dict[str, Any], values: dict[int, Any], path: str,
                state: _State) -> Any:  # fmt: skip
    """Replay the call of a nested model, which is moved once however often it is called."""
    if id(operation) not in state.made:
        state.made[id(operation)] = _replay(operation, f"{path}/", state)
    training = kwargs.get("training")
    given = [*args, *(v for k, v in kwargs.items() if k not in ("training", "mask"))]
    inputs = _nested_inputs(operation, given[0], values)
    extra = {} if training is None else {"training": training}
    return state.made[id(operation)](inputs if len(inputs) > 1 else inputs[0], **extra)


def _call_layer(layer: Any, args: tuple, kwargs: dict[str, Any], values: dict[int, Any], path: str,
                state: _State) -> Any:  # fmt: skip
    """Replay the call of a layer with its tf_keras counterpart; raises Unmapped where there is none."""
    native = state.made.get(id(layer))
    fresh = native is None
    if fresh:
        native = native_layer(layer)
    call_args, call_kwargs = native_call(layer, native, args, kwargs)
    out = native(*_fill(call_args, values), **_fill(call_kwargs, values))
    if fresh:
        state.made[id(layer)] = native
        if layer.weights:
            _copy_weights(path, layer, native)
            state.pairs.append(Pair(path, layer, native))
    return out


def _call_carried(operation: Any, args: tuple, kwargs: dict[str, Any], values: dict[int, Any], path: str,
                  state: _State) -> Any:  # fmt: skip
    """Replay a call with the Keras 3 operation itself. A layer with weights is copied once."""
    import keras

    if not isinstance(operation, keras.Operation):
        raise LeptonError(f"'{path}' ({type(operation).__name__}) cannot be moved to tf_keras")
    inner, owner = operation, getattr(operation, "weights", None)
    fresh = owner and id(operation) not in state.copies
    if owner:
        if id(operation) in state.made:
            raise LeptonError(
                f"layer '{path}' is shared, and only some of its calls have a counterpart in tf_keras",
                hint="give each call a layer of its own",
            )
        inner = state.copies.setdefault(id(operation), rebuilt(operation) if fresh else None)
    name = operation.name
    while name in state.names:
        name += "_again"
    state.names.add(name)
    layer = carrier()(inner, args, kwargs, name)
    state.carried.append(path)
    if fresh:
        state.pairs.append(Pair(path, operation, layer))
    return layer([values[id(x)] for x in _flat((args, kwargs))])


def _call(node: Any, values: dict[int, Any], scope: str, state: _State) -> list[Any]:
    """Replay one node of the Keras 3 graph with tf_keras; returns its output tensors in order."""
    import keras
    import tensorflow as tf

    operation, args, kwargs = node.operation, node.arguments.args, node.arguments.kwargs
    path = f"{scope}{operation.name}"
    if is_model(operation):
        out = _call_model(operation, args, kwargs, values, path, state)
    elif isinstance(operation, keras.layers.Layer) and id(operation) not in state.copies:
        try:
            out = _call_layer(operation, args, kwargs, values, path, state)
        except Unmapped:
            out = _call_carried(operation, args, kwargs, values, path, state)
    else:
        out = _call_carried(operation, args, kwargs, values, path, state)
    return tf.nest.flatten(out)


def _nested_inputs(model: Any, argument: Any, values: dict[int, Any]) -> list[Any]:
    """A nested model's call argument (tensor, list, or dict by name) in the order of the model's inputs."""
    graph = graph_of(model)
    if isinstance(argument, dict):
        names = [x.name for x in graph.inputs]
        keys = names if set(names) <= set(argument) else sorted(argument)
        return [values[id(argument[k])] for k in keys]
    return [values[id(x)] for x in _flat(argument)]


def _replay(model: Any, scope: str, state: _State) -> Any:
    """The tf_keras functional model that computes what the Keras 3 `model` does."""
    import tf_keras

    graph = graph_of(model)
    values: dict[int, Any] = {}
    inputs = []
    for tensor in graph.inputs:
        name = tensor.name
        made = tf_keras.Input(tuple(tensor.shape[1:]), dtype=tensor.dtype, name=name)
        values[id(tensor)] = made
        inputs.append(made)
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        for node in graph._nodes_by_depth[depth]:
            if node.is_input or any(id(x) not in values for x in node.input_tensors):
                continue
            outs = _call(node, values, scope, state)
            if len(outs) != len(node.outputs):
                raise LeptonError(
                    f"'{scope}{node.operation.name}' gives {len(node.outputs)} outputs in Keras 3 and"
                    f" {len(outs)} in tf_keras"
                )
            values.update((id(x), y) for x, y in zip(node.outputs, outs, strict=True))
    outputs = [values[id(x)] for x in graph.outputs]
    return tf_keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0], name=model.name)


def leaf_layers(model: Any) -> Iterator[Any]:
    """Every layer of a Keras 3 model that is not itself a model."""
    for layer in model.layers:
        if is_model(layer):
            yield from leaf_layers(layer)
        else:
            yield layer


def probe(model: Any, seed: int, scale: float) -> list[np.ndarray]:
    """Seeded inputs for a Keras 3 model, one array an input, batch 2 (or the model's own fixed batch).

    Free dimensions become 64 for images and volumes, 16 otherwise; integers stay below the embeddings' sizes.
    """
    rng = np.random.default_rng(seed)
    sizes = [layer.input_dim for layer in leaf_layers(model) if type(layer).__name__ == "Embedding"]
    top = min(sizes, default=2)
    out = []
    for tensor in graph_of(model).inputs:
        free = 64 if len(tensor.shape) >= 4 else 16
        shape = (tensor.shape[0] or 2, *(d or free for d in tensor.shape[1:]))
        if tensor.dtype == "string":
            raise LeptonError(
                f"input '{tensor.name}' takes text; only numeric inputs can be moved to tf_keras"
            )
        if "int" in tensor.dtype or tensor.dtype == "bool":
            out.append(rng.integers(0, 2 if tensor.dtype == "bool" else top, shape).astype(tensor.dtype))
        else:
            values = np.abs(rng.standard_normal(shape)) if scale > 1 or sizes else rng.standard_normal(shape)
            out.append(
                (np.minimum(values * scale, top - 1) if sizes else values * scale).astype(tensor.dtype)
            )
    return out


def _run(model: Any, arrays: list[np.ndarray]) -> list[np.ndarray]:
    import keras
    import tensorflow as tf

    for layer in model.layers:
        if callable(getattr(layer, "reset_state", None)) and getattr(layer, "stateful", False):
            layer.reset_state()
    tensors = [tf.constant(a) for a in arrays]
    if isinstance(model, keras.Model) and not isinstance(model, keras.Sequential):
        out = model(keras.tree.pack_sequence_as(model._inputs_struct, tensors), training=False)
    else:
        out = model(tensors if len(tensors) > 1 else tensors[0], training=False)
    flat = keras.tree.flatten(out)
    return [np.asarray(tf.cast(x, tf.float64)) for x in flat]


def difference(source: Any, target: Any, seed: int = 0) -> float:
    """Largest output difference of a Keras 3 and a tf_keras model, relative to the output's magnitude.

    Two seeded batches, of magnitude 1 and 64: the second shows what a saturated or a rescaling model hides.
    """
    worst = 0.0
    for i, scale in enumerate((1.0, 64.0)):
        arrays = probe(source, seed + i, scale)
        for want, got in zip(_run(source, arrays), _run(target, arrays), strict=True):
            if want.shape != got.shape:
                return float("inf")
            finite = np.isfinite(want)
            if not np.array_equal(finite, np.isfinite(got)):
                return float("inf")
            if finite.any():
                gap = float(np.max(np.abs(want[finite] - got[finite])))
                worst = max(worst, gap / max(float(np.max(np.abs(want[finite]))), 1e-12))
    return worst


def tolerance(model: Any) -> float:
    """How much the outputs of `model` may differ: looser where a layer computes in 16 bits."""
    half = any(layer.compute_dtype in ("float16", "bfloat16") for layer in leaf_layers(model))
    return TOLERANCE_HALF if half else TOLERANCE


def move(model: Any) -> Moved:
    """Carry a Keras 3 model to tf_keras, weights and all, and check that both compute the same.

    Errors: LeptonError naming the layer that cannot be moved, or the difference where outputs do not agree.
    """
    state = _State()
    target = _replay(model, "", state)
    gap = difference(model, target)
    if not gap < tolerance(model):
        raise LeptonError(
            f"model '{model.name}' computes something else when moved to tf_keras (relative difference {gap:.2g})",
            hint="a layer of it behaves differently in tf_keras; please report its architecture",
        )
    return Moved(model, target, tuple(state.pairs), tuple(dict.fromkeys(state.carried)), gap)


def copy_back(moved: Moved) -> None:
    """Write the tf_keras model's weights into the Keras 3 model it came from, layer by layer, bit for bit."""
    for pair in moved.pairs:
        arrays = pair.target.get_weights()[: len(pair.source.weights)]
        pair.source.set_weights(arrays)
