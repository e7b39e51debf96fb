"""TFLite files of older or smaller make brought to the form that tools which edit them expect.

MediaPipe's models, for one, hold float16 weights behind DEQUANTIZE and sparse ones behind DENSIFY. Both are constant,
so what LiteRT makes of them once can stand in the file. Files from before 2020 name their operators in a field that
newer readers take for ADD (`deprecated_builtin_code`).
"""

from __future__ import annotations

from typing import Any

UNPACK = ("DEQUANTIZE", "DENSIFY")


def plain(model: bytes) -> bytes:
    """The model with float32 weights for each DEQUANTIZE and DENSIFY of a constant, and with today's operator codes.

    It is returned as it is where there is nothing to do.
    Raises ValueError or RuntimeError, LiteRT's own, for a model that it cannot run.
    """
    from ai_edge_litert import schema_py_generated as schema

    tree: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    old = [code for code in tree.operatorCodes if code.deprecatedBuiltinCode > code.builtinCode]
    for code in old:
        code.builtinCode = code.deprecatedBuiltinCode
    operators = _constant(schema, tree) if len(tree.subgraphs) == 1 else []
    if not operators:
        return _packed(tree) if old else model
    graph = tree.subgraphs[0]
    graph.operators = [op for op in graph.operators if op not in operators]
    read = {int(i) for op in graph.operators for i in op.inputs} | {int(i) for i in graph.outputs}
    made = [int(op.outputs[0]) for op in operators]
    for index, value in _results(model, [index for index in made if index in read]).items():
        tensor, buffer = graph.tensors[index], schema.BufferT()
        buffer.data = value.tobytes()
        tree.buffers.append(buffer)
        tensor.buffer, tensor.sparsity = len(tree.buffers) - 1, None
    _sweep(tree)
    return _packed(tree)


def _constant(schema: Any, tree: Any) -> list[Any]:
    """The operators that unpack a float constant, in order."""
    graph = tree.subgraphs[0]
    codes = {getattr(schema.BuiltinOperator, name) for name in UNPACK}
    floats = (schema.TensorType.FLOAT16, schema.TensorType.FLOAT32)
    done: set[int] = set()
    found = []
    for op in graph.operators:
        code = tree.operatorCodes[op.opcodeIndex]
        if code.builtinCode not in codes:
            continue
        source = graph.tensors[op.inputs[0]]
        held = tree.buffers[source.buffer]
        is_constant = op.inputs[0] in done or bool(held.size or (held.data is not None and len(held.data)))
        if is_constant and source.type in floats:
            done.add(int(op.outputs[0]))
            found.append(op)
    return found


def _results(model: bytes, tensors: list[int]) -> dict[int, Any]:
    """What those tensors hold after one run on zeros, with LiteRT's reference of every operator."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=model,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    for port in interpreter.get_input_details():
        interpreter.set_tensor(port["index"], np.zeros(port["shape"], port["dtype"]))
    interpreter.invoke()
    return {index: interpreter.get_tensor(index) for index in tensors}


def _sweep(tree: Any) -> None:
    """Drop the tensors that nothing names any more, and what they hold."""
    graph = tree.subgraphs[0]
    maps = [m for s in tree.signatureDefs or [] for m in (*(s.inputs or []), *(s.outputs or []))]
    lists = [graph, *graph.operators]
    named = {int(i) for item in lists for side in (item.inputs, item.outputs) if side is not None for i in side}
    named |= {int(i) for op in graph.operators for i in (op.intermediates if op.intermediates is not None else [])}
    kept = sorted((named | {int(m.tensorIndex) for m in maps}) - {-1})
    at = {old: new for new, old in enumerate(kept)} | {-1: -1}
    for item in lists:
        for side in ("inputs", "outputs", "intermediates"):
            if getattr(item, side, None) is not None:
                setattr(item, side, [at[int(i)] for i in getattr(item, side)])
    for entry in maps:
        entry.tensorIndex = at[int(entry.tensorIndex)]
    graph.tensors = [graph.tensors[i] for i in kept]
    used = {t.buffer for t in graph.tensors} | {m.buffer for m in tree.metadata or []}
    for k, buffer in enumerate(tree.buffers):
        if k not in used:
            buffer.data, buffer.offset, buffer.size = None, 0, 0


def _packed(tree: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())
