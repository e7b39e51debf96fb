"""The beginning of a TFLite model, up to one of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def inspect(path: str) -> dict[str, Any]:
    """The tensors that operators of the main graph make, in order: [[tensor, operator, ""]].

    Floats and numbers with one scale, which LiteRT and a comparison can read.
    """
    schema, tree = _open(path)
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    kinds = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
    graph, found = tree.subgraphs[0], []
    for op in graph.operators:
        code = tree.operatorCodes[op.opcodeIndex]
        for index in op.outputs:
            tensor = graph.tensors[index]
            scales = None if tensor.quantization is None else tensor.quantization.scale
            if not tensor.isVariable and (tensor.type in kinds or (scales is not None and len(scales) == 1)):
                name = names.get(max(code.builtinCode, code.deprecatedBuiltinCode), "?")
                found.append([tensor.name.decode(), name, ""])
    return {"tensors": found}


def run(src: str, dst: str, *, tensor: str) -> dict:
    """Write `dst`: the model `src` with `tensor` as its only output; operators behind it are left out."""
    import flatbuffers

    _, tree = _open(src)
    graph = tree.subgraphs[0]
    index = next(i for i, t in enumerate(graph.tensors) if t.name.decode() == tensor)
    last = max(k for k, op in enumerate(graph.operators) if index in list(op.outputs))
    graph.operators = graph.operators[: last + 1]
    graph.outputs = [index]
    tree.signatureDefs = []
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(tree.Pack(builder), b"TFL3")
    Path(dst).write_bytes(builder.Output())
    return {"outputs": [{"name": tensor, "source": tensor, "perm": None}]}


def _open(path: str) -> tuple[Any, Any]:
    from ai_edge_litert import schema_py_generated as schema

    return schema, schema.ModelT.InitFromObj(schema.Model.GetRootAs(Path(path).read_bytes(), 0))
