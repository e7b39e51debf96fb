"""Small ONNX nets with the structures that quantization has to get right; weights come from a seed."""

from __future__ import annotations

import numpy as np


def model(nodes, inputs, outputs, consts, opset=17):
    """A checked ModelProto; `inputs` and `outputs` are {name: shape} of float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    ports = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in p.items()] for p in (inputs, outputs)]
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in consts.items()]
    graph = helper.make_graph(nodes, "net", *ports, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def inverted_residual(path, seed=0, clip=6.0, size=8):
    """conv, then an expanding, depthwise and projecting block with a residual sum, pool and dense; Clip or Relu."""
    import onnx
    from onnx import helper

    rng = np.random.default_rng(seed)

    def normal(*shape):
        return (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    uneven = np.geomspace(0.05, 3, 24).astype(np.float32)[:, None, None, None]
    consts = {
        "stem.w": normal(8, 3, 3, 3), "stem.b": normal(8, 1)[:, 0], "up.w": normal(24, 8, 1, 1) * uneven * 3,
        "up.b": normal(24, 1)[:, 0], "dw.w": normal(24, 1, 3, 3), "dw.b": normal(24, 1)[:, 0],
        "down.w": normal(8, 24, 1, 1), "down.b": normal(8, 1)[:, 0], "head.w": normal(16, 8, 1, 1),
        "head.b": normal(16, 1)[:, 0], "fc.w": normal(16, 5), "fc.b": normal(5, 1)[:, 0],
        "zero": np.float32(0), "six": np.float32(clip),
    }  # fmt: skip

    def conv(x, name, y, **kw):
        return helper.make_node("Conv", [x, f"{name}.w", f"{name}.b"], [y], **kw)

    def act(x, y):
        return (
            helper.make_node("Clip", [x, "zero", "six"], [y])
            if np.isfinite(clip)
            else helper.make_node("Relu", [x], [y])
        )

    nodes = [
        conv("x", "stem", "s", pads=[1, 1, 1, 1]),
        conv("s", "up", "u", kernel_shape=[1, 1]), act("u", "ua"),
        conv("ua", "dw", "d", pads=[1, 1, 1, 1], group=24), act("d", "da"),
        conv("da", "down", "p", kernel_shape=[1, 1]),
        helper.make_node("Add", ["s", "p"], ["sum"]),
        conv("sum", "head", "h", kernel_shape=[1, 1]), act("h", "ha"),
        helper.make_node("GlobalAveragePool", ["ha"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "fc.w", "fc.b"], ["y"]),
    ]  # fmt: skip
    if not np.isfinite(clip):
        consts = {k: v for k, v in consts.items() if k not in ("zero", "six")}
    onnx.save(model(nodes, {"x": [1, 3, size, size]}, {"y": [1, 5]}, consts), path)
    return images(20, seed, size)


def images(count, seed=0, size=8):
    """Samples {x: [1, 3, size, size]}."""
    rng = np.random.default_rng(seed + 1000)
    return [{"x": rng.normal(size=(1, 3, size, size)).astype(np.float32)} for _ in range(count)]


def attention(path, seed=0, length=6, width=16):
    """A pre-norm and a post-norm block of attention and GELU, with outlier channels."""
    import onnx
    from onnx import helper

    rng = np.random.default_rng(seed)
    consts: dict[str, np.ndarray] = {"half": np.float32(0.5), "one": np.float32(1), "root2": np.float32(2**0.5)}
    consts["t"] = np.float32(1 / np.sqrt(width))
    nodes = []

    def dense(x, y, a, b):
        consts[f"{y}.w"] = (rng.normal(size=(a, b)) / np.sqrt(a)).astype(np.float32)
        consts[f"{y}.b"] = (rng.normal(size=b) * 0.1).astype(np.float32)
        nodes.append(helper.make_node("MatMul", [x, f"{y}.w"], [f"{y}.m"]))
        nodes.append(helper.make_node("Add", [f"{y}.m", f"{y}.b"], [y]))

    def norm(x, y):
        gamma = np.ones(width, np.float32)
        gamma[::7] = 12
        consts[f"{y}.g"], consts[f"{y}.z"] = gamma, (rng.normal(size=width) * 0.1).astype(np.float32)
        nodes.append(helper.make_node("LayerNormalization", [x, f"{y}.g", f"{y}.z"], [y], axis=-1))

    def op(kind, inputs, y, **kw):
        nodes.append(helper.make_node(kind, inputs, [y], **kw))

    norm("x", "n0")
    for name in "qkv":
        dense("n0", name, width, width)
    op("Transpose", ["k"], "kt", perm=[0, 2, 1])
    op("MatMul", ["q", "kt"], "qk")
    op("Mul", ["qk", "t"], "qks")
    op("Softmax", ["qks"], "p", axis=-1)
    op("MatMul", ["p", "v"], "c")
    dense("c", "o", width, width)
    op("Add", ["o", "x"], "r")
    norm("r", "n1")
    dense("n1", "f", width, 2 * width)
    op("Div", ["f", "root2"], "e0")
    op("Erf", ["e0"], "e1")
    op("Add", ["e1", "one"], "e2")
    op("Mul", ["f", "e2"], "e3")
    op("Mul", ["e3", "half"], "e")
    dense("e", "w", 2 * width, width)
    op("Add", ["w", "n1"], "s")
    norm("s", "y")
    onnx.save(model(nodes, {"x": [1, length, width]}, {"y": [1, length, width]}, consts), path)
    rng = np.random.default_rng(seed + 1000)
    return [{"x": rng.normal(size=(1, length, width)).astype(np.float32)} for _ in range(16)]
