"""TensorFlow checkpoints (tensor bundles): an index in LevelDB's table format, and raw data shards.

Formats: tensorflow/core/util/tensor_bundle and tensorflow/core/lib/io/table_format.txt.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from lepton_edge.inspectors._common import count_nonzero_bits, count_nonzeros
from lepton_edge.inspectors._wire import parse, varint

MAGIC = 0xDB4775248B80FB57
SHAPE = {2: ("*dim", {1: ("size", "int")}), 3: ("unknown_rank", "int")}
ENTRY = {
    1: ("dtype", "int"),
    2: ("shape", SHAPE),
    3: ("shard", "int"),
    4: ("offset", "int"),
    5: ("size", "int"),
}
OBJECTS = {1: ("*nodes", {2: ("*attributes", {2: ("full_name", "str"), 3: ("key", "str")})})}
OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
# tensorflow/core/framework/types.proto: number -> (name, NumPy type; "u" marks the bits of a float)
DTYPES = {1: ("float32", "<f4"), 2: ("float64", "<f8"), 3: ("int32", "<i4"), 4: ("uint8", "u1")}
DTYPES |= {5: ("int16", "<i2"), 6: ("int8", "i1"), 7: ("string", ""), 9: ("int64", "<i8"), 10: ("bool", "?")}
DTYPES |= {14: ("bfloat16", "<u2"), 17: ("uint16", "<u2"), 19: ("float16", "<f2"), 20: ("resource", "")}
DTYPES |= {21: ("variant", ""), 22: ("uint32", "<u4"), 23: ("uint64", "<u8"), 11: ("qint8", "i1")}


class Checkpoint:
    """The tensors of one checkpoint prefix, by key; raises ValueError when files are damaged or missing."""

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        self.entries: dict[str, dict] = {}
        self.shards = 1
        index = prefix.with_name(prefix.name + ".index")
        if not index.is_file():
            return
        for key, value in _table(index.read_bytes()):
            if key == b"":
                self.shards = parse(value, {1: ("shards", "int")})["shards"]
            else:
                self.entries[key.decode("utf-8", "replace")] = parse(value, ENTRY)

    def raw(self, key: str) -> bytes:
        """The stored bytes of one tensor."""
        entry = self.entries[key]
        shard = f"{self.prefix.name}.data-{entry['shard']:05d}-of-{self.shards:05d}"
        path = self.prefix.with_name(shard)
        if not path.is_file():
            raise ValueError(f"variables/{shard} is missing")
        with path.open("rb") as file:
            file.seek(entry["offset"])
            data = file.read(entry["size"])
        if len(data) != entry["size"]:
            raise ValueError(f"variables/{shard} is cut short at '{key}'")
        return data

    def nonzeros(self, key: str) -> int | None:
        """Elements that are not zero; None for types that hold no numbers."""
        name, code = DTYPES.get(self.entries[key]["dtype"], ("", ""))
        if not code:
            return None
        array = np.frombuffer(self.raw(key), code)
        return count_nonzero_bits(array, 16) if name == "bfloat16" else count_nonzeros(array)

    def full_names(self) -> dict[str, str]:
        """{checkpoint key: the variable's own name}, from the object graph the checkpoint carries."""
        if OBJECT_GRAPH not in self.entries:
            return {}
        data = self.raw(OBJECT_GRAPH)
        size, at = varint(data, 0)
        graph = parse(data[at + 4 : at + 4 + size], OBJECTS)  # 4: a checksum of the length
        return {a["key"]: a["full_name"] for node in graph["nodes"] for a in node["attributes"] if a["key"]}


def _table(data: bytes) -> list[tuple[bytes, bytes]]:
    if len(data) < 48 or struct.unpack("<Q", data[-8:])[0] != MAGIC:
        raise ValueError("variables.index is cut short or no checkpoint index")
    at = len(data) - 48
    _, at = varint(data, at)
    _, at = varint(data, at)
    offset, at = varint(data, at)
    size, at = varint(data, at)
    pairs = []
    for _, handle in _block(data, offset, size):
        start, used = varint(handle, 0)
        length, _ = varint(handle, used)
        pairs += _block(data, start, length)
    return pairs


def _block(data: bytes, offset: int, size: int) -> list[tuple[bytes, bytes]]:
    """Entries share prefixes with the one before; restart points at the end are not needed to read all."""
    if offset + size + 5 > len(data):
        raise ValueError("variables.index points past its end")
    if data[offset + size]:
        raise ValueError("variables.index is compressed, which TensorFlow does not write")
    block = data[offset : offset + size]
    end = size - 4 - 4 * struct.unpack("<I", block[-4:])[0]
    at, key, pairs = 0, b"", []
    while at < end:
        shared, at = varint(block, at)
        fresh, at = varint(block, at)
        length, at = varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        pairs.append((key, block[at + fresh : at + fresh + length]))
        at += fresh + length
    return pairs
