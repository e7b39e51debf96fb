"""Random nets of the structures that channels have to be followed through; weights come from a seed."""

from __future__ import annotations

import numpy as np
from nets import model


def pictures(count, seed=0):
    """Coarse patterns with a little noise, [count, 3, 8, 8]."""
    rng = np.random.default_rng(seed)
    coarse = np.repeat(np.repeat(rng.normal(size=(count, 3, 3, 3)), 3, 2), 3, 3)[..., :8, :8]
    return (coarse + rng.normal(size=(count, 3, 8, 8)) * 0.1).astype(np.float32)


class Builder:
    """Nodes and constants of a net that grows at its end."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.consts = [], {}

    def op(self, kind, *inputs, outs=1, **attributes):
        """Append a node; the name of its output, or a list of them."""
        from onnx import helper

        names = [f"t{len(self.nodes)}_{k}" for k in range(outs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names if outs > 1 else names[0]

    def const(self, value):
        name = f"c{len(self.consts)}"
        self.consts[name] = np.asarray(value)
        return name

    def normal(self, *shape, scale=1.0):
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        return self.const((self.rng.normal(size=shape) * scale / np.sqrt(fan)).astype(np.float32))

    def conv(self, x, ins, outs, kernel=1, group=1):
        w, b = self.normal(outs, ins // group, kernel, kernel, scale=2), self.normal(outs, scale=0.3)
        return self.op("Conv", x, w, b, group=group, pads=[kernel // 2] * 4)

    def dense(self, x, ins, outs):
        return self.op("Add", self.op("MatMul", x, self.normal(ins, outs)), self.normal(outs, scale=0.1))


def residual(b, x, c):
    """x + conv(act(conv(x)))."""
    return b.op("Add", x, b.conv(b.op("Relu", b.conv(x, c, 2 * c, 3)), 2 * c, c)), c


def bottleneck(b, x, c):
    """Expand, depthwise, project, with a residual sum."""
    hidden = b.op("Clip", b.conv(x, c, 2 * c), b.const(np.float32(0)), b.const(np.float32(6)))
    hidden = b.op("HardSwish", b.conv(hidden, 2 * c, 2 * c, 3, group=2 * c))
    return b.op("Add", b.conv(hidden, 2 * c, c), x), c


def dense_block(b, x, c):
    """A concatenation with what is made of it, twice."""
    one = b.op("Concat", x, b.op("Relu", b.conv(x, c, 8, 3)), axis=1)
    return b.op("Concat", one, b.conv(b.op("Sigmoid", one), c + 8, 8), axis=1), c + 16


def excite(b, x, c):
    """Squeeze and excitation."""
    pooled = b.op("ReduceMean", x, b.const(np.array([2, 3], np.int64)), keepdims=1)
    gate = b.op("Sigmoid", b.conv(b.op("Relu", b.conv(pooled, c, 8)), 8, c))
    return b.op("Mul", x, gate), c


def halves(b, x, c):
    """Channels split in two, one half worked on, and shuffled."""
    left, right = b.op("Split", x, outs=2, axis=1, num_outputs=2)
    y = b.op("Concat", left, b.conv(right, c // 2, c // 2, 3), axis=1)
    y = b.op("Reshape", y, b.const(np.array([1, 2, c // 2, 8, 8], np.int64)))
    y = b.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    return b.op("Reshape", y, b.const(np.array([1, -1, 8, 8], np.int64))), c


def grouped(b, x, c):
    """A convolution in groups between two plain ones."""
    y = b.op("Relu", b.conv(b.conv(x, c, 16), 16, 32, 3, group=int(b.rng.choice([2, 4, 8]))))
    return b.conv(y, 32, c), c


def sliced(b, x, c):
    """A run of channels taken out, normalized, scaled, and put back behind the rest."""
    ends = [b.const(np.array([v], np.int64)) for v in (0, 8, np.iinfo(np.int64).max, 1)]
    head, tail = b.op("Slice", x, *ends[:2], ends[3]), b.op("Slice", x, ends[1], ends[2], ends[3])
    params = [b.const(np.abs(b.rng.normal(size=8)).astype(np.float32) + 0.5) for _ in range(4)]
    head = b.op("Mul", b.op("BatchNormalization", head, *params), b.normal(8, 1, 1))
    return b.op("Concat", tail, b.op("PRelu", head, b.normal(8, 1, 1)), axis=1), c


def around(b, x, c):
    """Through channels last and back, and up and down in size."""
    y = b.op("Transpose", x, perm=[0, 2, 3, 1])
    y = b.op("Transpose", b.dense(b.op("Gelu", y, approximate="none"), c, c), perm=[0, 3, 1, 2])
    y = b.op("Resize", y, "", b.const(np.array([1, 1, 2, 2], np.float32)), mode="nearest")
    return b.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), c


BLOCKS = (residual, bottleneck, dense_block, excite, halves, grouped, sliced, around)


def random_net(seed, blocks):
    """A stem, `blocks` (indices into BLOCKS), and a head of pool or flatten, and Gemm; the ModelProto."""
    b = Builder(seed)
    x, c = b.conv("x", 3, 16, 3), 16
    for k in blocks:
        x, c = BLOCKS[k](b, x, c)
    if seed % 2:
        flat, wide = b.op("Flatten", b.op("GlobalAveragePool", x)), c
    else:
        flat, wide = b.op("Reshape", x, b.const(np.array([1, c * 64], np.int64))), c * 64
    b.op("Gemm", flat, b.normal(5, wide), b.normal(5), transB=1)
    b.nodes[-1].output[0] = "y"
    return model(b.nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 5]}, b.consts, opset=20)


def encoder(seed=0, length=6, heads=4, size=8, packed=False):
    """A block of attention with heads and one of two dense layers, with residual sums and norms; the ModelProto."""
    b, wide = Builder(seed), heads * size
    if packed:  # queries, keys and values from one layer
        qkv = b.op("Reshape", b.dense("x", wide, 3 * wide), b.const(np.array([1, length, 3, heads, size], np.int64)))
        qkv = b.op("Transpose", qkv, perm=[2, 0, 3, 1, 4])
        q, k, v = (b.op("Gather", qkv, b.const(np.int64(n)), axis=0) for n in range(3))
    else:
        shape = b.const(np.array([1, length, heads, -1], np.int64))
        q, k, v = (
            b.op("Transpose", b.op("Reshape", b.dense("x", wide, wide), shape), perm=[0, 2, 1, 3]) for _ in range(3)
        )
    scores = b.op("MatMul", b.op("Mul", q, b.const(np.float32(size**-0.5))), b.op("Transpose", k, perm=[0, 1, 3, 2]))
    y = b.op("MatMul", b.op("Softmax", scores, axis=-1), v)
    y = b.op("Reshape", b.op("Transpose", y, perm=[0, 2, 1, 3]), b.const(np.array([1, length, wide], np.int64)))
    y = b.op("Add", b.dense(y, wide, wide), "x")
    y = b.op("LayerNormalization", y, b.normal(wide), b.normal(wide), axis=-1)
    hidden = b.op("Gelu", b.dense(y, wide, 4 * wide), approximate="tanh")
    b.op("Add", b.dense(hidden, 4 * wide, wide), y)
    b.nodes[-1].output[0] = "y"
    return model(b.nodes, {"x": [1, length, wide]}, {"y": [1, length, wide]}, b.consts, opset=20)
