"""A board over SSH, through the user's own OpenSSH client and its settings."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lepton_edge.errors import LeptonError
from lepton_edge.transport import Transport, Why

LOST = 255  # what ssh itself ends with, ssh(1); everything else is the command's own
# Answers on a dead line within 15 s; nothing of the user's session is forwarded.
SETTINGS = (
    "ServerAliveInterval=5", "ServerAliveCountMax=3", "ConnectTimeout=15", "ClearAllForwardings=yes",
    "ForwardAgent=no", "ForwardX11=no", "PermitLocalCommand=no", "RequestTTY=no", "LogLevel=ERROR",
    "ControlMaster=auto", "ControlPersist=no",
)  # fmt: skip
OWN_WORDS = ("ssh", "kex", "client_loop", "Connection", "Received", "Timeout", "mux_client", "Disconnected")
# The client's words (its last line) -> what it means, and the fix.
WORDS: tuple[tuple[str, str, str], ...] = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the known one: set up anew, or another machine",
     "compare the fingerprint with the board's; only then: ssh-keygen -R {host}"),
    ("Host key verification failed", "its host key is not known here, or not the known one",
     "connect once with 'ssh {address}' and compare the fingerprint with the board's"),
    ("Permission denied", "it does not accept a key of yours", "put your key there: ssh-copy-id {address}"),
    ("Could not resolve", "there is no such host name", "check the address, or 'HostName' in ~/.ssh/config"),
    ("Name or service not known", "there is no such host name", "check the address, or 'HostName' in ~/.ssh/config"),
    ("Connection refused", "nothing listens for SSH there", "is it up, and sshd running? check the port"),
    ("No route to host", "it cannot be reached", "is it switched on, and in this network?"),
    ("timed out", "it does not answer", "is it switched on, and in this network?"),
)  # fmt: skip


def connect(title: str, *, address: str, python: str = "python3", temp: str = "") -> Transport:
    """``address``: what ssh takes ([user@]host, or a Host of ~/.ssh/config), with ``:port`` behind it where needed.

    All processes share one connection. LEPTON_EDGE_SSH names another client, with options ("ssh -F config").
    A password is asked for only where there is a terminal to ask at. Host keys are checked as the settings say.
    """
    client = shlex.split(os.environ.get("LEPTON_EDGE_SSH", "ssh"))
    if not client or not shutil.which(client[0]):
        raise LeptonError(
            f"{title}: there is no SSH client '{client[0] if client else ''}'", "install OpenSSH's client"
        )
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or "]" in port:
        host, port = address, ""
    host = host.strip("[]")
    if not host or host.startswith("-") or any(c.isspace() for c in host):
        raise LeptonError(f"{title}: '{address}' is no SSH address", "write it as user@host or user@host:port")
    control = Path(tempfile.mkdtemp(prefix="le-ssh-"))  # short: a socket's path has about 100 bytes
    settings = [*SETTINGS, f"ControlPath={control / 's'}", f"BatchMode={'no' if sys.stdin.isatty() else 'yes'}"]
    head = [*client, *(part for s in settings for part in ("-o", s)), *(["-p", port] if port else []), "--", host]

    def wrap(argv: Sequence[str]) -> list[str]:
        return [*head, "exec " + shlex.join(argv)]

    def explain(code: int, words: str) -> Why | None:
        if code == 127:
            return f"{title}: '{python}' is not there", 'install Python 3.9 or later on it, or name it: python = "…"'
        if code != LOST:
            return None
        for sign, meaning, fix in WORDS:
            if sign in words:
                fix = fix.format(host=host.rpartition("@")[2], address=f"{f'-p {port} ' if port else ''}{host}")
                return f"{title}: {meaning}", fix
        # The last words may be the worker's own, which has nothing to do with it.
        own = words.splitlines()[-1] if words.strip() else ""
        told = f" ({own})" if own.startswith(OWN_WORDS) else ""
        return f"{title}: the connection was lost{told}", "check its power and its network"

    return Transport(wrap, explain, python, temp, close=lambda: shutil.rmtree(control, ignore_errors=True))
