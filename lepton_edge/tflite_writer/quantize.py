"""QDQ graphs to true integer operators: DequantizeLinear -> op -> QuantizeLinear becomes op on int8 tensors.

- scales stay as they are; uint8 tensors become int8 with every value and zero point 128 lower;
- weights must be symmetric int8, per tensor or per output channel; biases become int32 with scale input * weight;
- operators that only move elements, and average pooling, keep their input's scale, and a requantization follows where Q
  asks for another;
- Softmax and Sigmoid have TFLite's fixed output scale 1/256, Tanh 1/128, again requantized;
- int16 tensors with zero point 0 become int16 operators with int8 weights and int64 biases, where LiteRT has kernels;
- anything else stays float between DEQUANTIZE and QUANTIZE; what float operators read of integer constants is for
  `compressed.py`, and what that leaves becomes float.
"""

from __future__ import annotations

import numpy as np

from lepton_edge.tflite_writer.compressed import compress, unpacked
from lepton_edge.tflite_writer.emit import Unsupported
from lepton_edge.tflite_writer.flatbuffer import Quant
from lepton_edge.tflite_writer.fold import sweep
from lepton_edge.tflite_writer.fuse import Links, limits_of
from lepton_edge.tflite_writer.graph import Graph, Node

_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
_ARITHMETIC = {"Add", "Sub", "Mul"}
_MOVES = {
    "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "MaxPool", "Gather", "Expand", "Tile",
    "DepthToSpace", "SpaceToDepth", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Identity",
}  # fmt: skip
_RESCALES = {"GlobalAveragePool", "ReduceMean", "Relu", "LeakyRelu", "HardSwish", "Clip"}
_FIXED = {
    "Softmax": Quant((1 / 256,), (-128,)),
    "Sigmoid": Quant((1 / 256,), (-128,)),
    "Tanh": Quant((1 / 128,), (0,)),
}
_FIXED16 = dict.fromkeys(_FIXED, Quant((1 / 32768,), (0,)))
_INT16 = _WEIGHTED | _ARITHMETIC | set(_FIXED) | {
    "Concat", "Max", "Min", "GlobalAveragePool", "AveragePool", "ReduceMean", "Relu", "LeakyRelu", "Reshape", "Flatten",
    "Squeeze", "Unsqueeze", "Transpose", "Slice", "MaxPool", "GlobalMaxPool", "Gather", "Pad", "Resize", "Identity",
}  # fmt: skip


def quantize(graph: Graph, dynamic: bool = False) -> bool:
    """Rewrites in place; returns whether any operator became one that computes in integers.

    `dynamic`: float products with int8 weights round their inputs while they run.
    """
    if not any(n.op in ("QuantizeLinear", "DequantizeLinear") for n in graph.nodes):
        return False
    annotate(graph)
    done, nodes = False, []
    links = Links(graph)
    for node in graph.nodes:
        made = _absorb(graph, links, node)
        done = done or made is not None
        nodes += [node] if made is None else made
    graph.nodes = nodes
    rounds = compress(graph, dynamic)
    _float_constants(graph)
    sweep(graph)
    return done or rounds


def integer_ports(graph: Graph) -> list[str]:
    """Make inputs that are only quantized, and outputs that are dequantized, integer tensors with their scales.

    Returns the names of the ports that stay float; names stay, and the scales go into the file (TFLite's quantization
    parameters), for callers to round by.
    """
    users, makers = graph.consumers(), graph.producers()
    for name in graph.inputs:
        readers = users.get(name, [])
        stored = {node.out for node in readers}
        if not readers or not all(n.op == "QuantizeLinear" and len(graph.quant[n.out].scale) == 1 for n in readers):
            continue
        if len({graph.quant[out] for out in stored}) == 1 and not stored & set(graph.outputs):
            _rename(graph, dict.fromkeys(stored, name), readers)
    for name in graph.outputs:
        maker = makers.get(name)
        if maker is None or maker.op != "DequantizeLinear" or name in users or maker.inputs[0] in graph.consts:
            continue
        stored_name = maker.inputs[0]
        if stored_name not in (*graph.inputs, *graph.outputs) and len(graph.quant[stored_name].scale) == 1:
            _rename(graph, {stored_name: name}, [maker])
            makers = graph.producers()
    return [name for name in (*graph.inputs, *graph.outputs) if graph.dtypes[name].kind == "f"]


def _rename(graph: Graph, names: dict[str, str], gone: list[Node]) -> None:
    """Call tensors by other names, with their types and scales, and drop the nodes that stood between the two."""
    for old, new in names.items():
        graph.quant[new], graph.dtypes[new] = graph.quant[old], graph.dtypes[old]
    graph.nodes = [node for node in graph.nodes if not any(node is n for n in gone)]
    for node in graph.nodes:
        node.inputs = [names.get(n, n) for n in node.inputs]
        node.outputs = [names.get(n, n) for n in node.outputs]


def annotate(graph: Graph) -> None:
    """Gives every quantized tensor its `Quant`, uint8 ones as int8."""
    ends = set(graph.inputs) | set(graph.outputs)
    for node in graph.nodes:
        if node.op not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        name = node.out if node.op == "QuantizeLinear" else node.inputs[0]
        scale = graph.consts.get(node.inputs[1])
        zero = graph.consts.get(node.inputs[2]) if node.has(2) else np.zeros(1, graph.dtypes[name])
        block = int(node.attrs.get("block_size") or 0)
        if scale is None or zero is None or scale.ndim > 1 + bool(block):
            raise Unsupported(f"{node.op} '{node.name}': its scale or zero point is computed")
        if block and (name not in graph.consts or node.attrs.get("axis", 1) != 0 or zero.any()):
            raise Unsupported(f"{node.op} '{node.name}': TFLite has blocks for constant symmetric matrices only")
        if name in graph.quant:
            continue
        if block:
            graph.quant[name] = Quant(tuple(scale.T.reshape(-1).tolist()), (0,), 0, block=block)
            continue
        zeros = zero.reshape(-1).astype(np.int64)
        if zeros.size < scale.size:
            zeros = np.broadcast_to(zeros, scale.size)
        if graph.dtypes[name] == np.uint8 and name not in ends:
            zeros = zeros - 128
            graph.dtypes[name] = np.dtype(np.int8)
            if name in graph.consts:
                graph.consts[name] = (graph.consts[name].astype(np.int16) - 128).astype(np.int8)
        rank = len(graph.shapes[name])
        axis = node.attrs.get("axis", 1) % rank if scale.size > 1 else 0
        values = tuple(float(s) for s in scale.reshape(-1))
        graph.quant[name] = Quant(values, tuple(int(z) for z in zeros), axis)


def _absorb(graph: Graph, links: Links, node: Node) -> list[Node] | None:
    """The integer form of a node between DQ and Q, or None where it stays as it is."""
    after = _only_quantizer(graph, links, node)
    if after is None:
        return None
    sources = [_source(graph, links, name) for name in node.inputs]  # "" where it isn't a DQ's output
    target = graph.quant[after.out]
    if graph.dtypes[after.out] not in (np.int8, np.int16) or len(target.scale) > 1 or not sources[0]:
        return None
    wide = graph.dtypes[after.out] == np.int16
    if wide and (
        node.op not in _INT16 or any(z for n in (after.out, *sources) if n for z in graph.quant[n].zero_point)
    ):
        return None
    if graph.dtypes[sources[0]] != graph.dtypes[after.out]:
        return None
    if node.op in _WEIGHTED:
        return _weighted(graph, node, sources, after)
    if node.op in _ARITHMETIC and all(sources) and _flat(graph, sources):
        return _finish(graph, node, list(sources), after)
    if node.op in ("Concat", "Max", "Min") and all(sources) and _flat(graph, sources):
        return _joined(graph, node, list(sources), after)
    if not _flat(graph, sources[:1]):
        return None
    inputs = [sources[0], *node.inputs[1:]]
    if node.op in _RESCALES:
        if node.op == "Clip" and _clip_kind(graph, node) is None:
            return None
        return _finish(graph, node, inputs, after)
    if node.op in _FIXED:
        return _finish(graph, node, inputs, after, (_FIXED16 if wide else _FIXED)[node.op])
    zero_pad = node.op == "Pad" and node.attrs.get("mode", "constant") == "constant" and not _pads_value(graph, node)
    if (
        node.op in _MOVES
        or zero_pad
        or (node.op == "AveragePool" and _plain_pool(node))
        or (node.op == "Resize" and node.attrs.get("mode", "nearest") != "cubic")
    ):
        return _finish(graph, node, inputs, after, graph.quant[sources[0]])
    return None


def _only_quantizer(graph: Graph, links: Links, node: Node) -> Node | None:
    """The Q that alone reads the node's only output."""
    outs = [o for o in node.outputs if o]
    if len(outs) != 1 or not node.inputs or not links.alone(outs[0]):
        return None
    user = links.users[outs[0]][0]
    return user if user.op == "QuantizeLinear" and user.inputs[0] == outs[0] else None


def _source(graph: Graph, links: Links, name: str) -> str:
    """The int8, int16 or int32 tensor behind a DQ's output, or an empty name."""
    maker = links.maker(name, "DequantizeLinear") if name else None
    if maker is None or graph.dtypes[maker.inputs[0]] not in (np.int8, np.int16, np.int32):
        return ""
    return maker.inputs[0]


def _flat(graph: Graph, names: list[str]) -> bool:
    """Whether all are int8, or all int16, with one scale for the whole tensor."""
    kinds = {graph.dtypes[n] if n else None for n in names}
    known = kinds in ({np.dtype(np.int8)}, {np.dtype(np.int16)})
    return known and all(len(graph.quant[n].scale) == 1 for n in names)


def _finish(graph: Graph, node: Node, inputs: list[str], after: Node, made: Quant | None = None) -> list[Node]:
    """The node on int8 tensors, its output in Q's scale or in `made`, then requantized."""
    out = after.out
    new = Node(node.op, node.name, inputs, [out], node.attrs)
    after.outputs = [graph.fresh(f"{out}_unused", graph.shapes[out], graph.dtypes[out])]  # the Q is dead now, and swept
    target = graph.quant[after.out] = graph.quant[out]
    if made is None or (made.scale, made.zero_point) == (target.scale, target.zero_point):
        return [new]
    middle = graph.fresh(f"{out}_own_scale", graph.shapes[out], graph.dtypes[out])
    graph.quant[middle], new.outputs = made, [middle]
    return [new, Node("Requantize", f"{node.name}/requantize", [middle], [out])]


def _joined(graph: Graph, node: Node, sources: list[str], after: Node) -> list[Node]:
    """Concat, Max, Min: TFLite wants one scale everywhere, so operands in another one are requantized first."""
    target, before, names = graph.quant[after.out], [], []
    for name in sources:
        if (graph.quant[name].scale, graph.quant[name].zero_point) != (target.scale, target.zero_point):
            moved = graph.fresh(f"{name}_rescaled", graph.shapes[name], graph.dtypes[name])
            graph.quant[moved] = target
            before.append(Node("Requantize", f"{node.name}/requantize", [name], [moved]))
            name = moved
        names.append(name)
    return [*before, *_finish(graph, node, names, after)]


def _weighted(graph: Graph, node: Node, sources: list[str], after: Node) -> list[Node] | None:
    """Conv, ConvTranspose, Gemm and MatMul with constant symmetric weights and a bias of int32, or int64 for int16."""
    x, w = sources[0], sources[1]
    if not _flat(graph, [x]) or not w:
        return None
    if w in graph.consts and graph.dtypes[w] != np.int8:
        return None
    if w not in graph.consts:
        if graph.dtypes[w] != graph.dtypes[x]:
            return None
        return _finish(graph, node, [x, w], after) if node.op == "MatMul" and _flat(graph, [w]) else None
    quant, weights = graph.quant[w], graph.consts[w]
    if any(quant.zero_point) or not _channels_fit(node, weights, quant):
        return None
    units = graph.shapes[after.out][1 if "Conv" in node.op else -1]
    scale = np.broadcast_to(np.asarray(quant.scale) * graph.quant[x].scale[0], units if len(quant.scale) > 1 else 1)
    bias = _bias(graph, node, sources, scale, units, np.int64 if graph.dtypes[x] == np.int16 else np.int32)
    return None if bias is None else _finish(graph, node, [x, w, bias], after)


def _channels_fit(node: Node, weights: np.ndarray, quant: Quant) -> bool:
    """Whether the scales run along the output channels, and nothing else scales the product."""
    if node.op == "Gemm":
        if node.attrs.get("alpha", 1.0) != 1 or node.attrs.get("beta", 1.0) != 1 or node.attrs.get("transA"):
            return False
        outputs = 0 if node.attrs.get("transB") else 1
    elif node.op == "MatMul":
        outputs = 1
        if weights.ndim != 2:
            return False
    else:
        outputs = 0 if node.op == "Conv" else 1
        if node.op == "ConvTranspose" and (
            node.attrs.get("group", 1) != 1 or set(node.attrs.get("dilations", [1])) != {1}
        ):
            return False
        if weights.ndim > 4:
            return False
    return len(quant.scale) == 1 or quant.axis == outputs


def _bias(graph: Graph, node: Node, sources: list[str], scale: np.ndarray, units: int, dtype: type) -> str | None:
    """A bias constant with scale input * weight; None when the bias isn't constant."""
    if not node.has(2):
        value = np.zeros(units, np.int32)
    elif sources[2]:
        stored = graph.consts.get(sources[2])
        if stored is None:
            return None
        own = graph.quant[sources[2]]
        real = (stored.reshape(-1).astype(np.float64) - np.asarray(own.zero_point)) * np.asarray(own.scale)
        value = np.rint(real / scale)
    else:
        stored = graph.consts.get(node.inputs[2])
        if stored is None:
            return None
        value = np.rint(stored.reshape(-1).astype(np.float64) / scale)
    value = np.broadcast_to(np.clip(value, -(2**31), 2**31 - 1), units).astype(dtype)
    name = graph.constant(f"{node.name}_bias", value)
    graph.quant[name] = Quant(tuple(float(s) for s in scale), (0,) * scale.size, 0)
    return name


def _plain_pool(node: Node) -> bool:
    if any(node.attrs.get("pads", [])) or node.attrs.get("ceil_mode"):
        return False
    return node.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "VALID", "")


def _clip_kind(graph: Graph, node: Node) -> tuple[float, float] | None:
    limits = limits_of(graph, node)
    return limits if limits in ((0.0, float("inf")), (0.0, 6.0), (-1.0, 1.0)) else None


def _pads_value(graph: Graph, node: Node) -> bool:
    """Whether a Pad fills with anything but zero."""
    if node.has(2):
        return graph.scalar(node.inputs[2]) != 0
    return node.attrs.get("value", 0.0) != 0


def _float_constants(graph: Graph) -> None:
    """DequantizeLinear of a constant that float operators still read."""
    kept = []
    for node in graph.nodes:
        value = graph.consts.get(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if value is None:
            kept.append(node)
            continue
        graph.consts[node.out] = unpacked(value, graph.quant[node.inputs[0]])
        graph.dtypes[node.out] = np.dtype(np.float32)
    graph.nodes = kept
