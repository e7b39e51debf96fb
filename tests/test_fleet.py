"""The fleet script: a table of all boards; what is done is passed over the next time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import apps
import board
import pytest

from lepton_edge.errors import UsageError

SCRIPT = Path(__file__).parent.parent / "devices" / "deploy_fleet.py"


def test_a_hosts_file_and_what_is_wrong_with_one(tmp_path):
    spec = importlib.util.spec_from_file_location("deploy_fleet", SCRIPT)
    fleet = importlib.util.module_from_spec(spec)
    sys.modules["deploy_fleet"] = fleet  # its dataclass looks itself up there
    spec.loader.exec_module(fleet)
    file = tmp_path / "hosts"
    file.write_text('# all\npi@a\n\npi@b:2222 python="/opt/my py" to=/x # there\n')
    first, second = fleet.read_hosts(file)
    assert (first.address, first.reach, first.options) == ("pi@a", {}, {})
    assert (second.address, second.reach, second.options) == ("pi@b:2222", {"python": "/opt/my py"}, {"to": "/x"})
    for text, message in (("# x\n", "no host"), ("pi@a\npi@a\n", "hosts:2: pi@a is there twice"), ("to=x\n", "hosts:1"),
                          ("pi@a 'x\n", "hosts:1"), ("pi@a more\n", "write user@host")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(UsageError) as told:
            fleet.read_hosts(file)
        assert message in told.value.message + told.value.hint


@pytest.mark.skipif(bool(board.MISSING), reason=board.MISSING)
def test_a_fleet_with_a_board_that_is_off(tmp_path, monkeypatch):
    pi, hosts = board.start(tmp_path / "board"), tmp_path / "hosts.txt"
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent.parent))
    bundle = apps.make(tmp_path)
    up = f"127.0.0.1:{pi.port} python={sys.executable} temp={pi.temp} to={tmp_path / 'apps'}"
    hosts.write_text(f"{up}\n127.0.0.1:1 to={tmp_path / 'other'}  # off\n")

    def run(*more):
        command = [sys.executable, str(SCRIPT), str(bundle), str(hosts), *more]
        return subprocess.run(command, capture_output=True, text=True)

    try:
        done = run()
        assert done.returncode == 1, done.stderr
        first, second = done.stdout.splitlines()[1:]
        assert " ok " in first and " FAILED " in second and "nothing listens for SSH there; is it up" in second
        assert (tmp_path / "apps" / "net" / "current").is_symlink()
        told = json.loads(run("--json").stdout)["hosts"]
        assert told[0]["skipped"] and not told[1]["ok"]
        hosts.write_text(f"{up}\n")
        again = json.loads(run("--json", "--again").stdout)["hosts"]
        assert again[0]["ok"] and "skipped" not in again[0]
        assert run().returncode == 0
        (tmp_path / "hosts.txt.state.json").write_text("[1")
        assert "state.json is damaged" in run().stderr
    finally:
        pi.stop()
