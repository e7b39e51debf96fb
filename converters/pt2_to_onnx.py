"""PyTorch exported program to ONNX (torch.onnx, opset 18)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError

REQUIRES = ("torch>=2.9", "onnx>=1.17", "onnxscript>=0.5")
_LIMIT = 2**31 - 2**20  # what one protobuf file holds


def run(src: str, dst: str, *, fixed_batch: int = 1, opset: int = 18) -> dict:
    """Write `dst` (.onnx) with its weights inside. Names of inputs and outputs are kept.

    A free leading dimension of an input becomes `fixed_batch` (0 leaves it free). Raises LeptonError for an
    operator without an ONNX form, and for 2 GB of weights or more, which one ONNX file cannot hold.
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
            f"{name}: torch.onnx cannot export it: {_reason(error)}",
            hint="the operator it names has no ONNX form at this opset; or change the model",
        ) from error
    tensors = [v for v in proto.graph.output if v.name in outputs]
    del proto.graph.output[:]
    proto.graph.output.extend(tensors)
    named = [v.name for v in proto.graph.input], [v.name for v in proto.graph.output]
    if named != (inputs, outputs):
        raise LeptonError(f"{name}: torch.onnx changed its inputs or outputs: {named[0]} -> {named[1]}")
    fixed = _fix_batch(proto, fixed_batch)
    _save(proto, dst)
    return {
        "inputs": [{"name": n, "source": n, "perm": None} for n in inputs],
        "outputs": [{"name": n, "source": n, "perm": None} for n in outputs],
        "notes": [f"batch fixed to {fixed_batch}"] if fixed else [],
        "opset": opset,
    }


def _export(torch: Any, program: Any, options: dict[str, Any]) -> Any:
    """The ONNX model; when an operator has no translation as it is, that of the program in core operators."""
    try:
        return torch.onnx.export(program, (), dynamo=True, verbose=False, **options).model_proto
    except Exception as first:
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
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def _fix_batch(proto: Any, batch: int) -> bool:
    """Give every leading symbol of the inputs the value `batch`, wherever it appears; whether any did."""
    graph = proto.graph
    leading = [v.type.tensor_type.shape.dim[:1] for v in graph.input]
    symbols = {dims[0].dim_param for dims in leading if dims and dims[0].dim_param}
    if batch <= 0 or not symbols:
        return False
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param in symbols:
                dim.dim_value = batch
    return True


def _reason(error: BaseException) -> str:
    """The innermost cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300] or type(error).__name__
