"""Legacy Keras models in HDF5: the same reader as for .keras, which tells them apart by their bytes."""

from lepton_edge.inspectors.keras import EXTRA, REQUIRES, inspect

__all__ = ["EXTRA", "REQUIRES", "inspect"]
