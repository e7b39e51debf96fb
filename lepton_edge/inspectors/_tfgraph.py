"""The graph behind one SavedModel signature, with function calls laid out flat, in execution order."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lepton_edge.inspectors._common import Shape

SHAPE: dict = {2: ("*dim", {1: ("size", "int")}), 3: ("unknown_rank", "int")}
TENSOR = {1: ("dtype", "int"), 2: ("shape", SHAPE), 4: ("content", "bytes"), 8: ("*strings", "str")}
FUNC = {1: ("name", "str")}
LIST = {7: ("*shape", SHAPE), 9: ("*func", FUNC)}
ATTR = {1: ("list", LIST), 2: ("s", "bytes"), 3: ("i", "int"), 5: ("b", "int"), 6: ("type", "int")}
ATTR |= {7: ("shape", SHAPE), 8: ("tensor", TENSOR), 10: ("func", FUNC)}
NODE = {1: ("name", "str"), 2: ("op", "str"), 3: ("*input", "str"), 5: ("@attr", ATTR)}
ARGUMENT = {1: ("name", "str")}
SIGNATURE = {1: ("name", "str"), 2: ("*inputs", ARGUMENT), 3: ("*outputs", ARGUMENT)}
FUNCTION = {1: ("signature", SIGNATURE), 3: ("*node", NODE), 4: ("@ret", "str")}
GRAPH = {
    1: ("*node", NODE),
    2: ("library", {1: ("*function", FUNCTION)}),
    4: ("versions", {1: ("producer", "int")}),
}
INFO = {1: ("name", "str"), 2: ("dtype", "int"), 3: ("shape", SHAPE)}
CALL = {1: ("@inputs", INFO), 2: ("@outputs", INFO), 3: ("method", "str")}
META = {4: ("*tags", "str"), 5: ("tensorflow", "str")}
SAVER = {1: ("filename", "str"), 3: ("restore", "str")}
METAGRAPH = {1: ("info", META), 2: ("graph", GRAPH), 3: ("saver", SAVER), 5: ("@signatures", CALL)}
SAVED_MODEL = {1: ("schema", "int"), 2: ("*graphs", METAGRAPH)}

CALLS = ("PartitionedCall", "StatefulPartitionedCall")
SAME = ("Identity", "IdentityN", "ReadVariableOp", "StopGradient", "Snapshot")
MAX_DEPTH = 64

Key = tuple[str, int]  # (node, output number)


@dataclass
class Op:
    """One operator of the flat graph; inputs are resolved to the node that makes them."""

    name: str
    op: str
    inputs: list[Key]
    shapes: list[Shape | None]
    attr: dict = field(default_factory=dict)


def shape_of(message: dict | None) -> list[int | None] | None:
    """A TensorShapeProto; None for an unknown rank."""
    if message is None or message["unknown_rank"]:
        return None
    return [None if dim["size"] < 0 else dim["size"] for dim in message["dim"]]


def flatten(graph: dict, targets: Iterable[str]) -> list[Op]:
    """The operators that `targets` (tensor names such as "StatefulPartitionedCall:0") need.

    Raises ValueError for a graph that refers to what it does not hold, or to itself.
    """
    functions = {f["signature"]["name"]: f for f in (graph["library"] or {"function": []})["function"]}
    layout = _Layout(functions)
    scope = _Scope("", {n["name"]: n for n in graph["node"]}, {}, 0)
    for target in targets:
        layout.tensor(scope, target)
    return layout.ops


def bodies(op: Op, graph: dict) -> list[dict]:
    """All nodes of the functions that an operator such as While calls."""
    functions = {f["signature"]["name"]: f for f in (graph["library"] or {"function": []})["function"]}
    todo, seen, nodes = _called(op.attr), set(), []
    while todo:
        name = todo.pop()
        if name in seen or name not in functions:
            continue
        seen.add(name)
        for node in functions[name]["node"]:
            nodes.append(node)
            todo += _called(node["attr"])
    return nodes


def _called(attr: dict) -> list[str]:
    names = [a["func"]["name"] for a in attr.values() if a and a["func"]]
    return names + [f["name"] for a in attr.values() if a and a["list"] for f in a["list"]["func"]]


@dataclass
class _Scope:
    prefix: str
    nodes: dict[str, dict]
    arguments: dict[str, Key]
    depth: int
    done: dict[str, list[Key]] = field(default_factory=dict)  # node -> what its outputs resolve to


class _Layout:
    def __init__(self, functions: dict[str, dict]) -> None:
        self.functions = functions
        self.ops: list[Op] = []

    def tensor(self, scope: _Scope, name: str) -> Key:
        """The maker of a tensor reference: "node", "node:0" or, inside a function, "node:output:0"."""
        node, number = _reference(name)
        if node in scope.arguments:
            return scope.arguments[node]
        self._visit(scope, node)
        outputs = scope.done[node]
        if number < len(outputs):
            return outputs[number]
        return (scope.prefix + node, number)

    def _visit(self, scope: _Scope, root: str) -> None:
        """Depth first without recursion: graphs are thousands of nodes deep, calls only a few."""
        stack, open_ = [(root, False)], set()
        while stack:
            name, ready = stack.pop()
            if name in scope.done:
                continue
            if name not in scope.nodes:
                raise ValueError(f"node '{name}' is used but missing")
            node = scope.nodes[name]
            if ready:
                self._finish(scope, node)
                continue
            if name in open_:
                continue
            open_.add(name)
            stack.append((name, True))
            needed = [_reference(entry)[0] for entry in node["input"] if not entry.startswith("^")]
            stack += [(entry, False) for entry in needed if entry not in scope.arguments and entry not in scope.done]

    def _finish(self, scope: _Scope, node: dict) -> None:
        inputs = [self._input(scope, entry) for entry in node["input"] if not entry.startswith("^")]
        if node["op"] in CALLS:
            scope.done[node["name"]] = self._call(scope, node, inputs)
            return
        listed = node["attr"].get("_output_shapes")
        shapes: list[Shape | None] = [shape_of(s) for s in listed["list"]["shape"]] if listed and listed["list"] else []
        key = scope.prefix + node["name"]
        self.ops.append(Op(key, node["op"], inputs, shapes, node["attr"]))
        scope.done[node["name"]] = [(key, i) for i in range(max(1, len(shapes)))]

    def _input(self, scope: _Scope, entry: str) -> Key:
        node, number = _reference(entry)
        if node in scope.arguments:
            return scope.arguments[node]
        if node not in scope.done:
            raise ValueError(f"node '{node}' depends on itself")
        outputs = scope.done[node]
        return outputs[number] if number < len(outputs) else (scope.prefix + node, number)

    def _call(self, scope: _Scope, node: dict, inputs: list[Key]) -> list[Key]:
        name = (node["attr"].get("f") or {"func": None})["func"]
        function = self.functions.get(name["name"] if name else "")
        if function is None or scope.depth >= MAX_DEPTH:
            raise ValueError(f"'{node['name']}' calls a function that is missing or calls itself")
        signature = function["signature"]
        arguments = {a["name"]: key for a, key in zip(signature["inputs"], inputs, strict=False)}
        prefix = f"{scope.prefix}{node['name']}/"
        inner = _Scope(prefix, {n["name"]: n for n in function["node"]}, arguments, scope.depth + 1)
        return [self.tensor(inner, function["ret"][a["name"]]) for a in signature["outputs"]]


def _reference(name: str) -> tuple[str, int]:
    parts = name.split(":")
    return parts[0], int(parts[-1]) if len(parts) > 1 and parts[-1].isdigit() else 0


def attr_of(op: Op, name: str, kind: str, default: Any = None) -> Any:
    """One attribute's value, `default` when it is not there."""
    value = op.attr.get(name)
    return default if value is None else value[kind]
