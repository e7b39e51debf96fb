"""``--train data.py:make``: samples from a function that the user names, which runs because the user names it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, did_you_mean
from lepton_edge.launch import Worker, python_path

FORM = re.compile(r"(?P<file>.+\.py):(?P<function>[A-Za-z_]\w*)")


def is_function(path: str) -> bool:
    """Whether a path of training data names a function, as data.py:make."""
    return FORM.fullmatch(path) is not None


def collect(
    path: str, inputs: Sequence[Mapping[str, Any]], folder: Path, seed: int, progress: Callable[[int, int, str], None]
) -> Path:
    """Run the function in a process of its own and return the .npz in ``folder`` that holds what it gave.

    ``inputs`` are the model's {"name", "shape" with batch axis}. Raises LeptonError for a file that is not there, and
    with one line on what the function did wrong.
    """
    found = FORM.fullmatch(path)
    assert found is not None
    file = Path(found["file"])
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        raise LeptonError(f"{file}: there is no such Python file", did_you_mean(file.name, near) if near else "")
    made = folder / f"{found['function']}.npz"
    with Worker(f"running {file.name}:{found['function']}", environ={"LEPTON_EDGE_GPU": "1"}) as worker:
        worker.call(
            "step",
            progress,
            file=python_path(Path(__file__).with_name("collect.py")),
            src=python_path(file),
            dst=str(made),
            options={
                "function": found["function"],
                "inputs": [{"name": s["name"], "shape": list(s["shape"])} for s in inputs],
                "seed": seed,
            },
        )
    return made
