"""Edits of what model files consist of, whatever the format: bytes, JSON, protobuf and flatbuffer objects."""

from __future__ import annotations

import base64
import json
import marshal
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

NUMBERS = (0, 1, -1, 2, 127, 2**16, 2**31 - 1, 2**31, 2**40, -(2**31), 2**62)
ELSEWHERE = ("../../outside", "/etc/passwd", "..", "a/../../b", "x" * 5000, "\x00", "")
CLASSES = ("Lambda", "__lambda__", "TFSMLayer", "TFOpLambda", "Evil", "system", "Dense", "Sequential", "Functional")
MODULES = ("os", "subprocess", "builtins", "keras.utils", "keras.src.saving", "keras.layers", "evil")


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four edits: bytes flipped, a length blown up, a piece cut, doubled, zeroed or moved."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out))
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**30)))
        elif kind == 2:
            out = out[: max(at, 16)]
        elif kind == 3:
            del out[at : at + rng.randint(1, 64)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randint(1, 64)]
        elif kind == 5:
            out[at : at + 16] = bytes(16)
        else:
            other = rng.randrange(len(out))
            out[at : at + 8] = out[other : other + 8]
        if len(out) < 16:
            return bytes(out)
    return bytes(out)


def _odd(value: Any, rng: random.Random) -> Any:
    """Another value of about the kind, or of none."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return rng.choice(NUMBERS)
    if isinstance(value, str):
        return rng.choice((*ELSEWHERE, *CLASSES, *MODULES, "float64", "1e400"))
    return rng.choice((None, [], {}, "", 0, [[[[]]]]))


def edit_json(document: Any, rng: random.Random) -> Any:
    """The document with one to three of its values odd, gone, doubled, moved or nested."""
    for _ in range(rng.randint(1, 3)):
        places = list(_places(document))
        if not places:
            return document
        holder, key = rng.choice(places)
        kind, value = rng.randrange(8), holder[key]
        if kind < 4:
            holder[key] = _odd(value, rng)
        elif kind == 4:
            del holder[key]
        elif kind == 5 and isinstance(holder, list):
            holder.append(value)
        elif kind == 6:
            other, name = rng.choice(places)
            holder[key] = json.loads(json.dumps(other[name])) if name in other or isinstance(other, list) else None
        else:
            holder[key] = [value]
    return document


def _places(node: Any) -> Any:
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield node, key
        yield from _places(value)


def edit_class(document: Any, rng: random.Random, canary: Path) -> Any:
    """A layer's class, module, registered name or function replaced."""
    named = [holder for holder, key in _places(document) if key == "class_name" and isinstance(holder, dict)]
    for holder in rng.sample(named, min(len(named), 1)):
        holder["class_name"] = rng.choice(CLASSES)
        if rng.random() < 0.5:
            holder["module"] = rng.choice(MODULES)
        if rng.random() < 0.3:
            holder["registered_name"] = rng.choice(("Custom>Evil", "evil", None))
        if rng.random() < 0.5 and isinstance(holder.get("config"), dict):
            source = compile(f"lambda *_, **__: open({str(canary)!r}, 'w')", "evil", "eval").co_consts[0]
            packed = base64.b64encode(marshal.dumps(source)).decode()
            code = {"class_name": "__lambda__", "config": {"code": packed, "defaults": None, "closure": None}}
            holder["config"]["function"] = rng.choice((code, "tf.io.write_file", "os.system"))
    return document


def edit_message(message: Any, rng: random.Random) -> None:
    """One field of a protobuf message, or of one inside it, odd, gone, doubled or swapped with another."""
    places = []

    def walk(node: Any, depth: int = 0) -> None:
        for field, value in node.ListFields():
            places.append((node, field))
            for inner in value if field.is_repeated else [value]:
                if hasattr(inner, "ListFields") and depth < 12:
                    walk(inner, depth + 1)

    walk(message)
    node, field = rng.choice(places)
    value = getattr(node, field.name)
    if hasattr(value, "items"):  # a map
        value.pop(rng.choice(sorted(value)))
    elif field.is_repeated:
        items, kind = list(value), rng.randrange(4)
        if kind == 0:
            rng.shuffle(items)
        elif kind == 1:
            items.pop(rng.randrange(len(items)))
        elif kind == 2 or field.type == field.TYPE_MESSAGE:
            items.append(rng.choice(items))
        else:
            items[rng.randrange(len(items))] = _odd_field(items[0], rng)
        node.ClearField(field.name)
        _assign(getattr(node, field.name).extend, items)
    elif field.type == field.TYPE_MESSAGE:
        node.ClearField(field.name)
    else:
        _assign(lambda v: setattr(node, field.name, v), _odd_field(value, rng))


def _odd_field(value: Any, rng: random.Random) -> Any:
    return value[: len(value) // 2] if isinstance(value, bytes) else _odd(value, rng)


def _assign(setter: Callable[[Any], Any], value: Any) -> None:
    try:
        setter(value)
    except (ValueError, TypeError):  # out of the field's range: the message stays without it
        return


def edit_objects(model: Any, rng: random.Random) -> None:
    """One attribute of a flatbuffer's objects: a number odd, a list shuffled, cut or doubled, an object gone."""
    places = []

    def walk(node: Any) -> None:
        for name, value in vars(node).items():
            if value is None or isinstance(value, (bytes, str)):
                continue
            places.append((node, name))
            for inner in value if isinstance(value, list) else [value]:
                if hasattr(inner, "__dict__"):
                    walk(inner)

    walk(model)
    node, name = rng.choice(places)
    value = getattr(node, name)
    if isinstance(value, (bool, int, float)):
        setattr(node, name, rng.choice((0, 1, 2, 3, 50, 100, 127)))
    elif isinstance(value, list) or hasattr(value, "dtype"):
        items = list(value)
        kind = rng.randrange(4)
        if kind == 0:
            rng.shuffle(items)
        elif kind == 1 and items:
            items.pop(rng.randrange(len(items)))
        elif kind == 2 and items:
            items.append(rng.choice(items))
        elif items and not hasattr(items[0], "__dict__"):
            items[rng.randrange(len(items))] = rng.choice((0, -1, 1, 2**20, 2**30, 2**31 - 1))
        setattr(node, name, items)
    else:
        setattr(node, name, None)
