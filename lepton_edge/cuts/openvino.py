"""The beginning of an OpenVINO model, up to one of its tensors."""

from __future__ import annotations

from typing import Any

SKIPPED = ("Parameter", "Constant", "Result", "ShapeOf", "Convert", "ReadValue", "Assign")


def inspect(path: str) -> dict[str, Any]:
    """The float tensors that operations make, in order: [[operation, type, ""]]; those with one output."""
    import openvino as ov

    operations = ov.Core().read_model(path).get_ordered_ops()
    found = []
    for op in operations:
        if op.get_type_name() in SKIPPED or op.get_output_size() != 1 or not op.get_output_element_type(0).is_real():
            continue
        # What is computed from constants alone (weights) is no tensor of the model's work.
        if any(i.get_source_output().get_node().get_type_name() not in ("Constant", "Convert") for i in op.inputs()):
            found.append([op.get_friendly_name(), op.get_type_name(), ""])
    return {"tensors": found}


def run(src: str, dst: str, *, tensor: str) -> dict:
    """Write `dst` and its .bin: the model `src` with the output of the operation `tensor` as its only one."""
    import openvino as ov

    model = ov.Core().read_model(src)
    op = next(o for o in model.get_ordered_ops() if o.get_friendly_name() == tensor)
    output = op.output(0)
    output.set_names({tensor})
    cut = ov.Model([output], model.get_parameters(), "cut")
    ov.save_model(cut, dst, compress_to_fp16=False)
    return {"outputs": [{"name": tensor, "source": tensor, "perm": None}]}
