"""Where a model really ran: what a session tells of itself, made into a warning or a refusal."""

from __future__ import annotations

from typing import Any

from lepton_edge.errors import LeptonError
from lepton_edge.registry import Runtime


def warnings(info: dict[str, Any]) -> list[str]:
    """One line for a model on an accelerator of which some nodes ran on the CPU, naming them; none otherwise."""
    if info.get("device", "cpu") == "cpu":
        return []
    placed = info.get("delegated")
    if placed is None:
        return [f"{info['runtime']} {info['version']} does not tell how much of the model ran on {info['device']}"]
    left = placed["of"] - placed["nodes"]
    if not left:
        return []
    listed = ", ".join(f"{count} {op}" if count else op for op, count in placed["left"].items())
    return [f"{left} of {placed['of']} nodes ran on the CPU, not on {info['device']}: {listed}"]


def require(name: str, runtime: Runtime, info: dict[str, Any]) -> None:
    """Raise LeptonError for a model of which nothing runs on the device that was asked for.

    A runtime that chooses its device itself (``:auto``) is taken at its word.
    """
    placed = info.get("delegated")
    if runtime.device in (next(iter(runtime.devices)), "auto") or placed is None or placed["nodes"] or not placed["of"]:
        return
    listed = ", ".join(f"{count} {op}" if count else op for op, count in placed["left"].items())
    raise LeptonError(
        f"{name}: nothing of it runs on {runtime.device} in {runtime.name}; all {placed['of']} nodes would run on the "
        f"CPU: {listed}",
        f"leave ':{runtime.device}' out of --runtime, or bring the model to operators and types that it takes",
    )
