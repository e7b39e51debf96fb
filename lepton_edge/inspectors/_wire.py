"""Reads protobuf messages by a small table of fields, so that a SavedModel needs no TensorFlow (6 s, 600 MB).

A schema is {field number: (name, kind)}; kind is "int" (signed varint), "bytes", "str", "float", or a schema;
a leading "*" on the name makes it a list, "@" a map of a string to the kind. Unknown fields are skipped.
Wire format: protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import struct
from typing import Any

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def parse(data: bytes | memoryview, schema: dict) -> dict[str, Any]:
    """One message as a dict; fields that are absent get 0, "", b"", [], {} or None (a message).

    Raises ValueError where the bytes are no message of this kind.
    """
    found: dict[str, Any] = {name.lstrip("*@"): _default(name, kind) for name, kind in schema.values()}
    view, at = memoryview(data), 0
    while at < len(view):
        key, at = varint(view, at)
        value, at = _value(view, at, key & 7)
        if key >> 3 in schema:
            name, kind = schema[key >> 3]
            _store(found, name, kind, key & 7, value)
    return found


def varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """An unsigned variable-length integer and the position behind it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"it ends in the middle of a number at byte {at}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def signed(value: int) -> int:
    """A varint read as int64."""
    return value - (1 << 64) if value >= 1 << 63 else value


def _default(name: str, kind: Any) -> Any:
    if name[0] == "*":
        return []
    if name[0] == "@":
        return {}
    return {"int": 0, "float": 0.0, "str": "", "bytes": b""}[kind] if isinstance(kind, str) else None


def _value(view: memoryview, at: int, wire: int) -> tuple[Any, int]:
    if wire == VARINT:
        return varint(view, at)
    if wire == BYTES:
        size, at = varint(view, at)
    else:
        size = {FIXED64: 8, FIXED32: 4}.get(wire, -1)
        if size < 0:
            raise ValueError(f"an unknown wire type {wire} at byte {at}")
    if at + size > len(view):
        raise ValueError(f"a field of {size} bytes at byte {at} reaches past the end")
    return view[at : at + size], at + size


def _store(found: dict, name: str, kind: Any, wire: int, value: Any) -> None:
    plain = name.lstrip("*@")
    if name[0] == "@":
        entry = parse(value, {1: ("key", "str"), 2: ("value", kind)})
        found[plain][entry["key"]] = entry["value"]
    elif name[0] == "*":
        found[plain] += _packed(kind, value) if kind == "int" and wire == BYTES else [_scalar(kind, value)]
    else:
        found[plain] = _scalar(kind, value)


def _packed(kind: str, value: memoryview) -> list[int]:
    numbers, at = [], 0
    while at < len(value):
        number, at = varint(value, at)
        numbers.append(signed(number))
    return numbers


def _scalar(kind: Any, value: Any) -> Any:
    if not isinstance(kind, str):
        return parse(_raw(value), kind)
    if kind == "int":
        return signed(value) if isinstance(value, int) else int.from_bytes(value, "little", signed=True)
    if kind == "float":
        return struct.unpack("<f" if len(_raw(value)) == 4 else "<d", _raw(value))[0]
    return bytes(_raw(value)) if kind == "bytes" else bytes(_raw(value)).decode("utf-8", "replace")


def _raw(value: Any) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message or text belongs")
    return value
