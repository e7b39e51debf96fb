"""Units of systemd for the user that the device is reached as."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess


def install(units: dict) -> dict:
    """Write units and start their socket: {"started", "note"}; {"problem", "hint"} when systemd refuses them."""
    environ = {"XDG_RUNTIME_DIR": f"/run/user/{os.getuid()}", **os.environ}
    if shutil.which("systemctl") is None or _run(["systemctl", "--user", "show-environment"], environ).returncode:
        return {"started": False, "note": "no systemd runs there for this user: the units were not installed"}
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    folder = os.path.join(config, "systemd", "user")
    os.makedirs(folder, exist_ok=True)
    for name, text in units.items():
        part = os.path.join(folder, "." + name + ".part")
        with open(part, "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(part, os.path.join(folder, name))
    socket = next(name for name in units if name.endswith(".socket"))
    for order in (["daemon-reload"], ["enable", "--now", socket]):
        done = _run(["systemctl", "--user", *order], environ)
        if done.returncode:
            words = " ".join(done.stderr.split())[-300:]
            return {"problem": f"systemd does not take {socket}: {words}", "hint": f"see the units in {folder}"}
    linger = _run(["loginctl", "show-user", getpass.getuser(), "--property=Linger"], environ).stdout.strip()
    late = "" if linger == "Linger=yes" else "it starts at login; from boot on with: sudo loginctl enable-linger"
    return {"started": True, "note": late}


def _run(argv: list, environ: dict) -> subprocess.CompletedProcess:
    return subprocess.run(argv, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
