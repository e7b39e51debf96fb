"""ONNX to ncnn in float32, by pnnx."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, NoWay

REQUIRES = ("pnnx>=20240819", "ncnn>=1.0.20240820", "onnx>=1.17", "onnxruntime>=1.20")


def run(src: str, dst: str, *, input_shapes: str = "", input_values: str = "") -> dict:
    """Write `dst` (.ncnn.param) and its .bin beside it; inputs are called in0, in1 …, outputs out0, out1 …

    `input_shapes` ("x=1,3,224,224") gives sizes to free dimensions, a free batch is 1; `input_values` ("sr=16000")
    makes inputs constants. ncnn has no batch axis and no 64-bit numbers: inputs have to be float32 with a batch of 1.
    The shapes of inputs and outputs are written into the file as ncnn's own shape hints, for it holds no others.
    Raises LeptonError for such models, NoWay for operators that pnnx or ncnn lacks.
    """
    from lepton_edge.tflite_writer.load import fix_inputs, fix_values, read, save

    name = Path(src).name
    model = fix_values(read(src), input_values) if input_values else read(src)
    names = fix_inputs(model, input_shapes)
    sizes = _sizes(model, names, name)
    target = Path(dst)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ncnn-") as folder:
        file = Path(folder) / "model.onnx"
        save(model, file)
        param = _pnnx(file, name)
        param.write_text(_with_shapes(param, sizes, name), "utf-8")
        param.with_suffix(".bin").replace(target.with_suffix(".bin"))
        param.replace(target)
    return {
        "inputs": [{"name": f"in{k}", "source": n, "perm": None} for k, n in enumerate(names)],
        "outputs": [{"name": f"out{k}", "source": o.name, "perm": None} for k, o in enumerate(model.graph.output)],
    }


def _sizes(model: Any, names: list[str], name: str) -> list[list[int]]:
    """The sizes of one sample of each input. Raises LeptonError for what ncnn cannot hold."""
    from onnx import TensorProto

    integers = {n.op_type for n in model.graph.node} & {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv",
    }  # fmt: skip
    if integers:
        raise LeptonError(
            f"{name}: a quantized model ({', '.join(sorted(integers))}), and pnnx writes float ncnn models only",
            "convert the float model; ncnn's int8 comes from its own tool ncnn2int8",
        )
    ports = {port.name: port.type.tensor_type for port in model.graph.input}
    sizes = []
    for port in names:
        if ports[port].elem_type != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(ports[port].elem_type).lower()
            raise LeptonError(f"{name}: input '{port}' is {kind}, and ncnn is fed float32", "use another format")
        batch, *sample = [d.dim_value for d in ports[port].shape.dim] or [0]
        if batch != 1 or not 1 <= len(sample) <= 3:
            raise LeptonError(
                f"{name}: input '{port}' is {[batch, *sample]}, and ncnn takes one sample of one to three axes",
                "export the model with a batch of 1, or give its sizes with --input-shape",
            )
        sizes.append(sample)
    return sizes


def _pnnx(file: Path, name: str) -> Path:
    """Run pnnx on a file in a folder of its own; the .param it wrote.

    Its package is imported nowhere: all that matters in it is the program.
    """
    spec = find_spec("pnnx")
    assert spec and spec.origin, "REQUIRES is checked before a step starts"
    program = Path(spec.origin).with_name("pnnx.exe" if sys.platform == "win32" else "pnnx")
    done = subprocess.run(
        [program, file.name, "fp16=0"], cwd=file.parent, capture_output=True, text=True, errors="replace", check=False
    )
    param = file.with_name("model.ncnn.param")
    if done.returncode != 0 or not param.is_file() or not param.with_suffix(".bin").is_file():
        words = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        raise NoWay(f"{name}: pnnx cannot convert it (exit code {done.returncode}): {words[-1][:200] if words else ''}")
    return param


def _with_shapes(param: Path, sizes: list[list[int]], name: str) -> str:
    """The text of a .param with the shapes of its inputs and outputs, learned from one run on zeros.

    `-23330=4,dims,w,h,c` is ncnn's own hint (see top_shapes in Net::load_param). Raises NoWay for layers that ncnn
    lacks.
    """
    import ncnn
    import numpy as np

    head, counts, *layers = param.read_text("utf-8").splitlines()
    lacking = sorted({line.split()[0] for line in layers if "." in line.split()[0] or "::" in line.split()[0]})
    if lacking:
        raise NoWay(f"{name}: ncnn has no layer for {', '.join(lacking)}")
    net = ncnn.Net()
    net.opt.num_threads = 1
    if net.load_param(str(param)) != 0 or net.load_model(str(param.with_suffix(".bin"))) != 0:
        raise NoWay(f"{name}: ncnn cannot load what pnnx made of it")
    if sorted(net.input_names()) != sorted(f"in{k}" for k in range(len(sizes))):
        raise NoWay(f"{name}: pnnx left out an input; it has {', '.join(net.input_names())}")
    mats = {f"in{k}": ncnn.Mat(np.zeros(sample, np.float32)).clone() for k, sample in enumerate(sizes)}
    extractor = net.create_extractor()
    extractor.set_light_mode(False)  # keeps what lies between
    for blob, mat in mats.items():
        extractor.input(blob, mat)
    ends, hinted = {*mats, *net.output_names()}, []
    for line in layers:
        _, _, takes, gives, *rest = line.split()
        tops = rest[int(takes) : int(takes) + int(gives)]
        if ends & {*tops}:
            found = [extractor.extract(blob) for blob in tops]
            if any(code != 0 for code, _ in found):
                raise NoWay(f"{name}: ncnn cannot compute the output {', '.join(tops)}")
            sizes_of = [f"{mat.dims},{mat.w},{mat.h},{mat.c}" for _, mat in found]
            if all(mat.dims <= 3 for _, mat in found):
                line += f" -23330={4 * len(tops)},{','.join(sizes_of)}"
        hinted.append(line)
    return "\n".join([head, counts, *hinted]) + "\n"
