"""Another Python environment on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from lepton_edge.errors import LeptonError
from lepton_edge.transport import ALONE, Transport


def connect(title: str, *, python: str, temp: str = "") -> Transport:
    """``python``: its interpreter, with the packages of the runtimes and numpy; ``temp`` where workers' files lie."""
    found = shutil.which(python)
    if found is None:
        raise LeptonError(f"{title}: there is no Python '{python}'", 'name an interpreter: python = "…/bin/python"')

    def wrap(argv: Sequence[str]) -> list[str]:
        return [*ALONE, *argv]

    return Transport(wrap, lambda code, words: None, found, temp, shares_host=True)
