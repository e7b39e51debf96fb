"""ONNX to OpenVINO IR (float, or with the integers that the source holds)."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError
from lepton_edge.openvino_ir import ir_aside, reason
from lepton_edge.shapes import note, parse, set_free

REQUIRES = ("openvino>=2026",)
# How many features of a row the CPU plugin rounds to 8 bits on one scale, where weights are integers; 0: none.
GROUPS = {"dynamic": "32", "w8": "0", "w8a16": "0", "w4": "32"}


def run(
    src: str,
    dst: str,
    *,
    fixed_batch: int = 1,
    input_shapes: str = "",
    input_values: str = "",
    compress_to_fp16: bool = False,
) -> dict:
    """Write `dst` (.xml) and its .bin beside it. Names of inputs and outputs are kept.

    `input_shapes` ("ids=1,128;mask=1,128") gives sizes to free dimensions; a free leading one that it leaves out
    becomes `fixed_batch` (0 leaves it free); `input_values` ("sr=16000") makes inputs constants, which stay in the
    signature. Quantized weights stay int8 or int4; products that round their activations at run time become ones with
    integer weights, whose activations the CPU plugin rounds in groups. Raises LeptonError for a model that OpenVINO
    cannot read or reshape.
    """
    import openvino as ov

    name = Path(src).name
    core = ov.Core()
    scheme = _scheme(src)
    try:
        if scheme == "dynamic":
            model = _read_plain(core, src, input_shapes, input_values)
        elif input_values:
            model = _read_static(core, src, input_shapes, input_values)
        else:
            model = core.read_model(src)
        if model is None:
            raise RuntimeError("its sizes or values cannot be fixed")
    except RuntimeError as error:
        model = _read_static(core, src, input_shapes, input_values)
        if model is None:
            raise LeptonError(
                f"{name}: OpenVINO cannot read this ONNX model: {reason(error)}",
                hint="check that the file is complete and that OpenVINO supports its operators",
            ) from error
    notes = _fix(model, fixed_batch, input_shapes, name)
    _tidy_quantization(model)
    if scheme in GROUPS:
        model.set_rt_info(GROUPS[scheme], ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
    with ir_aside(dst) as made:
        ov.save_model(model, made, compress_to_fp16=compress_to_fp16)
    return {
        "inputs": [_port(p) for p in model.inputs],
        "outputs": [_port(p) for p in model.outputs],
        "notes": notes,
    }


def _tidy_quantization(model: Any) -> None:
    """Each QDQ pair as one FakeQuantize, int32 biases as floats: the file shrinks by a third, with the same numbers."""
    if any(node.get_type_name() == "FakeQuantize" for node in model.get_ops()):
        from openvino._offline_transformations import apply_moc_transformations

        apply_moc_transformations(model, False)


def _scheme(src: str) -> str:
    """The scheme that an ONNX file says it was quantized by, "dynamic" for one that rounds while it runs, or ""."""
    if find_spec("onnx") is None:
        return ""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(src, load_external_data=False)
    except (DecodeError, OSError):  # OpenVINO will say what is wrong with it
        return ""
    if any(node.op_type == "DynamicQuantizeLinear" for node in model.graph.node):
        return "dynamic"
    return next((p.value for p in model.metadata_props if p.key == "lepton_edge.scheme"), "")


def _read_plain(core: Any, src: str, input_shapes: str, input_values: str) -> Any | None:
    """The model with its run-time roundings taken out: integer weights, dequantized where they are read."""
    from lepton_edge.quant.plain_dynamic import plain
    from lepton_edge.tflite_writer.load import read, save

    model = read(src)
    plain(model)
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        file = Path(folder) / "model.onnx"
        save(model, file)
        if input_values:
            return _read_static(core, str(file), input_shapes, input_values)
        return core.read_model(str(file)).clone()


def _read_static(core: Any, src: str, input_shapes: str, input_values: str = "") -> Any | None:
    """The model read once its sizes are fixed and each If that they decide is gone, by ONNX Runtime; None if it fails.

    What stands behind an If has no known rank to OpenVINO.
    """
    if not (input_shapes or input_values) or find_spec("onnx") is None or find_spec("onnxruntime") is None:
        return None
    from lepton_edge.tflite_writer.branches import fold_branches
    from lepton_edge.tflite_writer.load import fix_inputs, fix_values, optimise, read, save

    static = fix_values(read(src), input_values)
    fix_inputs(static, input_shapes)
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        file = Path(folder) / "model.onnx"
        try:
            save(optimise(fold_branches(static)), file)
            return core.read_model(str(file)).clone()
        except (RuntimeError, LeptonError):
            return None


def _fix(model: Any, batch: int, input_shapes: str, name: str) -> list[str]:
    """Set the free dimensions of the inputs that are known; what was set, for the notes."""
    names = [_port(port)["name"] for port in model.inputs]
    given = parse(input_shapes, names)
    shapes, made = {}, {}
    for port, known in zip(model.inputs, names, strict=True):
        shape = port.get_partial_shape()
        if not shape.rank.is_static or not shape.is_dynamic:
            continue
        sizes = set_free(known, [None if d.is_dynamic else d.get_length() for d in shape], given.get(known))
        if batch > 0 and sizes[0] is None:
            sizes[0] = batch
        made[known] = sizes
        shapes[port] = [-1 if size is None else size for size in sizes]
    if not shapes:
        return []
    try:
        model.reshape(shapes)
    except RuntimeError as error:
        raise LeptonError(
            f"{name}: its inputs cannot have the shapes {list(shapes.values())}: {reason(error)}",
            hint="set fixed_batch to 0 to leave the batch free, or to the size the model expects",
        ) from error
    return note(made)


def _port(port: Any) -> dict[str, Any]:
    """An OpenVINO port keeps its ONNX tensor name among its names."""
    name = port.get_any_name() if port.names else port.get_node().get_friendly_name()
    return {"name": name, "source": name, "perm": None}
