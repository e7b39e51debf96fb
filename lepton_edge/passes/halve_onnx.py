"""ONNX with its weights stored in half precision, cast to float32 where they are read.

ONNX Runtime folds the casts when it loads the model, so every kernel it has runs as before.
"""

from __future__ import annotations

REQUIRES = ("onnx>=1.17",)


def run(src: str, dst: str) -> dict:
    """Write `dst` from `src`; float32 initializers of two elements or more that float16 can hold become float16."""
    import tempfile
    from pathlib import Path

    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(src)
    casts, stored = [], 0
    taken = {n for node in model.graph.node for n in (*node.input, *node.output)}
    outputs = {o.name for o in model.graph.output}
    inputs = {i.name for i in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or tensor.name in inputs | outputs:
            continue
        value = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = value.astype(np.float16)
        if value.size < 2 or not np.isfinite(half).all():
            continue
        name, packed = tensor.name, f"{tensor.name}_float16"
        while packed in taken:
            packed += "_"
        tensor.CopyFrom(numpy_helper.from_array(half, packed))
        cast = helper.make_node("Cast", [packed], [name], name=f"{packed}_cast", to=onnx.TensorProto.FLOAT)
        casts.append(cast)
        stored += 1
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".onnx-") as folder:
        made = Path(folder) / "model.onnx"
        onnx.save(model, str(made))
        made.replace(target)
    return {"notes": [f"{stored} tensors stored as float16"]}
