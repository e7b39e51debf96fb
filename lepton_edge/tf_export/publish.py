"""What an export leaves behind: the file, put in place whole, and the step's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lepton_edge.tf_export.check import LOW, LOW_DB
from lepton_edge.tf_export.freeze import Frozen


def publish(
    dst: str, content: bytes, frozen: Frozen, decibels: float, notes: list[str], outputs: list[str] | None = None
) -> dict[str, Any]:
    """Write `content` to `dst` and return the step's result: where its ports come from, and notes.

    `decibels` is the self-check's figure, told where it is low; `outputs` are the names in `dst` where they differ.
    """
    if decibels < LOW_DB:
        notes = [*notes, LOW.format(decibels)]
    write_bytes(dst, content)
    made = outputs or list(frozen.outputs)
    return {
        "inputs": [{"name": port.name, "source": port.name, "perm": None} for port in frozen.inputs],
        "outputs": [{"name": n, "source": s, "perm": None} for n, s in zip(made, frozen.outputs, strict=True)],
        "notes": notes,
    }


def write_bytes(dst: str, content: bytes) -> None:
    """Write a file aside and put it in place whole."""
    path = Path(dst)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part")
    aside.write_bytes(content)
    aside.replace(path)
