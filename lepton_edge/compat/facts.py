"""What a loader looks at first in a model file: operators and their versions, opsets, types. Run in a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError


def inspect(path: str) -> dict[str, Any]:
    """The facts of a .tflite, .onnx or OpenVINO .xml file; LeptonError for a damaged one and for other formats.

    TFLite: "codes" [[operator, version]], "operators" [[operator, version, type of its first input]], "custom" names,
    "mixed" ["CONV_2D float32 by int8"], what takes float16 or computes floats with integer weights.
    ONNX: "ir", "opset" {domain: version}, "operators" [[operator, opset, ""]].
    OpenVINO: "ir", "operators" [[operator, opset or 0 where it is of an extension, ""]], "types" of its tensors.
    """
    from lepton_edge.artifact import detect

    kind = detect(Path(path))
    if kind == "tflite":
        return _tflite(path)
    if kind == "onnx":
        return _onnx(path)
    if kind == "openvino":
        return _openvino(path)
    raise LeptonError(f"{Path(path).name}: runtime checks read TFLite, ONNX and OpenVINO files, this is {kind}",
                      f"convert it first: lepton-edge convert {Path(path).name} --to tflite")  # fmt: skip


def _tflite(path: str) -> dict[str, Any]:
    from ai_edge_litert import schema_py_generated as schema

    from lepton_edge.inspectors.tflite import _parse

    model = _parse(path, Path(path).read_bytes())
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    types = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}
    codes = []
    for code in model.operatorCodes or ():
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        custom = (code.customCode or b"").decode("utf-8", "replace") if number == schema.BuiltinOperator.CUSTOM else ""
        codes.append([custom or names.get(number, f"BUILTIN_{number}"), int(code.version), bool(custom)])
    operators, mixed = [], set()
    try:
        for graph in model.subgraphs:
            for operator in graph.operators or ():
                name, version, _ = codes[operator.opcodeIndex]
                read = [int(i) for i in (() if operator.inputs is None else operator.inputs) if i >= 0]
                kind, second = ([types.get(graph.tensors[i].type, "?") for i in read[:2]] + ["", ""])[:2]
                operators.append([name, version, kind])
                if kind == "float16":
                    mixed.add(f"{name} {kind}")
                elif kind == "float32" and second.startswith(("int4", "int8", "uint8")):
                    mixed.add(f"{name} {kind} by {second}")
        kinds = sorted({types.get(t.type, f"type {t.type}") for g in model.subgraphs for t in g.tensors or ()})
    except (IndexError, TypeError) as error:
        raise LeptonError(f"{Path(path).name}: the file contradicts itself ({error})", "export it again") from error
    used = [c for k, c in enumerate(codes) if any(c[0] == o[0] and c[1] == o[1] for o in operators) or not codes[k][2]]
    return {
        "format": "tflite",
        "codes": [c[:2] for c in used if not c[2]],
        "custom": sorted({c[0] for c in used if c[2]}),
        "operators": operators,
        "types": kinds,
        "mixed": sorted(mixed),
    }


def _onnx(path: str) -> dict[str, Any]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path, load_external_data=False)
        texts = [t for n in model.graph.node for t in (n.op_type, n.domain)]
        if not all(isinstance(text, str) for text in texts):  # bytes: what is no UTF-8
            raise DecodeError("the name of an operator is no text")
    except DecodeError as error:
        raise LeptonError(f"{Path(path).name} is not a readable ONNX file ({error})", "export it again") from error
    opset = {d.domain or "ai.onnx": d.version for d in model.opset_import}

    def walk(graph: Any) -> list[list]:
        found = []
        for node in graph.node:
            domain = node.domain or "ai.onnx"
            name = node.op_type if domain == "ai.onnx" else f"{domain}.{node.op_type}"
            found.append([name, opset.get(domain, 0), ""])
            for attribute in node.attribute:
                for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                    found += walk(inner)
        return found

    local = {f.name for f in model.functions}
    operators = [o for o in walk(model.graph) if o[0].split(".")[-1] not in local]
    return {"format": "onnx", "ir": model.ir_version, "opset": opset, "operators": operators, "types": []}


def _openvino(path: str) -> dict[str, Any]:
    """Read from the XML as it streams by; entities, which IRs have none of, are refused."""
    from xml.parsers import expat

    found: dict[str, Any] = {"format": "openvino", "ir": None, "operators": [], "types": []}
    types: set[str] = set()

    def start(tag: str, attributes: dict[str, str]) -> None:
        if tag == "net" and found["ir"] is None:
            found["ir"] = int(attributes.get("version", 0))
        elif tag == "layer":
            opset = attributes.get("version", "")
            number = int(opset.removeprefix("opset")) if opset.startswith("opset") else 0
            found["operators"].append([attributes.get("type", "?"), number, ""])
        elif tag == "data":
            types.update(v for k, v in attributes.items() if k in ("element_type", "destination_type"))

    def refuse(*_: object) -> None:
        raise ValueError("it defines XML entities")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, refuse
    try:
        with Path(path).open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, ValueError) as error:
        raise LeptonError(f"{Path(path).name} is not a readable OpenVINO IR ({error})", "convert it again") from error
    return found | {"types": sorted(types)}
