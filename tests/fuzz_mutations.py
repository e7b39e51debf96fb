"""What chance, a bad copy or an enemy does to a model file: bytes anywhere, and edits of what the format consists of.

Each structural edit is ``edit(path, rng, canary)``, in place. What could run code would create the file ``canary``.
"""

from __future__ import annotations

import json
import pickle
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from fuzz_edits import ELSEWHERE, NUMBERS, edit_class, edit_json, edit_message, edit_objects, mutate

Edit = Callable[[Path, random.Random, Path], None]


def spoil(path: Path, format_: str, rng: random.Random, canary: Path) -> str:
    """Damage the model at ``path`` in one way or another; which, in a word."""
    edits = STRUCTURAL[format_]
    if rng.random() < 0.5:
        edit = rng.choice(edits)
        edit(path, rng, canary)
        return edit.__name__.strip("_")
    victim = path
    if format_ in ("savedmodel", "openvino"):
        files = path.rglob("*") if path.is_dir() else (path, path.with_suffix(".bin"))
        victim = rng.choice([p for p in sorted(files) if p.is_file() and p.stat().st_size > 16])
    victim.write_bytes(mutate(victim.read_bytes(), rng))
    return "bytes"


# --- zip archives ---------------------------------------------------------------------------------------


def _members(path: Path) -> list[list]:
    with zipfile.ZipFile(path) as archive:
        return [[m, archive.read(m)] for m in archive.infolist()]


def _pack(path: Path, members: list[list], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for info, data in members:
            archive.writestr(info, data, method)


def _climb(path: Path, rng: random.Random, canary: Path) -> None:
    """A member is named out of the archive."""
    members = _members(path)
    rng.choice(members)[0].filename = rng.choice(("../../outside", str(canary), "..\\outside", "a/../../outside"))
    _pack(path, members)


def _link(path: Path, rng: random.Random, canary: Path) -> None:
    """A member becomes a symbolic link."""
    members = _members(path)
    victim = rng.choice(members)
    victim[0].external_attr, victim[1] = 0o120777 << 16, rng.choice((b"/etc/passwd", b"..", b"x"))
    _pack(path, members)


def _bomb(path: Path, rng: random.Random, canary: Path) -> None:
    """A member of zeros that packs to a thousandth, or that claims a size it has not."""
    members = _members(path)
    victim = rng.choice(members)
    if rng.random() < 0.1:
        victim[1] = bytes(300 * 2**20)
        _pack(path, members, zipfile.ZIP_DEFLATED)
        return
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", *rng.choice(((2**31, 2**31), (100, 2**31 - 1), (0, 0))))
    path.write_bytes(bytes(data))


def _lose(path: Path, rng: random.Random, canary: Path) -> None:
    """A member is gone, empty, cut, twice there, or holds what another one should."""
    members, kind = _members(path), rng.randrange(5)
    victim, other = rng.choice(members), rng.choice(members)
    if kind == 0:
        members.remove(victim)
    elif kind == 1:
        members.append([zipfile.ZipInfo(victim[0].filename), other[1]])
    else:
        victim[1] = (b"", victim[1][: len(victim[1]) // 2], other[1])[kind - 2]
    _pack(path, members)


def _json_member(path: Path, rng: random.Random, canary: Path) -> None:
    """Odd values in a member that is JSON."""
    members = _members(path)
    victim = rng.choice([m for m in members if m[0].filename.endswith(".json")])
    document = json.loads(victim[1])
    named = rng.random() < 0.5 and victim[0].filename == "config.json"
    victim[1] = json.dumps(edit_class(document, rng, canary) if named else edit_json(document, rng)).encode()
    _pack(path, members)


class _Opens:
    """A pickle of this creates a file when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return open, (str(self.place), "w")


def _pickle(path: Path, rng: random.Random, canary: Path) -> None:
    """A pickle that would run code, where one is expected or not."""
    members = _members(path)
    likely = [m for m in members if m[0].filename.endswith((".pkl", ".pt", "constants", "weight_0"))]
    rng.choice(likely or members)[1] = pickle.dumps(_Opens(canary), protocol=2)
    _pack(path, members)


def _code(path: Path, rng: random.Random, canary: Path) -> None:
    """TorchScript's code: another operator, other numbers, a line less or twice."""
    members = _members(path)
    victim = rng.choice([m for m in members if m[0].filename.endswith(".py")])
    lines, kind = victim[1].decode().splitlines(), rng.randrange(5)
    at = rng.randrange(len(lines))
    if kind == 0:
        called = rng.choice(("ops.evil.run", "torch.save", "ops.aten.from_file", "torch.zeros", "torch.x"))
        lines = [re.sub(r"\b(torch|ops\.\w+)\.\w+(?=\()", called, line) for line in lines]
    elif kind == 1:
        lines = [re.sub(r"\b\d+\b", lambda _: str(rng.choice(NUMBERS)), line) for line in lines]
    elif kind == 2:
        del lines[at]
    elif kind == 3:
        lines.insert(at, lines[at])
    else:
        lines.insert(at, rng.choice(("import os", f"    open({str(canary)!r}, 'w')", "    while True:", "  pass")))
    victim[1] = "\n".join(lines).encode()
    _pack(path, members)


def _nested_h5(path: Path, rng: random.Random, canary: Path) -> None:
    """The weights inside a .keras file, edited as an HDF5 file is."""
    members = _members(path)
    victim = next(m for m in members if m[0].filename == "model.weights.h5")
    inner = path.with_name("inner.h5")
    inner.write_bytes(victim[1])
    _hdf5(inner, rng, canary)
    victim[1] = inner.read_bytes()
    inner.unlink()
    _pack(path, members)


# --- one file -------------------------------------------------------------------------------------------


def _hdf5(path: Path, rng: random.Random, canary: Path) -> None:
    """A dataset that claims terabytes, lies in another file, is another shape, or gone; a link in a circle."""
    import h5py
    import numpy as np

    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        name, kind = rng.choice(names), rng.randrange(7)
        del file[name]
        if kind == 0:
            file.create_dataset(name, (2**31, 2**10), "f4", chunks=(1, 1024), fillvalue=1.0)
        elif kind == 1:
            file.create_dataset(name, (4, 4), "f4", external=[("/etc/passwd", 0, 64)])
        elif kind == 2:
            file[name] = h5py.ExternalLink(rng.choice(("/etc/passwd", "../other.h5")), "/x")
        elif kind == 3:
            file[name] = h5py.SoftLink(rng.choice((f"/{name}", "/", "/nowhere")))
        elif kind == 4:
            file[name] = rng.choice((np.zeros((2, 2, 2), "f4"), np.zeros(0, "f4"), np.bytes_(b"text"), np.float32(1)))
        elif kind == 5:
            file.create_dataset(name, (2**14, 2**14), "f4", chunks=(64, 64), compression="gzip")


def _h5_config(path: Path, rng: random.Random, canary: Path) -> None:
    """Odd values in the model's config, or another attribute odd."""
    import h5py

    with h5py.File(path, "r+") as file:
        if rng.random() < 0.1:
            file["model_weights"].attrs["layer_names"] = rng.choice((b"x", [b"a", b"b"], 1))
            return
        document = json.loads(file.attrs["model_config"])
        named = rng.random() < 0.5
        file.attrs["model_config"] = json.dumps(
            edit_class(document, rng, canary) if named else edit_json(document, rng)
        )


def _fields(path: Path, rng: random.Random, canary: Path) -> None:
    """Fields of an ONNX file."""
    import onnx

    model = onnx.load(path)
    for _ in range(rng.randint(1, 3)):
        edit_message(model, rng)
    path.write_bytes(model.SerializeToString())


def _operator(path: Path, rng: random.Random, canary: Path) -> None:
    """An ONNX node of another operator, its inputs crossed, or its tensors kept in a file somewhere else."""
    import onnx

    model, kind = onnx.load(path), rng.randrange(4)
    node, tensor = rng.choice(model.graph.node), rng.choice(model.graph.initializer)
    if kind == 0:
        node.op_type = rng.choice(("Add", "Reshape", "If", "Loop", "Evil", "LSTM", "ConstantOfShape", "Resize"))
    elif kind == 1:
        node.input[0] = rng.choice([n.output[0] for n in model.graph.node] + ["", "nobody", tensor.name])
    elif kind == 2:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", rng.choice(ELSEWHERE)), ("length", str(rng.choice(NUMBERS)))):
            tensor.external_data.add(key=key, value=value)
    else:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)
    path.write_bytes(model.SerializeToString())


def _objects(path: Path, rng: random.Random, canary: Path) -> None:
    """Objects of a TFLite file."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    whole = path.read_bytes()
    for _ in range(10):
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(whole, 0))
        edit_objects(model, rng)
        builder = flatbuffers.Builder(1024)
        try:
            builder.Finish(model.Pack(builder), b"TFL3")
        except (TypeError, AttributeError, struct.error, ValueError):  # not every edit can be written down
            continue
        path.write_bytes(bytes(builder.Output()))
        return


def _xml(path: Path, rng: random.Random, canary: Path) -> None:
    """An OpenVINO IR: attributes odd, elements gone or doubled, entities that grow."""
    if rng.random() < 0.1:
        grow = "".join(f'<!ENTITY a{k} "{f"&a{k - 1};" * 20}">' for k in range(1, 9))
        bomb = f'<!DOCTYPE net [<!ENTITY a0 "aaaaaaaaaa">{grow}<!ENTITY f SYSTEM "file:///etc/passwd">]>'
        text = path.read_text().replace("<net", bomb + "<net", 1)
        path.write_text(text.replace('name="', f'name="&{rng.choice(("a8", "f"))};', 1))
        return
    tree = ElementTree.parse(path)
    parents = [p for p in tree.iter() if len(p)]
    for _ in range(rng.randint(1, 3)):
        parent = rng.choice(parents)
        child = rng.choice(list(parent) or [parent])
        kind = rng.randrange(6)
        if kind == 0 and child is not parent:
            parent.remove(child)
        elif kind == 1:
            parent.append(child)
        elif child.attrib:
            name = rng.choice(sorted(child.attrib))
            child.set(name, str(rng.choice((*NUMBERS, "", "x", "../x", "f64", "opset99", "If", "Loop", "Result"))))
        else:
            child.text = str(rng.choice(NUMBERS))
    tree.write(path, encoding="utf-8", xml_declaration=True)


# --- folders --------------------------------------------------------------------------------------------


def _graph(path: Path, rng: random.Random, canary: Path) -> None:
    """Fields of a SavedModel's graph, or an operator that reaches out of it."""
    from tensorflow.core.protobuf import saved_model_pb2

    file = path / "saved_model.pb"
    proto = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    if rng.random() < 0.3:
        functions = [n for f in proto.meta_graphs[0].graph_def.library.function for n in f.node_def]
        rng.choice([*functions, *proto.meta_graphs[0].graph_def.node]).op = rng.choice(
            ("PyFunc", "EagerPyFunc", "WriteFile", "ReadFile", "Evil", "MatMul", "RestoreV2", "SaveV2", "Print")
        )
    else:
        for _ in range(rng.randint(1, 3)):
            edit_message(proto, rng)
    file.write_bytes(proto.SerializeToString())


def _files(path: Path, rng: random.Random, canary: Path) -> None:
    """Files of a folder gone, exchanged, or links."""
    files, kind = [p for p in sorted(path.rglob("*")) if p.is_file()], rng.randrange(4)
    victim, other = rng.choice(files), rng.choice(files)
    if kind == 0:
        victim.unlink()
    elif kind == 1:
        data = other.read_bytes()
        victim.write_bytes(data)
    elif kind == 2:
        victim.unlink()
        victim.symlink_to(rng.choice(("/etc/passwd", "nowhere", "..", victim.name)))
    else:
        shutil.rmtree(path / "variables")


STRUCTURAL: dict[str, list[Edit]] = {
    "onnx": [_fields, _operator],
    "tflite": [_objects],
    "openvino": [_xml],
    "keras": [_climb, _link, _bomb, _lose, _json_member, _json_member, _json_member, _pickle, _nested_h5, _nested_h5],
    "h5": [_h5_config, _hdf5],
    "savedmodel": [_graph, _graph, _files],
    "pt2": [_climb, _link, _bomb, _lose, _json_member, _json_member, _json_member, _pickle],
    "torchscript": [_climb, _link, _bomb, _lose, _code, _code, _pickle],
}
