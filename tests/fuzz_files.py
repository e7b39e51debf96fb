"""One small model of each format for tests/test_fuzz.py, made on the fly."""

from __future__ import annotations

from pathlib import Path

#: Which file or folder each format's model is.
PLACES = {
    "onnx": "m.onnx", "tflite": "m.tflite", "openvino": "m.xml", "keras": "m.keras", "h5": "m.h5",
    "savedmodel": "savedmodel", "pt2": "m.pt2", "torchscript": "m.pt",
}  # fmt: skip


def make(format_: str, folder: Path) -> Path:
    """The model of that format in ``folder``."""
    maker = {"keras": _keras, "h5": _keras, "savedmodel": _keras, "pt2": _torch, "torchscript": _torch}
    if not (folder / PLACES[format_]).exists():
        maker.get(format_, _onnx)(folder)
    return folder / PLACES[format_]


def _onnx(folder: Path) -> None:
    import numpy as np
    import onnx
    import openvino
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
    path = folder / PLACES["onnx"]
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    convert(str(path), str(folder / PLACES["tflite"]))
    openvino.save_model(openvino.Core().read_model(path), folder / PLACES["openvino"], compress_to_fp16=False)


def _keras(folder: Path) -> None:
    import keras

    x = keras.Input((8, 8, 3), name="x")
    y = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(x)))
    model = keras.Model(x, y)
    model.save(folder / PLACES["keras"])
    model.save(folder / PLACES["h5"])
    model.export(folder / PLACES["savedmodel"], verbose=False)


def _torch(folder: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(1, 6),)), folder / PLACES["pt2"])
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 6)), folder / PLACES["torchscript"])
