"""This machine with less of it: a share of its processor, a limit of memory, some of its cores."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Sequence

from lepton_edge import cgroups
from lepton_edge.errors import LeptonError
from lepton_edge.transport import ALONE, Transport, Why

KILLED = (-9, 137)


def connect(
    title: str, *, cpus: float = 0.0, memory_mb: int = 0, cores: str = "", python: str = "", temp: str = ""
) -> Transport:
    """``cpus``: how many processors' time (0.5: half of one's); ``memory_mb``: of memory, swap included; ``cores``:
    which ("0-1"); 0 and "": no limit. ``python`` is this environment's where none is named.

    Where control groups may not be written, cores and RLIMIT_DATA come near to it, and the figures say so.
    """
    if cpus < 0 or memory_mb < 0:
        raise LeptonError(f"{title}: cpus = {cpus:g}, memory_mb = {memory_mb}: a limit is above 0", "0 means no limit")
    interpreter = shutil.which(python or sys.executable)
    if interpreter is None:
        raise LeptonError(f"{title}: there is no Python '{python}'", 'name an interpreter: python = "…/bin/python"')
    notes: tuple[str, ...] = ()
    head: list[str] = list(ALONE)
    try:
        group = cgroups.Group(cpus, memory_mb)
    except OSError as problem:
        group = None
        if cpus and not cores:
            free = sorted(os.sched_getaffinity(0))
            cores = ",".join(map(str, free[: math.ceil(cpus)]))
        notes = (
            f"control groups cannot be written here ({problem.strerror or problem}): "
            f"{f'cores {cores} ' if cpus else ''}{'and RLIMIT_DATA ' if memory_mb else ''}stand in for the limits",
        )
        if memory_mb:
            head += ["prlimit", f"--data={memory_mb << 20}"]
    if cores:
        head += ["taskset", "-c", cores]
    for tool in ("prlimit", "taskset"):
        if tool in head and not shutil.which(tool):
            raise LeptonError(f"{title}: its limits need {tool}, which is not here", "apt-get install util-linux")
    if group and group.doors:
        join = " && ".join(f"echo $$ > {shlex.quote(str(file))}" for file in group.doors)
        head = ["sh", "-c", f'{join} || exit 125; exec "$@"', "sh", *head]

    def wrap(argv: Sequence[str]) -> list[str]:
        return [*head, *argv]

    def ended(code: int) -> Why | None:
        if code in KILLED and group and group.kills():
            return (
                f"{title}: out of the memory limit of {memory_mb} MB",
                "it needs a smaller model, or more memory: memory_mb = …",
            )
        return None

    def explain(code: int, words: str) -> Why | None:
        if "affinity" in words or "failed to parse CPU list" in words:
            return f"{title}: this machine has no cores '{cores}'", f"it has {os.cpu_count()}, counted from 0"
        return ended(code)

    close = group.close if group else lambda: None
    return Transport(wrap, explain, interpreter, temp, True, "emulated", close, ended, notes=notes)
