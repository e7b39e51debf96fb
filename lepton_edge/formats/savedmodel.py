"""TensorFlow SavedModel folder."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ""


def recognise(path: Path, head: bytes) -> bool:
    """A folder with saved_model.pb."""
    return path.is_dir() and (path / "saved_model.pb").is_file()


def files(path: Path) -> list[Path]:
    """The whole tree."""
    return sorted(p for p in path.rglob("*") if p.is_file())
