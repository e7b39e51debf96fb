"""A box to run the command line in, and the models and samples for it.

Every command runs in a process of its own, in an empty folder, with a store, a temporary folder and a mark in its
environment, by which its workers are found in /proc.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "samples" / "fashion_cnn.keras"
SCRIPT = Path(sys.executable).with_name("lepton-edge")
COMMAND = [str(SCRIPT)] if SCRIPT.is_file() else [sys.executable, "-c", "from lepton_edge.__main__ import main\nmain()"]
FRACTIONS = (0.1, 0.5, 0.9, 0.99)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes through /proc")
STAGE = re.compile(r"\[ *\d+\.\d s\] ")

# --- a box: the folders of one command, and what has to be true of them afterwards -------------------


class Box:
    """An empty working folder with a store and a temporary folder of its own."""

    def __init__(self, base):
        self.cwd, self.store, self.temp = (base / name for name in ("cwd", "store", "temp"))
        for folder in (self.cwd, self.store, self.temp):
            folder.mkdir(parents=True)
        self.mark = f"lepton-test-{uuid.uuid4().hex}"
        self.env = {
            **os.environ,
            "LEPTON_EDGE_CACHE": str(self.store),
            "LEPTON_EDGE_TEST_MARK": self.mark,
            "TMPDIR": str(self.temp),
        }

    def start(self, *args):
        """Start the command; its streams are pipes."""
        pipe = subprocess.PIPE
        command = [*COMMAND, *map(str, args)]
        return subprocess.Popen(
            command, cwd=self.cwd, env=self.env, stdout=pipe, stderr=pipe, text=True, preexec_fn=deaf_to_none
        )

    def run(self, *args):
        """Run the command to its end: (exit code, stdout, stderr)."""
        process = self.start(*args)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def good(self, *args):
        """Run a command that has to work; its JSON document."""
        code, out, err = self.run(*args, "--json")
        assert code == 0, err
        self.check_clean()
        return json.loads(out)

    def refused(self, *args, code=1, naming=""):
        """Run a command that has to be refused and leave nothing; its error line and hint."""
        before = tree(self.cwd)
        got, out, err = self.run(*args)
        assert got == code, f"exit code {got}\n{err}{out}"
        error, hint = told(err)
        assert naming in error, error
        assert "Traceback" not in out
        if "--json" in args:
            assert json.loads(out)["error"]["message"] == error
        else:
            assert out == ""
        assert tree(self.cwd) == before
        self.check_clean()
        return error, hint

    def processes(self):
        """{pid: command line} of what the command started and is still alive."""
        found = {}
        for place in Path("/proc").iterdir():
            if place.name.isdecimal() and int(place.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if self.mark.encode() in (place / "environ").read_bytes():
                        found[int(place.name)] = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def workers(self):
        """The pids of the workers alive."""
        return [pid for pid, line in self.processes().items() if "worker.py" in line]

    def check_clean(self):
        """No process, no temporary file, no half-written entry of the store."""
        assert until(lambda: not self.processes(), 5), self.processes()
        assert tree(self.temp) == {}
        assert not list(self.store.rglob(".part-*"))
        assert not [p for p in self.cwd.rglob("*") if p.name.startswith(".") or p.name.endswith(".part")]


def deaf_to_none():
    """In the new process: hear the signals that a shell ignores in what it starts in the background."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)


def tree(folder):
    """{relative path: size, None for folders} of all that is under a folder."""
    return {p.relative_to(folder).as_posix(): p.stat().st_size if p.is_file() else None for p in folder.rglob("*")}


def told(err):
    """The error line and the hint on stderr; nothing else may be there but progress, which comes first."""
    lines = [line for line in err.splitlines() if not STAGE.match(line)]
    assert 1 <= len(lines) <= 2 and lines[0].startswith("error: "), err
    assert len(lines) == 1 or lines[1].startswith("hint: "), err
    assert all(STAGE.match(line) for line in err.splitlines()[: -len(lines)]), err
    assert len(lines[0]) < 700
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ") if len(lines) == 2 else ""


def until(condition, seconds):
    """Whether the condition comes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def wait_for_line(process, text):
    """Read stderr up to a line that holds ``text``."""
    for line in process.stderr:
        if text in line:
            return
    raise AssertionError(f"'{text}' never came; exit code {process.wait()}")


@pytest.fixture
def box(tmp_path):
    made = Box(tmp_path / "box")
    yield made
    for pid in made.processes():  # only after a failed test
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


# --- models and data, made once -----------------------------------------------------------------------


@pytest.fixture(scope="session")
def things(tmp_path_factory):
    """A folder with a small ONNX classifier (3x8x8 to 5 classes), the same ten times, and samples for them."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("things")
    onnx.save(classifier(onnx, 4), folder / "model.onnx")
    onnx.save(classifier(onnx, 100_000), folder / "large.onnx")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 3, 8, 8)).astype(np.float32), rng.integers(0, 5, 40)
    np.savez(folder / "data.npz", x=x, y=y)
    np.savez(folder / "large.npz", x=rng.standard_normal((4000, 3, 8, 8)).astype(np.float32))
    return folder


def classifier(onnx, width):
    """Flatten, Gemm to ``width``, Relu, mean over groups, Gemm to five scores."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(1)

    def weights(name, *shape):
        return numpy_helper.from_array((rng.standard_normal(shape) / shape[0] ** 0.5).astype(np.float32), name)

    if width > 1000:  # many weights and little work: a Conv of 1 x 1 from 3 to ``width`` channels, pooled at once
        first = [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Conv", ["pooled", "w1"], ["wide"]),
        ]
        held = [weights("w1", width, 3, 1, 1)]
    else:
        first = [
            helper.make_node("Conv", ["image", "w1"], ["conv"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["conv"], ["wide"]),
        ]
        held = [weights("w1", width, 3, 3, 3)]
    nodes = [
        *first,
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("Flatten", ["active"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w2"], ["scores"]),
    ]
    ports = (("image", ["n", 3, 8, 8]), ("scores", ["n", 5]))
    one, two = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in ports)
    graph = helper.make_graph(nodes, "classifier", [one], [two], [*held, weights("w2", width, 5)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="session")
def whole(things, tmp_path_factory):
    """A function that gives an intact model of a format: {"onnx", "tflite", "openvino", "keras", "h5", "pt2"}."""
    box = Box(tmp_path_factory.mktemp("whole") / "box")

    def get(format_):
        if format_ == "onnx":
            return things / "model.onnx"
        if format_ == "keras":
            return SAMPLE
        if format_ == "h5":
            return keras2_file(box.cwd / "model.h5", {"class_name": "Sequential", "config": {}})
        if format_ == "pt2":
            return pt2_file(box.cwd / "model.pt2")
        out = box.cwd / ("model" + {"tflite": ".tflite", "openvino": ".xml"}[format_])
        if not out.exists():
            pytest.importorskip({"tflite": "ai_edge_litert", "openvino": "openvino"}[format_])
            code, _, err = box.run("convert", things / "model.onnx", "--to", format_, "-o", out)
            assert code == 0, err
        return out

    return get


def keras2_file(path, config):
    """An HDF5 file as Keras 2 writes it: the config in an attribute, weights in a group."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as f:
        f.attrs.update({"model_config": json.dumps(config), "keras_version": "2.15.0", "backend": "tensorflow"})
        f.create_group("model_weights").create_dataset("w", data=np.random.default_rng(0).random(5000))
    return path


def keras3_file(path, config):
    """A .keras archive with that config and no weights."""
    h5py = pytest.importorskip("h5py")
    weights = path.with_suffix(".weights.h5")
    with h5py.File(weights, "w") as f:
        f.create_group("layers")
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("metadata.json", json.dumps({"keras_version": "3.8.0", "date_saved": "2025-01-01@00:00:00"}))
        z.writestr("config.json", json.dumps(config))
        z.write(weights, "model.weights.h5")
    weights.unlink()
    return path


def pt2_file(path):
    """An archive that says of itself that it is an exported program, and holds noise."""
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("model/archive_format", "pt2")
        z.writestr("model/archive_version", "0")
        z.writestr("model/models/model.json", np.random.default_rng(0).bytes(4000))
    return path


def copy_of(source, folder, name=None):
    """A copy of a model file, and of the .bin beside an .xml."""
    target = folder / (name or source.name)
    shutil.copyfile(source, target)
    if source.suffix == ".xml":
        shutil.copyfile(source.with_suffix(".bin"), target.with_suffix(".bin"))
    return target


def cut(path, fraction):
    """Keep the first part of a file."""
    with path.open("r+b") as f:
        f.truncate(int(path.stat().st_size * fraction))
    return path.name


def images(count=8):
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)
