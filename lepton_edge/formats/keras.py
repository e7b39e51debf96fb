"""Keras 3 model (.keras)."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.formats import zip_names

SUFFIX = ".keras"


def recognise(path: Path, head: bytes) -> bool:
    """A zip archive with config.json and metadata.json."""
    names = zip_names(path, head)
    return "config.json" in names and "metadata.json" in names
