"""What a Keras file says it holds, read without loading it."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, first_line

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"


def sniff(path: str) -> str:
    """`"keras"` (zip) or `"h5"` (HDF5), told by the first bytes; LeptonError for anything else."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise LeptonError(f"cannot read '{path}': {error.strerror or error}") from error
    if head == HDF5_MAGIC:
        return "h5"
    if head[:4] == b"PK\x03\x04":
        return "keras"
    raise LeptonError(
        f"'{path}' is neither a .keras archive nor an HDF5 file", hint="save it again with model.save('model.keras')"
    )


def read_config(path: str) -> tuple[dict[str, Any], str]:
    """The model's config and the Keras version that wrote it, read without loading the model.

    Raises LeptonError for a truncated or damaged file, and for one that holds weights only.
    """
    if sniff(path) == "h5":
        return _read_h5_config(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            if damaged:
                raise LeptonError(f"'{path}' is damaged: '{damaged}' fails its checksum", hint="copy the file again")
            config = json.loads(archive.read("config.json"))
            names = archive.namelist()
            meta = json.loads(archive.read("metadata.json")) if "metadata.json" in names else {}
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, RuntimeError, ValueError) as error:
        raise LeptonError(
            f"'{path}' is not a complete .keras archive: {first_line(error)}", hint="the file may be cut short"
        ) from error
    if not isinstance(config, dict):
        raise LeptonError(f"'{path}' holds a config.json that describes no model")
    return config, str(meta.get("keras_version", ""))


def _read_h5_config(path: str) -> tuple[dict[str, Any], str]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            raw, version = file.attrs.get("model_config"), file.attrs.get("keras_version", "")
            has_weights = "model_weights" in file
    except (OSError, RuntimeError, KeyError) as error:
        raise LeptonError(
            f"'{path}' is a damaged or truncated HDF5 file: {first_line(error)}", hint="copy or download it again"
        ) from error
    if raw is None or not has_weights:
        raise LeptonError(
            f"'{path}' holds no Keras model (weights only, or another kind of HDF5 file)",
            hint="save the whole model: model.save('model.keras')",
        )
    try:
        config = json.loads(raw.decode("utf-8") if isinstance(raw, bytes) else str(raw))
    except ValueError as error:
        raise LeptonError(f"'{path}' holds a model config that is not JSON: {first_line(error)}") from error
    return config, version.decode() if isinstance(version, bytes) else str(version)
