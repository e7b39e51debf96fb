"""Which runtimes can use which devices here, and if not, exactly why: asked of the runtimes, in workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_edge import registry
from lepton_edge.errors import LeptonError, MissingExtra, WorkerError
from lepton_edge.launch import Workers
from lepton_edge.registry import Runtime

#: Seconds that a runtime has to say whether it can use a device: drivers that are half there can hang.
PATIENCE = 30.0


@dataclass(frozen=True)
class Target:
    """A runtime on a device. ``reason`` says why it cannot be used here and ``fix`` what helps; "" where it can."""

    runtime: Runtime
    reason: str
    fix: str


def survey(patience: float = PATIENCE) -> list[Target]:
    """Every runtime on every device it declares; one that fails or hangs while it is asked costs only its own row."""
    return [target for r in registry.runtimes() for target in ask([r.on(device) for device in r.devices], patience)]


def ask(runtimes: Sequence[Runtime], patience: float = PATIENCE) -> list[Target]:
    """Whether a runtime can use each of these devices: its packages, then what its own function ``unusable`` finds.

    That function is called in a worker, for it may load drivers; the default device is not asked for.
    """
    environ = {key: value for runtime in runtimes for key, value in runtime.environ.items()}
    found = []
    with Workers() as workers:
        for runtime in runtimes:
            target = _known(runtime)
            if target is None:
                worker = workers.get(f"asking {runtime.name} for its device", environ=environ)
                try:
                    told = worker.call("unusable", silence=patience, file=str(runtime.file), device=runtime.device)
                    target = Target(runtime, told["reason"], told["fix"])
                except WorkerError as failed:
                    target = Target(runtime, failed.message, failed.hint)
                    worker.close()
            found.append(target)
    return found


def _known(runtime: Runtime) -> Target | None:
    """What there is to say without asking; None where the runtime itself has to be asked."""
    if runtime.broken:
        return Target(runtime, f"{runtime.file.name}: {runtime.broken}", "repair or remove the file")
    try:
        registry.require(runtime.name, runtime.requires)
    except MissingExtra as lacking:
        return Target(runtime, lacking.message, lacking.hint)
    return Target(runtime, "", "") if runtime.device == next(iter(runtime.devices)) else None


def require(runtime: Runtime) -> None:
    """Raise LeptonError, with the reason and the fix, where the runtime's device cannot be used here."""
    (found,) = ask([runtime])
    if found.reason:
        raise LeptonError(f"{runtime.name}: {found.reason}", found.fix)
