"""PyTorch exported program to TFLite (litert-torch), with channel-last images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, root_cause
from lepton_edge.shapes import parse, set_free

REQUIRES = ("torch>=2.9", "litert-torch>=0.9", "ai-edge-litert>=2.1")
COST = 0.9
_SPATIAL = ("conv", "pool", "batch_norm", "upsample", "pixel_shuffle", "pixel_unshuffle", "grid_sampler")
_NOT_ELEMENTWISE = (
    "view",
    "reshape",
    "permute",
    "transpose",
    "unsqueeze",
    "flatten",
    "linear",
    "matmul",
    "bmm",
)


def run(src: str, dst: str, *, channel_last: bool = True, input_shapes: str = "") -> dict:
    """Write `dst` (.tflite) with batch 1. Names of inputs and outputs are kept in its signature.

    With `channel_last`, 4-D inputs and outputs that the graph treats as images (they meet a convolution,
    pooling, batch normalisation or resize) become NHWC, and their "perm" says so. int64 inputs become int32.
    `input_shapes` ("ids=1,128;mask=1,128") gives sizes to free dimensions.
    Raises LeptonError for free dimensions other than the batch, and operators TFLite does not have.
    """
    import torch

    from lepton_edge.runtimes.torch import input_specs, load_program, output_specs

    name = Path(src).name
    try:
        program = load_program(src)
        (inputs, slots), outputs = input_specs(program), output_specs(program)
    except ValueError as error:
        raise LeptonError(str(error), hint="save the model with torch.export.save in a recent PyTorch") from error
    given = parse(input_shapes, [spec["name"] for spec in inputs])
    for spec in inputs:
        spec["shape"] = set_free(spec["name"], spec["shape"], given.get(spec["name"]))
        if None in spec["shape"][1:]:
            raise LeptonError(
                f"{name}: input '{spec['name']}' has free sizes {spec['shape']}",
                hint="give samples of the sizes wanted with --data, or export the model with fixed sizes",
            )
    image_in = _images(program, {s["name"] for s in inputs}) if channel_last else set()
    image_out = _images(program, {s["name"] for s in outputs}, backward=True) if channel_last else set()
    module = _wrap(program, slots, outputs, image_in, image_out)
    samples = {s["name"]: _sample(torch, s, s["name"] in image_in) for s in inputs}
    _convert(module, samples, dst, name)
    return {
        "inputs": [
            {"name": s["name"], "source": s["name"], "perm": [0, 2, 3, 1] if s["name"] in image_in else None}
            for s in inputs
        ],
        "outputs": [
            {"name": s["name"], "source": s["name"], "perm": [0, 2, 3, 1] if s["name"] in image_out else None}
            for s in outputs
        ],
        "notes": [f"'{n}' is channel-last (NHWC) in the TFLite file" for n in sorted(image_in | image_out)],
    }


def _convert(module: Any, samples: dict[str, Any], dst: str, name: str) -> None:
    """Convert, write aside, load once (litert-torch can write a file LiteRT refuses) and move into place."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".tflite-") as folder:
        aside = str(Path(folder) / "model.tflite")
        try:
            litert_torch.convert(module, sample_kwargs=samples).export(aside)
            interpreter = Interpreter(aside, num_threads=1)
            interpreter.allocate_tensors()
            places = [detail["index"] for detail in interpreter.get_output_details()]
            if len(set(places)) != len(places):
                raise ValueError("two of its outputs are one tensor, which a TFLite file cannot name twice")
            del interpreter
        except Exception as error:  # litert-torch lets through whatever a lowering raises
            raise LeptonError(
                f"{name}: litert-torch cannot convert it: {root_cause(error)}",
                hint="go through ONNX instead, or change the operator it names",
            ) from error
        Path(aside).replace(target)


def _wrap(program: Any, slots: list, specs: list[dict], image_in: set[str], image_out: set[str]) -> Any:
    """A module with the program's inputs as keywords and its outputs as a dict, images channel-last."""
    import torch

    inner = program.module(check_guards=False)
    _gather_nearest(inner)
    outputs = [spec["name"] for spec in specs]

    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, **feeds: Any) -> dict[str, Any]:
            flat = []
            for is_tensor, slot in slots:
                value = feeds[slot] if is_tensor else slot
                flat.append(value.permute(0, 3, 1, 2) if is_tensor and slot in image_in else value)
            args, kwargs = torch.utils._pytree.tree_unflatten(flat, program.call_spec.in_spec)
            leaves = torch.utils._pytree.tree_leaves(self.inner(*args, **kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            return {n: t.permute(0, 2, 3, 1) if n in image_out else t for n, t in zip(outputs, tensors, strict=True)}

    return Wrapped()


def _gather_nearest(module: Any) -> None:
    """Nearest resizes by other than whole factors become gathers of rows and columns.

    litert-torch writes them with half-pixel centres, where PyTorch takes floor(i * scale); the two agree for
    whole factors only. The rows are found by resizing their numbers.
    """
    import torch

    graph = module.graph
    for node in list(graph.find_nodes(op="call_function", target=torch.ops.aten.upsample_nearest2d.vec)):
        before, after = node.args[0].meta["val"].shape[2:], node.meta["val"].shape[2:]
        if not all(isinstance(n, int) for n in (*before, *after)) or not any(
            b % a for a, b in zip(before, after, strict=True)
        ):
            continue
        value = node.args[0]
        for axis in (2, 3):
            numbers = torch.arange(before[axis - 2], dtype=torch.float32).reshape(
                [-1 if i == axis else 1 for i in range(4)]
            )
            grid = numbers.expand(1, 1, *before)
            rows = node.target(grid, *node.args[1:], **node.kwargs).select(5 - axis, 0).flatten().long()
            name = f"_{node.name}_{axis}"
            module.register_buffer(name, rows)
            with graph.inserting_before(node):
                value = graph.call_function(torch.ops.aten.index_select.default, (value, axis, graph.get_attr(name)))
        node.replace_all_uses_with(value)
        graph.erase_node(node)
    module.recompile()


def _sample(torch: Any, spec: dict[str, Any], is_image: bool) -> Any:
    shape = [1 if d is None else d for d in spec["shape"]]
    if is_image:
        shape = [shape[0], shape[2], shape[3], shape[1]]
    return torch.zeros(shape, dtype=getattr(torch, spec["dtype"]))


def _images(program: Any, names: set[str], backward: bool = False) -> set[str]:
    """Which 4-D tensors of `names` meet a spatial operator, looking through element-wise ones."""
    nodes = {n.name: n for n in program.graph.nodes}
    found = set()
    for name in names & nodes.keys():
        todo, seen = [nodes[name]], set()
        while todo:
            node = todo.pop()
            if node in seen or not _is_4d(node):
                continue
            seen.add(node)
            if backward and _is_spatial(node):
                found.add(name)
                break
            for other in node.all_input_nodes if backward else node.users:
                if _is_spatial(other) and (backward or other.args[0] is node):
                    found.add(name)
                elif other.op == "call_function" and not _moves(other):
                    todo.append(other)
            if backward and _moves(node):
                break
    return found


def _is_4d(node: Any) -> bool:
    value = node.meta.get("val")
    return len(getattr(value, "shape", ())) == 4


def _is_spatial(node: Any) -> bool:
    return node.op == "call_function" and any(word in str(node.target) for word in _SPATIAL) and _is_4d(node)


def _moves(node: Any) -> bool:
    return node.op != "call_function" or any(word in str(node.target) for word in _NOT_ELEMENTWISE)
