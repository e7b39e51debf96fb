"""Deploying to a real sshd: switched to once it has proved itself there; whatever breaks, the old one goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import apps
import board
import numpy as np
import pytest
from typer.testing import CliRunner

from lepton_edge import api, there
from lepton_edge.cli import app as cli
from lepton_edge.deploy import app_name, read_bundle
from lepton_edge.errors import LeptonError, PlaceLost, UsageError
from lepton_edge.ondevice import deploying
from lepton_edge.remote import Remote

pytestmark = pytest.mark.skipif(bool(board.MISSING), reason=board.MISSING)
SLOW = ("        (x,) = feeds", "        import time; time.sleep(20)\n        (x,) = feeds")


@pytest.fixture(scope="module")
def pi(tmp_path_factory):
    made = board.start(tmp_path_factory.mktemp("board"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Bundles of one application that differ in a label."""
    folder = tmp_path_factory.mktemp("bundles")
    return [apps.make(folder, str(n)) for n in range(1, 5)]


@pytest.fixture
def there_(pi, tmp_path, monkeypatch):
    """The board's side: where applications go, and how to name it."""
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    device = pi.toml(tmp_path)
    yield {"device_name": str(device), "root": str(tmp_path / "apps")}
    deadline = time.monotonic() + 10
    while pi.left() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert pi.left() == [], "the agents left nothing"


def app(there_) -> Path:
    return Path(there_["root"]) / "net"


def label(there_) -> str:
    """What the application answers there: the label of its version."""
    picture = Path(there_["root"]).parent / "photo.npy"
    np.save(picture, apps.pictures(1)[0] * 0)
    command = [str(app(there_) / "predict"), str(picture), "--json", "--top", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return next(t["label"] for t in json.loads(done.stdout)["top"][0] if t["index"] == 0)


def versions(there_) -> list[str]:
    return sorted(p.name for p in (app(there_) / "versions").iterdir())


def deploy(bundle, there_, **how):
    return api.deploy(bundle, **there_, **how)


def test_versions_are_switched_gone_back_from_and_pruned(bundles, there_, monkeypatch):
    monkeypatch.setattr("lepton_edge.deploy.KEPT", 2)
    done = [deploy(b, there_) for b in bundles[:2]]
    assert [d["previous"] for d in done] == [None, done[0]["version"]]
    assert done[0]["runtime"]["how"] == "there already" and done[0]["name"] == "net"
    assert [r["what"] for r in done[0]["self_test"]] == ["preprocessing", "scores"]
    assert label(there_) == "label of 2"
    assert str((app(there_) / "current").readlink()) == f"versions/{done[1]['version']}"
    back = api.rollback(there_["device_name"], "net", root=there_["root"])
    assert (back["version"], back["previous"]) == (done[0]["version"], done[1]["version"])
    assert label(there_) == "label of 1"
    with pytest.raises(LeptonError, match="no earlier version"):
        api.rollback(there_["device_name"], "net", root=there_["root"])
    third = deploy(bundles[2], there_)
    assert third["pruned"] == [done[1]["version"]], "the one that was gone back from"
    fourth = deploy(bundles[3], there_)
    assert fourth["pruned"] == [done[0]["version"]]
    told = api.deployments(there_["device_name"], root=there_["root"])
    rows = [(v["version"], v["current"]) for v in told[0]["versions"]]
    assert rows == [(third["version"], False), (fourth["version"], True)]
    assert label(there_) == "label of 4"


def test_what_is_there_already_is_mended_and_not_sent_again(bundles, there_):
    first = deploy(bundles[0], there_)
    assert deploy(bundles[0], there_)["sent_bytes"] == 0
    victim = app(there_) / "versions" / first["version"] / "net.sums"
    size = victim.stat().st_size
    victim.write_text("damaged")
    deploy(bundles[1], there_)
    with pytest.raises(LeptonError, match=r"net\.sums there differs from the manifest"):
        api.rollback(there_["device_name"], "net", root=there_["root"])
    assert label(there_) == "label of 2"
    assert deploy(bundles[0], there_)["sent_bytes"] == size
    assert label(there_) == "label of 1"


def test_another_answer_there_keeps_the_old_version(bundles, there_, tmp_path):
    deploy(bundles[0], there_)
    before = versions(there_)
    wrong = apps.make(tmp_path, "wrong", off=1.1)
    with pytest.raises(LeptonError, match=r"answers differently there: output 'scores'.* off by .* is allowed"):
        deploy(wrong, there_)
    assert label(there_) == "label of 1" and versions(there_) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("    return Session", "    import no_such_runtime\n    return Session"), "runtime is missing"),
        (("        (x,) = feeds", "        import os; os.abort()\n        (x,) = feeds"), "SIGABRT"),
    ],
)
def test_a_runtime_that_fails_there(bundles, there_, tmp_path, change, message):
    with pytest.raises(LeptonError, match=f"self-test could not run there: .*{message}"):
        deploy(apps.make(tmp_path, "broken", change=change), there_)
    assert not app(there_).exists(), "nothing is left of a first deployment that failed"


def test_a_connection_cut_while_files_are_sent(pi, bundles, there_, monkeypatch):
    deploy(bundles[0], there_)
    put, count = there.put, [0]

    def cut(place, file, path, progress):
        count[0] += 1
        if count[0] == 3:
            for session in pi.sessions():
                os.kill(session, signal.SIGKILL)
        put(place, file, path, progress)

    monkeypatch.setattr(there, "put", cut)
    with pytest.raises(PlaceLost, match=r"connection was lost.*; nothing was switched there"):
        deploy(bundles[1], there_)
    monkeypatch.undo()
    monkeypatch.setenv("LEPTON_EDGE_SSH", pi.client)
    assert label(there_) == "label of 1"
    assert [v for v in versions(there_) if v.startswith(".part-")], "a part is left"
    deploy(bundles[1], there_)
    assert label(there_) == "label of 2" and not [v for v in versions(there_) if v.startswith(".")]


def test_a_connection_cut_during_the_self_test(pi, bundles, there_, tmp_path, monkeypatch):
    deploy(bundles[0], there_)
    slow, run = apps.make(tmp_path, "slow", change=SLOW), Remote.run

    def cut(place, argv, **how):
        def kill():
            for session in pi.sessions():
                os.kill(session, signal.SIGKILL)

        threading.Timer(1.0, kill).start()
        return run(place, argv, **how)

    monkeypatch.setattr(Remote, "run", cut)
    with pytest.raises(PlaceLost, match="nothing was switched there"):
        deploy(slow, there_)
    assert label(there_) == "label of 1"
    assert running(there_) == []


def running(there_, seconds: float = 10.0) -> list[str]:
    """The processes that run something in the applications' folder, once those that end have had time to."""
    deadline = time.monotonic() + seconds
    while True:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:  # it ended meanwhile
                continue
        found = [line for line in found if f"{there_['root']}/net/versions" in line]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def test_a_host_that_is_killed_in_the_middle(pi, bundles, there_, tmp_path):
    deploy(bundles[0], there_)
    slow = apps.make(tmp_path, "slow", change=SLOW)
    command = [sys.executable, "-m", "lepton_edge", "deploy", str(slow), "--device", there_["device_name"]]
    host = subprocess.Popen([*command, "--to", there_["root"], "-q"], env=os.environ | {"LEPTON_EDGE_SSH": pi.client})
    part = app(there_) / "versions" / f".part-{read_bundle(slow).version}" / ".deployed"
    deadline = time.monotonic() + 30
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert part.exists()
    with pytest.raises(LeptonError, match=r"another deployment of 'net' is under way there \(by .+@"):
        deploy(bundles[1], there_)
    host.kill()
    host.wait()
    assert running(there_) == [], "the self-test ended with its host"
    assert label(there_) == "label of 1"
    deploy(bundles[1], there_)
    assert label(there_) == "label of 2" and len(versions(there_)) == 2


def test_no_room_is_told_before_anything_is_sent(bundles, there_, monkeypatch):
    big = read_bundle(bundles[0]).files()
    for told in big.values():
        told["size_bytes"] = 10**15
    monkeypatch.setattr("lepton_edge.deploy.Bundle.files", lambda bundle: big)
    with pytest.raises(LeptonError, match=r"are needed in .*/net, and .* are free") as told:
        deploy(bundles[0], there_)
    assert "free some space" in told.value.hint
    assert not app(there_).exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_meanwhile(bundles, there_, small_disk, monkeypatch):
    there_ = {**there_, "root": str(small_disk)}
    deploy(bundles[0], there_)
    put, count = there.put, [0]

    def fill(place, file, path, progress):
        count[0] += 1
        if count[0] == 2:
            with pytest.raises(OSError), (small_disk / "filler").open("wb") as f:
                while True:
                    f.write(b"x" * 4096)
                    f.flush()
        put(place, file, path, progress)

    monkeypatch.setattr(there, "put", fill)
    with pytest.raises(LeptonError, match=r"cannot be written there: No space left.* are free") as told:
        deploy(bundles[1], there_)
    assert "--to" in told.value.hint
    assert label(there_) == "label of 1" and len(versions(there_)) == 1
    monkeypatch.setattr(there, "put", put)
    (small_disk / "filler").unlink()
    deploy(bundles[1], there_)
    assert label(there_) == "label of 2"


def wheel(folder: Path, tag: str, name: str = "tiny_sums", version: str = "1.0", files: dict | None = None) -> None:
    """A wheel of a module that tells its version, or of other ``files``."""
    folder.mkdir(exist_ok=True)
    about = f"{name}-{version}.dist-info"
    files = {f"{name}.py": f"VERSION = {version!r}\n"} if files is None else files
    files |= {f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    files |= {f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n", f"{about}/RECORD": ""}
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        for inner, text in files.items():
            archive.writestr(inner, text)


@pytest.fixture
def needy(tmp_path):
    """A bundle that needs a package which is not on the board."""
    text = '    import tiny_sums\n    assert tiny_sums.VERSION == "1.0"\n    return Session'
    bundle = apps.make(tmp_path, "needy", change=("    return Session", text))
    (bundle / "requirements.txt").write_text("tiny-sums==1.0\nnumpy\n")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["requirements.txt"]["sha256"] = there.sha256(bundle / "requirements.txt")
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


def test_the_runtime_is_carried_along_as_wheels(needy, bundles, there_, tmp_path):
    wheel(tmp_path / "wheels", "py3-none-any")
    wheel(tmp_path / "wheels", "py3-none-any", version="2.0")
    with pytest.raises(LeptonError, match="there is no wheel of numpy here"):
        deploy(needy, there_, wheels=tmp_path / "wheels")
    wheel(tmp_path / "wheels", "py3-none-any", "numpy", np.__version__, files={})  # the board's own is behind it
    done = deploy(needy, there_, wheels=tmp_path / "wheels")
    assert done["runtime"]["how"] == "wheels"
    site = app(there_) / "runtimes" / done["runtime"]["key"]
    assert sorted(p.name for p in site.iterdir()) == [".complete", "site"]
    assert label(there_) == "label of needy"
    again = deploy(needy, there_)["runtime"]
    assert again["key"] == done["runtime"]["key"] and again["how"] == "kept from an earlier version"
    deploy(bundles[0], there_)
    api.rollback(there_["device_name"], "net", root=there_["root"])
    assert label(there_) == "label of needy" and site.exists(), "an earlier version still needs it"


def test_wheels_for_another_machine(needy, bundles, there_, tmp_path):
    deploy(bundles[0], there_)
    wheel(tmp_path / "wheels", "cp311-cp311-manylinux2014_s390x")
    with pytest.raises(LeptonError, match=r"tiny_sums-1\.0-.*s390x\.whl is for another machine") as told:
        deploy(needy, there_, wheels=tmp_path / "wheels")
    assert "x86_64" in told.value.hint or "aarch64" in told.value.hint
    assert label(there_) == "label of 1" and list((app(there_) / "runtimes").iterdir()) == []


def test_a_board_without_venv(needy, there_, monkeypatch):
    call = there.call

    def without(place, function, *rest, **args):
        told = call(place, function, *rest, **args)
        return {**told, "venv": False} if function == "facts" else told

    monkeypatch.setattr(there, "call", without)
    with pytest.raises(LeptonError, match=r"tiny-sums==1\.0, numpy is not there, and cannot be installed") as told:
        deploy(needy, there_)
    assert "--wheels" in told.value.hint


@pytest.mark.slow
def test_the_runtime_is_installed_by_pip(needy, there_, tmp_path, monkeypatch):
    """In a virtual environment there. Off the network it is told, and what there is of it goes."""
    run, environ = Remote.run, {"PIP_NO_INDEX": "1"}
    monkeypatch.setattr(Remote, "run", lambda place, argv, **how: run(place, argv, **{**how, "environ": environ}))
    with pytest.raises(LeptonError, match=r"tiny-sums==1\.0, numpy cannot be installed there: .*tiny-sums") as told:
        deploy(needy, there_)
    assert "--wheels" in told.value.hint and not app(there_).exists()
    wheel(tmp_path / "index", "py3-none-any")
    wheel(tmp_path / "index", "py3-none-any", name="numpy", version="1.0", files={
        "numpy_here.pth": str(Path(np.__file__).parent.parent)})  # fmt: skip
    environ["PIP_FIND_LINKS"] = str(tmp_path / "index")
    done = deploy(needy, there_)
    assert done["runtime"]["how"] == "venv" and label(there_) == "label of needy"
    assert deploy(needy, there_)["runtime"]["key"] == done["runtime"]["key"]


def test_what_is_no_bundle_is_refused_before_a_connection_is_made(bundles, tmp_path):
    with pytest.raises(LeptonError, match="no bundle here"):
        api.deploy(tmp_path, "nowhere.toml")
    copy = apps.make(tmp_path, "copy")
    (copy / "net.sums").write_text("changed")
    with pytest.raises(LeptonError, match=r"net\.sums differs from the manifest"):
        api.deploy(copy, "nowhere.toml")
    (copy / "manifest.json").write_text("{}")
    with pytest.raises(LeptonError, match="is not the manifest of a bundle"):
        api.deploy(copy, "nowhere.toml")
    with pytest.raises(UsageError, match="not a device that can be reached"):
        api.deploy(bundles[0], "raspberrypi5")
    with pytest.raises(UsageError, match="no name for an application"):
        app_name(read_bundle(bundles[0]), "../up")


def test_a_folder_of_something_else_is_left_alone(bundles, there_):
    app(there_).mkdir(parents=True)
    (app(there_) / "thesis.txt").write_text("precious")
    with pytest.raises(LeptonError, match="holds something else"):
        deploy(bundles[0], there_)
    assert [p.name for p in app(there_).iterdir()] == ["thesis.txt"]
    (app(there_).parent / "x" / "versions" / "abc" / ".deployed").mkdir(parents=True)
    (app(there_).parent / "x" / "versions" / "abc" / ".deployed" / "facts.json").write_text('{"sha256": "abcd"}')
    told = deploying.begin(str(app(there_).parent / "x"), "abc", "abce", {}, 0)
    assert "another bundle is called abc" in told["problem"], "the same twelve digits, and not the same bundle"
    with pytest.raises(LeptonError, match="no application 'other'"):
        api.rollback(there_["device_name"], "other", root=there_["root"])


def test_a_power_cut_at_the_switch(bundles, there_):
    """Between the switch and the note of it: what the link says counts."""
    first, second = (deploy(b, there_)["version"] for b in bundles[:2])
    (app(there_) / "history.json").write_text(json.dumps([first]))
    assert api.rollback(there_["device_name"], "net", root=there_["root"])["version"] == first
    (app(there_) / "history.json").write_text(json.dumps([second]))
    assert (
        deploying.listing(there_["root"])[0]["versions"][-1] | {"current": True}
        == (deploying.listing(there_["root"])[0]["versions"][-1])
    )
    assert label(there_) == "label of 1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bundle"], "no device was named"),
        (["--device", "pi"], "give a bundle, or --rollback, or --list"),
        (["bundle", "--list", "--device", "pi"], "give a bundle, or --rollback, or --list"),
        (["--rollback", "--device", "pi"], "which application should go back"),
        (["--list", "--device", "raspberypi5"], "unknown device"),
    ],
)
def test_calls_that_are_off(arguments, message):
    result = CliRunner().invoke(cli, ["deploy", *arguments])
    assert result.exit_code == 2 and message in result.stderr
