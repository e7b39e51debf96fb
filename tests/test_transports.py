"""Transports but SSH (test_agent.py): another environment, adb (a script stands in for it), limits, emulators."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_edge import cgroups, registry, rootfs
from lepton_edge.device import read_device
from lepton_edge.errors import LeptonError, PlaceLost, WorkerError
from lepton_edge.remote import Remote

FAKE = registry.runtime("fake")
MODEL = {
    "inputs": [{"name": "x", "shape": [1, 4], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": [1, 2], "dtype": "float32"}],
}


@pytest.fixture
def reach(tmp_path):
    """Opens a place by its transport and options, with a temporary folder of the test's own; all are closed after."""
    opened: list[Remote] = []
    (tmp_path / "temp").mkdir()

    def open_(transport: str, **options: object) -> Remote:
        lines = [f'title = "it"\nkind = "measured"\ntransport = "{transport}"\narch = "host"\n[reach]']
        lines += [f"{key} = {json.dumps(value)}" for key, value in {"temp": str(tmp_path / "temp"), **options}.items()]
        (tmp_path / "it.toml").write_text("\n".join(lines) + "\n")
        opened.append(Remote(read_device(tmp_path / "it.toml")))
        return opened[-1]

    yield open_
    for place in opened:
        place.close()
    assert list((tmp_path / "temp").iterdir()) == [], "nothing is left there"


def load(place: Remote, tmp_path: Path) -> dict:
    (tmp_path / "m.fake").write_text(json.dumps(MODEL))
    with place.worker("loading", FAKE) as worker:
        return worker.call("load", file=place.send(FAKE.file), model=place.send(tmp_path / "m.fake"), options={})


# --- another environment ---


def test_another_environment_has_its_own_packages(reach, tmp_path, monkeypatch):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    monkeypatch.setenv("PYTHONPATH", str(registry.PACKAGE.parent))
    place = reach("python", python=str(tmp_path / "env" / "bin" / "python"))
    look = "import sys; print(sys.prefix); import numpy"
    seen = place.run([place.python, "-c", look])
    assert seen["out"].strip() == str(tmp_path / "env") and "ModuleNotFoundError" in seen["err"]
    assert str(registry.PACKAGE.parent) not in place.run([place.python, "-c", "import sys; print(sys.path)"])["out"]


def test_a_worker_runs_in_another_environment(reach, tmp_path):
    place = reach("python", python=sys.executable)
    assert (place.kind, place.shares_host) == ("measured", True)
    assert load(place, tmp_path)["info"]["runtime"] == "fake"


def test_an_environment_that_is_not_there(reach):
    with pytest.raises(LeptonError, match=r"it: there is no Python '/nowhere/python'"):
        reach("python", python="/nowhere/python")


# --- adb ---

ADB = """#!/bin/sh
[ "$1" = -s ] && { [ "$2" = "$SERIAL" ] || { echo "error: device '$2' not found" >&2; exit 1; }; shift 2; }
[ -n "$SAYS" ] && { echo "$SAYS" >&2; exit ${CODE-1}; }
[ "$1 $2" = "shell -T" ] || { echo "adb: unknown command $1" >&2; exit 1; }
shift 2
exec sh -c "$*"
"""


@pytest.fixture
def adb(tmp_path, monkeypatch):
    """A program that does what adb does, with this machine as the device; returns a function that makes it fail."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "adb").write_text(ADB)
    (tmp_path / "bin" / "adb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SERIAL", "A1")

    def fail(says: str, code: int = 1) -> None:
        monkeypatch.setenv("SAYS", says)
        monkeypatch.setenv("CODE", str(code))

    return fail


def test_a_worker_runs_over_adb(adb, reach, tmp_path):
    place = reach("adb", serial="A1", python=sys.executable)
    assert load(place, tmp_path)["info"]["runtime"] == "fake"
    assert place.run(["printf", "%s", "a b'c\"d$e"])["out"] == "a b'c\"d$e", "every byte of a command arrives"


@pytest.mark.parametrize(
    ("says", "code", "means"),
    [
        ("error: no devices/emulators found", 1, "no device is connected"),
        ("error: device unauthorized.", 1, "has not allowed this machine to debug it"),
        ("error: device offline", 1, "does not answer"),
        ("error: more than one device/emulator", 1, "several devices"),
        ("error: cannot connect to daemon", 1, "adb server does not start"),
        ("error: closed", 1, "connection was lost (error: closed)"),
        ("", 255, "connection was lost"),
        ("run-as: package not debuggable: com.termux", 1, "does not run commands as that app"),
    ],
)
def test_what_adb_says_becomes_one_line(adb, reach, says, code, means):
    adb(says or " ", code)
    with pytest.raises(PlaceLost) as told:
        reach("adb", python=sys.executable)
    assert means in told.value.message and told.value.message.startswith("it: ") and told.value.hint


def test_a_device_that_is_not_connected_over_adb(adb, reach):
    with pytest.raises(PlaceLost, match="this device is not connected"):
        reach("adb", serial="B2", python=sys.executable)


def test_no_python_on_an_android_device(adb, reach):
    with pytest.raises(PlaceLost, match="termux/files/usr/bin/python3' cannot be run there") as told:
        reach("adb")
    assert "pkg install python" in told.value.hint


# --- limits ---


def _writable() -> str:
    try:
        cgroups.Group(1, 64).close()
    except OSError as e:
        return f"control groups cannot be written here ({e.strerror})"
    return ""


needs_cgroups = pytest.mark.skipif(bool(_writable()), reason=_writable())


@needs_cgroups
def test_the_share_of_the_processor_is_kept(reach):
    place = reach("cgroup", cpus=0.1)
    assert place.run(["sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"])["code"] == 0
    groups = Path("/proc/self/cgroup")
    inside = place.run(["cat", str(groups)])["out"]
    assert inside != groups.read_text() and cgroups.PREFIX in inside
    stat = next(Path("/sys/fs/cgroup").glob(f"**/{cgroups.PREFIX}{os.getpid()}-*/cpu.stat")).read_text()
    assert int(stat.split("nr_throttled ")[1].split()[0]) > 0


HOG = '''"""Takes all the memory there is."""
def load(model, *, threads=1):
    return bytearray(1 << 30)
'''


@needs_cgroups
def test_a_worker_over_the_memory_limit_is_told_from_a_crash(reach, tmp_path):
    place = reach("cgroup", memory_mb=150)
    (tmp_path / "hog.py").write_text(HOG)
    with (
        place.worker("loading", FAKE) as worker,
        pytest.raises(WorkerError, match=r"^it: out of the memory limit of 150 MB$") as told,
    ):
        worker.call("load", file=place.send(tmp_path / "hog.py"), model="", options={})
    assert not isinstance(told.value, PlaceLost) and "memory_mb" in told.value.hint
    assert load(place, tmp_path)["info"]["runtime"] == "fake", "the place goes on"


@needs_cgroups
def test_no_group_outlives_its_maker():
    code = (
        "import time; from lepton_edge.cgroups import Group; import subprocess\n"
        "g = Group(0.5, 64); p = subprocess.Popen(['sleep', '600'])\n"
        "for d in g.doors: d.write_text(str(p.pid))\n"
        "print(p.pid, *g.folders, flush=True); time.sleep(600)"
    )
    maker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    sleeper, *folders = maker.stdout.readline().split()
    assert folders and all(Path(f).is_dir() for f in folders)
    maker.kill()
    maker.wait()
    new = cgroups.Group(0.5, 64)
    new.close()
    assert not any(Path(f).exists() for f in [*folders, *new.folders])
    assert ended(int(sleeper)), "what it held goes, too"


def ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_without_control_groups_it_says_what_stands_in(reach, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cgroups, "Group", refused)
    place = reach("cgroup", cpus=0.5, memory_mb=400)
    assert "Permission denied" in place.notes[0] and "RLIMIT_DATA" in place.notes[0]
    look = "import os, resource; print(len(os.sched_getaffinity(0)), resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20)"
    assert place.run([place.python, "-c", look])["out"].split() == ["1", "400"]


def test_cores_that_are_not_there(reach):
    with pytest.raises(PlaceLost, match="it: this machine has no cores '4000'"):
        reach("cgroup", cores="4000")


def test_version_two_takes_all_limits_in_one_group(tmp_path):
    top = tmp_path / "unified"
    (top / "user" / "me").mkdir(parents=True)
    (tmp_path / "mounts").write_text(f"cgroup2 {top} cgroup2 rw 0 0\n")
    (tmp_path / "mine").write_text("0::/user/me\n")
    group = cgroups.Group(0.5, 64, str(tmp_path / "mounts"), str(tmp_path / "mine"))
    (folder,) = group.folders
    assert folder.parent == top / "user" / "me"
    assert (folder / "cpu.max").read_text() == "5000 10000" and (folder / "memory.max").read_text() == str(64 << 20)
    (folder / "memory.events").write_text("low 0\noom 1\noom_kill 1\n")
    assert group.kills() and not group.kills(), "each one is told once"
    shutil.rmtree(folder)
    group.close()


# --- emulators ---


def test_an_emulator_that_is_not_there(reach, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LeptonError, match=r"emulating armhf needs qemu-arm-static, which is not here"):
        reach("qemu", arch="armhf")


def test_an_architecture_that_is_none(reach):
    with pytest.raises(LeptonError, match=r"no emulator for arch = 'arm64'"):
        reach("qemu", arch="arm64")


def test_no_tool_to_make_a_root(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LeptonError, match=r"making a Debian for armhf needs mmdebstrap, which is not here"):
        rootfs.debian("armhf")


def test_a_root_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path / "mmdebstrap").write_text("#!/bin/sh\necho 'E: cannot reach anything' >&2\nexit 1\n")
    (tmp_path / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(LeptonError, match=r"a Debian for arm64 cannot be made: cannot reach anything"):
        rootfs.debian("arm64")
    assert not list(Path(os.environ["LEPTON_EDGE_CACHE"]).glob("rootfs/*"))


def test_a_root_without_python(tmp_path):
    with pytest.raises(LeptonError, match=r"no usr/bin/python3\.N in this root"):
        rootfs.read(tmp_path)


HASWELL = shutil.which("qemu-x86_64-static") and os.uname().machine == "x86_64"


@pytest.mark.skipif(not HASWELL, reason="needs qemu-user-static on an x86-64 machine")
def test_this_environment_under_an_older_processor(reach, tmp_path):
    place = reach("qemu", arch="x86_64", cpu="Haswell")
    assert (place.kind, place.shares_host) == ("emulated", True) and "as a Haswell" in place.notes[0]
    assert load(place, tmp_path)["info"]["runtime"] == "fake"


@pytest.mark.skipif(not HASWELL, reason="needs qemu-user-static on an x86-64 machine")
def test_a_processor_that_the_emulator_lacks(reach):
    with pytest.raises(PlaceLost, match="there is no cpu 'z80' in qemu-x86_64-static"):
        reach("qemu", arch="x86_64", cpu="z80")
