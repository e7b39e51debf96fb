"""TFLite with every operator stamped with the lowest version that covers what is asked of it.

Converters stamp the newest version they know of an operator, which older runtimes refuse, though the file asks
nothing new of it. What does ask for something new (per-channel weights of a float operator, int4) stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

REQUIRES = ("ai-edge-litert>=2.1", "flatbuffers>=24")


@dataclass(frozen=True)
class _Tensor:
    """What the version rules look at."""

    shape: tuple[int, ...]
    dtype: str
    quant: Any


@dataclass(frozen=True)
class _Scales:
    scale: tuple[float, ...]


def run(src: str, dst: str, *, limits: str = "") -> dict:
    """Write `dst` from `src`; `limits` is JSON: {"operators": {name: highest version}}. Other operators stay."""
    import copy
    import json
    from pathlib import Path

    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    from lepton_edge.tf_export.publish import write_bytes

    highest = json.loads(limits or "{}").get("operators", {})
    data = Path(src).read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    places: dict[tuple[int, int], int] = {}
    codes, changed = list(model.operatorCodes), set()
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            code = codes[operator.opcodeIndex]
            number = max(code.builtinCode, code.deprecatedBuiltinCode)
            name, version = names.get(number, ""), int(code.version)
            if name not in highest or version <= highest[name]:
                continue
            lower = _lowest(schema, graph, operator, name)
            if lower is None or lower >= version:
                continue
            if (number, lower) not in places:
                made = copy.copy(code)
                made.version = lower
                model.operatorCodes.append(made)
                places[number, lower] = len(model.operatorCodes) - 1
            operator.opcodeIndex = places[number, lower]
            changed.add(f"{name} version {version} to {lower}")
    _drop_unused(model)
    builder = flatbuffers.Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    write_bytes(dst, bytes(builder.Output()))
    return {"notes": sorted(changed)}


def _lowest(schema: Any, graph: Any, operator: Any, name: str) -> int | None:
    """The lowest version that covers this operator; None where no rule says."""
    from lepton_edge.tflite_writer.opcodes import VERSIONS, version

    if name not in VERSIONS:
        return None
    types = {v: k.lower() for k, v in vars(schema.TensorType).items() if isinstance(v, int)}

    def tensor(index: int) -> _Tensor | None:
        if index < 0:
            return None
        t = graph.tensors[index]
        scales = None if t.quantization is None else t.quantization.scale
        quant = _Scales(tuple(scales)) if scales is not None and len(scales) else None
        return _Tensor(tuple(int(d) for d in (() if t.shape is None else t.shape)), types.get(t.type, "?"), quant)

    ins, outs = [tensor(int(i)) for i in operator.inputs], [tensor(int(i)) for i in operator.outputs]
    weights = ins[1] if len(ins) > 1 else None
    if ins and ins[0] and ins[0].dtype == "float32" and weights and weights.dtype not in ("float32", "int32", "int64"):
        return None  # hybrid kernels: their versions say how the weights are scaled
    if any(t is not None and t.dtype in ("int4", "int2", "uint4", "bfloat16") for t in ins):
        return None
    options = vars(operator.builtinOptions) if operator.builtinOptions is not None else {}
    return version(name, ins, outs, options)


def _drop_unused(model: Any) -> None:
    """Operator codes that nothing uses any more: loaders look at all of them."""
    used = sorted({int(o.opcodeIndex) for g in model.subgraphs for o in g.operators or ()})
    place = {old: new for new, old in enumerate(used)}
    model.operatorCodes = [model.operatorCodes[k] for k in used]
    for graph in model.subgraphs:
        for operator in graph.operators or ():
            operator.opcodeIndex = place[int(operator.opcodeIndex)]
