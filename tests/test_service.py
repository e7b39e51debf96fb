"""The systemd units of a deployed application, and what a connection to them gets."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time

import apps
import numpy as np
import pytest

from lepton_edge import service
from lepton_edge.ondevice import services


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze (systemd)")
@pytest.mark.parametrize("where", ["apps", 'a 100% "odd" $folder'])
def test_systemd_takes_the_units(tmp_path, where):
    home = tmp_path / where / "net"
    home.mkdir(parents=True)
    (home / "predict").write_text("#!/bin/sh\n")
    (home / "predict").chmod(0o755)
    units = service.units("net", str(home))
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--user", "--man=no", *(str(tmp_path / name) for name in units)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)})
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "lepton-edge-net" in line]
    assert done.returncode == 0 and ours == [], done.stdout + done.stderr


def test_without_systemd_the_units_are_only_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    told = services.install(service.units("net", "/apps/net"))
    assert told["started"] is False and "not installed" in told["note"]


def test_the_units_are_written_and_started(monkeypatch, tmp_path):
    for tool, answer in (("systemctl", ""), ("loginctl", "Linger=no")):
        (tmp_path / tool).write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/orders\necho {answer}\n')
        (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    units = service.units("net", "/apps/net")
    told = services.install(units)
    assert told["started"] and "enable-linger" in told["note"]
    written = {p.name: p.read_text() for p in (tmp_path / "config" / "systemd" / "user").iterdir()}
    assert written == units
    assert "--user enable --now lepton-edge-net.socket" in (tmp_path / "orders").read_text()
    (tmp_path / "systemctl").write_text('#!/bin/sh\n[ "$2" != enable ] || { echo refused >&2; exit 1; }\n')
    assert "does not take lepton-edge-net.socket: refused" in services.install(units)["problem"]


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="there is no systemd-socket-activate")
def test_a_connection_is_a_stream_of_answers(tmp_path):
    bundle, path = apps.make(tmp_path), tmp_path / "s"
    np.save(tmp_path / "photo.npy", apps.pictures(1)[0])
    command = ["systemd-socket-activate", "--accept", "--inetd", "-l", str(path), sys.executable]
    served = subprocess.Popen([*command, str(bundle / "predict.py"), "--stream"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        for _ in range(2):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(60)
                client.connect(str(path))
                stream = client.makefile("rw")
                for name in (str(tmp_path / "photo.npy"), "absent.png"):
                    stream.write(f"{name}\n")
                    stream.flush()
                    told = json.loads(stream.readline())
                    assert told["file"] == name and ("top" in told) == (name != "absent.png")
                assert "no such file" in told["error"]
    finally:
        served.terminate()
        served.wait()
