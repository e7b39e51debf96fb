"""ONNX to TFLite by onnx2tf, in an environment of its own: for what our writer lacks.

onnx2tf pins its dependencies exactly and needs Python 3.12, it overwrites its input, and exit code 0 does not mean that
its file runs: so it gets a static, folded copy of the model, and its file is loaded and run before it counts.
"""

from __future__ import annotations

PYTHON = "3.12"
REQUIRES = ("onnx2tf==2.6.9",)
COST = 50.0  # after everything else


def run(src: str, dst: str, *, input_shapes: str = "", input_values: str = "") -> dict:
    """Write `dst` from `src`; names of outputs are kept, those of inputs too. Raises LeptonError when it fails."""
    import shutil
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    from lepton_edge.errors import LeptonError
    from lepton_edge.tflite_writer.branches import fold_branches
    from lepton_edge.tflite_writer.load import fix_inputs, fix_values, optimise, read, save

    model = fix_values(read(src), input_values)
    names = fix_inputs(model, input_shapes)
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input}
    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        copy, out = Path(folder) / "model.onnx", Path(folder) / "out"
        save(optimise(fold_branches(model)), copy)
        command = [str(Path(sys.executable).parent / "onnx2tf"), "-i", str(copy), "-o", str(out), "-n"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        made = sorted(out.glob("*float32.tflite"))
        if done.returncode or not made:
            said = [x.strip() for x in (done.stderr + done.stdout).splitlines() if x.strip()]
            raise LeptonError(f"onnx2tf failed: {(said or [f'exit code {done.returncode}'])[-1][:300]}",
                              "target ONNX or OpenVINO instead")  # fmt: skip
        inputs, outputs = _signature(str(made[0]), names, shapes, [o.name for o in model.graph.output])
        shutil.copyfile(made[0], f"{dst}.part")
        Path(f"{dst}.part").replace(dst)
    return {"inputs": inputs, "outputs": outputs, "notes": ["made by onnx2tf, in an environment of its own"]}


def _signature(path: str, names: list[str], shapes: dict[str, list[int]], outputs: list[str]) -> tuple[list, list]:
    """Where the inputs and outputs of its file come from; it is loaded and run on zeros on the way."""
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    from lepton_edge.errors import LeptonError

    try:
        interpreter = Interpreter(path, num_threads=1)
        interpreter.allocate_tensors()
        for port in interpreter.get_input_details():
            interpreter.set_tensor(port["index"], np.zeros(port["shape"], port["dtype"]))
        interpreter.invoke()
    except (RuntimeError, ValueError) as error:
        raise LeptonError(f"what onnx2tf made does not run: {' '.join(str(error).split())[:300]}",
                          "target ONNX or OpenVINO instead") from error  # fmt: skip

    def plain(name: str) -> str:
        return name.removeprefix("serving_default_").split(":")[0]

    ports = []
    details = interpreter.get_input_details()
    for k, port in enumerate(details):
        source = next((n for n in names if plain(port["name"]) == n), names[min(k, len(names) - 1)])
        shape, stored = shapes[source], [int(d) for d in port["shape"]]
        perm = None
        if stored != shape and len(shape) > 2 and stored == [shape[0], *shape[2:], shape[1]]:
            perm = [0, *range(2, len(shape)), 1]
        ports.append({"name": port["name"], "source": source, "perm": perm})
    results = []
    for k, port in enumerate(interpreter.get_output_details()):
        source = next((n for n in outputs if plain(port["name"]) == n), outputs[min(k, len(outputs) - 1)])
        results.append({"name": port["name"], "source": source, "perm": None})
    return ports, results
