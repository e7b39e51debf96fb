"""A real board over SSH: files and orders go there, and whatever happens nothing is left behind on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import board
import pytest

from lepton_edge import registry
from lepton_edge.device import read_device
from lepton_edge.errors import LeptonError, PlaceLost, WorkerError
from lepton_edge.ondevice import agent
from lepton_edge.remote import Remote

pytestmark = pytest.mark.skipif(bool(board.MISSING), reason=board.MISSING)
FAKE = next(r for r in registry.runtimes() if r.name == "fake")
MODEL = {
    "inputs": [{"name": "x", "shape": [1, 4], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": [1, 2], "dtype": "float32"}],
}


@pytest.fixture(scope="module")
def pi(tmp_path_factory):
    made = board.start(tmp_path_factory.mktemp("board"))
    yield made
    made.stop()


@pytest.fixture
def place(pi, tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    opened = Remote(read_device(pi.toml(tmp_path)))
    yield opened
    opened.close()
    gone(pi)


def gone(pi, seconds=10.0):
    """Wait until the board is clean."""
    deadline = time.monotonic() + seconds
    while pi.left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pi.left() == []


def test_files_go_both_ways_whole(place, tmp_path):
    data = os.urandom(3_000_000)
    (tmp_path / "a.bin").write_bytes(data)
    there = place.send(tmp_path / "a.bin")
    assert place.send(tmp_path / "a.bin") == there, "it is there already"
    (tmp_path / "back").mkdir()
    place.fetch(str(Path(there).parent), tmp_path / "back")
    assert (tmp_path / "back" / "a.bin").read_bytes() == data


def test_files_that_belong_together_lie_together(place, tmp_path):
    for name in ("m.xml", "m.bin"):
        (tmp_path / name).write_text(name)
    there = place.send(tmp_path / "m.xml", [tmp_path / "m.bin"])
    assert Path(there).name == "m.xml"
    assert place.run(["cat", there.replace(".xml", ".bin")])["out"] == "m.bin"


def test_a_worker_runs_there(place, tmp_path):
    model = tmp_path / "m.fake"
    model.write_text(json.dumps(MODEL))
    with place.worker("loading", FAKE) as worker:
        loaded = worker.call("load", file=place.send(FAKE.file), model=place.send(model), options={})
        assert loaded["info"]["runtime"] == "fake"


def test_a_command_that_takes_too_long_is_ended(place):
    assert place.run(["sleep", "60"], timeout=0.3)["code"] is None
    assert place.run(["sh", "-c", "exit 3"])["code"] == 3


def test_what_fails_there_is_one_line(place):
    with pytest.raises(WorkerError, match="FileNotFoundError"):
        place.run(["no-such-command"])


def test_a_full_disk_is_told_and_costs_nothing_else(place, tmp_path):
    (tmp_path / "big").write_bytes(b"x" * 1000)
    link = place.link
    with pytest.raises(LeptonError, match=r"big .*cannot be written there.*are free") as told:
        link.put(tmp_path / "big", "/proc/none/big", "0" * 64)
    assert "temp" in told.value.hint
    assert place.run(["true"])["code"] == 0, "the connection goes on"


def test_damage_on_the_way_is_noticed(place, tmp_path):
    (tmp_path / "f").write_text("abc")
    with pytest.raises(LeptonError, match="damaged on the way"):
        place.link.put(tmp_path / "f", place.link.folder + "/f", "0" * 64)
    assert place.link.request("list", path=place.link.folder) == ["owner.json"]


def test_a_cut_connection_is_told_and_leaves_nothing(pi, tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    place = Remote(read_device(pi.toml(tmp_path)))
    worker = place.worker("waiting", FAKE)
    for session in pi.sessions():
        os.kill(session, signal.SIGKILL)
    with pytest.raises(PlaceLost, match=r"127\.0\.0\.1.*connection was lost"):
        worker.call("usage")
    with pytest.raises(PlaceLost):
        place.run(["true"])
    worker.close()
    place.close()
    gone(pi)


def test_a_killed_host_leaves_nothing(pi, tmp_path, monkeypatch):
    code = (
        "import sys; from pathlib import Path; from lepton_edge.device import read_device\n"
        "from lepton_edge.remote import Remote; from lepton_edge import registry\n"
        "place = Remote(read_device(sys.argv[1])); fake = [r for r in registry.runtimes() if r.name == 'fake'][0]\n"
        "worker = place.worker('x', fake); worker.call('usage'); print('ready', flush=True)\n"
        "place.run(['sleep', '600'])\n"
    )
    environ = os.environ | {"LEPTON_EDGE_SSH": pi.client}
    host = subprocess.Popen(
        [sys.executable, "-c", code, str(pi.toml(tmp_path))], env=environ, stdout=subprocess.PIPE, text=True
    )
    assert host.stdout.readline() == "ready\n"
    assert len(pi.left()) == 1
    host.kill()
    host.wait()
    gone(pi)


def test_what_a_dead_agent_left_goes_on_the_next_contact(pi, tmp_path, monkeypatch):
    stale = pi.temp / f"{agent.PREFIX}stale"
    (stale / "pids").mkdir(parents=True)
    sleeper = subprocess.Popen(["sleep", "600"], start_new_session=True)
    (stale / "pids" / "worker-0").write_text(f"{sleeper.pid} {agent.started(sleeper.pid)}")
    owner = {"pid": 2**22, "started": "1", "boot": agent.boot_id()}
    (stale / "owner.json").write_text(json.dumps(owner))
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    place = Remote(read_device(pi.toml(tmp_path)))
    assert place.link.hello["swept"] == [str(stale)]
    assert not stale.exists() and sleeper.wait(5) == -signal.SIGKILL
    place.close()
    gone(pi)


def test_a_wrong_host_key(pi, tmp_path, monkeypatch):
    other = (pi.folder / "user.pub").read_text().split()
    (tmp_path / "known").write_text(f"[127.0.0.1]:{pi.port} {other[0]} {other[1]}\n")
    monkeypatch.setenv("LEPTON_EDGE_SSH", f"{pi.client} -o UserKnownHostsFile={tmp_path / 'known'}")
    with pytest.raises(PlaceLost, match="host key is not the known one") as told:
        Remote(read_device(pi.toml(tmp_path)))
    assert "fingerprint" in told.value.hint


def test_no_python_there(pi, tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    with pytest.raises(PlaceLost, match="'python9' is not there") as told:
        Remote(read_device(pi.toml(tmp_path, python="python9")))
    assert "python =" in told.value.hint


def test_nobody_listens(tmp_path, pi, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    device = pi.toml(tmp_path, address="127.0.0.1:1")
    with pytest.raises(PlaceLost, match="nothing listens for SSH there"):
        Remote(read_device(device))


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "a b"])
def test_an_address_that_is_none(tmp_path, pi, address):
    with pytest.raises(LeptonError, match="is no SSH address"):
        Remote(read_device(pi.toml(tmp_path, address=address)))
