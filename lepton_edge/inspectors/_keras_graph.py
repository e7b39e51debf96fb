"""Walks a Keras config: the calls of a Functional or Sequential model in order, with shapes and MACs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lepton_edge.inspectors._keras_rules import KNOWN, OPS_MODULES, Dims, apply

MODELS = ("Functional", "Sequential", "Model")
MAX_DEPTH = 32


@dataclass
class Call:
    """One use of a layer. `path` names it inside nested models: "backbone/conv1"."""

    path: str
    kind: str
    config: dict
    output: Dims | None
    macs: int | None
    first: bool = True  # False when the same layer was called before: its weights count once


@dataclass
class Walk:
    """The whole model: its calls, and the shapes at its ends."""

    calls: list[Call] = field(default_factory=list)
    inputs: list[dict] = field(default_factory=list)
    outputs: list[tuple[str, Dims | None]] = field(default_factory=list)


def walk(model: dict) -> Walk:
    """The calls of the top model; raises ValueError if the config describes no graph."""
    if model.get("class_name") not in MODELS or "layers" not in _config(model):
        raise ValueError(f"a subclassed model ({model.get('class_name')}) has no layers in its config")
    result = Walk()
    result.inputs = _inputs(model)
    shapes = [entry["shape"] for entry in result.inputs]
    result.outputs = _model(model, shapes, "", result.calls, 0)
    return result


def _config(model: dict) -> dict:
    config = model.get("config")
    return {"layers": config} if isinstance(config, list) else config or {}  # a list: Keras 1 Sequential


def layers_of(model: dict) -> list[dict]:
    """The layers of a model's config, in the order in which weights are stored."""
    return _config(model).get("layers") or []


def _inputs(model: dict) -> list[dict]:
    layers = {_name(entry): entry for entry in layers_of(model)}
    if model["class_name"] == "Sequential":
        return [_sequential_input(model)]
    wanted = [history[0] for history in _histories(_config(model).get("input_layers"))]
    return [_input(layers[name]) for name in wanted if name in layers]


def _input(entry: dict) -> dict:
    config = entry["config"]
    shape = config.get("batch_shape") or config.get("batch_input_shape") or []
    return {"name": _name(entry), "shape": list(shape), "dtype": dtype_of(config)}


def _sequential_input(model: dict) -> dict:
    first = layers_of(model)[0] if layers_of(model) else None
    if first is None:
        raise ValueError("an empty Sequential model")
    if first["class_name"] == "InputLayer":
        return _input(first)
    shape = first["config"].get("batch_input_shape") or (first.get("build_config") or {}).get("input_shape")
    shape = shape or (model.get("build_config") or {}).get("input_shape")
    legacy = "batch_input_shape" in first["config"]
    name = f"{_name(first)}_input" if legacy else "input_layer"
    return {"name": name, "shape": list(shape or []), "dtype": "float32"}


def dtype_of(config: dict) -> str:
    """The compute dtype of a layer: plain, or inside a (mixed precision) policy."""
    dtype = config.get("dtype") or "float32"
    if isinstance(dtype, dict):
        dtype = (dtype.get("config") or {}).get("name") or "float32"
    return {"mixed_float16": "float16", "mixed_bfloat16": "bfloat16"}.get(dtype, dtype)


def _name(entry: dict) -> str:
    return entry.get("name") or entry["config"].get("name") or entry["class_name"]


def _histories(value: Any) -> list[tuple[str, int, int]]:
    """All [layer, node, output] triples in a nest of lists and dicts, in order."""
    if isinstance(value, dict):
        if value.get("class_name") == "__keras_tensor__":
            value = value["config"]["keras_history"]
        else:
            return [h for inner in value.values() for h in _histories(inner)]
    if not isinstance(value, list):
        return []
    if len(value) >= 3 and isinstance(value[0], str) and all(isinstance(v, int) for v in value[1:3]):
        return [(value[0], value[1], value[2])]
    return [h for inner in value for h in _histories(inner)]


def _model(
    model: dict, shapes: list[Dims | None], prefix: str, calls: list[Call], depth: int, first: bool = True
) -> list[tuple[str, Dims | None]]:
    if depth > MAX_DEPTH:
        raise ValueError("models nested too deeply")
    if model["class_name"] == "Sequential":
        return _sequential(model, shapes, prefix, calls, depth, first)
    return _functional(model, shapes, prefix, calls, depth, first)


def _sequential(
    model: dict, shapes: list[Dims | None], prefix: str, calls: list[Call], depth: int, first: bool
) -> list[tuple[str, Dims | None]]:
    shape = shapes[0] if shapes else None
    name = ""
    for entry in layers_of(model):
        name = _name(entry)
        if entry["class_name"] == "InputLayer":
            shape = shape or list(entry["config"].get("batch_shape") or entry["config"]["batch_input_shape"])
            continue
        shape = _call(entry, [shape or None], prefix, calls, depth, first)
    return [(name, shape)]


def _functional(
    model: dict, shapes: list[Dims | None], prefix: str, calls: list[Call], depth: int, first: bool
) -> list[tuple[str, Dims | None]]:
    config = _config(model)
    fed = dict(zip([h[0] for h in _histories(config.get("input_layers"))], shapes, strict=False))
    recorded = dict(_recorded(layers_of(model)))
    known: dict[tuple[str, int], Dims | None] = {}
    pending = [(entry, i, node) for entry in layers_of(model) for i, node in enumerate(_nodes(entry))]
    while pending:
        ready = [p for p in pending if all(_found(known, h) is not _MISSING for h in _histories(p[2]))]
        if not ready:
            raise ValueError(f"layer '{_name(pending[0][0])}' is called on a tensor that nothing makes")
        for entry, number, node in ready:
            name = _name(entry)
            if entry["class_name"] == "InputLayer":
                known[name, 0] = fed.get(name) or _input(entry)["shape"] or None
                continue
            arguments = [_found(known, h) for h in _histories(node)]
            output = _call(entry, arguments, prefix, calls, depth, first and number == 0)
            known[name, number] = output or recorded.get((name, number))
            if calls and calls[-1].path == prefix + name:
                calls[-1].output = known[name, number]
        pending = [p for p in pending if p not in ready]
    return [(name, _found(known, h)) for name, h in _ends(config.get("output_layers"))]


def _ends(value: Any) -> list[tuple[str, tuple[str, int, int]]]:
    """(name, history) of the outputs: a dict names them by its keys and is ordered by them, as Keras does."""
    if isinstance(value, dict) and value.get("class_name") != "__keras_tensor__":
        named = [(key, _histories(value[key])) for key in sorted(value)]
        if all(len(histories) == 1 for _, histories in named):
            return [(key, histories[0]) for key, histories in named]
    return [(history[0], history) for history in _histories(value)]


_MISSING: Any = object()


def _found(known: dict, history: tuple[str, int, int]) -> Any:
    """A nested model's own building counts as node 0, so its first call may be recorded as node 1."""
    name, node, _ = history
    if (name, node) in known:
        return known[name, node]
    if node > 0 and (name, node - 1) in known:
        return known[name, node - 1]
    return _MISSING


def _nodes(entry: dict) -> list:
    nodes = entry.get("inbound_nodes") or []
    return nodes or ([[]] if entry["class_name"] == "InputLayer" else [])


def _recorded(layers: list[dict]) -> Iterator[tuple[tuple[str, int], Dims]]:
    """Keras 3 writes the shape of every tensor a layer is called on: output shapes of custom layers."""
    todo: list[Any] = [entry.get("inbound_nodes") for entry in layers]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            todo += value
        elif isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
            name, node, number = value["config"]["keras_history"]
            if number == 0:
                yield (name, node), list(value["config"]["shape"])
        elif isinstance(value, dict):
            todo += value.values()


def _is_keras(entry: dict) -> bool:
    """Whether a layer is Keras' own; legacy files have no modules, there a known class name has to do."""
    module = entry.get("module")
    if module is None:
        return entry["class_name"] in KNOWN
    return module == "keras" or module.startswith(OPS_MODULES)


def _call(
    entry: dict, shapes: list[Dims | None], prefix: str, calls: list[Call], depth: int, first: bool
) -> Dims | None:
    kind, name = entry["class_name"], _name(entry)
    if kind in MODELS and "layers" in _config(entry):
        return _model(entry, shapes, f"{prefix}{name}/", calls, depth + 1, first)[0][1]
    if (not shapes or shapes[0] is None) and (entry.get("build_config") or {}).get("input_shape"):
        shapes = [list(entry["build_config"]["input_shape"])]
    output, macs = apply(kind, entry["config"], shapes, _is_keras(entry))
    calls.append(Call(prefix + name, kind, entry["config"], output, macs, first))
    return output
