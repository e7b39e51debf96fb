"""Branches of residual sums, which a net can do without: what each is made of and what it saves.

Where two paths meet in a sum, either can go if the other still leads from the inputs: the inside of a residual block,
or a shortcut. Veit et al., "Residual Networks Behave Like Ensembles of Relatively Shallow Networks"
(arXiv:1605.06431): such nets stand the loss of a block without training, and less depth is time saved on any hardware.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge.inspectors._onnx_macs import macs_of
from lepton_edge.quant.net import Net, reads

ACTIVATIONS = {"Relu"}  # applied twice they are what they are once


@dataclass(frozen=True)
class Branch:
    """Operand `port` of the sum that makes `y`; `nodes` are the outputs of those that only it needs, `macs` theirs."""

    y: str
    port: int
    nodes: frozenset[str]
    macs: int


def branches(net: Net) -> list[Branch]:
    """What can go, in graph order: it multiplies, and the other operand has the shape of the sum and comes from an
    input by another way."""
    found = []
    known = from_inputs(net)
    for node in net.nodes:
        if node.op_type != "Add" or any(name in net.consts for name in node.input) or len(set(node.input)) < 2:
            continue
        y = node.output[0]
        for port in (0, 1):
            other = node.input[1 - port]
            shape = net.shapes.get(other)
            if shape is None or shape != net.shapes.get(y) or other not in known:
                continue
            nodes = exclusive(net, node, port)
            macs = sum(net_macs(net, n) for n in net.nodes if n.output[0] in nodes)
            if macs:
                found.append(Branch(y, port, nodes, macs))
    return found


def from_inputs(net: Net) -> set[str]:
    """Tensors that depend on an input."""
    known = set(net.inputs)
    for node in net.nodes:
        if any(name in known for name in reads(node)):
            known |= set(node.output)
    return known


def exclusive(net: Net, end: Any, port: int) -> frozenset[str]:
    """First outputs of the nodes that nothing but operand `port` of the node `end` needs."""
    needed: set[str] = set(net.outputs)
    kept: set[str] = set()
    for node in reversed(net.nodes):
        if not needed & set(node.output):
            continue
        kept.add(node.output[0])
        names = reads(node)
        if node.output[0] == end.output[0]:
            names = [name for k, name in enumerate(node.input) if k != port]
        needed |= set(names)
    reached: set[str] = {end.input[port]}
    nodes = set()
    for node in reversed(net.nodes):
        if node.output[0] not in kept and reached & set(node.output):
            nodes.add(node.output[0])
            reached |= set(reads(node))
    return frozenset(nodes)


def net_macs(net: Net, node: Any) -> int:
    """Multiply-accumulates of a node for one sample; 0 where they cannot be known."""
    shapes: dict[str, Any] = {
        name: [1 if d is None else d for d in shape]
        for name in (*node.input, *node.output)
        if (shape := net.shapes.get(name)) is not None
    }
    return macs_of(node, shapes, True) or 0


def without(net: Net, branch: Branch) -> Net:
    """A copy of the net without a branch: readers of the sum read what is left of it."""
    made = net.copy()
    end = made.makers[branch.y]
    left = end.input[1 - branch.port]
    gone = set(branch.nodes) | {branch.y}
    made.nodes = [node for node in made.nodes if node.output[0] not in gone]
    _instead(made, branch.y, left)
    _once(made)
    return made


def _instead(net: Net, old: str, new: str) -> None:
    """Readers of `old` read `new`; an output of the net keeps its name behind an Identity."""
    from onnx import helper

    for node in net.nodes:
        for k, name in enumerate(node.input):
            if name == old:
                node.input[k] = new
    if old in net.outputs:
        net.nodes.append(helper.make_node("Identity", [new], [old], name=f"{old}_identity"))
    net.link()


def _once(net: Net) -> None:
    """An activation that follows itself goes."""
    for node in list(net.nodes):
        maker = net.makers.get(node.input[0]) if node.input else None
        if node.op_type in ACTIVATIONS and maker is not None and maker.op_type == node.op_type:
            net.nodes = [n for n in net.nodes if n is not node]
            _instead(net, node.output[0], node.input[0])


def muted(net: Net, branch: Branch) -> Net:
    """A copy of the net with the branch's operand as zero: as without(), in the same nodes."""
    made = net.copy()
    end = made.makers[branch.y]
    zero = made.fresh(f"{branch.y}_zero")
    made.consts[zero] = np.zeros((), np.float32)
    end.input[branch.port] = zero
    made.link()
    return made
