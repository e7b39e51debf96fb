"""A systemd service of a deployed application: a socket; each connection is a stream of file names and answers.

A connection has a process of its own (Accept=yes, systemd.socket(5)), whose standard input and output it is: nothing
has to be restarted when versions are switched, and a crash costs one connection.
"""

from __future__ import annotations

from lepton_edge import there
from lepton_edge.remote import Remote

SOCKET = """[Unit]
Description={app}: the answers of its model

[Socket]
ListenStream=%t/lepton-edge/{app}.sock
SocketMode=0600
DirectoryMode=0700
Accept=yes
MaxConnections=4

[Install]
WantedBy=sockets.target
"""
SERVICE = """[Unit]
Description={app}: file names in, JSON lines out
CollectMode=inactive-or-failed

[Service]
ExecStart=/bin/sh {command} --stream
StandardInput=socket
StandardOutput=socket
StandardError=journal
NoNewPrivileges=yes
"""


def units(app: str, folder: str) -> dict[str, str]:
    """The unit files of an application in ``folder`` on the device, text by name."""
    name = f"lepton-edge-{app}"
    return {
        f"{name}.socket": SOCKET.format(app=app),
        f"{name}@.service": SERVICE.format(app=app, command=_escaped(f"{folder}/predict")),
    }


def install(place: Remote, app: str, folder: str) -> dict:
    """Write and start the units for the user there: {"units", "started", "note"}; without systemd they are only told.

    Raises LeptonError when systemd does not take them.
    """
    made = units(app, folder)
    told = there.call(place, "install", there.SERVICES, units=made)
    return {"units": made, **told}


def _escaped(path: str) -> str:
    """A path as a word of ExecStart, systemd.service(5)."""
    for sign, twice in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        path = path.replace(sign, twice)
    return f'"{path}"'
