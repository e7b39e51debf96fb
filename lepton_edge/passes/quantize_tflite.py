"""Static int8 quantization of a TFLite model (ai-edge-quantizer)."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError
from lepton_edge.passes._samples import Progress, Samples, one_line, silent
from lepton_edge.quant.schemes import only_static
from lepton_edge.tflite_plain import plain

COST = 40.0  # where the way through ONNX does not lead
REQUIRES = ("ai-edge-quantizer>=0.6", "ai-edge-litert>=2.1")
_RANGES = ("minmax", "average")


def run(
    src: str,
    dst: str,
    *,
    data: str,
    scheme: str = "w8a8",
    samples: int = 300,
    seed: int = 0,
    ranges: str = "minmax",
    integer: bool = False,
    progress: Progress | None = None,
) -> dict:
    """Write an int8 `dst`: weights per channel, activations per tensor, inputs and outputs still float, or `integer`.

    Other schemes than w8a8 are made on the ONNX form of a model, and refused here.

    Activation ranges are the extremes seen over the samples ("minmax") or a moving average of each sample's
    extremes ("average", which clips rare peaks). Raises LeptonError for a model that is quantized already
    or has nothing to quantize, for no samples, and for data of other inputs.
    """
    from ai_edge_quantizer import calibrator, quantizer, recipe
    from ai_edge_quantizer.utils import qsv_utils

    name = Path(src).name
    only_static(scheme, "the pass on TFLite files")
    if ranges not in _RANGES:
        raise LeptonError(f"unknown ranges '{ranges}'", hint=f"known: {', '.join(_RANGES)}")
    model = _with_signature(plain(_read(src, name)))
    key, inputs = _signature(model)
    feed = Samples(data, inputs, samples, seed, src)
    update = qsv_utils.min_max_update if ranges == "minmax" else qsv_utils.moving_average_update
    noise = io.StringIO()  # progress bars and a summary table, both made for a terminal
    try:
        with contextlib.redirect_stderr(noise), contextlib.redirect_stdout(noise):
            worker = quantizer.Quantizer(model, recipe.static_wi8_ai8())
            for end in () if integer else ("INPUT", "OUTPUT"):
                worker.update_quantization_recipe(regex=".*", operation_name=end, algorithm_key="no_quantize")
            if divisions := _delicate_divisions(model):
                names = "|".join(f"^{re.escape(n)};?$" for n in divisions)
                worker.update_quantization_recipe(regex=names, operation_name="DIV", algorithm_key="no_quantize")
            calibration = calibrator.Calibrator(model, num_threads=2, qsv_update_func=update)
            for i, sample in enumerate(feed):
                # one sample a call: state of recurrent layers is reset between calls
                calibration.calibrate({key: [sample]}, worker._recipe_manager)
                (progress or silent)(i + 1, len(feed), "calibration samples")
            quantized = bytes(worker.quantize(calibration.get_model_qsvs()).quantized_model)
    except (
        ValueError,
        RuntimeError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
        AssertionError,
    ) as error:
        raise LeptonError(
            f"{name}: ai-edge-quantizer cannot quantize it: {one_line(error)}",
            hint="quantize it in another format (onnx, openvino), or keep it float",
        ) from error
    count = _check(quantized, name)
    _save(quantized, dst)
    return {
        "scheme": "w8a8",
        "samples": len(feed),
        "quantized_tensors": count,
        "notes": [f"int8, weights per channel, activation ranges: {ranges} of {len(feed)} samples"],
    }


def _read(src: str, name: str) -> bytes:
    model = Path(src).read_bytes()
    if model[4:8] != b"TFL3":
        raise LeptonError(f"{name}: not a TFLite file")
    if count := _count_int8(model, name):
        raise LeptonError(
            f"{name} is quantized already ({count} int8 tensors)",
            hint="give the float model it was made from",
        )
    return model


def _count_int8(model: bytes, name: str) -> int:
    """Tensors of 8-bit integers with a scale. Also shows that LiteRT can load the model."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_content=model, num_threads=1)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise LeptonError(f"{name}: LiteRT cannot load it: {one_line(error)}") from error
    return sum(
        d["dtype"] in (np.int8, np.uint8) and len(d["quantization_parameters"]["scales"]) > 0
        for d in interpreter.get_tensor_details()
    )


def _check(model: bytes, name: str) -> int:
    count = _count_int8(model, f"{name} in int8")
    if not count:
        raise LeptonError(
            f"{name}: nothing in it can be quantized to int8",
            hint="it has no layer with weights that TFLite computes in int8; keep it float",
        )
    return count


def _signature(model: bytes) -> tuple[str, list[str]]:
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(model_content=model, num_threads=1).get_signature_list()
    key = next(iter(signatures))
    return key, list(signatures[key]["inputs"])


def _with_signature(model: bytes) -> bytes:
    """The model with a SignatureDef named by its tensors if it has none: the quantizer works by signature."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    if Interpreter(model_content=model, num_threads=1).get_signature_list():
        return model
    import flatbuffers

    tree: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    graph = tree.subgraphs[0]

    def entries(indices: Any) -> list[Any]:
        names = [graph.tensors[i].name.decode() for i in indices]
        tidy = [n.removeprefix("serving_default_").removesuffix(":0") for n in names]
        made = []
        for index, name in zip(indices, tidy if len(set(tidy)) == len(tidy) else names, strict=True):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, int(index)
            made.append(entry)
        return made

    signature = schema.SignatureDefT()
    signature.signatureKey, signature.subgraphIndex = "serving_default", 0
    signature.inputs, signature.outputs = entries(graph.inputs), entries(graph.outputs)
    tree.signatureDefs = [signature]
    builder = flatbuffers.Builder(len(model))
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _delicate_divisions(model: bytes) -> list[str]:
    """Outputs of the DIVs whose divisor may round to zero in int8, which LiteRT refuses: they stay float."""
    import numpy as np
    from ai_edge_litert import schema_py_generated as schema

    tree: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
    found = []
    for graph in tree.subgraphs:
        for op in graph.operators:
            if tree.operatorCodes[op.opcodeIndex].builtinCode != schema.BuiltinOperator.DIV:
                continue
            divisor = graph.tensors[op.inputs[1]]
            data = tree.buffers[divisor.buffer].data
            if data is not None and len(data) and divisor.type == schema.TensorType.FLOAT32:
                sizes = np.abs(np.frombuffer(bytes(data), np.float32))
                if sizes.min() > sizes.max() / 100:
                    continue
            found.append(graph.tensors[op.outputs[0]].name.decode())
    return found


def _save(model: bytes, dst: str) -> None:
    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
        aside = Path(folder) / target.name
        aside.write_bytes(model)
        aside.replace(target)
