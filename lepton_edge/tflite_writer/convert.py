"""The whole conversion on one screen."""

from __future__ import annotations

import os
import struct
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lepton_edge.errors import NoWay
from lepton_edge.quant.plain_dynamic import plain, unrounded
from lepton_edge.tflite_writer import layout
from lepton_edge.tflite_writer.branches import fold_branches
from lepton_edge.tflite_writer.check import verify
from lepton_edge.tflite_writer.emit import Emitter, Unsupported
from lepton_edge.tflite_writer.fold import FOLDED, fold
from lepton_edge.tflite_writer.fuse import fuse
from lepton_edge.tflite_writer.graph import Graph, Node
from lepton_edge.tflite_writer.layout import Perm
from lepton_edge.tflite_writer.load import (
    expand,
    fix_inputs,
    fix_values,
    input_dtype,
    optimise_file,
    read,
    release,
    save,
    to_graph,
)  # fmt: skip
from lepton_edge.tflite_writer.lower import LOWER, lower
from lepton_edge.tflite_writer.quantize import integer_ports, quantize
from lepton_edge.tflite_writer.table import operators

_HINT = "export the model without these operators (replace or cut them off), or target ONNX or OpenVINO"
_SQNR_DB = {False: 60.0, True: 30.0}  # float32 weights; float16 weights
WHOLE = "lepton_edge.integer"  # metadata of an ONNX file whose ports are to be integers, too
_INTEGER_DB = 12.0  # integer kernels round otherwise than QDQ in float; a wrong scale or axis is under 5 dB


def convert(
    src: str,
    dst: str,
    *,
    float16: bool = False,
    keep_nchw_inputs: bool = False,
    input_shapes: str = "",
    input_values: str = "",
) -> dict[str, Any]:
    """Converts ONNX file `src` to TFLite file `dst`; returns the step's dictionary."""
    from ai_edge_litert import schema_py_generated  # noqa: F401 - costs 40 MB for a moment: before there is a model

    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        static = Path(folder) / "static.onnx"
        graph, dtypes, dynamic, whole = _prepared(src, static, input_shapes, input_values)
        integer = quantize(graph, dynamic)
        left = integer_ports(graph) if integer and whole else []
        emitter, inputs, outputs = emit(graph, float16=float16, keep_nchw=keep_nchw_inputs)
        fed = {n: (n, inputs[n][1], dtypes[n], graph.shapes[n]) for n in graph.inputs}
        given = {n: (n, view[1]) for n, view in outputs.items()}
        limit = _INTEGER_DB if integer else _SQNR_DB[float16]
        graph.consts.clear()  # written by now, in the order of axes that the file has
        del graph
        figures, counts = _written(emitter, inputs, outputs, dst, lambda made: verify(made, static, fed, given, limit))
    return {
        "inputs": [_spec(n, view[1]) for n, view in inputs.items()],
        "outputs": [_spec(n, view[1]) for n, view in outputs.items()],
        "operators": counts.total(),
        "transposes": counts["TRANSPOSE"],
        "parity": figures,
        "notes": [
            f"agrees with ONNX Runtime: SQNR {figures['sqnr_db']:.0f} dB, max error {figures['max_abs']:.2g}",
            *([f"not integer: {', '.join(left)} (what computes there has no integer form)"] if left else []),
        ],
    }


def _prepared(src: str, static: Path, input_shapes: str, input_values: str) -> tuple[Graph, dict[str, Any], bool, bool]:
    """The graph to emit, the inputs' own types, whether its products round their inputs while they run, and whether its
    ports are to be integers.

    `static` is left as what the result has to agree with.

    One form of the model is let go before the next is made: weights are held once or twice, not five times.
    """
    import onnx

    model = fix_values(read(src), input_values)
    names = fix_inputs(model, input_shapes)
    dynamic = plain(model) | unrounded(model)
    whole = any(entry.key == WHOLE for entry in model.metadata_props)
    fold_branches(model)
    dtypes = {n: input_dtype(model, n) for n in names}
    branches = any(n.op_type == "If" for n in model.graph.node)
    save(model, static)
    expanded, optimised = expand(model, set(operators()) | set(LOWER) | FOLDED), static.with_name("optimised.onnx")
    source = static
    if expanded is not model:
        source = static.with_name("expanded.onnx")
        save(expanded, source)
    del model, expanded
    release()
    optimise_file(source, optimised, branches)
    release()
    graph = to_graph(onnx.load(str(optimised)), names)
    release()
    fold(graph)
    fuse(graph)
    supported(graph, lower(graph))
    fold(graph)
    return graph, dtypes, dynamic, whole


def _written(
    emitter: Emitter, inputs: dict, outputs: dict, dst: str, proof: Callable[[Path], dict]
) -> tuple[dict[str, Any], Counter[str]]:
    """Write the file aside, prove it, and move it into place: never half a file, nor one that differs.

    The figures of the proof, and how many operators of each kind there are; the emitter is empty afterwards.
    """
    path = Path(dst)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    ins, outs = ({name: view[0] for name, view in ports.items()} for ports in (inputs, outputs))
    try:
        try:
            content = emitter.writer.view(ins, outs, "Lepton Edge, from ONNX")
        except (TypeError, struct.error) as error:  # sizes and attributes are 32-bit integers there
            raise NoWay(f"TFLite cannot hold a number of this model: {error}", hint=_HINT) from error
        aside.write_bytes(content)
        del content
        counts = Counter(op.code for op in emitter.writer.operators)
        emitter.clear()
        release()
        figures = proof(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return figures, counts


def _spec(name: str, perm: Perm | None) -> dict[str, Any]:
    return {"name": name, "source": name, "perm": list(perm) if perm else None}


def supported(graph: Graph, problems: list[str]) -> None:
    """Raises one LeptonError that lists every operator without a counterpart, and `problems` found before."""
    table = operators()
    missing: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op not in table:
            missing.setdefault(node.op, []).append(node.name)
    if missing:
        named = (f"{op} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" for op, names in missing.items())
        problems = [f"no TFLite counterpart for: {'; '.join(named)}", *problems]
    if problems:
        raise NoWay("; ".join(problems), hint=_HINT)


def emit(
    graph: Graph, *, float16: bool = False, keep_nchw: bool = False
) -> tuple[Emitter, dict[str, tuple[int, Perm | None]], dict[str, tuple[int, Perm | None]]]:
    """Emits every node; inputs and outputs come back as name -> (tensor, perm or None for ONNX order)."""
    e, table = Emitter(graph, float16=float16), operators()
    images = set() if keep_nchw else image_inputs(graph)
    inputs: dict[str, tuple[int, Perm | None]] = {}
    for name in graph.inputs:
        perm = layout.channels_last(4) if name in images else layout.identity(e.rank(name))
        index = e.writer.tensor(name, e.stored(name, perm), e.dtype(name), None, e.quant(name))
        e.put(name, index, perm)
        inputs[name] = (index, perm if name in images else None)
    problems: list[str] = []
    used = set(graph.consumers()) | set(graph.outputs)
    for node in graph.nodes:
        try:
            for name in node.inputs:
                if name and name in graph.consts and name not in e.views:
                    e.views[name] = _Lazy(e, name)
            table[node.op](e, node)
            _complete(e, node, used)
        except Unsupported as error:
            problems.append(error.message)
            _stand_in(e, node)
        except KeyError as error:  # nothing of the graph makes this tensor, or says its sizes
            raise NoWay(f"{node.op} '{node.name}': nothing is known of tensor {error}", hint=_HINT) from error
    if problems:
        raise NoWay("; ".join(problems), hint=_HINT)
    try:
        return e, inputs, _outputs(e, {i for i, _ in inputs.values()})
    except IndexError as error:
        raise NoWay("the file gives an output another number of axes than what makes it has", hint=_HINT) from error


def _complete(e: Emitter, node: Node, used: set[str]) -> None:
    """Every output that somebody reads must have been emitted."""
    absent = [k for k, name in enumerate(node.outputs) if name in used and name not in e.views]
    if absent:
        raise Unsupported(f"{node.op} '{node.name}': its output {absent[0]} has no TFLite counterpart")


class _Lazy(dict):
    """The views of a constant: made when first asked for, so that only orders that are used take space."""

    def __init__(self, e: Emitter, name: str) -> None:
        super().__init__()
        self._e, self._name = e, name

    def __iter__(self):
        self._fill()
        return super().__iter__()

    def items(self):
        self._fill()
        return super().items()

    def _fill(self) -> None:
        if not len(self):
            self._e.get(self._name)


def _stand_in(e: Emitter, node: Node) -> None:
    """Tensors for the outputs of a node that failed, so that the nodes after it can be looked at too."""
    for name in node.outputs:
        if name and name not in e.views:
            e.put(name, e.writer.tensor(name, e.shape(name), e.dtype(name)), layout.identity(e.rank(name)))


def _outputs(e: Emitter, taken: set[int]) -> dict[str, tuple[int, Perm | None]]:
    """Names the outputs; images stay NHWC, everything else gets ONNX order; no tensor serves twice."""
    outputs: dict[str, tuple[int, Perm | None]] = {}
    for name in dict.fromkeys(e.graph.outputs):
        nhwc = layout.channels_last(4)
        image = e.rank(name) == 4 and name not in e.graph.consts and nhwc in e.views[name]
        image = image and layout.identity(4) not in e.views[name]
        index = e.get(name, nhwc) if image else e.get(name)
        tensor = e.writer.tensors[index]
        if index in taken or tensor.data is not None:
            shape = e.shape_const(tensor.shape)
            index = e.add("RESHAPE", [index, shape], tensor.shape, tensor.dtype, quant=tensor.quant)
        taken.add(index)
        e.writer.rename(index, name)
        outputs[name] = (index, nhwc if image else None)
    return outputs


_IMAGE = {
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LRN", "DepthToSpace",
    "SpaceToDepth", "Resize", "Upsample",
}  # fmt: skip
_THROUGH = {
    "Add", "Sub", "Mul", "Div", "Relu", "Clip", "Pad", "Cast", "BatchNormalization", "Sigmoid", "Identity", "Concat",
    "Slice", "Split", "InstanceNormalization", "QuantizeLinear", "Requantize", "DequantizeLinear", "LeakyRelu", "PRelu",
    "Max", "Min",
    "Pow", "Sqrt", "Exp", "Log", "Tanh", "Abs", "Neg", "HardSwish", "HardSigmoid", "Transpose",
}  # fmt: skip


def image_inputs(graph: Graph) -> set[str]:
    """The rank-4 inputs that reach an image operator in NCHW order through elementwise operators only."""
    users, found = graph.consumers(), set()
    for name in graph.inputs:
        if len(graph.shapes[name]) != 4 or graph.shapes[name][1] == 0:
            continue
        todo: list[tuple[str, tuple[int, ...]]] = [(name, (0, 1, 2, 3))]
        seen: set[tuple[str, tuple[int, ...]]] = set()
        while todo:
            tensor, axes = todo.pop()
            for node in users.get(tensor, []):
                if node.op in _IMAGE and node.inputs[0] == tensor and axes == (0, 1, 2, 3):
                    found.add(name)
                elif node.op in _THROUGH and len(graph.shapes[node.outputs[0]]) == 4:
                    turned = axes
                    if node.op == "Transpose":
                        turned = tuple(axes[a] for a in node.attrs.get("perm", (3, 2, 1, 0)))
                    for out in node.outputs:
                        if (out, turned) not in seen:
                            seen.add((out, turned))
                            todo.append((out, turned))
    return found
