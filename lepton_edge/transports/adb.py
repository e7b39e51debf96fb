"""An Android device over adb, with a Python such as Termux's."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence

from lepton_edge.errors import LeptonError
from lepton_edge.transport import Transport, Why

TERMUX = "/data/data/com.termux/files/usr"
LOST = 255  # what adb ends with when the device goes away: there was no exit code of the command
# adb's words -> what it means, and the fix.
WORDS: tuple[tuple[str, str, str], ...] = (
    ("no devices/emulators found", "no device is connected", "plug it in, with USB debugging on; see 'adb devices'"),
    ("more than one device", "several devices are connected", "name one: serial = \"…\" (see 'adb devices')"),
    ("unauthorized", "it has not allowed this machine to debug it", "unlock it and accept the question on its screen"),
    ("offline", "it is connected but does not answer", "replug it, or run 'adb reconnect'"),
    ("not found", "this device is not connected", "plug it in, with USB debugging on; see 'adb devices'"),
    ("failed to start daemon", "the adb server does not start here", "see 'adb start-server'"),
    ("cannot connect to daemon", "the adb server does not start here", "see 'adb start-server'"),
    ("not debuggable", "it does not run commands as that app", "take another build of the app, or leave out run_as"),
    ("unknown package", "that app is not installed on it", "install it, or leave out run_as"),
)


def connect(title: str, *, serial: str = "", python: str = "", temp: str = "", run_as: str = "") -> Transport:
    """``serial`` is needed where several devices are connected.

    adb's own user may not look into an app's folders: ``python`` is then an interpreter that it may run, in
    /data/local/tmp say; or ``run_as`` names the app ("com.termux", in a build that can be debugged). ``temp`` is
    /data/local/tmp, or the app's own.
    """
    if not shutil.which("adb"):
        raise LeptonError(f"{title}: there is no adb here", "install Android's platform tools (apt-get install adb)")
    python = python or f"{TERMUX}/bin/python3"
    temp = temp or (f"{TERMUX}/tmp" if run_as else "/data/local/tmp")
    # Without a terminal of its own the device passes bytes on unchanged, and stderr and the exit code by themselves.
    head = ["adb", *(["-s", serial] if serial else []), "shell", "-T"]

    def wrap(argv: Sequence[str]) -> list[str]:
        return [*head, "exec " + shlex.join([*(["run-as", run_as] if run_as else []), *argv])]

    def explain(code: int, words: str) -> Why | None:
        if code in (126, 127):
            fix = 'install Termux and its Python (pkg install python), or name another: python = "…"'
            return f"{title}: '{python}' cannot be run there", fix
        said = [line for line in words.splitlines() if line.startswith(("error: ", "adb: ", "run-as: "))]
        for sign, meaning, fix in WORDS:
            if any(sign in line for line in said):
                return f"{title}: {meaning}", fix
        if said or code == LOST:
            return f"{title}: the connection was lost" + (f" ({said[-1]})" if said else ""), "check its cable"
        return None

    return Transport(wrap, explain, python, temp)
