"""The embedded sample: a small CNN for Fashion-MNIST with calibration and evaluation slices."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.errors import LeptonError
from lepton_edge.recipe import Recipe, load
from lepton_edge.registry import folder


def sample() -> tuple[Path, Recipe]:
    """The path of the sample model and its recipe."""
    place = folder("samples")
    model, recipe = place / "fashion_cnn.keras", place / "fashion.toml"
    if not model.is_file() or not recipe.is_file():
        raise LeptonError(
            f"{place}: the embedded sample is not installed",
            "give a model: lepton-edge compress MODEL --data ...",
        )
    return model, load(recipe)
