"""Keras files as models: scanned, then loaded by Keras 3, or by tf_keras where only that can read them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, first_line
from lepton_edge.runtimes.keras import check_weights, mended
from lepton_edge.tf_export.config import read_config, sniff
from lepton_edge.tf_export.scan import scan_config
from lepton_edge.tf_export.source import layers_of


def load_keras(path: str, trust: bool = False) -> tuple[Any, list[str]]:
    """The model of a .keras or .h5 file, uncompiled, and notes on how it was read.

    Keras 3 first (`safe_mode=True`); a file written by Keras 2 that it cannot read goes through tf_keras
    where that is installed. Layers trained in mixed precision compute in float32, as their weights are.
    `trust` lets it run code that the file carries (Lambda layers).
    Raises LeptonError for unsafe, custom, damaged and unsupported models.
    """
    config, version = read_config(path)
    import keras

    def known(name: str) -> bool:
        layers = keras.layers, keras.models, keras.activations
        return any(hasattr(space, name) for space in layers) or name in (
            "Functional", "InputLayer", "TFOpLambda", "SlicingOpLambda",
        )  # fmt: skip

    if not trust:
        scan_config(config, known, path)
        try:
            check_weights(path)
        except ValueError as error:
            raise LeptonError(str(error), hint="the file may be damaged: copy or save it again") from error
    kind = sniff(path)
    notes: list[str] = []
    try:
        with _suffixed(path, f".{kind}") as named, tempfile.TemporaryDirectory() as folder:
            named = (mended(path, folder) if kind == "h5" and not version.startswith("2.") else None) or named
            model = keras.saving.load_model(named, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras lets through whatever rebuilding a layer raises
        if not version.startswith("2."):
            raise LeptonError(
                f"Keras {keras.__version__} cannot load '{path}': {first_line(error)}",
                hint=f"it was written by Keras {version or '(version unknown)'}; save it as .keras with that version,"
                " or export it where it was made: model.export('folder')",
            ) from error
        model = _load_keras2(path, kind, version, error)
        notes.append(f"read by tf_keras: Keras 3 could not load this Keras {version} file")
    if not getattr(model, "inputs", None):
        raise LeptonError(f"'{path}' holds a model that was never built", hint="call it once before saving")
    notes.extend(_compute_in_float32(model))
    return model, notes


def _load_keras2(path: str, kind: str, version: str, first: Exception) -> Any:
    try:
        import tf_keras
    except ImportError:
        raise LeptonError(
            f"Keras 3 cannot load '{path}', written by Keras {version}: {first_line(first)}",
            hint="install tf-keras, which reads Keras 2 files",
        ) from first
    try:
        with _suffixed(path, f".{kind}") as named:
            return tf_keras.models.load_model(named, compile=False, safe_mode=True)
    except Exception as error:  # as above, of tf_keras
        raise LeptonError(
            f"neither Keras 3 nor tf_keras can load '{path}' (Keras {version}): {first_line(error)}",
            hint=f"Keras 3 said: {first_line(first, 120)}",
        ) from error


@contextlib.contextmanager
def _suffixed(path: str, suffix: str) -> Iterator[str]:
    """`path` under a name that ends with `suffix`, by which Keras tells formats."""
    if path.endswith(suffix):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(Path(path).resolve())
        yield str(link)


def _compute_in_float32(model: Any) -> list[str]:
    mixed = []
    for layer in layers_of(model):
        policy = getattr(layer, "dtype_policy", None)
        if policy is not None and str(getattr(policy, "name", "")).startswith("mixed_"):
            layer.dtype_policy = "float32"
            mixed.append(layer.name)
    return [f"{len(mixed)} layers trained in mixed precision compute in float32"] if mixed else []
