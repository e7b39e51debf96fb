"""ncnn (.param with the .bin of its weights)."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.errors import LeptonError

# As pnnx names them: model.ncnn.param and model.ncnn.bin, which is no name for the weights of an OpenVINO IR.
SUFFIX = ".ncnn.param"
FOLLOW = (".bin",)


def recognise(path: Path, head: bytes) -> bool:
    """The text form of a .param file, whose first line is the magic number 7767517 (ncnn's Net::load_param)."""
    return head.split(b"\n", 1)[0].strip() == b"7767517"


def files(path: Path) -> list[Path]:
    """The .param and the .bin of its weights. Raises LeptonError when the latter is missing."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise LeptonError(
            f"{path}: its weights {weights.name} are missing beside it",
            f"copy {weights.name} into the same folder",
        )
    return [path, weights]
