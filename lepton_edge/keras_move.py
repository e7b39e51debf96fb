"""A Keras 3 model carried to tf_keras exactly, and its weights carried back.

tensorflow-model-optimization works on tf_keras (Keras 2) only, and no file of Keras 3 loads there. So the
graph is replayed node by node with tf_keras layers (keras_move_layers makes one), the weights are copied, and
the outputs of both models on seeded inputs must agree before anyone gets to use the result.
Both libraries live in one process: `keras` is Keras 3 on TensorFlow, `tf_keras` is Keras 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.keras_move_layers import Unmapped, carrier, finalize, native_call, native_layer, rebuilt

After = Callable[[Any, Sequence[Any], Any], Any]  # (Keras 3 operation, its readers, tf_keras tensor) -> tensor
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
    forced: frozenset[str] = frozenset()  # paths of layers to carry even where tf_keras has the class
    tensors: list[tuple[str, Any, Any]] = field(default_factory=list)  # of the outermost graph: path, both tensors
    made: dict[int, Any] = field(default_factory=dict)  # id of a Keras 3 layer or model: its tf_keras twin
    copies: dict[int, Any] = field(default_factory=dict)  # id of a carried Keras 3 layer: its copy
    names: set[str] = field(default_factory=set)
    after: After | None = None


def graph_of(model: Any) -> Any:
    """The functional graph of a Keras 3 model or built Sequential; LeptonError for one without a graph."""
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
    finalize(target)


def _call_model(operation: Any, args: tuple, kwargs: dict[str, Any], values: dict[int, Any], path: str,
                state: _State) -> Any:  # fmt: skip
    """Replay the call of a nested model, which is moved once however often it is called."""
    if id(operation) not in state.made:
        state.made[id(operation)] = _replay(operation, f"{path}/", state)
    training = kwargs.get("training")
    given = [*args, *(v for k, v in kwargs.items() if k not in ("training", "mask"))]
    inputs = _nested_inputs(operation, given[0], values)
    extra = {"training": False} if training is False else {}
    return state.made[id(operation)](inputs if len(inputs) > 1 else inputs[0], **extra)


def _call_layer(layer: Any, args: tuple, kwargs: dict[str, Any], values: dict[int, Any], path: str,
                state: _State) -> Any:  # fmt: skip
    """Replay the call of a layer with its tf_keras counterpart; raises Unmapped where there is none."""
    fresh = id(layer) not in state.made
    native = native_layer(layer) if fresh else state.made[id(layer)]
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
    elif (
        isinstance(operation, keras.layers.Layer)
        and id(operation) not in state.copies
        and not state.forced & {"*", type(operation).__name__}
    ):
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
    readers: dict[int, list[Any]] = {}
    for node in (n for nodes in graph._nodes_by_depth.values() for n in nodes):
        for x in node.input_tensors:
            readers.setdefault(id(x), []).append(node.operation)
    for tensor in graph.inputs:
        name = tensor.name
        made = tf_keras.Input(tuple(tensor.shape[1:]), dtype=tensor.dtype, name=name)
        inputs.append(made)
        entry = tensor._keras_history.operation
        values[id(tensor)] = state.after(entry, readers.get(id(tensor), []), made) if state.after else made
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
            for x, y in zip(node.outputs, outs, strict=True):
                if state.after and not any(x is out for out in graph.outputs):
                    y = state.after(node.operation, readers.get(id(x), []), y)
                values[id(x)] = y
                if not scope:
                    state.tensors.append((node.operation, x, y))
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
            raise LeptonError(f"input '{tensor.name}' takes text; only numeric inputs can be moved to tf_keras")
        if "int" in tensor.dtype or tensor.dtype == "bool":
            out.append(rng.integers(0, 2 if tensor.dtype == "bool" else top, shape).astype(tensor.dtype))
        else:
            values = np.abs(rng.standard_normal(shape)) if scale > 1 or sizes else rng.standard_normal(shape)
            out.append((np.minimum(values * scale, top - 1) if sizes else values * scale).astype(tensor.dtype))
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


def _gap(want: np.ndarray, got: np.ndarray) -> float:
    """Largest difference relative to the largest magnitude; infinite where shapes or NaNs do not match."""
    finite = np.isfinite(want) if want.shape == got.shape else np.zeros(0)
    if want.shape != got.shape or not np.array_equal(finite, np.isfinite(got)):
        return float("inf")
    if not finite.any():
        return 0.0
    return float(np.max(np.abs(want - got)[finite])) / max(float(np.max(np.abs(want[finite]))), 1e-12)


def difference(source: Any, target: Any, seed: int = 0) -> float:
    """Largest output difference of a Keras 3 and a tf_keras model, relative to the output's magnitude.

    Two seeded batches, of magnitude 1 and 64: the second shows what a saturated or a rescaling model hides.
    """
    worst = 0.0
    for i, scale in enumerate((1.0, 64.0)):
        arrays = probe(source, seed + i, scale)
        pairs = zip(_run(source, arrays), _run(target, arrays), strict=True)
        worst = max(worst, *(_gap(want, got) for want, got in pairs))
    return worst


def tolerance(model: Any) -> float:
    """How much the outputs of `model` may differ: looser where a layer computes in 16 bits."""
    half = any(layer.compute_dtype in ("float16", "bfloat16") for layer in leaf_layers(model))
    return TOLERANCE_HALF if half else TOLERANCE


def _first_difference(source: Any, target: Any, state: _State) -> Any:
    """The first outermost Keras 3 operation after which the two models differ; None if none is found."""
    import keras
    import tf_keras

    both = [(operation, x, y) for operation, x, y in state.tensors if x.dtype != "bool"]
    wide = keras.Model(graph_of(source).inputs, [x for _, x, _ in both])
    narrow = tf_keras.Model(target.inputs, [y for _, _, y in both])
    arrays = probe(source, 0, 1.0)
    limit = tolerance(source)
    for (operation, _, _), want, got in zip(both, _run(wide, arrays), _run(narrow, arrays), strict=True):
        if not _gap(want, got) < limit:
            return operation
    return None


def move(model: Any, after: After | None = None) -> Moved:
    """Carry a Keras 3 model to tf_keras, weights and all, and check that both compute the same.

    `after` may put a layer of its own behind an operation, which has to be the identity until it is told otherwise.

    A tf_keras class found to differ is replaced by the carried Keras 3 one, in the end for all layers.
    Errors: LeptonError naming the layer that cannot be moved, or where the outputs do not agree.
    """
    forced: frozenset[str] = frozenset()
    while True:
        state = _State(forced=forced, after=after)
        target = _replay(model, "", state)
        gap = difference(model, target)
        if gap < tolerance(model):
            return Moved(model, target, tuple(state.pairs), tuple(dict.fromkeys(state.carried)), gap)
        culprit = _first_difference(model, target, state)
        if "*" in forced:
            break
        kind = "*" if culprit is None or is_model(culprit) else type(culprit).__name__
        forced |= {"*" if kind in forced or len(forced) > 3 else kind}
    where = f", first after '{culprit.name}' ({type(culprit).__name__})" if culprit is not None else ""
    raise LeptonError(
        f"model '{model.name}' computes something else when moved to tf_keras{where} (difference {gap:.2g})",
        hint="that layer behaves differently in tf_keras; please report its architecture",
    )


def copy_back(moved: Moved) -> None:
    """Write the tf_keras model's weights into the Keras 3 model it came from, layer by layer, bit for bit.

    Errors: LeptonError where a weight does not read back as it was written.
    """
    for pair in moved.pairs:
        arrays = pair.target.get_weights()[: len(pair.source.weights)]
        pair.source.set_weights(arrays)
        finalize(pair.source)
        back = pair.source.get_weights()
        if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(arrays, back, strict=True)):
            raise LeptonError(f"the weights of layer '{pair.path}' did not come back to Keras 3 unchanged")
