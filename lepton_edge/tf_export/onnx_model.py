"""ONNX models in memory: checked, simplified, and run once in ONNX Runtime."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, first_line


def finish_onnx(model: Any, hint: str = "convert this model to TFLite instead") -> None:
    """Check a fresh ONNX model: only standard operations, valid with shape inference (LeptonError otherwise)."""
    import onnx

    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    unknown = sorted({node.op_type for node in model.graph.node if not node.domain and node.op_type not in known})
    if unknown:
        raise LeptonError(f"tf2onnx has no ONNX form of {', '.join(unknown)}", hint=hint)
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise LeptonError(f"the ONNX model that was made is not valid: {first_line(error)}") from error


def simplified_onnx(model: Any) -> Any:
    """The model after ONNX Runtime's basic rules: constants folded, Mul and Add behind a Conv folded into it.

    Basic rules stay within standard operations. Should the result not be valid, the model comes back as it was.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            made = onnx.load(options.optimized_model_filepath)
            if any(node.domain not in ("", "ai.onnx") for node in made.graph.node):
                return model
            kept = [entry for entry in made.opset_import if entry.domain in ("", "ai.onnx")]
            del made.opset_import[:]
            made.opset_import.extend(kept)
            finish_onnx(made)
        except Exception as error:  # ONNX Runtime's exceptions derive straight from Exception
            print(f"kept as tf2onnx wrote it: {first_line(error)}", file=sys.stderr)
            return model
    return made


def run_onnx(model: Any, feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Load the model in ONNX Runtime and run it once, feeds and outputs in the model's order."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {i.name: feed for i, feed in zip(session.get_inputs(), feeds, strict=True)})
    except Exception as error:  # ONNX Runtime's exceptions derive straight from Exception
        raise LeptonError(f"the ONNX model that was made does not run: {first_line(error)}") from error
