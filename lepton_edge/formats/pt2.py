"""PyTorch exported program (.pt2)."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.errors import LeptonError
from lepton_edge.formats import zip_names

SUFFIX = ".pt2"


def recognise(path: Path, head: bytes) -> bool:
    """A zip archive of torch.export.save. A pickled checkpoint is refused by name."""
    names = zip_names(path, head)
    tops = {n.split("/", 1)[-1] for n in names}
    if "archive_format" in tops or any(
        "serialized_exported_program" in n or n.endswith("models/model.json") for n in names
    ):
        return True
    fix = "export it with torch.export.export and torch.export.save (.pt2), or to ONNX"
    if "data.pkl" in tops and "constants.pkl" not in tops:
        raise LeptonError(f"{path}: a pickled PyTorch checkpoint; it is never loaded, for a pickle can run code", fix)
    return False
