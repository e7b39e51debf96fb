"""A net whose constants are PyTorch parameters: run on batches of samples, differentiated, written back by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lepton_edge.errors import LeptonError
from lepton_edge.gradients import ops_layers, ops_moves, ops_values
from lepton_edge.gradients.call import Call
from lepton_edge.quant.net import Net, from_proto, to_proto

Gate = tuple[str, int]
SHAPES = ("Shape", "Size")  # the same for all samples
FIXED = 4096  # elements of a constant that is read as a list


@dataclass
class Graph:
    """`values` are all constants by name, `params` those of them that can be trained (they require gradients).

    `takes` and `gives` are names of inputs and outputs; tensors keep their names in the net.
    """

    calls: list[tuple[Any, Call, tuple[str, ...], tuple[str, ...]]]
    values: dict[str, Any]
    params: dict[str, Any]
    takes: list[str]
    gives: list[str]
    device: str = "cpu"
    frees: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def one(self, feeds: Mapping[str, Any], fetch: Sequence[str], gates: Mapping[Gate, Any] = {}) -> tuple[Any, ...]:
        """The tensors `fetch` for one sample, whose arrays are as the model takes them.

        `gates` are factors [channels] of what nodes, by their first output, read along an axis of their first input.
        """
        known = {**self.values, **self.params, **feeds}
        wanted, left = set(fetch), set(fetch) - known.keys()
        gated: dict[str, list[tuple[int, Any]]] = {}
        for (node, axis), gate in gates.items():
            gated.setdefault(node, []).append((axis, gate))
        for k, (op, call, ins, outs) in enumerate(self.calls):
            if not left:
                break
            xs: list[Any] = [known[name] if name else None for name in ins]
            for axis, gate in gated.get(outs[0], ()):
                sizes = [1] * xs[0].dim()
                sizes[axis] = -1
                xs[0] = xs[0] * gate.reshape(sizes)
            made = op(call, *xs)
            for name, value in zip(outs, made if isinstance(made, tuple | list) else (made,), strict=False):
                known[name] = value
                left.discard(name)
            for name in self.frees[k]:
                if name not in wanted:
                    known.pop(name, None)
        return tuple(known[name] for name in fetch)

    def batch(self, feeds: Mapping[str, Any], fetch: Sequence[str], gates: Mapping[Gate, Any] = {}) -> tuple[Any, ...]:
        """The tensors `fetch` [samples, ...] for samples [samples, ...] that the model takes one at a time, with gates
        [samples, channels].

        The axis of samples is not the model's own: sizes that are written into the graph stay right.
        """
        import torch

        def of(arrays: dict[str, Any], factors: dict[Gate, Any]) -> tuple[Any, ...]:
            return self.one(arrays, fetch, factors)

        return torch.func.vmap(of)(dict(feeds), dict(gates))

    def by_operator(
        self,
        feeds: Mapping[str, Any],
        fetch: Sequence[str],
        seen: Callable[[str, Any], Any],
        params: Mapping[str, Any] = {},
    ) -> list[Any]:
        """As batch(), operator by operator, so that `seen` sees what each makes of all samples: it gets the name of
        the operator's first output and its value [samples, ...], and gives what is to stand in its place. `params`
        stand in the place of the graph's own."""
        import torch

        known, batched = {**self.values, **self.params, **params, **feeds}, set(feeds)
        wanted, left = set(fetch), set(fetch) - known.keys()
        for k, (op, call, ins, outs) in enumerate(self.calls):
            if not left:
                break
            spread = [port for port, name in enumerate(ins) if name in batched]
            if call.op in SHAPES:
                made, spread = op(call, *[known[n][0] if n in batched else known[n] for n in ins]), []
            elif spread:
                made = torch.func.vmap(_filled(op, call, [known[n] if n else None for n in ins], spread))(
                    *[known[ins[port]] for port in spread]
                )
            else:
                made = op(call, *[known[name] if name else None for name in ins])
            for port, (name, value) in enumerate(
                zip(outs, made if isinstance(made, tuple | list) else (made,), strict=False)
            ):
                known[name] = seen(name, value) if spread and port == 0 else value
                left.discard(name)
                if spread:
                    batched.add(name)
            for name in self.frees[k]:
                if name not in wanted:
                    known.pop(name, None)
        return [
            known[n] if n in batched else known[n].expand(len(next(iter(feeds.values()))), *known[n].shape)
            for n in fetch
        ]

    def written(self, net: Net) -> Net:
        """A copy of the net that the graph was made of, with the values that its parameters now have."""
        made = net.copy()
        for name, value in self.params.items():
            made.consts[name] = value.detach().cpu().numpy().astype(net.consts[name].dtype)
        return made


def _filled(op: Callable, call: Call, xs: list[Any], ports: list[int]) -> Callable:
    """The operator as a function of its inputs at these ports."""

    def of(*given: Any) -> Any:
        for port, value in zip(ports, given, strict=True):
            xs[port] = value
        return op(call, *xs)

    return of


def stacked(samples: Iterable[Mapping[str, np.ndarray]], device: str = "cpu") -> dict[str, Any]:
    """Samples as tensors [samples, ...] by input name, half precision as float32."""
    import torch

    rows = list(samples)
    made = {}
    for name in rows[0]:
        array = np.stack([row[name] for row in rows])
        array = array.astype(np.float32) if array.dtype in (np.float16, np.float64) else array
        made[name] = torch.from_numpy(array).to(device)
    return made


def graph_of(net: Net, model: str, device: str = "cpu") -> Graph:
    """The differentiable graph of a prepared net; `model` is its name for errors.

    Raises LeptonError naming the operators that have no counterpart here.
    """
    import torch

    operators = {**ops_values.table(), **ops_layers.table(), **ops_moves.table()}
    whole = expanded(net, set(operators))
    lacking = sorted({_operator(n) for n in whole.nodes if _operator(n) not in operators})
    if lacking:
        raise LeptonError(
            f"{model}: {', '.join(lacking)} cannot be differentiated here, so the model cannot be trained",
            "prune without training (leave --epochs out), or train it in the framework it was made with",
        )
    trained = trainable(net)
    values, params = {}, {}
    for name, array in whole.consts.items():
        array = array.astype(np.float32) if array.dtype.kind == "f" else array
        tensor = torch.from_numpy(np.array(array)).to(device)
        if name in trained:
            params[name] = tensor.requires_grad_(True)
        else:
            values[name] = tensor
    calls = []
    for node in whole.nodes:
        call = Call(node.op_type, node.output[0], _attributes(node), _opset(whole), len([o for o in node.output if o]))
        call.fixed = {
            k: whole.consts[name].tolist()
            for k, name in enumerate(node.input)
            if name in whole.consts and whole.consts[name].size <= FIXED and whole.consts[name].ndim <= 1
        }
        calls.append((operators[node.op_type], call, tuple(node.input), tuple(node.output)))
    graph = Graph(calls, values, params, list(net.inputs), list(net.outputs), device)
    graph.frees = _last_uses(calls, {*values, *params, *net.inputs})
    return graph


def _operator(node: Any) -> str:
    subgraph = any(a.HasField("g") or a.graphs for a in node.attribute)
    own = node.domain in ("", "ai.onnx") and not subgraph
    return node.op_type if own else f"{node.domain or 'ai.onnx'}.{node.op_type}"


def _opset(net: Net) -> int:
    return next((o.version for o in net.base.opset_import if o.domain in ("", "ai.onnx")), 0)


def _attributes(node: Any) -> dict[str, Any]:
    from lepton_edge.tflite_writer.load import attribute

    return {a.name: attribute(a) for a in node.attribute}


def _last_uses(calls: list[tuple], kept: set[str]) -> dict[int, tuple[str, ...]]:
    """By call, the tensors that nothing reads after it."""
    last: dict[str, int] = {}
    for k, (_, _, ins, outs) in enumerate(calls):
        for name in (*ins, *outs):
            if name and name not in kept:
                last[name] = k
    freed: dict[int, list[str]] = {k: [] for k in range(len(calls))}
    for name, k in last.items():
        freed[k].append(name)
    return {k: tuple(names) for k, names in freed.items()}


def expanded(net: Net, known: set[str]) -> Net:
    """The net with the operators that ONNX defines by others, and `known` does not hold, written out."""
    from lepton_edge.tflite_writer import load

    if all(node.op_type in known for node in net.nodes):
        return net
    made = from_proto(load.expand(to_proto(net), known))
    made.inputs, made.outputs = net.inputs, net.outputs
    return made


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN", "Einsum")
SCALES = (
    "LayerNormalization",
    "RMSNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "BatchNormalization",
    "PRelu",
)
SUMS = ("Add", "Sub", "Mul", "Div")


def trainable(net: Net) -> list[str]:
    """Names of the constants that training changes: weights and biases of layers, scales of normalizations, and
    constant vectors that are added to or multiplied with what a layer has made.

    Not those of what comes before the first layer (it scales the samples), running statistics of batch norms, tables of
    embeddings, and single numbers.
    """
    behind: set[str] = set()
    found: dict[str, None] = {}
    for node in net.nodes:
        held = [n for n in node.input if n in net.consts and net.consts[n].dtype.kind == "f" and net.consts[n].size > 1]
        if node.op_type in LAYERS and any(name in held for name in node.input):
            taken = held[:4] if node.op_type in ("LSTM", "GRU", "RNN") else held
            behind.update(node.output)
        elif node.op_type in SCALES:
            taken = [n for n in node.input[1:3] if n in held]
            behind.update(node.output)
        elif node.op_type in SUMS and any(name in behind for name in node.input):
            taken = held
        else:
            taken = []
        found.update(dict.fromkeys(taken))
        if any(name in behind for name in node.input):
            behind.update(node.output)
    return list(found)
