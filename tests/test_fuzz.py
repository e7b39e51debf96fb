"""Damaged model files of every format: whatever is in them, a clean error or a model, never a traceback or a crash.

LEPTON_EDGE_FUZZ is the number of mutations a format; the default keeps CI short, a few thousand is a night's work.
"""

import os
import random
import shutil
import struct
from pathlib import Path

import pytest

from lepton_edge.artifact import open_artifact
from lepton_edge.errors import LeptonError
from lepton_edge.launch import Workers, python_path
from lepton_edge.registry import runtime_for

# How many a format by default: loading costs a millisecond in some, a tenth of a second in others.
DEFAULT = {"onnx": 150, "tflite": 150, "pt2": 25, "torchscript": 25, "keras": 15, "h5": 15, "savedmodel": 15}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """One small model of each format, made here."""
    folder = tmp_path_factory.mktemp("fuzz")
    _onnx_and_tflite(folder)
    _keras(folder)
    _torch(folder)
    return folder


def _onnx_and_tflite(folder: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from lepton_edge.tflite_writer.convert import convert

    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(s).astype(np.float32) for s in ((4, 3, 3, 3), (4,), (4, 5))]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "m"], ["y"]),
    ]
    held = [numpy_helper.from_array(v, n) for n, v in zip("wbm", weights, strict=True)]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [1, 3, 8, 8]), ("y", [1, 5]))]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], held)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "onnx.onnx")
    convert(str(folder / "onnx.onnx"), str(folder / "tflite.tflite"))


def _keras(folder: Path) -> None:
    keras = pytest.importorskip("keras")
    x = keras.Input((8, 8, 3), name="x")
    y = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(x)))
    model = keras.Model(x, y)
    model.save(folder / "keras.keras")
    model.save(folder / "h5.h5")
    model.export(folder / "savedmodel", verbose=False)


def _torch(folder: Path) -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(1, 6),)), folder / "pt2.pt2")
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 6)), folder / "torchscript.pt")


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


def _spoil(source: Path, target: Path, rng: random.Random) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target)
        victim = rng.choice([p for p in sorted(target.rglob("*")) if p.is_file() and p.stat().st_size > 16])
        victim.write_bytes(mutate(victim.read_bytes(), rng))
    else:
        target.write_bytes(mutate(source.read_bytes(), rng))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("format_", sorted(DEFAULT))
def test_a_damaged_file_is_a_clean_error_or_a_model(models, format_, tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_MEMORY_GB", "6")
    (source,) = [p for p in models.iterdir() if p.name.split(".")[0] == format_]
    rng = random.Random(format_)
    count = int(os.environ.get("LEPTON_EDGE_FUZZ", DEFAULT[format_]))
    loaded, refused = 0, set()
    with Workers() as workers:
        for k in range(count):
            target = tmp_path / f"m{source.suffix}"
            _spoil(source, target, rng)
            try:
                art = open_artifact(target)
                runtime = runtime_for(art.format)
                worker = workers.get("loading", environ=runtime.environ)
                worker.call("load", silence=120, file=python_path(runtime.file), model=str(target), options={})
                loaded += 1
            except LeptonError as error:
                assert error.message.strip() and "Traceback" not in error.message, (k, error.message)
                refused.add(error.message[:60])
    assert loaded + len(refused) > 0
    assert refused, "no mutation was noticed: the fuzz does nothing"
