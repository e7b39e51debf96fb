"""From an ONNX file to the `Net` that is quantized: opset raised, constants and BatchNorm folded, means as pools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.quant.net import Net, attribute, from_proto, to_proto

QUANTIZED = {
    "QuantizeLinear", "DequantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv", "DynamicQuantizeLinear",
}  # fmt: skip
OPSET = 17  # what older models are raised to; per-channel QDQ needs 13


def prepare(path: str, least: int = 13) -> Net:
    """Read and tidy a float model; nothing of it changes but in float rounding. Opsets below `least` are raised.

    Raises LeptonError for a file that isn't an ONNX model, one that is quantized already, an opset that cannot be
    raised to one with per-channel quantization, and a model that ONNX Runtime does not accept.
    """
    from lepton_edge.tflite_writer import load

    name = Path(path).name
    model = load.read(path)
    if found := QUANTIZED & {node.op_type for node in model.graph.node}:
        raise LeptonError(f"{name} is quantized already ({min(found)})", "give the float model it was made from")
    _close(model)
    model = load.optimise(_raised(model, name, least))
    net = from_proto(model)
    fold_batchnorm(net)
    means_to_pools(net)
    net = from_proto(to_proto(net))  # drops what is no longer read, and infers shapes anew
    for k, node in enumerate(net.nodes):
        node.name = f"{k}_{node.op_type}"  # unique: a layer is found by it wherever its tensors are renamed
    return net


def _close(model: Any) -> None:
    """Constants that old files also list as inputs are no inputs: nothing that reads them would be folded."""
    held = {item.name for item in model.graph.initializer}
    kept = [port for port in model.graph.input if port.name not in held]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        model.ir_version = max(model.ir_version, 4)


def _raised(model: Any, name: str, least: int) -> Any:
    from onnx import version_converter

    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= least:
        return model
    try:
        return version_converter.convert_version(model, max(OPSET, least))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise LeptonError(
            f"{name}: its opset {opset} has no such quantization and cannot be raised: {reason}",
            f"export the model again with opset {least} or newer",
        ) from error


def fold_batchnorm(net: Net) -> int:
    """BatchNormalization after Conv or ConvTranspose, folded into weights and bias; how many were.

    W' = W * gamma / sqrt(var + eps) per output channel, b' = (b - mean) * that + beta (Jacob et al., "Quantization and
    Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018, section 3.2).
    """
    folded = []
    for node in net.nodes:
        if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
            continue
        if net.alone(node.input[0]) is None or node.input[0] not in net.makers:
            continue
        maker = net.makers[node.input[0]]
        if maker.op_type not in ("Conv", "ConvTranspose"):
            continue
        group = attribute(maker, "group", 1)
        if not net.private(maker.input[1]) or (maker.op_type == "ConvTranspose" and group != 1):
            continue
        if not all(name in net.consts for name in node.input[1:5]):
            continue
        gamma, beta, mean, var = (net.consts[name].astype(np.float64) for name in node.input[1:5])
        factor = gamma / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        weight = net.consts[maker.input[1]]
        axis = 0 if maker.op_type == "Conv" else 1
        shape = [1] * weight.ndim
        shape[axis] = -1
        net.consts[maker.input[1]] = (weight * factor.reshape(shape)).astype(weight.dtype)
        bias = net.consts[maker.input[2]] if len(maker.input) > 2 and maker.input[2] else np.zeros(len(beta))
        set_bias(net, maker, ((bias - mean) * factor + beta).astype(weight.dtype))
        maker.output[0] = node.output[0]
        folded.append(node)
        net.link()
    gone = {id(node) for node in folded}
    net.nodes = [node for node in net.nodes if id(node) not in gone]
    net.link()
    return len(folded)


def set_bias(net: Net, node: Any, bias: np.ndarray) -> None:
    """Give a Conv, ConvTranspose or Gemm its bias [out channels] in a constant of its own."""
    if len(node.input) > 2 and net.private(node.input[2]):
        net.consts[node.input[2]] = bias
        return
    name = net.fresh(f"{node.output[0]}_bias")
    net.consts[name] = bias
    if len(node.input) > 2:
        node.input[2] = name
    else:
        node.input.append(name)
    net.link()


def means_to_pools(net: Net) -> None:
    """Means over whole images, ReduceMean or AveragePool, as GlobalAveragePool: runtimes have integer kernels for it
    that rescale, which TFLite's for windows do not."""
    from onnx import helper

    nodes = []
    for node in net.nodes:
        if _pools_all(net, node):
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], node.output, name=node.name))
            continue
        axes = attribute(node, "axes") if node.op_type == "ReduceMean" else None
        if node.op_type == "ReduceMean" and axes is None and len(node.input) > 1 and node.input[1] in net.consts:
            axes = net.consts[node.input[1]].tolist()
        if axes is None or len(net.shapes.get(node.input[0], ())) != 4 or {a % 4 for a in axes} != {2, 3}:
            nodes.append(node)
            continue
        if attribute(node, "keepdims", 1):
            nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], node.output, name=node.name))
            continue
        pooled, where = net.fresh(f"{node.output[0]}_pooled"), net.fresh(f"{node.output[0]}_axes")
        net.consts[where] = np.array([2, 3], np.int64)
        nodes.append(helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=node.name))
        nodes.append(helper.make_node("Squeeze", [pooled, where], node.output, name=f"{node.name}_squeeze"))
    net.nodes = nodes
    net.link()


def _pools_all(net: Net, node: Any) -> bool:
    """Whether an AveragePool has one window, the whole image, and nothing around it."""
    if node.op_type != "AveragePool":
        return False
    size, made = (tuple(net.shapes.get(name) or ())[2:] for name in (node.input[0], node.output[0]))
    whole = bool(size) and size == tuple(attribute(node, "kernel_shape", ())) and set(made) == {1}
    return whole and not any(attribute(node, "pads", ()))
