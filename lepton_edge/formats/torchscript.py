"""TorchScript archive (.pt)."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.formats import zip_names

SUFFIX = ".pt"


def recognise(path: Path, head: bytes) -> bool:
    """A zip archive of torch.jit.save: code/ and constants.pkl below one folder (pytorch/torch/csrc/jit/docs)."""
    tops = {n.split("/", 1)[-1] for n in zip_names(path, head)}
    return "constants.pkl" in tops and any(n.startswith("code/") for n in tops)
