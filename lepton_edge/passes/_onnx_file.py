"""Writing an ONNX file that a pass has made."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError


def put(net: Any, dst: str) -> None:
    """Write a net as an ONNX file, aside first."""
    from lepton_edge.quant.net import to_proto

    target = Path(dst)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".made-") as folder:
        aside = Path(folder) / target.name
        save(to_proto(net), aside)
        aside.replace(target)


def save(model: Any, path: Path) -> None:
    """Write a ModelProto once ONNX's checker and ONNX Runtime take it."""
    import onnx

    from lepton_edge.quant.tap import LARGE

    if model.ByteSize() >= LARGE:
        raise LeptonError(f"its new form takes {model.ByteSize() / 1e9:.1f} GB, more than one ONNX file holds", "")
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
