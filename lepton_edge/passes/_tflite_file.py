"""Reading, editing and writing a TFLite file that a pass changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def read(src: str) -> tuple[Any, Any]:
    """The file as a tree of the schema's objects, and the schema's module."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(Path(src).read_bytes(), 0)), schema


def put(model: Any, dst: str) -> None:
    """Write the tree once LiteRT loads it, whole or not at all. Raises LeptonError where it does not."""
    import flatbuffers

    from lepton_edge.tf_export.publish import write_bytes
    from lepton_edge.tflite_writer.check import interpreter

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    content = bytes(builder.Output())
    interpreter(content)
    write_bytes(dst, content)


def code_of(model: Any, schema: Any, operator: str, version: int) -> int:
    """The index of an operator, in that version at least, among the operator codes; added where it is not."""
    kind = getattr(schema.BuiltinOperator, operator)
    for index, code in enumerate(model.operatorCodes):
        if max(code.builtinCode, code.deprecatedBuiltinCode) == kind:
            code.version = max(code.version, version)
            return index
    made = schema.OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode, made.version = kind, min(kind, 127), version
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1
