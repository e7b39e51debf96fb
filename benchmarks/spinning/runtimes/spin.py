"""Goes round an empty loop as often as the file says: work of a known ratio, without a framework."""

import json
from pathlib import Path

import numpy as np

REQUIRES = ()
FORMATS = ("spin",)


def load(model, *, threads=1):
    """Open a .spin file."""
    return Session(json.loads(Path(model).read_text("utf-8"))["spin"])


class Session:
    """One number in, the same out, after the loop."""

    inputs = ({"name": "x", "shape": [None, 1], "dtype": "float32"},)
    outputs = ({"name": "y", "shape": [None, 1], "dtype": "float32"},)
    info = {"runtime": "spin", "version": "1"}  # noqa: RUF012

    def __init__(self, times):
        self._times, self._answer = range(times), {"y": np.zeros((1, 1), np.float32)}

    def run(self, feeds):
        """The same answer always."""
        for _ in self._times:
            pass
        return self._answer
