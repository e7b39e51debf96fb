"""Keras and SavedModel sources, opened without running code they carry, as one frozen TensorFlow graph.

Shared by the converters that start from Keras or a SavedModel. Three parts:

1. the scan and the loading (`load_keras`, `load_signature`): what a file says it is made of is read and
   refused before Keras or TensorFlow builds anything from it;
2. the graph (`trace`, `freeze`): a concrete function of fixed batch, variables folded into constants,
   inputs and outputs in the order and under the names of the source;
3. the emitters (`write_tflite`, `write_onnx`), each of which loads what it made before it is published.

Why not Keras 3's own exports: `export("onnx")` leaves captured constants as extra graph inputs
(Normalization, positions of a transformer), and both lose the order of several outputs.
"""

from __future__ import annotations

import collections
import contextlib
import json
import re
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
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
# Graph operations that run Python or reach the file system, wherever in a SavedModel they stand.
UNSAFE_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "LegacyExec"}


def first_line(error: BaseException, limit: int = 240) -> str:
    """The first line of an exception's text that says something, shortened to `limit` characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


# ---------------------------------------------------------------- scan and load


def sniff(path: str) -> str:
    """`"keras"` (zip) or `"h5"` (HDF5), told by the first bytes; LeptonError for anything else."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise LeptonError(f"cannot read '{path}': {error.strerror or error}") from error
    if head == HDF5_MAGIC:
        return "h5"
    if head[:4] == b"PK\x03\x04":
        return "keras"
    raise LeptonError(
        f"'{path}' is neither a .keras archive nor an HDF5 file", hint="save it again with model.save('model.keras')"
    )


def read_config(path: str) -> tuple[dict[str, Any], str]:
    """The model's config and the Keras version that wrote it, read without loading the model.

    Raises LeptonError for a truncated or damaged file, and for one that holds weights only.
    """
    if sniff(path) == "h5":
        return _read_h5_config(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged:
                raise LeptonError(f"'{path}' is damaged: '{damaged}' fails its checksum", hint="copy the file again")
            config = json.loads(archive.read("config.json"))
            names = archive.namelist()
            meta = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    except (zipfile.BadZipFile, KeyError, EOFError, ValueError) as error:
        raise LeptonError(
            f"'{path}' is not a complete .keras archive: {first_line(error)}", hint="the file may be cut short"
        ) from error
    if not isinstance(config, dict):
        raise LeptonError(f"'{path}' holds a config.json that describes no model")
    return config, str(meta.get("keras_version", ""))


def _read_h5_config(path: str) -> tuple[dict[str, Any], str]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            raw, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            has_weights = "model_weights" in file
    except (OSError, RuntimeError, KeyError) as error:
        raise LeptonError(
            f"'{path}' is a damaged or truncated HDF5 file: {first_line(error)}", hint="copy or download it again"
        ) from error
    if raw is None or not has_weights:
        raise LeptonError(
            f"'{path}' holds no Keras model (weights only, or another kind of HDF5 file)",
            hint="save the whole model: model.save('model.keras')",
        )
    try:
        config = json.loads(raw.decode("utf-8") if isinstance(raw, bytes) else str(raw))
    except ValueError as error:
        raise LeptonError(f"'{path}' holds a model config that is not JSON: {first_line(error)}") from error
    return config, version.decode() if isinstance(version, bytes) else str(version)


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


@contextlib.contextmanager
def _suffixed(path: str, suffix: str) -> Iterator[str]:
    """`path` under a name that ends with `suffix`, by which Keras tells formats."""
    if path.endswith(suffix):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(Path(path).resolve())
        yield str(link)


def load_keras(path: str) -> tuple[Any, list[str]]:
    """The model of a .keras or .h5 file, uncompiled, and notes on how it was read.

    Keras 3 first (`safe_mode=True`); a file written by Keras 2 that it cannot read goes through tf_keras
    where that is installed. Layers trained in mixed precision compute in float32, as their weights are.
    Raises LeptonError for unsafe, custom, damaged and unsupported models.
    """
    config, version = read_config(path)
    import keras

    def known(name: str) -> bool:
        layers = keras.layers, keras.models, keras.activations
        return any(hasattr(space, name) for space in layers) or name in (
            "Functional", "InputLayer", "TFOpLambda", "SlicingOpLambda",
        )  # fmt: skip

    scan_config(config, known, path)
    kind = sniff(path)
    notes: list[str] = []
    try:
        with _suffixed(path, f".{kind}") as named:
            model = keras.saving.load_model(named, compile=False, safe_mode=True)
    except Exception as error:
        if not version.startswith("2."):
            raise LeptonError(
                f"Keras {keras.__version__} cannot load '{path}': {first_line(error)}",
                hint=f"it was written by Keras {version or '(version unknown)'}; save it as .keras with that version,"
                " or export it where it was made: model.export('folder')",
            ) from error
        model = _load_keras2(path, kind, version, error)
        notes.append(f"read by tf_keras: Keras 3 could not load this Keras {version} file")
    if not getattr(model, "inputs", None):
        raise LeptonError(f"'{path}' holds a model that was never built", hint="call it once before saving")
    notes.extend(_compute_in_float32(model))
    return model, notes


def _load_keras2(path: str, kind: str, version: str, first: Exception) -> Any:
    try:
        import tf_keras
    except ImportError:
        raise LeptonError(
            f"Keras 3 cannot load '{path}', written by Keras {version}: {first_line(first)}",
            hint="install tf-keras, which reads Keras 2 files",
        ) from first
    try:
        with _suffixed(path, f".{kind}") as named:
            return tf_keras.models.load_model(named, compile=False, safe_mode=True)
    except Exception as error:
        raise LeptonError(
            f"neither Keras 3 nor tf_keras can load '{path}' (Keras {version}): {first_line(error)}",
            hint=f"Keras 3 said: {first_line(first, 120)}",
        ) from error


def _compute_in_float32(model: Any) -> list[str]:
    mixed = []
    for layer in _layers(model):
        policy = getattr(layer, "dtype_policy", None)
        if policy is not None and str(getattr(policy, "name", "")).startswith("mixed_"):
            layer.dtype_policy = "float32"
            mixed.append(layer.name)
    return [f"{len(mixed)} layers trained in mixed precision compute in float32"] if mixed else []


def _layers(model: Any) -> list[Any]:
    """Every layer, those inside nested models and wrappers included."""
    return list(model._flatten_layers()) if hasattr(model, "_flatten_layers") else list(model.submodules)


# ---------------------------------------------------------------- graph


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


@dataclass(frozen=True)
class Frozen:
    """A graph without variables: its tensors by the names they have in the graph, and the source's names."""

    graph_def: Any
    inputs: tuple[Port, ...]
    outputs: tuple[str, ...]
    input_tensors: tuple[str, ...]
    output_tensors: tuple[str, ...]

    def function(self) -> Any:
        """The concrete function: positional tensors in, a list of tensors out."""
        import tensorflow as tf

        wrapped = tf.compat.v1.wrap_function(lambda: tf.import_graph_def(self.graph_def, name=""), [])
        graph = wrapped.graph
        return wrapped.prune(
            [graph.as_graph_element(name) for name in self.input_tensors],
            [graph.as_graph_element(name) for name in self.output_tensors],
        )


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

    recurrent = tuple(layer for layer in _layers(model) if type(layer).__name__ in ("LSTM", "GRU"))
    return Source(inputs, unique(output_names), call, model, () if legacy else recurrent)


def load_signature(path: str) -> Source:
    """The serving signature of a SavedModel folder (`serving_default`, else the only one) as a Source.

    The graph is read first: one that runs Python or touches files is refused before it is loaded.
    """
    import tensorflow as tf

    _scan_saved_model(path)
    try:
        loaded = tf.saved_model.load(path)
    except Exception as error:
        raise LeptonError(
            f"TensorFlow cannot load the SavedModel '{path}': {first_line(error)}",
            hint="check that its variables/ folder is complete and that no custom operation is needed",
        ) from error
    signatures = dict(loaded.signatures)
    if "serving_default" not in signatures and len(signatures) != 1:
        found = ", ".join(sorted(signatures)) or "none"
        raise LeptonError(
            f"'{path}' has no signature 'serving_default' (found: {found})",
            hint="save it with tf.saved_model.save(module, folder, signatures=module.function)",
        )
    signature = signatures.get("serving_default") or next(iter(signatures.values()))
    specs = signature.structured_input_signature[1]
    names, outputs = sorted(specs), sorted(signature.structured_outputs)
    inputs = []
    for name in names:
        if specs[name].shape.rank is None:
            raise LeptonError(f"input '{name}' of '{path}' has no known rank", hint="save it with an input_signature")
        inputs.append(Port(name, tuple(specs[name].shape.as_list()), specs[name].dtype.name))

    def call(*tensors: Any) -> list[Any]:
        result = signature(**dict(zip(names, tensors, strict=True)))
        return [result[name] for name in outputs]

    return Source(tuple(inputs), tuple(outputs), call, loaded)


def _scan_saved_model(path: str) -> None:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    file = Path(path) / "saved_model.pb"
    if not file.is_file():
        raise LeptonError(f"'{path}' is not a SavedModel: it has no saved_model.pb")
    proto = saved_model_pb2.SavedModel()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise LeptonError(f"'{file}' is damaged or truncated", hint="copy the whole folder again") from error
    if not proto.meta_graphs:
        raise LeptonError(f"'{file}' holds no graph", hint="copy the whole folder again")
    for meta in proto.meta_graphs:
        nodes = [*meta.graph_def.node, *(n for f in meta.graph_def.library.function for n in f.node_def)]
        for node in nodes:
            if node.op in UNSAFE_OPS:
                raise LeptonError(
                    f"'{path}' has operation {node.op} ('{node.name}'), which runs code or touches files: refused",
                    hint="save the model without its preprocessing",
                )


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """`"1,64,64,3"` (the only input) or `"image=1,64,64,3;mask=1,64"` as shapes by name ('' = the only one)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        name, _, dims = part.rpartition("=")
        try:
            shapes[name.strip()] = tuple(int(dim) for dim in dims.split(","))
        except ValueError as error:
            raise LeptonError(
                f"input_shapes: '{part}' is not a shape", hint="write it as name=1,64,64,3;other=1,10"
            ) from error
    return shapes


def fixed_shapes(source: Source, fixed_batch: int, input_shapes: str, static: bool) -> list[list[int | None]]:
    """Each input's shape with the batch fixed (0: left free) and free dimensions filled from `input_shapes`.

    With `static`, a dimension that stays free is a LeptonError naming the input.
    """
    if fixed_batch < 0 or (static and fixed_batch < 1):
        raise LeptonError(f"fixed_batch={fixed_batch} is not a batch size", hint="use 1")
    given = parse_shapes(input_shapes)
    names = [port.name for port in source.inputs]
    for name in given:
        if name not in names and not (name == "" and len(names) == 1):
            raise LeptonError(f"input_shapes names '{name}', which is no input", hint=f"inputs: {', '.join(names)}")
    result = []
    for port in source.inputs:
        shape: list[int | None] = list(port.shape)
        if port.dtype in ("string", "resource", "variant"):
            raise LeptonError(
                f"input '{port.name}' is of type {port.dtype}, which edge runtimes do not take",
                hint="save the model from behind its text or lookup layers",
            )
        if shape and fixed_batch and shape[0] is None:
            shape[0] = fixed_batch
        wanted = given.get(port.name, given.get("") if len(names) == 1 else None)
        if wanted is not None:
            if len(wanted) != len(shape) or any(d not in (None, w) for d, w in zip(shape, wanted, strict=True)):
                raise LeptonError(f"input '{port.name}' is {_show(shape)}; input_shapes asks for {list(wanted)}")
            shape = list(wanted)
        if None in shape[0 if static else 1 :] and (static or fixed_batch):
            raise LeptonError(
                f"input '{port.name}' has free dimensions {_show(shape)}",
                hint=f"give them sizes: input_shapes={port.name}={','.join(str(d or 'N') for d in shape)}",
            )
        result.append(shape)
    return result


def _show(shape: list[int | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in shape) + "]"


def trace(source: Source, shapes: list[list[int | None]], fuse: str = "") -> Any:
    """The source as a concrete function `arg_0, arg_1, ... -> {out_0000, out_0001, ...}` of these input shapes.

    `fuse`: "onnx" or "tflite" traces LSTM and GRU layers in the form that converter recognises, "" as Keras does.
    """
    import tensorflow as tf

    specs = [
        tf.TensorSpec(shape, port.dtype, name=f"arg_{i:04d}")
        for i, (shape, port) in enumerate(zip(shapes, source.inputs, strict=True))
    ]

    def traced(*tensors: Any) -> dict[str, Any]:
        return {f"out_{i:04d}": tf.identity(tensor) for i, tensor in enumerate(source.call(*tensors))}

    with _fused_recurrent(source.recurrent, fuse):
        concrete = tf.function(traced, input_signature=specs, autograph=False).get_concrete_function()
    for name, tensor in zip(source.outputs, concrete.outputs, strict=True):
        if tensor.dtype == tf.string:
            raise LeptonError(f"output '{name}' is a string, which edge runtimes do not return")
    return concrete


def freeze(source: Source, shapes: list[list[int | None]], fuse: str = "") -> Frozen:
    """Trace the source and fold its variables and captured constants into the graph."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    concrete = trace(source, shapes, fuse)
    frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False)
    graph_def = frozen.graph.as_graph_def()
    captured = {inner.op.name: outer for outer, inner in frozen.graph.captures}
    for node in graph_def.node:
        if node.name in captured:
            name, value = node.name, tf.make_tensor_proto(captured[node.name].numpy())
            node.Clear()
            node.name, node.op = name, "Const"
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
    ports = tuple(Port(p.name, tuple(s), p.dtype) for p, s in zip(source.inputs, shapes, strict=True))
    user = [t.name for t in frozen.inputs if t.op.name not in captured][: len(ports)]
    return Frozen(graph_def, ports, source.outputs, tuple(user), tuple(t.name for t in frozen.outputs))


@contextlib.contextmanager
def _fused_recurrent(layers: tuple[Any, ...], target: str) -> Iterator[None]:
    """Trace Keras 3 LSTM and GRU layers as the loop that converters know by its shape.

    Keras 3 traces a plain while loop, which TFLite and ONNX then run step by step and which no quantizer
    enters. The loop of Keras 2 (same arithmetic) is recognised: TFLite makes it UNIDIRECTIONAL_SEQUENCE_LSTM,
    tf2onnx makes it LSTM or GRU. Layers with other activations, masks or returned state keep their own loop.
    """
    kinds = {"tflite": ("LSTM",), "onnx": ("LSTM", "GRU")}.get(target, ())
    chosen = [layer for layer in layers if type(layer).__name__ in kinds and _fusable(layer)]
    for layer in chosen:
        layer.__dict__["inner_loop"] = _recurrent_loop(layer, layer.inner_loop)
    try:
        yield
    finally:
        for layer in chosen:
            layer.__dict__.pop("inner_loop", None)


def _fusable(layer: Any) -> bool:
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


# ---------------------------------------------------------------- emitters


def probe(frozen: Frozen, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One seeded input (normal floats, 0/1 integers) and the frozen graph's outputs for it."""
    import tensorflow as tf

    random = np.random.default_rng(seed)
    feeds = []
    for port in frozen.inputs:
        shape = [dim or 1 for dim in port.shape]
        real = np.issubdtype(np.dtype(port.dtype), np.floating)
        values = random.standard_normal(shape) if real else random.integers(0, 2, shape)
        feeds.append(np.asarray(values).astype(port.dtype))
    return feeds, [np.asarray(t) for t in frozen.function()(*(tf.constant(feed) for feed in feeds))]


def distance_db(reference: list[np.ndarray], got: list[np.ndarray]) -> float:
    """The lowest SQNR in dB over the outputs (inf: equal), -inf where a shape differs or a value is not finite."""
    worst = float("inf")
    for want, have in zip(reference, got, strict=True):
        if want.shape != have.shape:
            return float("-inf")
        want64, have64 = want.astype(np.float64), have.astype(np.float64)
        noise, signal = float(np.sum((want64 - have64) ** 2)), float(np.sum(want64**2))
        if not np.isfinite(noise):
            if np.array_equal(want64, have64, equal_nan=True):
                continue
            return float("-inf")
        if noise > 0:
            worst = min(worst, 10 * float(np.log10(max(signal, 1e-30) / noise)))
    return worst


def write_tflite(source: Source, dst: str, input_shapes: str, fixed_batch: int) -> dict[str, Any]:
    """Write the source as a float TFLite file; inputs and outputs keep the source's names and order.

    LSTM layers are fused where the fused model gives the source's numbers, else they stay loops.
    """
    shapes = fixed_shapes(source, fixed_batch, input_shapes, static=True)
    notes: list[str] = []
    plain = freeze(source, shapes)
    feeds, reference = probe(plain)
    content = b""
    if any(type(layer).__name__ == "LSTM" and _fusable(layer) for layer in source.recurrent):
        content = name_tflite(_fused_to_tflite(source, shapes), plain.inputs, plain.outputs)
        decibels = distance_db(reference, run_tflite(content, feeds))
        if decibels < FUSED_DB:
            notes.append(f"LSTM layers stay loops: the fused form is {decibels:.0f} dB off")
            content = b""
    if not content:
        content = name_tflite(_loops_to_tflite(plain, fixed_batch, feeds, reference), plain.inputs, plain.outputs)
    got = run_tflite(content, feeds)
    return _publish(dst, content, plain, distance_db(reference, got), notes)


def _to_tflite(frozen: Frozen) -> bytes:
    import tensorflow as tf

    try:
        return tf.lite.TFLiteConverter.from_concrete_functions([frozen.function()]).convert()
    except Exception as error:
        missing = sorted(set(re.findall(r"\btf\.([A-Z]\w+)", str(error))))
        if missing:
            hint = "convert this model to ONNX or OpenVINO instead"
            raise LeptonError(f"TFLite has no operation for {', '.join(missing)}", hint=hint) from error
        raise LeptonError(f"the TFLite converter failed: {first_line(error)}") from error


def _loops_to_tflite(plain: Frozen, batch: int, feeds: list[np.ndarray], reference: list[np.ndarray]) -> bytes:
    """Convert; where a loop of a SavedModel was traced with a free batch, set that batch and convert again.

    TFLite wants the shape of a loop's list elements, which such a graph gives as [-1, units]. The second try
    counts only if it gives the source's numbers.
    """
    try:
        return _to_tflite(plain)
    except LeptonError as error:
        if "TensorList" not in error.message:
            raise
        fixed = replace(plain, graph_def=_with_list_shapes(plain.graph_def, batch))
        content = _to_tflite(fixed)
        if distance_db(reference, run_tflite(content, feeds)) < FUSED_DB:
            raise error from None
        return content


def _with_list_shapes(graph_def: Any, batch: int) -> Any:
    """The graph with -1 in the element shapes of its tensor lists made `batch`."""
    import tensorflow as tf

    copy = tf.compat.v1.GraphDef()
    copy.CopyFrom(graph_def)
    # TensorFlow knows functions by name in the whole process: a changed one needs a name of its own.
    names = {function.signature.name: f"{function.signature.name}_batch{batch}" for function in copy.library.function}
    for function in copy.library.function:
        function.signature.name = names[function.signature.name]
    for node in [*copy.node, *(node for function in copy.library.function for node in function.node_def)]:
        for attribute in node.attr.values():
            for called in [attribute.func, *attribute.list.func]:
                if called.name in names:
                    called.name = names[called.name]
    for nodes in (copy.node, *(function.node_def for function in copy.library.function)):
        by_name = {node.name: node for node in nodes}
        for node in nodes:
            if not node.op.startswith("TensorList"):
                continue
            for name in node.input:
                constant = by_name.get(name.split(":")[0])
                if constant is None or constant.op != "Const":
                    continue
                value = tf.make_ndarray(constant.attr["value"].tensor)
                if value.ndim == 1 and value.dtype.kind == "i" and (value == -1).any():
                    fixed = tf.make_tensor_proto(np.where(value == -1, batch, value), value.dtype)
                    constant.attr["value"].tensor.CopyFrom(fixed)
    return copy


def _fused_to_tflite(source: Source, shapes: list[list[int | None]]) -> bytes:
    """By way of a SavedModel: freezing first would take the LSTM functions apart before TFLite can know them."""
    import tensorflow as tf

    module = tf.Module()
    module.weights = [getattr(weight, "value", weight) for weight in source.keep.weights]
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, signatures=trace(source, shapes, "tflite"))
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


def name_tflite(content: bytes, inputs: tuple[Port, ...], outputs: tuple[str, ...]) -> bytes:
    """The flatbuffer with its input and output tensors, and a `serving_default` signature, named as given.

    From a function the converter keeps the order; from a SavedModel it does not, and the signature's keys tell it.
    """
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
    graph = model.subgraphs[0]
    for made in model.signatureDefs or []:
        graph.inputs = [m.tensorIndex for m in sorted(made.inputs, key=lambda m: m.name)]
        graph.outputs = [m.tensorIndex for m in sorted(made.outputs, key=lambda m: m.name)]
    if len(graph.inputs) != len(inputs) or len(graph.outputs) != len(outputs):
        raise LeptonError(
            f"the TFLite converter made {len(graph.inputs)} inputs and {len(graph.outputs)} outputs"
            f" of {len(inputs)} and {len(outputs)}"
        )

    def maps(tensors: Any, names: tuple[str, ...]) -> list[Any]:
        result = []
        for index, name in zip(tensors, names, strict=True):
            graph.tensors[index].name = name.encode()
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), int(index)
            result.append(entry)
        return result

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = b"serving_default", 0
    signature.inputs = maps(graph.inputs, tuple(port.name for port in inputs))
    signature.outputs = maps(graph.outputs, outputs)
    model.signatureDefs = [signature]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def run_tflite(content: bytes, feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Load, allocate and run the flatbuffer once, feeds and outputs in its order."""
    import tensorflow as tf

    try:
        runner = tf.lite.Interpreter(model_content=content, num_threads=1)
        runner.allocate_tensors()
        runner.reset_all_variables()
        for detail, feed in zip(runner.get_input_details(), feeds, strict=True):
            runner.set_tensor(detail["index"], feed)
        runner.invoke()
        return [runner.get_tensor(detail["index"]) for detail in runner.get_output_details()]
    except (RuntimeError, ValueError) as error:
        raise LeptonError(f"the TFLite file that was made does not run: {first_line(error)}") from error


LOW_DB = 80.0  # float noise is above 100 dB; below this the self-check's figure is told (a lost bias can be 34 dB)
LOW_INT8_DB = 20.0  # one step of an int8 output more or less
LOW = "on one random input the result is only {:.0f} dB close to the source: check its parity"
FUSED_DB = 80.0  # the fused LSTM rounds differently, at float noise (about 130 dB); a wrong one is below 40


def write_onnx(source: Source, dst: str, input_shapes: str, fixed_batch: int, opset: int) -> dict[str, Any]:
    """Write the source as ONNX; inputs and outputs keep the source's names and order, LSTM and GRU are one node."""
    import tf2onnx

    shapes = fixed_shapes(source, fixed_batch, input_shapes, static=False)
    frozen = freeze(source, shapes, fuse="onnx")
    feeds, reference = probe(freeze(source, shapes) if source.recurrent else frozen)
    graph_def = _tidied(frozen)
    renames = dict(
        zip(
            frozen.input_tensors + frozen.output_tensors,
            [port.name for port in frozen.inputs] + list(_apart(frozen)),
            strict=True,
        )
    )
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            graph_def,
            name="model",
            input_names=list(frozen.input_tensors),
            output_names=list(frozen.output_tensors),
            opset=opset,
            custom_op_handlers={"Erfc": (_erfc_to_onnx, [])},
            tensors_to_rename=renames,
        )
    except Exception as error:
        raise LeptonError(f"tf2onnx failed: {first_line(error)}") from error
    finish_onnx(model)
    _means_as_reductions(model)
    model = simplified_onnx(model)
    got = run_onnx(model, feeds)
    return _publish(dst, model.SerializeToString(), frozen, distance_db(reference, got), [], list(_apart(frozen)))


def _apart(frozen: Frozen) -> tuple[str, ...]:
    """Output names that no input has (ONNX names are one space)."""
    taken = [port.name for port in frozen.inputs]
    return unique(taken + list(frozen.outputs))[len(taken) :]


def _tidied(frozen: Frozen) -> Any:
    """The graph as tf2onnx 1.17 converts it best.

    Rules: Shape of a tensor of known shape becomes a constant (tf2onnx leaves chains of Shape, Gather and Concat
    around every Dense on sequences); a scalar constant of Add becomes [1] (tf2onnx stops moving transposes at it).
    """
    import tensorflow as tf

    graph_def = tf.compat.v1.GraphDef()
    graph_def.CopyFrom(frozen.graph_def)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    nodes = {node.name: node for node in graph_def.node}
    uses = collections.Counter(name.lstrip("^").split(":")[0] for node in graph_def.node for name in node.input)
    for node in graph_def.node:
        if node.op not in ("Add", "AddV2", "Shape"):
            continue
        tensors = graph.get_operation_by_name(node.name).inputs
        if node.op == "Shape" and tensors[0].shape.is_fully_defined():
            kind = tf.as_dtype(node.attr["out_type"].type or tf.int32.as_datatype_enum)
            value = tf.make_tensor_proto(tensors[0].shape.as_list(), kind)
            name = node.name
            node.Clear()
            node.name, node.op = name, "Const"
            node.attr["dtype"].type = value.dtype
            node.attr["value"].tensor.CopyFrom(value)
        elif node.op != "Shape":
            for side, other in ((0, 1), (1, 0)):
                constant = nodes.get(node.input[side].split(":")[0])
                if constant is None or constant.op != "Const" or tensors[side].shape.rank != 0:
                    continue
                if (tensors[other].shape.rank or 0) >= 1 and uses[constant.name] == 1:
                    constant.attr["value"].tensor.tensor_shape.dim.add().size = 1
                    constant.attr.pop("_output_shapes", None)
    return graph_def


def _erfc_to_onnx(graph: Any, node: Any, name: str, args: Any) -> Any:
    """Erfc(x) = 1 - Erf(x), which ONNX has (tf.nn.gelu needs it and tf2onnx 1.17 has no handler)."""
    dtype = {1: np.float32, 10: np.float16, 11: np.float64}[graph.get_dtype(node.output[0])]
    one = graph.make_const(f"{name}_one", np.array(1, dtype))
    erf = graph.make_node("Erf", [node.input[0]], name=f"{name}_erf")
    shape, kind = graph.get_shape(node.output[0]), graph.get_dtype(node.output[0])
    graph.remove_node(node.name)
    inputs = [one.output[0], erf.output[0]]
    return graph.make_node("Sub", inputs, name=name, outputs=node.output, shapes=[shape], dtypes=[kind])


def _means_as_reductions(model: Any) -> None:
    """Means over the last axis of sequences, which tf2onnx writes as GlobalAveragePool, as ReduceMean.

    They are LayerNormalization's, which quantizers must not take for pooling.
    """
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*inferred.graph.value_info, *inferred.graph.input]}
    newer = any(entry.version >= 18 for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    for node in model.graph.node:
        if node.op_type == "GlobalAveragePool" and ranks.get(node.input[0]) == 3:
            node.op_type = "ReduceMean"
            node.attribute.append(onnx.helper.make_attribute("keepdims", 1))
            if newer:
                axes = onnx.numpy_helper.from_array(np.array([2], np.int64), f"{node.output[0]}_axes")
                model.graph.initializer.append(axes)
                node.input.append(axes.name)
            else:
                node.attribute.append(onnx.helper.make_attribute("axes", [2]))
    finish_onnx(model)


def finish_onnx(model: Any, hint: str = "convert this model to TFLite instead") -> None:
    """Check a fresh ONNX model: only standard operations, valid with shape inference (LeptonError otherwise)."""
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    unknown = sorted({node.op_type for node in model.graph.node if not node.domain and node.op_type not in known})
    if unknown:
        raise LeptonError(f"tf2onnx has no ONNX form of {', '.join(unknown)}", hint=hint)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise LeptonError(f"the ONNX model that was made is not valid: {first_line(error)}") from error


def simplified_onnx(model: Any) -> Any:
    """The model after ONNX Runtime's basic rules: constants folded, Mul and Add behind a Conv folded into it.

    Basic rules stay within standard operations. Should the result not be valid, the model comes back as it was.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            made = onnx.load(options.optimized_model_filepath)
            if any(node.domain not in ("", "ai.onnx") for node in made.graph.node):
                return model
            kept = [entry for entry in made.opset_import if entry.domain in ("", "ai.onnx")]
            del made.opset_import[:]
            made.opset_import.extend(kept)
            finish_onnx(made)
        except Exception as error:
            print(f"kept as tf2onnx wrote it: {first_line(error)}", file=sys.stderr)
            return model
    return made


def run_onnx(model: Any, feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Load the model in ONNX Runtime and run it once, feeds and outputs in the model's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {i.name: feed for i, feed in zip(session.get_inputs(), feeds, strict=True)})
    except Exception as error:
        raise LeptonError(f"the ONNX model that was made does not run: {first_line(error)}") from error


def _publish(
    dst: str, content: bytes, frozen: Frozen, decibels: float, notes: list[str], outputs: list[str] | None = None
) -> dict[str, Any]:
    if decibels < LOW_DB:
        notes = [*notes, LOW.format(decibels)]
    write_bytes(dst, content)
    made = outputs or list(frozen.outputs)
    return {
        "inputs": [{"name": port.name, "source": port.name, "perm": None} for port in frozen.inputs],
        "outputs": [{"name": n, "source": s, "perm": None} for n, s in zip(made, frozen.outputs, strict=True)],
        "notes": notes,
    }


def write_bytes(dst: str, content: bytes) -> None:
    """Write a file aside and put it in place whole."""
    path = Path(dst)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(content)
    aside.replace(path)


# ---------------------------------------------------------------- TFLite as a source


@dataclass(frozen=True)
class TfliteSource:
    """A TFLite file to convert: names as the LiteRT runtime gives them, and the tensors' own (`raw`) names."""

    session: Any
    inputs: list[str]
    outputs: list[str]
    raw_inputs: list[str]
    raw_outputs: list[str]
    operations: list[str]
    quantized: bool

    def check(self, decibels: float, target: str) -> None:
        """LeptonError where a float model's conversion does not give its numbers on the self-check."""
        if not self.quantized and decibels < LOW_DB:
            raise LeptonError(
                f"the {target} made of this TFLite file gives other numbers ({decibels:.0f} dB, want {LOW_DB:.0f})",
                hint="convert the model this file was made from",
            )

    def probe(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """One seeded input in the file's order, free dimensions at 1, and the outputs for it."""
        random = np.random.default_rng(0)
        feeds = []
        for port in self.session.inputs:
            shape, dtype = [dim or 1 for dim in port["shape"]], np.dtype(port["dtype"])
            if np.issubdtype(dtype, np.floating):
                values: np.ndarray = random.standard_normal(shape)
            else:  # quantized inputs take the whole range, indices only 0 and 1
                low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if "quantization" in port else (0, 1)
                values = random.integers(low, high, shape, endpoint=True)
            feeds.append(np.asarray(values).astype(dtype))
        results = self.session.run(dict(zip(self.inputs, feeds, strict=True)))
        return feeds, [results[name] for name in self.outputs]

    def mapping(self, inputs: list[str], outputs: list[str], decibels: float) -> dict[str, Any]:
        """What a step returns: where the new names come from, and a note where the self-check came out low."""
        return {
            "inputs": [{"name": n, "source": s, "perm": None} for n, s in zip(inputs, self.inputs, strict=True)],
            "outputs": [{"name": n, "source": s, "perm": None} for n, s in zip(outputs, self.outputs, strict=True)],
            "notes": [LOW.format(decibels)] if decibels < (LOW_INT8_DB if self.quantized else LOW_DB) else [],
        }


def open_tflite(path: str) -> TfliteSource:
    """Open a TFLite file in LiteRT; LeptonError for a damaged one and one with strings or custom operations."""
    from ai_edge_litert.interpreter import Interpreter

    from lepton_edge.runtimes import litert

    try:
        session = litert.load(path)
        bare = Interpreter(model_path=path)
    except (ValueError, RuntimeError) as error:
        raise LeptonError(first_line(error), hint="the file may be damaged, or made for another runtime") from error
    ports = [*session.inputs, *session.outputs]
    for port in ports:
        if port["dtype"] == "str":
            raise LeptonError(f"'{path}' takes or returns strings ('{port['name']}'), which only TFLite can")
    return TfliteSource(
        session,
        [port["name"] for port in session.inputs],
        [port["name"] for port in session.outputs],
        [str(detail["name"]) for detail in bare.get_input_details()],
        [str(detail["name"]) for detail in bare.get_output_details()],
        [str(op["op_name"]) for op in bare._get_ops_details()],
        any(len(detail["quantization_parameters"]["scales"]) for detail in bare.get_tensor_details()),
    )
