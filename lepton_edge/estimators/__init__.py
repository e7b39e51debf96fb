"""Estimators: what a model would take of a target that nobody has here, a file each; see `estimates.py`."""
