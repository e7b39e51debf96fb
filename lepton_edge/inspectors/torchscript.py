"""TorchScript archives (.pt), checked as for running, then read in PyTorch without running them."""

from __future__ import annotations

from typing import Any

from lepton_edge.inspectors._common import Weights, assemble, count_nonzeros, damaged, layer, spec

REQUIRES = ("torch>=2.9",)
EXTRA = "torch"


def inspect(path: str) -> dict[str, Any]:
    """Operators and weights; an archive holds no sizes, so what its layers compute cannot be counted."""
    import torch

    from lepton_edge.runtimes.torchscript import _nodes, input_specs, load_module, output_names

    try:
        module = load_module(path)
        inputs, outputs = input_specs(module), output_names(module)
    except ValueError as problem:
        raise damaged(path, "TorchScript", problem) from problem
    weights = Weights()
    statistics = {n for n, _ in module.named_buffers()}
    for name, value in module.state_dict().items():
        array = value.detach().to(torch.float32).numpy() if value.is_floating_point() else value.numpy()
        weights.add(value.numel(), value.numel() * value.element_size(), count_nonzeros(array), name in statistics)
    layers = [
        layer(f"node_{k}", node.kind().removeprefix("aten::"), macs=None)
        for k, node in enumerate(_nodes(module.inlined_graph))
        if node.kind().startswith("aten::")
    ]
    return assemble(
        format="torchscript",
        producer="PyTorch",
        inputs=[spec(i["name"], i["shape"], i["dtype"]) for i in inputs],
        outputs=[spec(name, None, "float32") for name in outputs],
        layers=layers,
        weights=weights,
        versions={},
        notes=["the archive does not say the sizes of its inputs"],
    )
