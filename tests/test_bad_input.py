"""The command line on bad input, full disks, kills and Ctrl-C: one clear line, the right exit code, nothing left.

Every case runs the real command in a process of its own, in an empty folder, with a store, a temporary folder
and a mark in its environment, by which its workers are found in /proc.
"""

import base64
import contextlib
import json
import marshal
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
STAGE = re.compile(r"\[ *\d+\.\d s\] ")

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes through /proc")


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
        return subprocess.Popen(command, cwd=self.cwd, env=self.env, stdout=pipe, stderr=pipe, text=True)

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


# --- model files ----------------------------------------------------------------------------------------


def test_the_box_tells_a_command_that_works(box, things):
    copy_of(things / "model.onnx", box.cwd)
    shutil.copyfile(things / "data.npz", box.cwd / "data.npz")
    result = box.good("evaluate", "model.onnx", "--data", "data.npz")
    assert result["accuracy"]["count"] == 40


@pytest.mark.parametrize("command", ["inspect", "compress", "convert", "bench", "report"])
def test_a_missing_model(box, command):
    extra = {"convert": ["--to", "onnx"]}.get(command, [])
    _, hint = box.refused(command, "nowhere.onnx", *extra, naming="nowhere.onnx")
    assert hint


def test_a_missing_model_with_a_close_name(box, things):
    copy_of(things / "model.onnx", box.cwd)
    _, hint = box.refused("inspect", "modle.onnx", naming="modle.onnx")
    assert "'model.onnx'" in hint


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.keras", "model.h5", "model.pt2", "model.xml"])
def test_an_empty_file(box, name):
    (box.cwd / name).touch()
    error, _ = box.refused("inspect", name, naming=name)
    assert "empty" in error


@pytest.mark.parametrize(
    "content",
    [b"# A model\n\nThis text only has the name of one.\n" * 50, b"\x08\x07", bytes(1000), b"\xff" * 64],
    ids=["text", "start", "zeros", "ones"],
)
def test_a_file_that_only_has_the_name_of_a_model(box, content):
    (box.cwd / "notes.onnx").write_bytes(content)
    box.refused("convert", "notes.onnx", "--to", "openvino", naming="notes.onnx")


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("format_", ["onnx", "keras", "h5", "pt2"])
def test_a_file_cut_short(box, whole, format_, fraction):
    name = cut(copy_of(whole(format_), box.cwd), fraction)
    error, hint = box.refused("convert", name, "--to", "tflite", naming=name)
    assert "cut short" in error
    assert "again" in hint


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_tflite_file_cut_short(box, whole, fraction):
    name = cut(copy_of(whole("tflite"), box.cwd), fraction)
    box.refused("convert", name, "--to", "onnx", naming=name)
    box.refused("inspect", name, naming=name)


@pytest.mark.parametrize("part", [".xml", ".bin"])
@pytest.mark.parametrize("fraction", [0.5, 0.99])
def test_an_openvino_model_cut_short(box, whole, part, fraction):
    name = copy_of(whole("openvino"), box.cwd).name
    cut((box.cwd / name).with_suffix(part), fraction)
    box.refused("bench", name, naming=name)


def test_an_openvino_xml_without_its_weights(box, whole):
    name = copy_of(whole("openvino"), box.cwd).name
    (box.cwd / name).with_suffix(".bin").unlink()
    error, _ = box.refused("bench", name, naming=name)
    assert "model.bin" in error


def test_a_pt2_archive_of_noise(box):
    pytest.importorskip("torch")
    pt2_file(box.cwd / "model.pt2")
    box.refused("inspect", "model.pt2", naming="model.pt2")


def test_a_pickled_checkpoint_is_never_loaded(box):
    with zipfile.ZipFile(box.cwd / "weights.pt2", "w") as z:
        z.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch executed'\ntR.")
        z.writestr("archive/version", "3")
    error, _ = box.refused("convert", "weights.pt2", "--to", "onnx", naming="weights.pt2")
    assert "pickle" in error


def test_a_folder_that_is_no_savedmodel(box):
    (box.cwd / "saved").mkdir()
    (box.cwd / "saved" / "notes.txt").write_text("nothing")
    box.refused("convert", "saved", "--to", "tflite", naming="saved")


@pytest.mark.slow
def test_a_savedmodel_of_noise(box):
    pytest.importorskip("tensorflow")
    (box.cwd / "saved").mkdir()
    (box.cwd / "saved" / "saved_model.pb").write_bytes(np.random.default_rng(0).bytes(5000))
    box.refused("convert", "saved", "--to", "tflite", naming="saved")


def test_external_data_outside_of_the_folder(box, things):
    onnx = pytest.importorskip("onnx")
    inner = box.cwd / "inner"
    inner.mkdir()
    model = onnx.load(things / "model.onnx")
    onnx.save(model, inner / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    shutil.move(inner / "weights.bin", box.cwd / "weights.bin")
    box.refused("convert", "inner/model.onnx", "--to", "openvino", naming="'weights.bin' is missing")
    model = onnx.load(inner / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (inner / "model.onnx").write_bytes(model.SerializeToString())
    error, _ = box.refused("convert", "inner/model.onnx", "--to", "openvino", naming="inner/model.onnx")
    assert "'../weights.bin' lies outside" in error


def lambda_config(marker):
    """The config of a model with a Lambda layer that would write ``marker`` when it is built or called."""
    # Calling a Lambda of a loaded model runs this bytecode.
    code = marshal.dumps(eval(f"lambda x: open({str(marker)!r}, 'w')").__code__)  # noqa: S307 - our own text
    function = {
        "class_name": "__lambda__",
        "config": {"code": base64.b64encode(code).decode(), "defaults": None, "closure": None},
    }
    layers = [
        {
            "class_name": "InputLayer",
            "module": "keras.layers",
            "config": {"name": "x", "batch_shape": [None, 4], "dtype": "float32"},
        },
        {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "sly", "function": function}},
    ]
    return {"class_name": "Sequential", "module": "keras", "config": {"name": "model", "layers": layers}}


@pytest.mark.parametrize("make", [keras3_file, keras2_file], ids=["model.keras", "model.h5"])
def test_a_lambda_layer_never_runs(box, make):
    pytest.importorskip("tensorflow")
    name = "model.keras" if make is keras3_file else "model.h5"
    marker = box.temp.parent / "executed"
    make(box.cwd / name, lambda_config(marker))
    error, _ = box.refused("convert", name, "--to", "tflite", naming=name)
    assert "Lambda" in error
    assert not marker.exists()
    code, _, err = box.run("inspect", name)  # reading what is in it is allowed, running it is not
    assert code in (0, 1) and "Traceback" not in err
    assert not marker.exists()
    box.check_clean()


# --- data -----------------------------------------------------------------------------------------------


def images(count=8):
    return np.random.default_rng(0).standard_normal((count, 3, 8, 8)).astype(np.float32)


BAD_DATA = {
    "name": ({"picture": images(), "mask": images()}, "picture"),
    "shape": ({"x": images()[:, :, :5]}, "[3, 5, 8]"),
    "layout": ({"x": images().transpose(0, 2, 3, 1)}, "[8, 8, 3]"),
    "text": ({"x": np.full((8, 3, 8, 8), "seven")}, "text"),
    "complex": ({"x": images().astype(np.complex64)}, "complex"),
    "double": ({"x": images().astype(np.float64) * 1e300}, "sample 0"),
    "pickle": ({"x": np.array([[1], {}, "a"], dtype=object)}, "pickled"),
    "nan": ({"x": np.where(np.arange(8).reshape(-1, 1, 1, 1) == 5, np.nan, images())}, "sample 5"),
    "infinity": ({"x": np.where(np.arange(8).reshape(-1, 1, 1, 1) == 3, np.inf, images())}, "sample 3"),
    "none": ({"x": images(0)}, "no samples"),
    "lengths": ({"x": images(8), "y": np.zeros(7, np.int64)}, "different numbers"),
    "label-99": ({"x": images(), "y": np.array([0, 1, 2, 99, 0, 1, 2, 3])}, "label 99"),
    "label-negative": ({"x": images(), "y": np.array([0, 1, -2, 0, 0, 1, 2, 3])}, "negative"),
    "label-float": ({"x": images(), "y": np.linspace(0, 1, 8)}, "integer"),
    "label-text": ({"x": images(), "y": np.array(list("abcdefgh"))}, "text"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_data_that_does_not_fit(box, things, what):
    arrays, naming = BAD_DATA[what]
    np.savez(box.cwd / "bad.npz", **arrays)
    args = ("quantize", things / "model.onnx", "--data", "bad.npz", "-o", "out.onnx")
    error, _ = box.refused(*args, naming=naming)
    assert what == "label-99" or "bad.npz" in error


def test_data_cut_short(box, things):
    shutil.copyfile(things / "data.npz", box.cwd / "data.npz")
    for fraction in FRACTIONS:
        cut(box.cwd / "data.npz", fraction)
        box.refused("evaluate", things / "model.onnx", "--data", "data.npz", naming="data.npz")


def test_data_that_is_missing_or_nothing_of_the_kind(box, things):
    (box.cwd / "data.csv").write_text("1,2,3\n")
    (box.cwd / "empty.npz").touch()
    (box.cwd / "folder").mkdir()
    for name in ("nowhere.npz", "data.csv", "empty.npz", "folder"):
        box.refused("evaluate", things / "model.onnx", "--data", name, naming=name)


def test_quantizing_without_data(box, things):
    _, hint = box.refused("quantize", things / "model.onnx", "-o", "out.onnx", naming="samples")
    assert "--data" in hint


def test_a_broken_image_in_a_folder(box, things):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in range(2):
        (box.cwd / "images" / str(label)).mkdir(parents=True)
        for k in range(3):
            pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
            image.fromarray(pixels).save(box.cwd / "images" / str(label) / f"{k}.png")
    good = box.good("evaluate", things / "model.onnx", "--data", "images", "--preprocess", "imagenet")
    assert good["accuracy"]["count"] == 6
    cut(box.cwd / "images" / "1" / "2.png", 0.6)
    args = ("evaluate", things / "model.onnx", "--data", "images", "--preprocess", "imagenet")
    box.refused(*args, naming="images/1/2.png")
    (box.cwd / "images" / "1" / "2.png").write_text("no image at all")
    box.refused(*args, naming="images/1/2.png")


def test_one_sample_is_enough(box, things):
    np.savez(box.cwd / "one.npz", x=images(1), y=np.array([4]))
    result = box.good("evaluate", things / "model.onnx", "--data", "one.npz")
    assert result["accuracy"]["count"] == 1
    assert any("1 evaluation sample" in w for w in result["warnings"])


# --- the call and the recipe ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "naming"),
    [
        (["compress", "--no-such-option"], "--no-such-option"),
        (["no-such-command"], "no-such-command"),
        (["compress", "{model}", "--samples", "many"], "--samples"),
        (["compress", "{model}", "--seconds", "nan"], "--seconds"),
        (["compress", "{model}", "--max-drop", "nan"], "--max-drop"),
        (["convert", "{model}"], "target format"),
        (["convert", "{model}", "--to", "tflight"], "'tflight'"),
        (["convert", "{model}", "--to", "onnx"], "onnx already"),
        (["compress", "{model}", "--data", "{data}", "--to", "onnx,tflight"], "'tflight'"),
        (["compress", "{model}", "--data", "{data}", "--to", ","], "empty list"),
        (["compress", "{model}", "--data", "{data}", "--device", "raspberrypi9"], "'raspberrypi9'"),
        (["devices", "show", "raspberrypi9"], "'raspberrypi9'"),
        (["bench", "{model}", "--runtime", "onxruntime"], "'onxruntime'"),
        (["evaluate", "{model}", "--data", "{data}", "--preprocess", "imagnet"], "imagnet"),
        (["compress", "{model}", "--data", "{data}", "--recipe", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_a_call_that_is_off(box, things, args, naming):
    filled = [a.format(model=things / "model.onnx", data=things / "data.npz") for a in args]
    box.refused(*filled, code=2, naming=naming)


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ("[kompress]\n", "[kompress]"),
        ("[compress]\nmax_dorp = 1\n", "'max_dorp'"),
        ("[compress]\nmax_drop = 'one'\n", "'max_drop'"),
        ("[compress]\nmax_drop = nan\n", "'max_drop'"),
        ("[compress]\nto = 'onnx'\n", "'to'"),
        ("[compress]\nto = ['onix']\n", "'onix'"),
        ("[compress]\ndevice = 'raspberrypi9'\n", "'raspberrypi9'"),
        ("[data]\nsamples = 0\n", "samples"),
        ("[bench]\nrounds = 0\n", "rounds"),
        ("[quantize]\nno_such_key = 1\n", "'no_such_key'"),
        ("[preprocess]\nscail = 1\n", "'scail'"),
        ("[bench\n", "TOML"),
    ],
)
def test_a_recipe_that_is_off(box, things, text, naming):
    (box.cwd / "recipe.toml").write_text(text)
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--recipe", "recipe.toml")
    box.refused(*args, code=2, naming=naming)


def test_json_holds_the_error_too(box, things):
    box.refused("inspect", "nowhere.onnx", "--json", naming="nowhere.onnx")
    box.refused("compress", "--no-such-option", "--json", code=2, naming="--no-such-option")
    box.refused("convert", things / "model.onnx", "--to", "tflight", "--json", code=2, naming="tflight")


# --- where results go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["file/run", "file", "/proc/run", "/proc/self/run"])
def test_an_out_that_cannot_be_written(box, things, out):
    (box.cwd / "file").write_text("in the way")
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--to", "onnx", "--out", out)
    box.refused(*args, code=2 if out == "file" else 1, naming=out.removesuffix("/run"))


@pytest.mark.parametrize(
    ("out", "code"), [("file/model.xml", 1), ("/proc/model.xml", 1), ("folder", 2), ("model.onnx", 2)]
)
def test_a_model_that_cannot_be_written(box, things, out, code):
    copy_of(things / "model.onnx", box.cwd)
    (box.cwd / "file").write_text("in the way")
    (box.cwd / "folder").mkdir()
    (box.cwd / "folder" / "kept.txt").write_text("kept")
    args = ("convert", "model.onnx", "--to", "openvino", "--out", out)
    box.refused(*args, code=code, naming=out.removesuffix("/model.xml"))
    assert (box.cwd / "file").read_text() == "in the way"


def test_a_foreign_folder_is_left_alone(box, things):
    (box.cwd / "thesis").mkdir()
    (box.cwd / "thesis" / "chapter.tex").write_text("years of work")
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--out", "thesis")
    box.refused(*args, code=2, naming="thesis")


def test_new_folders_of_out_go_when_the_run_fails(box, things):
    np.savez(box.cwd / "bad.npz", x=images() * np.nan)
    args = ("compress", things / "model.onnx", "--data", "bad.npz", "--to", "onnx", "--out", "new/deep/run")
    box.refused(*args, naming="bad.npz")


def test_a_store_that_cannot_be_written(box, things):
    box.env["LEPTON_EDGE_CACHE"] = "/proc/store"
    args = ("convert", things / "model.onnx", "--to", "openvino", "--out", "model.xml")
    box.refused(*args, naming="/proc/store")


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
@pytest.mark.parametrize("kilobytes", [64, 256])
def test_out_fills_up_in_the_middle_of_a_run(box, things, small_disk, kilobytes):
    disk = small_disk(kilobytes)
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--to", "onnx", "--seconds", "0.1")
    error, hint = box.refused(*args, "--out", disk / "run", "--max-drop", "100")
    assert re.search(r"full|free|space", error + hint)
    # What was measured is kept once it is whole; then only pictures of it may be missing.
    assert tree(disk) == {} or json.loads((disk / "run" / "run.json").read_text())["candidates"]


# --- kills and interrupts -----------------------------------------------------------------------------------


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


def test_a_step_killed_while_it_works(box, things, plugins):
    """A plug-in step that says when it runs: killed at once, so that nothing depends on timing."""
    box.env["LEPTON_EDGE_PLUGINS"] = os.environ["LEPTON_EDGE_PLUGINS"]
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
    pytest.importorskip("nncf")
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--to", "openvino", "--seconds", "0.2")
    args = (*args, "--max-drop", "100")
    ran = []
    for stage, signum in (("[quantize_openvino]", signal.SIGINT), ("measuring latency", signal.SIGTERM)):
        process = box.start(*args)
        wait_for_line(process, stage)
        process.send_signal(signum)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 130 and out == "" and "Traceback" not in err
        box.check_clean()
        assert tree(box.cwd) == {}
        ran.append(len(list(box.store.glob("??/*/step.json"))))
    assert ran == [1, 2]  # the float model was kept, then the quantized one
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
    assert code == 4 and json.loads(out)["models"] and "model.onnx" in told(err)[0]
    box.check_clean()
