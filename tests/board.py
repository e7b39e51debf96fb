"""A board for tests: a real sshd on loopback, with keys and settings of its own; its home is a folder of the test's."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
MISSING = (
    "" if SSHD and shutil.which("ssh-keygen") else "there is no sshd on this machine (apt-get install openssh-server)"
)


@dataclass(frozen=True)
class Board:
    """An sshd that runs: ``client`` is the command to reach it with (for LEPTON_EDGE_SSH)."""

    folder: Path
    port: int
    process: subprocess.Popen
    client: str

    @property
    def temp(self) -> Path:
        """Where the agent makes its folders."""
        return self.folder / "tmp"

    def toml(self, folder: Path, name: str = "board", **more: object) -> Path:
        """A device file for it."""
        reach = {"address": f"127.0.0.1:{self.port}", "python": sys.executable, "temp": str(self.temp), **more}
        lines = [f'title = "{name}"', 'kind = "measured"', 'transport = "ssh"', 'arch = "x86_64"', "[reach]"]
        lines += [f'{key} = "{value}"' for key, value in reach.items()]
        path = folder / f"{name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path

    def left(self) -> list[str]:
        """What lies in its temporary folder."""
        return sorted(path.name for path in self.temp.iterdir())

    def sessions(self) -> list[int]:
        """The pids of the processes that serve its connections, sshd's own children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children]

    def stop(self) -> None:
        """End it, and the connections that it serves."""
        for pid in self.sessions():
            os.kill(pid, 9)
        self.process.kill()
        self.process.wait()


def start(folder: Path, port: int = 0, host: str = "127.0.0.1") -> Board:
    """Start an sshd for this user. Raises RuntimeError when it does not come up."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tmp").mkdir(exist_ok=True)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation folder, which an init script makes elsewhere
    for name in ("host", "user"):
        if not (folder / name).exists():
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    port = port or _free()
    shutil.copyfile(folder / "user.pub", folder / "authorized")
    (folder / "sshd_config").write_text(
        f"ListenAddress {host}\nPort {port}\nHostKey {folder / 'host'}\nAuthorizedKeysFile {folder / 'authorized'}\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
    )
    key = (folder / "host.pub").read_text().split()
    (folder / "known").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (folder / "config").write_text(
        f"Host *\n  IdentityFile {folder / 'user'}\n  IdentitiesOnly yes\n  UserKnownHostsFile {folder / 'known'}\n"
        "  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n"
    )
    log = (folder / "log").open("ab")
    process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL,
                               stdout=log, stderr=log)  # fmt: skip
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((host, port)) == 0:
                return Board(folder, port, process, f"ssh -F {folder / 'config'}")
        time.sleep(0.05)
    process.kill()
    raise RuntimeError(f"sshd did not start: {(folder / 'log').read_text()[-500:]}")


def _free() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
