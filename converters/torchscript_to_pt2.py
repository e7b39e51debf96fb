"""TorchScript to a PyTorch exported program, for the sizes that are given.

The archive is checked first (runtimes/torchscript.py): its code may only call PyTorch's own operators, unless `trust`.
"""

from __future__ import annotations

REQUIRES = ("torch>=2.9",)


def run(src: str, dst: str, *, input_shapes: str = "", input_values: str = "", trust: bool = False) -> dict:
    """Write `dst` (.pt2) from the archive `src`; inputs keep their names, `input_values` fix those that are numbers.

    Raises LeptonError without sizes for every tensor, for a module that keeps state, and for what cannot be exported.
    """
    import tempfile
    from pathlib import Path

    import torch
    from torch._export.converter import TS2EPConverter

    from lepton_edge.conversion import parse_values
    from lepton_edge.errors import LeptonError, root_cause
    from lepton_edge.runtimes.torch import load_program, output_specs
    from lepton_edge.runtimes.torchscript import input_specs, load_module, output_names
    from lepton_edge.shapes import parse
    from lepton_edge.torch_export.fused import written_out

    name = Path(src).name
    try:
        module = load_module(src, trust)
        specs, outputs = input_specs(module), output_names(module)
    except ValueError as error:
        raise LeptonError(
            str(error), "export the model with torch.export.save; --trust only for files you know"
        ) from error
    tensors = [s for s in specs if not s.get("number")]
    given = parse(input_shapes, [s["name"] for s in tensors])
    values = parse_values(input_values, [s["name"] for s in specs])
    missing = [s["name"] for s in tensors if s["name"] not in given]
    missing += [s["name"] for s in specs if s.get("number") and s["name"] not in values]
    if missing:
        raise LeptonError(f"{name}: nothing says the sizes or values of {', '.join(missing)}",
                          "give --input-shape name=1,3,224,224, and --fix name=16000 for numbers")  # fmt: skip
    example = tuple(
        (getattr(torch, s["dtype"]).is_floating_point and values[s["name"]]) or int(values[s["name"]])
        if s.get("number")
        else torch.zeros(given[s["name"]], dtype=getattr(torch, s["dtype"]))
        for s in specs
    )
    with tempfile.TemporaryDirectory(dir=Path(dst).parent, prefix=".pt2-") as folder:
        made = Path(folder) / "model.pt2"
        try:
            program = written_out(TS2EPConverter(module, example).convert())
            _rename(program, {s["name"]: k for k, s in enumerate(specs)})
            torch.export.save(program, str(made))
            again = output_specs(load_program(str(made)))
        except Exception as error:  # the converter raises its own errors and lets others through
            raise LeptonError(f"{name}: torch.export cannot take it: {root_cause(error)}",
                              "export the model itself with torch.export.export") from error  # fmt: skip
        made.replace(dst)
    if len(again) != len(outputs):
        raise LeptonError(f"{name}: {len(outputs)} outputs became {len(again)}", "please report this model")
    return {
        "inputs": [{"name": s["name"], "source": s["name"], "perm": None} for s in tensors],
        "outputs": [{"name": a["name"], "source": o, "perm": None} for a, o in zip(again, outputs, strict=True)],
        "notes": [],
    }


def _rename(program, places: dict[str, int]) -> None:
    """The inputs of the program by the names they have in the archive."""
    specs = [s for s in program.graph_signature.input_specs if s.kind.name == "USER_INPUT"]
    nodes = {n.name: n for n in program.graph.nodes}
    for name, place in places.items():
        argument = specs[place].arg
        if type(argument).__name__ != "TensorArgument" or name in nodes:
            continue
        node = nodes[argument.name]
        node.name = node.target = name
        argument.name = name
    program.graph_module.recompile()
