"""What removed channels brought, folded into the weights of those that stay.

At every position a removed channel is predicted from the kept ones of the same tensor, x_r = A x_k + b by least squares
over the samples; W_r A goes to the weights of the kept channels, at every tap of a kernel alike, W_r b to the bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_edge.quant.net import Net, attribute
from lepton_edge.quant.prepare import set_bias
from lepton_edge.slim.moments import Place, Stats
from lepton_edge.slim.trace import Consumer, Trace


def folded(t: Trace, lost: np.ndarray, stats: Mapping[Place, Stats]) -> Net:
    """A copy of the traced net whose readers no longer need the channels `lost` (bool [channels]), still in place."""
    made = t.net.copy()
    for consumer in t.consumers:
        gone = lost[consumer.channels]
        if gone.any() and (consumer.x, consumer.axis) in stats:
            _fold(made, consumer, gone, stats[consumer.x, consumer.axis])
    return made


def _fold(net: Net, consumer: Consumer, gone: np.ndarray, stats: Stats) -> None:
    node = net.nodes[consumer.node]
    kept = ~gone
    weight = net.consts[node.input[1]]
    rows = np.moveaxis(weight, consumer.weight_axis, 0).astype(np.float64)
    biased = bias_of(net, node) is not None or node.op_type != "MatMul"
    spread = stats.covariance if biased else stats.second
    a = np.linalg.solve(spread[np.ix_(kept, kept)], spread[np.ix_(kept, gone)])  # [kept, lost]
    if biased:
        offset = stats.mean[gone] - stats.mean[kept] @ a
        summed = rows[gone].sum(tuple(range(2, weight.ndim)))
        if node.op_type == "ConvTranspose":  # an output position sees one tap in so many
            summed = summed / np.prod(attribute(node, "strides", [1]))
        add_bias(net, node, np.tensordot(offset, summed, 1))
    rows[kept] += np.tensordot(a, rows[gone], 1)
    rows[gone] = 0.0
    put(net, node, 1, np.moveaxis(rows, 0, consumer.weight_axis).astype(weight.dtype))


def bias_of(net: Net, node: Any) -> tuple[Any, int] | None:
    """The node and port that hold a layer's constant bias: its own, or, of a MatMul, the sum that alone follows it."""
    if node.op_type != "MatMul":
        return (node, 2) if len(node.input) > 2 and node.input[2] in net.consts else None
    user = net.alone(node.output[0])
    if user is None or user.op_type != "Add":
        return None
    port = 1 if user.input[0] == node.output[0] else 0
    value = net.consts.get(user.input[port])
    wide = net.consts[node.input[1]].shape[-1]
    return (user, port) if value is not None and value.size == wide == value.shape[-1] else None


def add_bias(net: Net, node: Any, more: np.ndarray) -> None:
    """Add `more` [outputs] to a layer's bias, which Conv, ConvTranspose and Gemm are given where they have none."""
    where = bias_of(net, node)
    if where is None:
        set_bias(net, node, more.astype(net.consts[node.input[1]].dtype))
        return
    holder, port = where
    value = net.consts[holder.input[port]]
    if value.size != more.size:  # one number for all outputs
        value = np.broadcast_to(value, more.shape)
    put(net, holder, port, (value + more.reshape(value.shape)).astype(value.dtype))


def put(net: Net, node: Any, port: int, value: np.ndarray) -> None:
    """Give an input of a node a constant of its own."""
    name = node.input[port]
    if not net.private(name):
        node.input[port] = name = net.fresh(f"{name}_own")
    net.consts[name] = value
    net.link()
