"""OpenVINO IR (.xml with its .bin)."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.errors import LeptonError

SUFFIX = ".xml"
FOLLOW = (".bin",)


def recognise(path: Path, head: bytes) -> bool:
    """XML whose root element is <net>."""
    return head.lstrip().startswith((b"<?xml", b"<net")) and b"<net" in head


def files(path: Path) -> list[Path]:
    """The .xml and the .bin of its weights. Raises LeptonError when the latter is missing."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise LeptonError(
            f"{path}: its weights {weights.name} are missing beside it",
            f"copy {weights.name} into the same folder",
        )
    return [path, weights]
