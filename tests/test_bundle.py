"""Bundles: complete, verifiable, and running in a process that knows nothing of lepton_edge."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lepton_edge
from lepton_edge.bundle import write_bundle
from lepton_edge.errors import LeptonError
from lepton_edge.feeds import open_data, write_feed
from lepton_edge.preprocess import from_dict

PACKAGE = Path(lepton_edge.__file__).parent

# Sums each channel of an NHWC sample, so that a wrong layout, order or scale shows in the answer.
RUNTIME = '''"""A runtime of the tests."""
import json
import numpy as np
REQUIRES = ("numpy>=1",)
FORMATS = ("sums",)
class Session:
    def __init__(self, facts):
        self.inputs, self.outputs = facts["inputs"], facts["outputs"]
        self.info = {"runtime": "sums", "version": "1"}
    def run(self, feeds):
        (x,) = feeds.values()
        spec = self.inputs[0]
        assert x.shape == (1, *spec["shape"][1:]) and x.dtype == spec["dtype"], (x.shape, x.dtype)
        return {self.outputs[0]["name"]: x.sum((1, 2), dtype=np.float64).astype("float32")}
def load(model, *, threads=1):
    return Session(json.load(open(model)))
'''
SOURCE = [{"name": "image", "shape": [None, 3, 8, 6], "dtype": "float32"}]
PORTS = {
    "inputs": [{"name": "nhwc", "source": "image", "perm": [0, 2, 3, 1]}],
    "outputs": [{"name": "total", "source": "scores", "perm": None}],
}
INNER = {
    "inputs": [{"name": "nhwc", "shape": [1, 8, 6, 3], "dtype": "float32"}],
    "outputs": [{"name": "total", "shape": [1, 3], "dtype": "float32"}],
}
DECLARED = {"preset": "imagenet", "color": "bgr"}


def pictures(count: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def scores(raw: np.ndarray) -> np.ndarray:
    ready = from_dict({**DECLARED, "size": [8, 6], "dtype": "float32"}).apply(raw)
    return ready.sum((1, 2), dtype=np.float64).astype("f4")


@pytest.fixture
def parts(tmp_path):
    """The arguments of write_bundle for a small classifier of 3 classes."""
    (tmp_path / "sums.py").write_text(RUNTIME)
    (tmp_path / "net.sums").write_text(json.dumps(INNER))
    np.save(tmp_path / "raw.npy", pictures(4))
    feed = write_feed(open_data(tmp_path / "raw.npy", SOURCE, from_dict(DECLARED)), tmp_path / "feed")
    np.savez(tmp_path / "in.npz", image=feed.array("image"))
    np.savez(tmp_path / "out.npz", scores=scores(pictures(4)))
    return {
        "artifact_path": tmp_path / "net.sums",
        "runtime_file": tmp_path / "sums.py",
        "ports": PORTS,
        "input_specs": SOURCE,
        "preprocess": from_dict(DECLARED),
        "manifest_extra": {"source_model": {"name": "net.keras"}, "created": "2025-01-01T00:00:00+00:00"},
        "golden": (tmp_path / "in.npz", tmp_path / "out.npz"),
        "labels": ["blue thing", "green\nthing", "red"],
    }


@pytest.fixture
def bundle(parts, tmp_path):
    return write_bundle(tmp_path / "bundle", **parts)


def run(bundle: Path, *arguments, isolated: bool = True):
    """predict.py in a process of its own, outside of the repository and its packages' path."""
    command = [sys.executable, *(["-I"] if isolated else []), bundle / "predict.py", *arguments]
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=bundle.parent, timeout=60)


def in_process(bundle: Path):
    spec = importlib.util.spec_from_file_location("predict_under_test", bundle / "predict.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_everything_is_listed_with_its_hash(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["schema"] == "lepton-edge.bundle/1" and manifest["kind"] == "classification"
    present = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()} - {"manifest.json"}
    assert (
        present
        == set(manifest["files"])
        == {
            "net.sums",
            "runtime.py",
            "predict.py",
            "preprocess_core.py",
            "requirements.txt",
            "golden.npz",
            "labels.txt",
            "README.md",
        }
    )
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == facts["sha256"]
    assert manifest["model"] == {"file": "net.sums", "format": "sums"}
    assert manifest["runtime"]["requires"] == [f"numpy=={np.__version__}"]
    assert manifest["preprocess"]["size"] == [8, 6] and manifest["preprocess"]["layout"] == "NCHW"
    assert manifest["provenance"]["source_model"]["name"] == "net.keras"
    assert str(bundle.parent) not in "".join((bundle / n).read_text() for n in ("manifest.json", "README.md"))
    assert "blue thing" in (bundle / "labels.txt").read_text()


def test_the_self_test_runs_anywhere(bundle):
    done = run(bundle, "--self-test")
    assert done.returncode == 0, done.stderr
    assert "ok   preprocessing" in done.stdout and "ok   scores" in done.stdout
    told = json.loads(run(bundle, "--self-test", "--json").stdout)
    assert told["ok"] and [r["what"] for r in told["results"]] == ["preprocessing", "scores"]
    moved = shutil.copytree(bundle, bundle.parent / "elsewhere here" / "b")
    assert run(moved, "--self-test").returncode == 0


def test_an_image_gives_the_same_as_the_feed(bundle, tmp_path):
    from PIL import Image

    raw = pictures(1, 31, 20)
    Image.fromarray(raw[0]).save(tmp_path / "photo.png")
    done = run(bundle, tmp_path / "photo.png", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert np.array_equal(np.float32(told["outputs"]["scores"]), scores(raw))
    best = int(scores(raw)[0].argmax())
    assert told["top"][0][0]["index"] == best and len(told["top"][0]) == 3
    shown = run(bundle, tmp_path / "photo.png", "--top", "1").stdout
    assert shown.count("\n") == 1 and ["blue thing", "green thing", "red"][best] in shown


def test_predict_is_bit_identical_with_the_feed(bundle, tmp_path):
    model = in_process(bundle).Model()
    feed = np.load(tmp_path / "feed" / "image.npy")
    for raw in (pictures(4), pictures(4).transpose(0, 3, 1, 2), list(pictures(4)), {"image": pictures(4)}):
        assert model.prepare(raw)["image"].tobytes() == feed.tobytes()
    assert model.prepare(pictures(4)[2])["image"].tobytes() == feed[2].tobytes()
    assert np.array_equal(model.predict(pictures(4))["scores"], scores(pictures(4)))
    np.savez(tmp_path / "x.npz", x=pictures(4))
    assert np.array_equal(model.predict(tmp_path / "x.npz")["scores"], scores(pictures(4)))
    assert np.array_equal(model.predict(str(tmp_path / "raw.npy"))["scores"], scores(pictures(4)))
    large = pictures(2, 40, 40)
    assert np.array_equal(model.predict(large)["scores"], scores(large))
    assert np.array_equal(model.predict(large[1])["scores"], scores(large[1:]))
    gray = large[..., 0]
    assert np.array_equal(model.predict(gray[0])["scores"], scores(np.repeat(gray[:1, ..., None], 3, -1)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.ones((40, 40, 3), "f4"), "takes samples of shape [3, 8, 6], not [40, 40, 3]"),
        (np.ones((5,)), "takes samples of shape"),
        (np.full((3, 8, 6), np.nan), "NaN"),
        ({"x": pictures(1)}, "no array is given for input 'image'"),
        (np.ones((0, 3, 8, 6)), "at least one"),
        (np.array(["a"]), "takes samples"),
        ("missing.png", "no such file"),
    ],
)
def test_wrong_data_is_one_line(bundle, data, message):
    module = in_process(bundle)
    with pytest.raises(module.BundleError) as caught:
        module.Model().predict(data)
    assert message in str(caught.value)


def test_command_line_errors(bundle, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for file in ("broken.jpg", "objects.npy", "absent.png"):
        done = run(bundle, tmp_path / file)
        assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert run(bundle).returncode == 2 and run(bundle, "x.png", "--self-test").returncode == 2
    assert run(bundle, "x.png", "--top", "0").returncode == 2


@pytest.mark.parametrize("name", ["net.sums", "runtime.py", "preprocess_core.py", "labels.txt"])
def test_a_changed_file_is_refused_before_it_is_loaded(bundle, name):
    with (bundle / name).open("a") as stream:
        stream.write("\nraise SystemExit('loaded')\n")
    done = run(bundle, "--self-test")
    assert done.returncode == 1 and f"{name} was changed or damaged" in done.stderr
    (bundle / name).unlink()
    assert f"{name} is missing" in run(bundle, "--self-test").stderr


@pytest.mark.parametrize("name", ["/etc/hostname", "../outside.py"])
def test_a_manifest_cannot_lead_outside(bundle, name):
    (bundle.parent / "outside.py").write_text("print('loaded')")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(b"print('loaded')").hexdigest()}
    manifest["runtime"]["file"] = name
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    done = run(bundle, "--self-test")
    assert done.returncode == 1 and "outside of the bundle" in done.stderr and "loaded" not in done.stdout
    del manifest["files"][name]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert "does not list" in run(bundle, "--self-test").stderr


def test_a_wrong_answer_fails_the_self_test(parts, tmp_path):
    np.savez(tmp_path / "out.npz", scores=scores(pictures(4)) * 1.05)
    done = run(write_bundle(tmp_path / "bundle", **parts), "--self-test")
    assert done.returncode == 1 and "FAIL scores" in done.stdout
    parts["manifest_extra"] = {"tolerance": 0.1}
    assert run(write_bundle(tmp_path / "bundle", **parts), "--self-test").returncode == 0


def test_a_missing_runtime_says_what_to_install(parts, tmp_path):
    text = RUNTIME.replace("    return Session", "    import no_such_runtime\n    return Session")
    parts["runtime_file"].write_text(text.replace("numpy>=1", "no-such-runtime>=3"))
    done = run(write_bundle(tmp_path / "bundle", **parts), "--self-test")
    assert done.returncode == 1 and "pip install -r requirements.txt (no-such-runtime>=3)" in done.stderr


def test_bytes_on_standard_input_and_streams_of_names(bundle, tmp_path):
    from PIL import Image

    raw = pictures(1, 31, 20)
    Image.fromarray(raw[0]).save(tmp_path / "photo.png")
    np.savez(tmp_path / "x.npz", x=raw)
    command = [sys.executable, "-I", str(bundle / "predict.py")]
    for file in ("photo.png", "x.npz"):
        data = (tmp_path / file).read_bytes()
        done = subprocess.run([*command, "--stdin", "--json"], input=data, capture_output=True, timeout=60)
        told = json.loads(done.stdout)
        assert told["file"] == "stdin" and np.array_equal(np.float32(told["outputs"]["scores"]), scores(raw))
    names = f"{tmp_path / 'photo.png'}\n\n{tmp_path / 'absent.png'}\n{tmp_path / 'x.npz'}\n"
    done = subprocess.run([*command, "--stream", "--top", "1"], input=names, capture_output=True, text=True, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and [len(line.get("top", [])) for line in lines] == [1, 0, 1]
    assert "no such file" in lines[1]["error"] and lines[0]["outputs"] == lines[2]["outputs"]
    done = subprocess.run([*command, "--stdin"], input=b"junk", capture_output=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith(b"error: ") and done.stderr.count(b"\n") == 1


def test_a_frame_of_a_camera(bundle, tmp_path, monkeypatch):
    """From whatever is there: OpenCV, else one of the tools, which are made up here."""
    from PIL import Image

    raw, tools = pictures(1, 31, 20), tmp_path / "tools"
    Image.fromarray(raw[0]).save(tmp_path / "frame.png")
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))

    def tool(name, text):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)

    done = run(bundle, "--camera", "0")
    assert done.returncode == 1 and "camera 0: no OpenCV, rpicam-still, fswebcam or ffmpeg here" in done.stderr
    tool("rpicam-still", "echo no sensor >&2; exit 1")
    tool("fswebcam", f'echo "$@" > {tmp_path}/asked; while IFS= read -r x; do :; done; /bin/cat {tmp_path}/frame.png')
    for camera in ("0", "/dev/video0"):
        told = json.loads(run(bundle, "--camera", camera, "--json").stdout)
        assert told["file"] == f"camera {camera}"
        assert np.array_equal(np.float32(told["outputs"]["scores"]), scores(raw))
        assert "-d /dev/video0 -" in (tmp_path / "asked").read_text()
    (tools / "fswebcam").unlink()
    assert "camera 0: rpicam-still: no sensor" in run(bundle, "--camera", "0").stderr
    np.save(tmp_path / "bgr.npy", raw[0][:, :, ::-1])
    (tmp_path / "cv2.py").write_text(
        "import numpy, pathlib\nclass VideoCapture:\n    def __init__(self, which):\n        assert which == 0\n"
        "    def read(self):\n        return True, numpy.load(pathlib.Path(__file__).with_name('bgr.npy'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    told = json.loads(run(bundle, "--camera", "0", "--json", isolated=False).stdout)
    assert np.array_equal(np.float32(told["outputs"]["scores"]), scores(raw))


def test_pillow_is_not_needed_for_plain_png(bundle, tmp_path):
    from PIL import Image

    Image.fromarray(pictures(1, 31, 20)[0]).save(tmp_path / "photo.png")
    code = (
        "import sys; sys.modules['PIL'] = None; sys.path.insert(0, sys.argv[1]); from predict import Model;"
        "print(Model().predict(sys.argv[2])['scores'].tolist())"
    )
    command = [sys.executable, "-I", "-c", code, str(bundle), str(tmp_path / "photo.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert np.array_equal(np.float32(json.loads(done.stdout)), scores(pictures(1, 31, 20))), done.stderr


def test_a_bundle_replaces_only_a_bundle(parts, bundle, tmp_path):
    before = (bundle / "manifest.json").read_bytes()
    parts["labels"] = None
    write_bundle(bundle, **parts)
    assert (bundle / "manifest.json").read_bytes() != before and not (bundle / "labels.txt").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(LeptonError, match="is not a bundle"):
        write_bundle(tmp_path / "mine", **parts)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artifact_path": Path("absent.sums")}, "no such model file"),
        ({"runtime_file": Path("absent.py")}, "is not a runtime adapter"),
        ({"ports": {**PORTS, "inputs": [{"name": "a", "source": "b", "perm": None}]}}, "comes from 'b'"),
        ({"input_specs": [{**SOURCE[0], "name": "picture"}]}, "comes from 'image'"),
        ({"golden": (Path("absent.npz"), Path("absent.npz"))}, "golden samples cannot be read"),
        ({"ports": {**PORTS, "outputs": []}}, "golden samples are for"),
        ({"preprocess": from_dict({"layout": "NHWC"})}, "has 6 channels"),
    ],
)
def test_nothing_is_left_of_a_bundle_that_fails(parts, tmp_path, change, message):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LeptonError, match=message):
        write_bundle(tmp_path / "bundle", **{**parts, **change})
    assert sorted(tmp_path.iterdir()) == before


def test_plain_numbers_and_several_inputs(parts, tmp_path):
    text = RUNTIME.replace("(x,) = feeds.values()", "return {'sum': feeds['a'].sum(1) + feeds['b']}")
    parts["runtime_file"].write_text(text)
    specs = [{"name": n, "shape": s, "dtype": "float32"} for n, s in (("a", [1, 4]), ("b", [1]))]
    parts["artifact_path"].write_text(json.dumps({"inputs": specs, "outputs": []}))
    ports = {
        "inputs": [{"name": n, "source": n, "perm": None} for n in "ab"],
        "outputs": [{"name": "sum", "source": "sum", "perm": None}],
    }
    parts |= {"input_specs": specs, "ports": ports, "preprocess": from_dict(None), "golden": None, "labels": None}
    bundle = write_bundle(tmp_path / "bundle", **parts)
    np.savez(tmp_path / "d.npz", a=np.arange(8).reshape(2, 4), b=[10, 20])
    done = run(bundle, tmp_path / "d.npz")
    assert done.returncode == 0 and "sum: [] x 2: 16 42" in done.stdout, done.stderr
    assert "nothing to compare" in run(bundle, "--self-test").stderr


def test_output_layouts_are_undone(parts, tmp_path):
    parts["runtime_file"].write_text(RUNTIME.replace('.sum((1, 2), dtype=np.float64).astype("float32")', "+ 0"))
    ports = {**PORTS, "outputs": [{"name": "total", "source": "map", "perm": [0, 2, 3, 1]}]}
    parts |= {"ports": ports, "golden": None, "labels": None, "preprocess": from_dict(None)}
    model = in_process(write_bundle(tmp_path / "bundle", **parts)).Model()
    x = pictures(2).transpose(0, 3, 1, 2).astype("f4")
    assert np.array_equal(model.predict(x)["map"], x)


def test_what_travels_is_python_3_9():
    for path in (PACKAGE / "preprocess_core.py", PACKAGE / "templates" / "predict.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 9))
        imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        imported |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert imported <= set(sys.stdlib_module_names) | {"numpy", "PIL"}
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
        assert not any(k.arg == "strict" for n in calls for k in n.keywords)  # zip(strict=) came with 3.10


@pytest.fixture
def tiny_onnx(tmp_path):
    """A pooled linear classifier, NCHW float32 [1, 3, 8, 6] to [1, 5], in an .onnx file."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).standard_normal((3, 5)).astype("f4")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["scores"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 6])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "tiny.onnx")
    return tmp_path / "tiny.onnx", weights


@pytest.mark.parametrize("threads", [1, 2])
def test_a_real_runtime(tiny_onnx, parts, tmp_path, threads):
    path, weights = tiny_onnx
    ready = np.load(tmp_path / "feed" / "image.npy")
    np.savez(tmp_path / "out.npz", scores=ready.mean((2, 3)) @ weights)
    same = {"name": "image", "source": "image", "perm": None}
    ports = {"inputs": [same], "outputs": [{"name": "scores", "source": "scores", "perm": None}]}
    parts |= {"artifact_path": path, "runtime_file": PACKAGE / "runtimes" / "onnxruntime.py", "ports": ports}
    parts |= {"manifest_extra": {"tolerance": 1e-5}, "labels": None}
    bundle = write_bundle(tmp_path / "bundle", **parts)
    done = run(bundle, "--self-test", "--threads", threads)
    assert done.returncode == 0, done.stdout + done.stderr
    import onnxruntime

    assert (bundle / "requirements.txt").read_text().startswith(f"onnxruntime=={onnxruntime.__version__}\nnumpy\n")
    told = json.loads((bundle / "manifest.json").read_text())
    assert told["model"]["format"] == "onnx" and told["kind"] == "classification"
    wrong = {**parts, "runtime_file": PACKAGE / "runtimes" / "litert.py"}
    with pytest.raises(LeptonError, match="which the runtime 'litert' does not run"):
        write_bundle(tmp_path / "wrong", **wrong)


def test_a_model_kept_in_two_files(tiny_onnx, parts, tmp_path):
    import onnx

    folder = tmp_path / "split"
    folder.mkdir()
    model = onnx.load(tiny_onnx[0])
    onnx.save(model, folder / "tiny.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    same = {"name": "image", "source": "image", "perm": None}
    ports = {"inputs": [same], "outputs": [{"name": "scores", "source": "scores", "perm": None}]}
    parts |= {"artifact_path": folder / "tiny.onnx", "runtime_file": PACKAGE / "runtimes" / "onnxruntime.py"}
    bundle = write_bundle(tmp_path / "bundle", **{**parts, "ports": ports, "golden": None, "labels": None})
    assert (bundle / "weights.bin").is_file() and "weights.bin" in json.loads((bundle / "manifest.json").read_text())[
        "files"
    ]
    shutil.rmtree(folder)
    outputs = in_process(bundle).Model().predict(pictures(2))
    assert outputs["scores"].shape == (2, 5)


def test_tflite_runtime_asks_for_the_old_numpy(parts, tmp_path):
    parts["runtime_file"].write_text(RUNTIME.replace("numpy>=1", "tflite-runtime>=2.14"))
    parts["manifest_extra"] = {"runtime": {"version": "2.14.0"}}
    text = (write_bundle(tmp_path / "bundle", **parts) / "requirements.txt").read_text()
    assert text.startswith("tflite-runtime==2.14.0\nnumpy<2\n")
