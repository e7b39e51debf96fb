"""Static int8 quantization of an OpenVINO IR (NNCF)."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.passes._samples import Progress, Samples, one_line, silent
from lepton_edge.quant.schemes import only_static

COST = 40.0  # where the way through ONNX does not lead
REQUIRES = ("openvino>=2026", "nncf>=3.4")
_MODES = ("auto", "transformer", "none")
_RANGES = ("auto", "minmax", "average")
_JUDGED = 32  # samples that "auto" compares the two on


def run(
    src: str,
    dst: str,
    *,
    data: str,
    scheme: str = "w8a8",
    samples: int = 300,
    seed: int = 0,
    model_type: str = "auto",
    ranges: str = "auto",
    progress: Progress | None = None,
) -> dict:
    """Write an int8 `dst` (.xml and its .bin): weights per channel, bias corrected.

    Other schemes than w8a8 are made on the ONNX form of a model, and refused here.

    `model_type` "transformer" adds NNCF's smoothing and keeps what attention needs in float; "auto" does so
    where the graph has attention. `ranges` of activations are the extremes over all samples ("minmax"), or NNCF's
    own mean of each sample's extremes ("average"), which clips rare values for finer steps; "auto" quantizes both
    ways and keeps the one nearer to the float model on calibration samples. Raises LeptonError for a model that is
    quantized already or has nothing to quantize, for no samples, and for data of other inputs.
    """
    import nncf
    import openvino as ov

    name = Path(src).name
    only_static(scheme, "the pass on OpenVINO files")
    if model_type not in _MODES:
        raise LeptonError(f"unknown model_type '{model_type}'", hint=f"known: {', '.join(_MODES)}")
    if ranges not in _RANGES:
        raise LeptonError(f"unknown ranges '{ranges}'", hint=f"known: {', '.join(_RANGES)}")
    try:
        model = ov.Core().read_model(src)
    except RuntimeError as error:
        raise LeptonError(f"{name}: OpenVINO cannot read it: {one_line(error)}") from error
    if _count(model):
        raise LeptonError(f"{name} is quantized already (FakeQuantize)", hint="give the float model it was made from")
    names = _names(model)
    feed = Samples(data, list(names), samples, seed, src)
    is_transformer = model_type == "transformer" or (model_type == "auto" and _has_attention(model))
    told = progress or silent

    def take(position: int) -> dict[int, Any]:
        told(position + 1, len(feed), "calibration samples")
        return {names[key]: value for key, value in feed[position].items()}

    def quantize(chosen: str, bias_correction: bool) -> Any:
        return nncf.quantize(
            model,
            nncf.Dataset(range(len(feed)), take),
            subset_size=len(feed),
            model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
            advanced_parameters=_advanced(chosen, bias_correction),
        )

    notes = []
    made = {}
    for chosen in _RANGES[1:] if ranges == "auto" else (ranges,):
        try:
            made[chosen] = quantize(chosen, True)
        except Exception as first:  # NNCF's exceptions derive straight from Exception
            try:
                made[chosen] = quantize(chosen, False)
            except Exception as error:  # as above
                raise LeptonError(
                    f"{name}: NNCF cannot quantize it: {one_line(error)}",
                    hint="check that the model runs on this data, or quantize it in another format",
                ) from error
            notes.append(f"{chosen}: without bias correction, for NNCF failed with it: {one_line(first)}")
        if not _count(made[chosen]):
            raise LeptonError(
                f"{name}: nothing in it can be quantized to int8",
                hint="it has no convolution or product with constant weights; keep it float",
            )
    if len(made) > 1:
        judged = [take(i) for i in range(min(len(feed), _JUDGED))]
        expected = _answers(model, judged)
        errors = {chosen: _distance(expected, _answers(tried, judged)) for chosen, tried in made.items()}
        ranges = min(errors, key=lambda chosen: errors[chosen])
        shown = ", ".join(f"{chosen} {error:.2g}" for chosen, error in errors.items())
        notes.append(f"activation ranges: {ranges} (error relative to the float model: {shown})")
    quantized = made[ranges]
    count = _count(quantized)
    notes.insert(0, f"int8, weights per channel, activation ranges: {ranges} of {len(feed)} samples")
    _save(quantized, dst)
    if is_transformer:
        notes.append("attention found: smoothed and quantized as a transformer")
    return {"scheme": "w8a8", "samples": len(feed), "quantized_tensors": count, "notes": notes}


def _advanced(ranges: str, bias_correction: bool) -> Any:
    from nncf import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParameters, RangeEstimatorParametersSet

    estimator = RangeEstimatorParametersSet.MINMAX if ranges == "minmax" else RangeEstimatorParameters()
    return AdvancedQuantizationParameters(
        activations_range_estimator_params=estimator, disable_bias_correction=not bias_correction
    )


def _answers(model: Any, samples: list[dict[int, Any]]) -> list[list[np.ndarray]]:
    """The outputs for each sample, computed in float32 where the graph is float."""
    import openvino as ov

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": os.cpu_count() or 1}
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    answers = []
    for sample in samples:
        request.reset_state()
        result = request.infer(sample)
        answers.append([np.array(result[port], np.float64) for port in range(len(model.outputs))])
    return answers


def _distance(expected: list[list[np.ndarray]], got: list[list[np.ndarray]]) -> float:
    """Root of noise over power, averaged over the outputs so that none outweighs another by its scale."""
    shares = []
    for port in range(len(expected[0])):
        noise = sum(float(((a[port] - b[port]) ** 2).sum()) for a, b in zip(expected, got, strict=True))
        power = sum(float((a[port] ** 2).sum()) for a in expected)
        shares.append(math.sqrt(noise / power) if power else math.sqrt(noise))
    return sum(shares) / len(shares)


def _names(model: Any) -> dict[str, int]:
    """Position of each input by the name the runtime gives it."""
    names = {}
    for position, port in enumerate(model.inputs):
        friendly = port.get_node().get_friendly_name()
        names[port.get_any_name() if port.names else friendly] = position
    return names


def _count(model: Any) -> int:
    return sum(op.get_type_name() == "FakeQuantize" for op in model.get_ops())


def _has_attention(model: Any) -> bool:
    """A Softmax whose result goes into a product of two computed tensors, or an attention operator."""
    ops = model.get_ordered_ops()
    if any(op.get_type_name() == "ScaledDotProductAttention" for op in ops):
        return True
    todo = [op for op in ops if op.get_type_name() in ("Softmax", "SoftMax")]
    seen: set[str] = set()
    while todo:
        for output in todo.pop().outputs():
            for user in (target.get_node() for target in output.get_target_inputs()):
                kind = user.get_type_name()
                if kind == "MatMul" and not any(_is_constant(v.get_node()) for v in user.input_values()):
                    return True
                passes_on = kind in ("Reshape", "Transpose", "Convert", "Select", "Multiply")
                if passes_on and user.get_friendly_name() not in seen:
                    seen.add(user.get_friendly_name())
                    todo.append(user)
    return False


def _is_constant(node: Any) -> bool:
    while node.get_type_name() in ("Convert", "Reshape", "Transpose") and node.get_input_size():
        node = node.input_value(0).get_node()
    return node.get_type_name() == "Constant"


def _save(model: Any, dst: str) -> None:
    """Write aside, then move both files into place, the .xml last."""
    import openvino as ov

    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ir-") as folder:
        xml = Path(folder) / target.name
        ov.save_model(model, xml, compress_to_fp16=False)
        xml.with_suffix(".bin").replace(target.with_suffix(".bin"))
        xml.replace(target)
