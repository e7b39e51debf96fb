"""PyTorch exported program to ONNX (torch.onnx, opset 18)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, root_cause
from lepton_edge.shapes import note, parse, set_free

REQUIRES = ("torch>=2.9", "onnx>=1.17", "onnxscript>=0.5")
_LIMIT = 2**31 - 2**20  # what one protobuf file holds


def run(src: str, dst: str, *, fixed_batch: int = 1, input_shapes: str = "", opset: int = 18) -> dict:
    """Write `dst` (.onnx) with its weights inside. Names of inputs and outputs are kept.

    `input_shapes` ("ids=1,128;mask=1,128") gives sizes to free dimensions; a free leading one that it leaves out
    becomes `fixed_batch` (0 leaves it free). Raises LeptonError for an operator without an ONNX form, and for 2 GB
    of weights or more, which one ONNX file cannot hold.
    """
    import torch

    from lepton_edge.runtimes.torch import input_specs, load_program, output_specs

    name = Path(src).name
    try:
        program = load_program(src)
        inputs = [spec["name"] for spec in input_specs(program)[0]]
        outputs = [spec["name"] for spec in output_specs(program)]
        values = _values(program, outputs)
    except ValueError as error:
        raise LeptonError(str(error), hint="save the model with torch.export.save in a recent PyTorch") from error
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size >= _LIMIT:
        raise LeptonError(f"{name}: {size / 2**30:.1f} GiB of weights do not fit one ONNX file (2 GiB)")
    options = {"opset_version": opset, "input_names": inputs, "output_names": values}
    try:
        proto = _export(torch, program, options)
    except Exception as error:  # torch.onnx raises its own errors, which wrap any exception of a translation
        raise LeptonError(
            f"{name}: torch.onnx cannot export it: {root_cause(error)}",
            hint="the operator it names has no ONNX form at this opset; or change the model",
        ) from error
    tensors = [v for v in proto.graph.output if v.name in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(tensors)
    named = [v.name for v in proto.graph.input], [v.name for v in proto.graph.output]
    if named != (inputs, outputs):
        raise LeptonError(f"{name}: torch.onnx changed its inputs or outputs: {named[0]} -> {named[1]}")
    notes = _fix(proto, fixed_batch, input_shapes)
    _save(proto, dst)
    return {
        "inputs": [{"name": n, "source": n, "perm": None} for n in inputs],
        "outputs": [{"name": n, "source": n, "perm": None} for n in outputs],
        "notes": notes,
        "opset": opset,
    }


def _export(torch: Any, program: Any, options: dict[str, Any]) -> Any:
    """The ONNX model; when an operator has no translation as it is, that of the program in core operators."""
    try:
        return torch.onnx.export(program, (), dynamo=True, verbose=False, **options).model_proto
    except Exception as first:  # as in run: of no class of its own
        try:
            core = program.run_decompositions()
            return torch.onnx.export(core, (), dynamo=True, verbose=False, **options).model_proto
        except Exception:  # the operator that the model itself calls is the one to name
            raise first from first.__cause__


def _values(program: Any, tensors: list[str]) -> list[str]:
    """Names of all that the program gives back: its tensors, and sizes among them, which ONNX drops here."""
    names = iter(tensors)
    kinds = [s.arg for s in program.graph_signature.output_specs if s.kind.name == "USER_OUTPUT"]
    given = [a for a in kinds if type(a).__name__ != "ConstantArgument"]
    return [next(names) if type(a).__name__ == "TensorArgument" else a.name for a in given]


def _save(proto: Any, dst: str) -> None:
    """Check the model, write it aside and move it into place."""
    import onnx

    target = Path(dst)
    onnx.checker.check_model(proto)
    handle, aside = tempfile.mkstemp(dir=target.parent, prefix=".onnx-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(proto.SerializeToString())
        Path(aside).chmod(0o644)
        Path(aside).replace(target)
    except BaseException:  # a kill too: it goes on, without a file left behind
        Path(aside).unlink(missing_ok=True)
        raise


def _fix(proto: Any, batch: int, input_shapes: str) -> list[str]:
    """Give the symbols of the inputs' shapes the sizes that are known, wherever they appear; the notes on it."""
    graph = proto.graph
    given = parse(input_shapes, [v.name for v in graph.input])
    symbols: dict[str, int] = {}
    made: dict[str, list[int | None]] = {}
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        sizes = set_free(value.name, [None if d.dim_param else d.dim_value for d in dims], given.get(value.name))
        if batch > 0 and sizes and sizes[0] is None:
            sizes[0] = batch
        if any(dim.dim_param for dim in dims):
            made[value.name] = sizes
        for dim, size in zip(dims, sizes, strict=True):
            if dim.dim_param and size is not None and symbols.setdefault(dim.dim_param, size) != size:
                raise LeptonError(
                    f"the inputs share the free dimension '{dim.dim_param}', and it is to be both "
                    f"{symbols[dim.dim_param]} and {size}",
                    hint="give samples whose sizes agree",
                )
    if symbols:
        del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = symbols[dim.dim_param]
    return note(made) if symbols else []
