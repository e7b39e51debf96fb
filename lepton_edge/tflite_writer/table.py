"""Every ONNX operator the writer knows: name -> function(emitter, node)."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from lepton_edge.tflite_writer.emit import Emitter
from lepton_edge.tflite_writer.graph import Node


def operators() -> dict[str, Callable[[Emitter, Node], None]]:
    """The tables of all ops_*.py files beside this one, joined."""
    table: dict[str, Callable[[Emitter, Node], None]] = {}
    for path in sorted(Path(__file__).parent.glob("ops_*.py")):
        table.update(import_module(f"lepton_edge.tflite_writer.{path.stem}").OPS)
    return table
