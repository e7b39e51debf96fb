"""Numbers that environment variables set, checked."""

from __future__ import annotations

import os

from lepton_edge.errors import UsageError


def number(name: str, default: float) -> float:
    """The number in an environment variable, else the default. Raises UsageError when it is not a number above 0."""
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise UsageError(
            f"the environment variable {name} is '{text}', not a number above 0", f"for example {default:g}"
        )
    return value
