"""OpenVINO IR on disk, for the steps that write it: two files that belong together, and OpenVINO's errors in short."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def ir_aside(dst: str) -> Iterator[Path]:
    """A path in a scratch folder beside `dst` (.xml) to save an IR at; half an IR is never seen at `dst`.

    Where the block ends well, both files are moved into place, the .xml last; where it raises, nothing is left.
    """
    target = Path(dst)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".ir-") as folder:
        made = Path(folder) / target.name
        yield made
        made.with_suffix(".bin").replace(target.with_suffix(".bin"))
        made.replace(target)


def reason(error: BaseException) -> str:
    """The last telling line of an OpenVINO error: the first ones name OpenVINO's own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    plain = [line for line in lines if not line.startswith(("Exception from", "Check '")) or len(lines) == 1]
    return (plain or lines or [type(error).__name__])[-1][:300]
