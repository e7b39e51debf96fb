"""Workers: answers, errors with last words, hangs, kills; nothing stays behind."""

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from lepton_edge import registry
from lepton_edge.errors import LeptonError, WorkerError
from lepton_edge.launch import Worker, Workers


def runtime_file():
    return str(registry.folder("runtimes") / "fake.py")


def write_feed(folder, count=10):
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.standard_normal((count, 4)).astype(np.float32))
    (folder / "feed.json").write_text(json.dumps({"inputs": ["x"], "files": {"x": "x.npy"}, "count": count}))
    return str(folder)


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_predict_writes_an_array_an_output(fake_model, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    seen = []
    with Worker("predicting") as w:
        w.call("load", file=runtime_file(), model=str(fake_model()), options={})
        done = w.call("predict", lambda *a: seen.append(a), feed=write_feed(tmp_path / "feed"), out=str(out))
    assert done == {"outputs": ["scores"], "count": 10}
    assert np.load(out / "0.npy").shape == (10, 3)
    assert seen[-1][:2] == (10, 10)
    assert gone(w.pid)


def test_quantized_ports_are_fed_and_read_as_real_numbers(plugins, tmp_path):
    file = plugins(
        "runtimes/q.py",
        "class S:\n"
        "    inputs = [{'name': 'x', 'shape': [1, 4], 'dtype': 'int8', 'quantization': [0.5, -1]}]\n"
        "    outputs = [{'name': 'y', 'shape': [1, 4], 'dtype': 'int8', 'quantization': [0.25, 3]}]\n"
        "    info = {}\n"
        "    def run(self, feeds):\n"
        "        assert feeds['x'].dtype == 'int8'\n"
        "        return {'y': feeds['x'].copy()}\n"
        "def load(model):\n    return S()\n",
    )
    out = tmp_path / "out"
    out.mkdir()
    with Worker("q") as w:
        loaded = w.call("load", file=str(file), model="m", options={})
        w.call("predict", feed=write_feed(tmp_path / "feed"), out=str(out))
    assert loaded["inputs"][0]["dtype"] == "float32" and loaded["inputs"][0]["stored"] == "int8"
    x = np.load(tmp_path / "feed" / "x.npy")
    stored = np.clip(np.round(x / 0.5) - 1, -128, 127)
    np.testing.assert_allclose(np.load(out / "0.npy"), (stored - 3) * 0.25)


def test_a_crash_is_one_line_with_the_signal(fake_model, tmp_path):
    with Worker("running the model") as w:
        w.call("load", file=runtime_file(), model=str(fake_model(fail="crash")), options={})
        with pytest.raises(WorkerError, match=r"running the model: the worker (crashed|was killed|ended)") as e:
            w.call("predict", feed=write_feed(tmp_path / "feed"), out=str(tmp_path))
    assert "\n" not in e.value.message


def test_a_kill_is_told_as_memory(fake_model):
    with Worker("loading") as w:
        os.kill(w.pid, signal.SIGKILL)
        time.sleep(0.2)
        with pytest.raises(WorkerError, match="SIGKILL") as e:
            w.call("load", file=runtime_file(), model=str(fake_model()), options={})
    assert "memory" in e.value.hint


def test_a_hang_ends_after_the_silence(fake_model, tmp_path):
    with Worker("running") as w:
        w.call("load", file=runtime_file(), model=str(fake_model(fail="hang")), options={})
        with pytest.raises(WorkerError, match="no sign of life for 1 s"):
            w.call("predict", silence=1.0, feed=write_feed(tmp_path / "feed"), out=str(tmp_path))
    assert gone(w.pid)


def test_a_step_error_keeps_its_hint(plugins, tmp_path):
    file = plugins(
        "converters/a_to_b.py",
        "from lepton_edge.errors import LeptonError\n"
        'def run(src, dst):\n    raise LeptonError("m.a: no", hint="do this")\n',
    )
    with Worker("a_to_b") as w, pytest.raises(LeptonError, match=r"^m\.a: no$") as e:
        w.call("step", file=str(file), src="x", dst="y", options={})
    assert e.value.hint == "do this"


def test_chatter_on_stdout_does_not_break_the_protocol(plugins):
    file = plugins(
        "converters/a_to_b.py",
        'import os\ndef run(src, dst):\n    print("hello")\n    os.system("echo from a child")\n'
        '    os.write(1, b"raw")\n    return {"notes": ["ä"]}\n',
    )
    with Worker("a_to_b") as w:
        assert w.call("step", file=str(file), src="x", dst="y", options={}) == {"notes": ["ä"]}
        assert "from a child" in w.log()


def test_steps_of_one_environment_share_a_worker():
    with Workers() as workers:
        first = workers.get("a")
        assert workers.get("b") is first
        assert workers.get("c", environ={"X": "1"}) is not first
        first.kill()
        with pytest.raises(WorkerError):
            first.call("usage")
        assert workers.get("d") is not first


def test_the_peak_memory_is_the_workers_own():
    ballast = np.ones(60_000_000, np.uint8)  # in this process, which starts the worker
    with Worker("usage") as w:
        assert 5 < w.call("usage")["peak_rss_mb"] < 40
    assert ballast[0] == 1


def test_a_worker_dies_with_its_parent(tmp_path):
    import subprocess
    import sys

    code = (
        "import os,sys,time\nfrom lepton_edge.launch import Worker\nw=Worker('x');w.call('usage')\n"
        "print(w.pid,flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while not _dead(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _dead(pid)


def _dead(pid):
    """Gone, or a zombie that nobody reaps where the test has no init process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
