"""Orders to the self-contained files of ``ondevice/``, whose answer may be {"problem", "hint"}: an error here."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

from lepton_edge.errors import LeptonError, PlaceLost, WorkerError
from lepton_edge.progress import Silent
from lepton_edge.registry import PACKAGE
from lepton_edge.remote import Remote, sha256

DEPLOYING = PACKAGE / "ondevice" / "deploying.py"
SIGNATURES = PACKAGE / "ondevice" / "signatures.py"
SERVICES = PACKAGE / "ondevice" / "services.py"
WHEELS = PACKAGE / "ondevice" / "wheels.py"
FREE = "free some space on it, or choose another folder with --to"
CALL_S = 600.0


def call(place: Remote, function: str, file: Path = DEPLOYING, /, **args: Any) -> Any:
    """Call a function of a file on the device; its answer. Raises LeptonError for a problem, or a full disk there."""
    try:
        answer = place.link.request("call", CALL_S, file=place.send(file), function=function, args=args)
    except PlaceLost:
        raise
    except WorkerError as e:
        if "[Errno 28]" in e.message:  # ENOSPC
            raise LeptonError(f"{place.title}: the disk there is full", FREE) from e
        if "PermissionError" in e.message:
            raise LeptonError(e.message, "choose a folder that the user there may write to, with --to") from e
        raise
    if isinstance(answer, dict) and answer.get("problem"):
        raise LeptonError(f"{place.title}: {answer['problem']}", answer.get("hint", ""))
    return answer


def put(place: Remote, file: Path, path: str, progress: Silent) -> None:
    """Send a file to a path of its own there, readable by all. Raises LeptonError when there is no room for it."""
    try:
        place.link.put(file, path, sha256(file), 0o644, progress.update)
    except WorkerError:
        raise
    except LeptonError as e:
        raise LeptonError(e.message, FREE) from e


def last_line(done: dict, seconds: float) -> str:
    """How a command there (``Remote.run``) ended, in one line."""
    if done["code"] is None:
        return f"it took more than {seconds:.0f} s"
    if done["code"] < 0:
        return f"it was killed ({signal.Signals(-done['code']).name})"
    lines = [line.strip() for line in (done["err"] or done["out"]).splitlines() if line.strip()]
    return lines[-1].removeprefix("error: ")[:300] if lines else f"exit code {done['code']}"
