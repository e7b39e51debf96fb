"""Static int8 quantization of an ONNX model (ONNX Runtime, QDQ)."""

from __future__ import annotations

import platform
import tempfile
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError
from lepton_edge.passes._samples import Progress, Samples, one_line, silent

REQUIRES = ("onnx>=1.17", "onnxruntime>=1.20", "sympy>=1.12")
_REDUCE = ("auto", "on", "off")
_STRIDE = 16  # samples whose ranges are held before they are merged


def run(
    src: str,
    dst: str,
    *,
    data: str,
    samples: int = 300,
    seed: int = 0,
    reduce_range: str = "auto",
    progress: Progress | None = None,
) -> dict:
    """Write an int8 `dst` in QDQ form: uint8 activations per tensor by min-max, int8 weights per channel.

    On x86 without VNNI that pair saturates in 16-bit sums, so weights take 7 bits there ("auto"); "on" and
    "off" decide it for another machine. Of a transformer only the products with weights are quantized: its
    residual sums, normalisations and attention scores lose too much in uint8.
    Raises LeptonError for a model that is quantized already or has nothing to quantize, for no samples, and
    for data of other inputs.
    """
    import onnx

    name = Path(src).name
    if reduce_range not in _REDUCE:
        raise LeptonError(f"unknown reduce_range '{reduce_range}'", hint=f"known: {', '.join(_REDUCE)}")
    model = _read(src, name)
    constants = {t.name for t in model.graph.initializer}
    feed = Samples(data, [v.name for v in model.graph.input if v.name not in constants], samples, seed, src)
    is_attention = _has_attention(model)
    saturates = _saturates() if reduce_range == "auto" else reduce_range == "on"
    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".quantize-") as folder:
        prepared, aside = str(Path(folder) / "prepared.onnx"), Path(folder) / target.name
        notes = _prepare(src, model, prepared, name)
        _quantize(prepared, str(aside), feed, saturates, is_attention, name, progress or silent)
        quantized = onnx.load(aside, load_external_data=False)
        count = sum(node.op_type == "DequantizeLinear" for node in quantized.graph.node)
        if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
            raise LeptonError(
                f"{name}: nothing in it can be quantized to int8",
                hint="it has no convolution or product with constant weights; keep it float",
            )
        _check_runs(str(aside), feed[0], name)
        aside.replace(target)
    notes += ["uint8 activations, int8 weights per channel" + (" (7 bits: no VNNI)" if saturates else "")]
    if is_attention:
        notes.append("attention found: only products with weights are quantized")
    return {"scheme": "w8a8", "samples": len(feed), "quantized_tensors": count, "notes": notes}


def _read(src: str, name: str) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(src)
    except (DecodeError, ValueError, OSError) as error:
        raise LeptonError(f"{name}: not a readable ONNX file: {one_line(error)}") from error
    kinds = {node.op_type for node in model.graph.node}
    if found := kinds & {"QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv"}:
        raise LeptonError(
            f"{name} is quantized already ({sorted(found)[0]})", hint="give the float model it was made from"
        )
    return model


def _has_attention(model: Any) -> bool:
    """A Softmax whose result goes into a product of two computed tensors, or an attention operator."""
    constants = {t.name for t in model.graph.initializer}
    constants |= {n.output[0] for n in model.graph.node if n.op_type == "Constant"}
    users: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for value in node.input:
            users.setdefault(value, []).append(node)
    todo = [n for n in model.graph.node if n.op_type == "Softmax"]
    seen: set[str] = set()
    while todo:
        node = todo.pop()
        for user in (u for out in node.output for u in users.get(out, ())):
            if user.op_type == "MatMul" and not constants & set(user.input):
                return True
            passes_on = user.op_type in (
                "Dropout",
                "Cast",
                "Reshape",
                "Transpose",
                "Where",
                "Identity",
                "Mul",
            )
            if passes_on and user.output[0] not in seen:
                seen.add(user.output[0])
                todo.append(user)
    return any("Attention" in node.op_type for node in model.graph.node)


def _saturates() -> bool:
    """Whether uint8 x int8 sums saturate here: x86 without the VNNI instructions."""
    if platform.machine().lower() not in ("x86_64", "amd64", "i386", "i686", "x86"):
        return False
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text("utf-8", "replace").split() if cpuinfo.is_file() else []
    return not {"avx512_vnni", "avx_vnni"} & set(flags)


def _prepare(src: str, model: Any, prepared: str, name: str) -> list[str]:
    """Shape inference, graph optimisation and an opset that knows per-channel QDQ; what had to be skipped."""
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    source: Any = src
    if opset < 13:
        try:
            source = onnx.version_converter.convert_version(model, 17)
        except (RuntimeError, ValueError) as error:
            raise LeptonError(
                f"{name}: its opset {opset} has no per-channel quantization and cannot be raised: " + one_line(error),
                hint="export the model again with opset 13 or newer",
            ) from error
    tries = [
        ({}, ""),
        ({"skip_symbolic_shape": True}, "symbolic shape inference failed and was skipped"),
        ({"skip_symbolic_shape": True, "skip_onnx_shape": True}, "shape inference failed and was skipped"),
        (
            {"skip_symbolic_shape": True, "skip_optimization": True},
            "graph optimisation failed and was skipped",
        ),
    ]
    for options, note in tries:
        try:
            quant_pre_process(source, prepared, **options)
        except Exception as error:  # it lets through whatever sympy, onnx and onnxruntime raise
            last = error
            continue
        return [note] if note else []
    raise LeptonError(
        f"{name}: ONNX Runtime cannot prepare it for quantization: {one_line(last)}",
        hint="check that the model runs in ONNX Runtime",
    ) from last


def _quantize(
    prepared: str,
    aside: str,
    feed: Samples,
    saturates: bool,
    is_attention: bool,
    name: str,
    progress: Progress,
) -> None:
    from onnxruntime import quantization as ortq

    extra: dict[str, Any] = {"CalibStridedMinMax": _STRIDE}
    kinds = None
    if is_attention:
        kinds = ["MatMul", "Gemm", "Conv"]
        extra |= {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"]}
    try:
        ortq.quantize_static(
            prepared,
            aside,
            _reader(feed, progress),
            quant_format=ortq.QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            per_channel=True,
            reduce_range=saturates,
            activation_type=ortq.QuantType.QUInt8,
            weight_type=ortq.QuantType.QInt8,
            calibrate_method=ortq.CalibrationMethod.MinMax,
            extra_options=extra,
        )
    except LeptonError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions derive straight from Exception
        raise LeptonError(
            f"{name}: ONNX Runtime cannot quantize it: {one_line(error)}",
            hint="check that the model runs on this data, or quantize it in another format",
        ) from error


def _reader(feed: Samples, progress: Progress) -> Any:
    """A calibration reader that gives `feed` in strides, so that ranges are merged as they come.

    ONNX Runtime wants a length divisible by the stride: the last samples are given again to fill it, which
    changes no minimum or maximum.
    """
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.at, self.end = 0, len(self)

        def __len__(self) -> int:
            return -(-len(feed) // _STRIDE) * _STRIDE

        def set_range(self, start_index: int, end_index: int) -> None:
            self.at, self.end = start_index, end_index

        def get_next(self) -> dict | None:
            if self.at >= self.end:
                return None
            position = min(self.at, len(feed) - 1)
            self.at += 1
            progress(position + 1, len(feed), "calibration samples")
            return feed[position]

    return Reader()


def _check_runs(path: str, sample: dict, name: str) -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]).run(None, sample)
    except Exception as error:  # ONNX Runtime's exceptions derive straight from Exception
        raise LeptonError(f"{name}: its int8 form does not run in ONNX Runtime: {one_line(error)}") from error
