"""The command line on full disks, kills and Ctrl-C: one clear line, the right exit code, nothing left."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from box import LINUX, STAGE, told, tree, until, wait_for_line

pytestmark = LINUX


# --- full disks ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A function that mounts a file system of so many kilobytes; skips where that is not allowed."""
    mounted = []

    def mount(kilobytes):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "lepton-test", str(place)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a small file system is not permitted here")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [16, 2048])
def test_out_on_a_full_disk(box, things, small_disk, kilobytes):
    disk = small_disk(kilobytes)
    data = things / ("data.npz" if kilobytes < 100 else "large.npz")
    args = ("compress", things / "model.onnx", "--data", data, "--to", "onnx", "--out", disk / "run")
    error, hint = box.refused(*args)
    assert re.search(r"full|free|space", error + hint)
    assert tree(disk) == {}


def test_a_model_onto_a_full_disk(box, things, small_disk):
    pytest.importorskip("openvino")
    disk = small_disk(2048)
    args = ("convert", things / "large.onnx", "--to", "openvino", "--out", disk / "model.xml")
    error, hint = box.refused(*args)
    assert re.search(r"full|free|space", error + hint)
    assert tree(disk) == {}


def test_the_store_on_a_full_disk(box, things, small_disk):
    pytest.importorskip("openvino")
    disk = small_disk(2048)
    box.env["LEPTON_EDGE_CACHE"] = str(disk)
    args = ("convert", things / "large.onnx", "--to", "openvino", "--out", "model.xml")
    error, hint = box.refused(*args)
    assert re.search(r"full|free|space", error + hint)
    assert tree(disk) == {}


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [64, 160])
def test_out_fills_up_in_the_middle_of_a_run(box, things, small_disk, kilobytes):
    disk = small_disk(kilobytes)
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--to", "onnx", "--seconds", "0.1")
    error, hint = box.refused(*args, "--out", disk / "run", "--max-drop", "100")
    assert re.search(r"full|free|space", error + hint)
    # What was measured is kept once it is whole; then only pictures of it may be missing.
    assert tree(disk) == {} or json.loads((disk / "run" / "run.json").read_text())["candidates"]


# --- kills and interrupts -----------------------------------------------------------------------------------


def test_an_interrupt_while_the_tool_is_still_starting(box, tmp_path):
    (tmp_path / "typer.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(30)\n")
    box.env["PYTHONPATH"] = str(tmp_path)
    assert box.run("list") == (130, "", "interrupted\n")


def test_a_worker_killed_while_it_measures(box, fake_model):
    box.env["LEPTON_EDGE_PLUGINS"] = os.environ["LEPTON_EDGE_PLUGINS"]
    process = box.start("bench", fake_model(fail="hang"))
    wait_for_line(process, "measuring latency")
    assert until(box.workers, 20)
    time.sleep(0.3)
    os.kill(box.workers()[0], signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    error, hint = told(err)
    assert process.returncode == 1 and out == ""
    assert "model.fake" in error and "SIGKILL" in error and "memory" in hint
    box.check_clean()


def test_the_tool_itself_killed_leaves_no_process_and_the_next_run_clears_up(box, things, plugins):
    box.env["LEPTON_EDGE_PLUGINS"] = os.environ["LEPTON_EDGE_PLUGINS"]
    drop_slow(plugins)
    args = ("convert", things / "model.onnx", "--to", "slow", "-o", "model.slow")
    (box.cwd / ".part-00000000-1-other").mkdir()  # of another machine: not ours to judge
    process = box.start(*args)
    wait_for_line(process, "[onnx_to_slow]")
    assert until(lambda: list(box.store.rglob("model.slow")), 20)
    process.kill()
    process.communicate(timeout=30)
    assert until(lambda: not box.processes(), 10), box.processes()
    mine = f".part-*-{process.pid}-*"
    assert list(box.cwd.glob(mine)) and list(box.store.glob(mine))
    plugins("converters/onnx_to_slow.py", '"""Fails."""\ndef run(src, dst):\n    raise ValueError("no")\n')
    assert box.run(*args)[0] == 1
    assert tree(box.cwd) == {".part-00000000-1-other": None} and not list(box.store.glob(".part-*"))


def drop_slow(plugins):
    """A step that sleeps with half a file written, and a format and a runtime for what it would make."""
    plugins("formats/slow.py", 'SUFFIX = ".slow"\ndef recognise(path, head):\n    return head == b"slow"\n')
    plugins(
        "runtimes/slow.py",
        '"""Slow."""\nFORMATS = ("slow",)\ndef load(model, *, threads=1):\n    raise ValueError("never")\n',
    )
    plugins(
        "converters/onnx_to_slow.py",
        '"""Sleeps with half a file written."""\nimport tempfile, time\n'
        "def run(src, dst):\n"
        "    tempfile.mkdtemp()\n"
        '    open(dst, "w").write("sl")\n'
        "    time.sleep(300)\n",
    )


def test_a_step_killed_while_it_works(box, things, plugins):
    """A plug-in step that says when it runs: killed at once, so that nothing depends on timing."""
    box.env["LEPTON_EDGE_PLUGINS"] = os.environ["LEPTON_EDGE_PLUGINS"]
    drop_slow(plugins)
    for signum in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM):
        process = box.start("convert", things / "model.onnx", "--to", "slow", "-o", "model.slow")
        wait_for_line(process, "[onnx_to_slow]")
        assert until(lambda: list(box.store.rglob("model.slow")), 20)
        if signum == signal.SIGKILL:
            at = next(p for p in box.workers() if "runtime" not in environ_role(p))
            os.kill(at, signum)
        else:
            process.send_signal(signum)
        out, err = process.communicate(timeout=30)
        assert out == "" and "Traceback" not in err
        if signum == signal.SIGKILL:
            error, hint = told(err)
            assert process.returncode == 1 and "onnx_to_slow" in error and "SIGKILL" in error and "memory" in hint
        else:
            assert process.returncode == 130
            assert [line for line in err.splitlines() if not STAGE.match(line)] == [
                "interrupted; finished steps are kept, so the same command goes on from there"
            ]
        box.check_clean()
        assert tree(box.cwd) == {} and not list(box.store.rglob("*.slow"))


def environ_role(pid):
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next((e.partition("=")[2] for e in entries if e.startswith("LEPTON_EDGE_ROLE=")), "")


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(box, things):
    pytest.importorskip("openvino")
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--to", "openvino", "--seconds", "0.2")
    args = (*args, "--max-drop", "100")
    ran = []
    for stage, signum in (("[quantize_onnx]", signal.SIGINT), ("measuring latency", signal.SIGTERM)):
        process = box.start(*args)
        wait_for_line(process, stage)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and out == "" and "Traceback" not in err
        box.check_clean()
        assert tree(box.cwd) == {}
        ran.append(len(list(box.store.glob("??/*/step.json"))))
    assert ran == [1, 3]  # the float model was kept, then the quantized one in ONNX and OpenVINO
    run = box.good(*args)
    assert [s["cached"] for c in run["candidates"] for s in c["steps"]] == [True, True, True]
    assert (box.cwd / "lepton-out" / "run.json").is_file()
    again = box.run(*args)  # an earlier run is replaced as a whole
    assert again[0] == 0, again[2]
    box.check_clean()


@pytest.mark.slow
def test_limits_that_are_not_met(box, things):
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--to", "onnx", "--seconds", "0.2")
    code, out, err = box.run(*args, "--max-size", "10", "--json", "--out", "run")
    error, hint = told(err)
    assert code == 4 and "limit" in error and "--max-size" in hint
    document = json.loads(out)
    assert document["error"]["exit_code"] == 4 and document["picked"] is None
    assert {"run.json", "report.html"} <= tree(box.cwd / "run").keys()
    code, out, err = box.run("bench", things / "model.onnx", "--seconds", "0.1", "--max-latency", "0", "--json")
    assert code == 4 and json.loads(out)["rows"] and "model.onnx" in told(err)[0]
    box.check_clean()
