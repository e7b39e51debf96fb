"""From an ONNX file to a static `Graph`.

1. parse (a bad file is named as such), 2. fix free dimensions, 3. let ONNX Runtime optimise at its basic level
(constant folding, Conv + BatchNormalization, dead code), 4. know every shape: inference first, and where that
leaves a hole, one run on seeded input.
"""

from __future__ import annotations

import math
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError, NoWay
from lepton_edge.shapes import parse
from lepton_edge.tflite_writer.graph import Graph, Node

LARGEST = 2**29  # values in a tensor: TFLite counts bytes in 32 bits
_NARROW = {"float64": "float32", "float16": "float32", "bfloat16": "float32"}


def read(path: str) -> Any:
    """The ModelProto of a file (external data included); LeptonError when it isn't one."""
    return update(repair(_parsed(path)))


def inputs(path: str) -> list[str]:
    """Names of a model's inputs, external data not read. Raises LeptonError as read() does."""
    graph = _parsed(path, external=False).graph
    held = {item.name for item in graph.initializer}
    return [port.name for port in graph.input if port.name not in held]


def _parsed(path: str, *, external: bool = True) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    if not Path(path).is_file():
        raise LeptonError(f"no such ONNX file: {path}", hint="check the path")
    try:
        model = onnx.load(path, load_external_data=external)
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise LeptonError(f"{Path(path).name} is not a readable ONNX file: {text}", hint="export it again") from error
    if not model.graph.node or not model.opset_import:
        raise LeptonError(
            f"{Path(path).name} is not an ONNX model, or an empty or truncated one", hint="export it again"
        )
    # What is no UTF-8 comes as bytes.
    if not all(isinstance(text, str) for n in model.graph.node for text in (n.op_type, *n.input, *n.output)):
        raise LeptonError(f"{Path(path).name} is damaged: a name in it is no text", hint="export it again")
    return model


def update(model: Any) -> Any:
    """Opsets before 7, which ONNX Runtime doesn't run, brought to 13."""
    from onnx import version_converter

    version = opset(model)
    if not 0 < version < 7:
        return model
    try:
        return version_converter.convert_version(model, 13)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise LeptonError(f"opset {version} cannot be updated: {text}", hint="export with opset 13 or later") from error


def repair(model: Any) -> Any:
    """Erfc, which tf2onnx writes for Keras' GELU though ONNX has no such operator, as 1 - Erf."""
    from onnx import helper, numpy_helper

    found = [n for n in model.graph.node if n.op_type == "Erfc" and n.domain in ("", "ai.onnx")]
    if found:
        nodes = list(model.graph.node)
        model.graph.initializer.append(numpy_helper.from_array(np.ones((), np.float32), "lepton_one"))
        for node in found:
            middle = f"{node.output[0]}_erf"
            erf = helper.make_node("Erf", [node.input[0]], [middle], name=f"{node.name}_erf")
            rest = helper.make_node("Sub", ["lepton_one", middle], [node.output[0]], name=node.name)
            at = next(k for k, n in enumerate(nodes) if n is node)
            nodes[at : at + 1] = [erf, rest]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
    return model


def fix_inputs(model: Any, input_shapes: str = "") -> list[str]:
    """Makes every input static in place: given shapes first, then 1 for the batch. Returns the input names."""
    held = {i.name for i in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in held]
    wanted = parse(input_shapes, [i.name for i in inputs])
    symbols, free, changed = {}, [], False
    for item in inputs:
        if not item.type.HasField("tensor_type"):
            raise LeptonError(f"input '{item.name}' is not a tensor", hint="TFLite takes tensors only")
        dims = item.type.tensor_type.shape.dim
        given = wanted.get(item.name)
        if given is None and not item.type.tensor_type.HasField("shape"):
            free.append(f"{item.name}: no shape")
            continue
        if given is not None and not item.type.tensor_type.HasField("shape"):
            dims.extend(type(dims.add())() for _ in given[1:])
        if given is not None and len(given) != len(dims):
            raise LeptonError(f"input_shapes: '{item.name}' has {len(dims)} axes, {len(given)} given", hint="")
        for axis, dim in enumerate(dims):
            static = dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0
            if given is not None:
                if static and dim.dim_value != given[axis] and axis:
                    raise LeptonError(
                        f"input '{item.name}' axis {axis} is {dim.dim_value} in the model, not {given[axis]}",
                        hint="only free axes can be set",
                    )
                if dim.dim_param:
                    symbols[dim.dim_param] = given[axis]
                dim.dim_value, changed = given[axis], True
            elif not static and axis == 0:
                if dim.dim_param:
                    symbols.setdefault(dim.dim_param, 1)
                dim.dim_value, changed = symbols.get(dim.dim_param, 1), True
    for item in inputs:
        for axis, dim in enumerate(item.type.tensor_type.shape.dim):
            if dim.WhichOneof("value") == "dim_value" and dim.dim_value > 0:
                continue
            if dim.dim_param in symbols:
                dim.dim_value, changed = symbols[dim.dim_param], True
            else:
                free.append(f"{item.name}: axis {axis} ({dim.dim_param or '?'})")
    if free:
        raise LeptonError(
            f"TFLite files have static shapes, and these input axes are free: {', '.join(free)}",
            hint="set input_shapes, for example 'x=1,3,224,224'",
        )
    for item in inputs:
        sizes = [dim.dim_value for dim in item.type.tensor_type.shape.dim]
        if math.prod(sizes) > LARGEST:
            raise LeptonError(f"input '{item.name}' is {sizes}, more than a TFLite file can take", "check its sizes")
    kept = [i for i in model.graph.input if i.name not in held]
    del model.graph.input[:]  # initializers listed as inputs may be overridden, so nothing would fold them
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, 4)
    if changed:
        del model.graph.value_info[:]
        for out in model.graph.output:
            if out.type.HasField("tensor_type"):
                out.type.tensor_type.ClearField("shape")
    return [i.name for i in inputs]


def fix_values(model: Any, text: str) -> Any:
    """Inputs that `text` ('sr=16000') gives values are constants to all that read them; they stay inputs by name."""
    from onnx import helper, numpy_helper

    from lepton_edge.conversion import parse_values

    kinds = {i.name: i.type.tensor_type for i in model.graph.input}
    for name, value in parse_values(text, list(kinds)).items():
        sizes = [d.dim_value for d in kinds[name].shape.dim]
        if not all(sizes):
            raise LeptonError(f"input '{name}' has free sizes, so it cannot be fixed to a value", "give its sizes")
        array = np.full(sizes, value, helper.tensor_dtype_to_np_dtype(kinds[name].elem_type))
        constant = f"{name}_fixed_to_{value:g}"
        model.graph.initializer.append(numpy_helper.from_array(array, constant))
        _rename(model.graph, name, constant)
    return model


def _rename(graph: Any, old: str, new: str) -> None:
    """Read `new` wherever `old` is read, in subgraphs too."""
    for node in graph.node:
        for k, name in enumerate(node.input):
            if name == old:
                node.input[k] = new
        for attribute in node.attribute:
            for inner in [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs:
                _rename(inner, old, new)


def expand(model: Any, known: set[str]) -> Any:
    """Operators outside `known` that ONNX defines by other operators, written out."""
    import onnx
    from onnx import inliner

    version = opset(model)
    names = {n.op_type for n in model.graph.node if n.domain in ("", "ai.onnx")} - known
    defined = [op for op in sorted(names) if _is_function(onnx, op, version)]
    if not defined:
        return model
    try:
        typed = onnx.shape_inference.infer_shapes(model)
        return inliner.inline_selected_functions(typed, [("", op) for op in defined], inline_schema_functions=True)
    except (RuntimeError, ValueError):  # types it can't know: the operators are then named as missing
        return model


def opset(model: Any) -> int:
    """The version of ONNX's own operators that the model uses."""
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _is_function(onnx: Any, op: str, version: int) -> bool:
    if not onnx.defs.has(op):
        return False
    schema = onnx.defs.get_schema(op, version)
    return schema.has_function or schema.has_context_dependent_function


def optimise(model: Any) -> Any:
    """The model after ONNX Runtime's basic optimisations, as a ModelProto."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="lepton-") as folder:
        source, target = Path(folder) / "in.onnx", Path(folder) / "out.onnx"
        save(model, source)
        optimise_file(source, target, any(n.op_type == "If" for n in model.graph.node))
        return onnx.load(str(target))


def optimise_file(source: Path, target: Path, branches: bool = False) -> None:
    """The model of one file after ONNX Runtime's basic optimisations, in another; `branches`: it has If nodes."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.enable_cpu_mem_arena = False
    try:
        # MatMulAddFusion turns a dense layer on three axes into Reshape, Gemm, Reshape.
        ort.InferenceSession(
            str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulAddFusion"]
        )
    except Exception as error:  # every failure of ONNX Runtime has a class of its own, with no public base
        text = " ".join(str(error).split())[:300]
        if branches:  # one branch may not suit the sizes of the samples
            raise NoWay(
                f"no TFLite counterpart for: If, whose branches ONNX Runtime does not accept: {text}",
                hint="export the branch that is wanted as a model of its own",
            ) from error
        raise LeptonError(
            f"ONNX Runtime does not accept the model: {text}", hint="check it with onnx.checker, or export it again"
        ) from error


def release() -> None:
    """Give freed memory back to the system: the next stage then does not pile up on what the last one left."""
    import ctypes
    import gc

    # A collection takes a second where frameworks have left a million objects, and frees no more for it.
    gc.collect(2 if len(gc.get_objects()) < 500_000 else 1)
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # not glibc
            ctypes.CDLL(None).malloc_trim(0)


def save(model: Any, path: Path) -> None:
    """Writes a ModelProto, its weights in a file beside it where it is too large for one."""
    import onnx

    large = model.ByteSize() > 1_800_000_000
    onnx.save(model, str(path), save_as_external_data=large, location=f"{path.name}.data" if large else None)


def to_graph(model: Any, inputs: list[str]) -> Graph:
    """A `Graph` of a static, optimised model with these inputs; 16- and 64-bit floats become float32."""
    import onnx
    from onnx import numpy_helper

    g = model.graph
    consts = {i.name: narrow(numpy_helper.to_array(i)) for i in g.initializer}
    nodes = []
    for k, proto in enumerate(g.node):
        attrs = {a.name: attribute(a) for a in proto.attribute}
        op = proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}.{proto.op_type}"
        if op == "Constant" and "value" in attrs and isinstance(attrs["value"], np.ndarray):
            consts[proto.output[0]] = narrow(attrs["value"])
            continue
        nodes.append(Node(op, proto.name or f"{op}_{k}", list(proto.input), list(proto.output), attrs))
    if g.sparse_initializer:
        raise LeptonError("the model holds sparse initializers", hint="export it with dense weights")
    domains = {d.domain: d.version for d in model.opset_import}
    shapes = {k: tuple(v.shape) for k, v in consts.items()}
    dtypes = {k: v.dtype for k, v in consts.items()}
    outputs = [o.name for o in g.output]
    graph = Graph(nodes, inputs, outputs, consts, shapes, dtypes, domains.get("", domains.get("ai.onnx", 1)), domains)
    try:
        inferred = onnx.shape_inference.infer_shapes(_skeleton(model), data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        inferred = g
    for item in [*g.input, *inferred.value_info, *inferred.output, *g.value_info, *g.output]:
        _learn(graph, item)
    _observe(graph, model)
    return graph


def _skeleton(model: Any) -> Any:
    """The model without the contents of its large constants, whose shapes are all that inference needs."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    for field in ("node", "input", "output", "value_info"):
        getattr(copy.graph, field).extend(getattr(model.graph, field))
    copy.graph.name = model.graph.name or "graph"
    for tensor in model.graph.initializer:
        if tensor.ByteSize() < 1024:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.initializer.append(
                onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            )
    return copy


def _learn(graph: Graph, item: Any) -> None:
    """Takes a ValueInfo's type and, when it is static, its shape."""
    import onnx

    kind = item.type.tensor_type
    if not item.type.HasField("tensor_type") or not kind.elem_type:
        return
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    graph.dtypes.setdefault(item.name, np.dtype(_NARROW.get(np.dtype(dtype).name, np.dtype(dtype))))
    if kind.HasField("shape") and all(d.WhichOneof("value") == "dim_value" for d in kind.shape.dim):
        graph.shapes.setdefault(item.name, tuple(d.dim_value for d in kind.shape.dim))


def _observe(graph: Graph, model: Any) -> None:
    """Runs the model once to learn the shapes that inference left open."""
    import onnx

    from lepton_edge.tflite_writer.check import reference, seeded_inputs

    # ONNX's inference counts a last window that starts in the padding, ONNX Runtime doesn't.
    doubtful = any(node.attrs.get("ceil_mode") for node in graph.nodes)
    missing = [n for node in graph.nodes for n in node.outputs if n and (doubtful or n not in graph.shapes)]
    if not missing:
        return
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {o.name for o in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=n) for n in missing if n not in present)
    feeds = next(seeded_inputs({n: (graph.shapes[n], input_dtype(model, n)) for n in graph.inputs}))
    for name, value in reference(probe, feeds, missing).items():
        if not isinstance(value, np.ndarray):
            raise LeptonError(f"tensor '{name}' is not a plain tensor", hint="sequences have no TFLite counterpart")
        graph.shapes[name] = tuple(value.shape)
        graph.dtypes[name] = narrow(value[:0] if value.ndim else value).dtype


def input_dtype(model: Any, name: str) -> np.dtype:
    """The dtype ONNX declares for an input."""
    import onnx

    item = next(i for i in model.graph.input if i.name == name)
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(item.type.tensor_type.elem_type))


def narrow(value: np.ndarray) -> np.ndarray:
    """float64 and 16-bit floats as float32, everything else as it is."""
    name = _NARROW.get(value.dtype.name)
    return value.astype(name) if name else value


def attribute(proto: Any) -> Any:
    """An attribute as int, float, str, list or array; subgraphs stay protos."""
    from onnx import TensorProto, helper, numpy_helper

    value = helper.get_attribute_value(proto)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], bytes):
        return [v.decode("utf-8", "replace") for v in value]
    return list(value) if isinstance(value, tuple) else value
