"""Interrupts: heard at once, but after what must happen whole; and once, though Ctrl-C is pressed twice."""

import os
import signal

import pytest

from lepton_edge import interrupts, launch
from lepton_edge.store import aside


@pytest.fixture(autouse=True)
def listening(monkeypatch):
    before = {name: signal.getsignal(name) for name in interrupts.SIGNALS}
    for name in interrupts.SIGNALS:
        signal.signal(name, signal.SIG_DFL)
    monkeypatch.setattr(interrupts, "_last", float("-inf"))
    interrupts.listen()
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("name", interrupts.SIGNALS)
def test_each_is_an_interrupt(name):
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), name)


def test_one_within_a_block_waits_for_its_end():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupts.held():
        with interrupts.held():
            interrupt()
            done.append("inner")
        done.append("outer")
    assert done == ["inner", "outer"]
    with interrupts.held():  # and is told once
        done.append("next")
    assert done[-1] == "next"


def test_a_second_right_after_the_first_is_not_heard():
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    interrupt()


def test_one_while_a_worker_starts_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(launch.tempfile, "tempdir", str(tmp_path))
    started, popen = [], launch.subprocess.Popen

    def interrupted(*args, **kwargs):
        interrupt()
        started.append(popen(*args, **kwargs))
        return started[0]

    monkeypatch.setattr(launch.subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch.Worker("a worker")
    launch.close_all()
    assert started[0].returncode is not None and not list(tmp_path.iterdir())


def test_one_while_a_scratch_folder_is_made_leaves_nothing(monkeypatch, tmp_path):
    make = launch.tempfile.mkdtemp

    def interrupted(*args, **kwargs):
        interrupt()
        return make(*args, **kwargs)

    monkeypatch.setattr(launch.tempfile, "mkdtemp", interrupted)
    with pytest.raises(KeyboardInterrupt), aside(tmp_path / "new" / "deep"):
        raise AssertionError("never here")
    assert not list(tmp_path.iterdir())
