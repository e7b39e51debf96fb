"""End to end: every source format becomes float and int8 in every target, verified in its own runtime."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 10


def lepton(*args, check=True):
    done = subprocess.run(
        [sys.executable, "-m", "lepton_edge", *map(str, args), "--json"], capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The sample model in every source format, made with the tool itself; PyTorch gets a network of its own."""
    for package in ("tensorflow", "onnxruntime", "openvino", "ai_edge_litert", "nncf", "ai_edge_quantizer"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("sources")
    sample = ROOT / "samples" / "fashion_cnn.keras"
    found = {"keras": sample}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_EDGE_CACHE", str(folder / "store"))
        for format_, name in (("savedmodel", "saved"), ("onnx", "m.onnx"), ("tflite", "m.tflite")):
            lepton("convert", sample, "--to", format_, "-o", folder / name)
            found[format_] = folder / name
    code = f"import keras; keras.saving.load_model({str(sample)!r}).save({str(folder / 'm.h5')!r})"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    found["h5"] = folder / "m.h5"
    return found


@pytest.mark.slow
@pytest.mark.parametrize("source", ["keras", "h5", "savedmodel", "onnx", "tflite"])
def test_the_sample_from_every_format(sources, source, tmp_path):
    recipe = ROOT / "samples" / "fashion.toml"
    run = lepton("compress", sources[source], "--recipe", recipe, "--seconds", "0.3", "--out", tmp_path / "run")
    assert run["model"]["format"] == source
    rows = {c["name"]: c for c in run["candidates"]}
    assert sorted(rows) == sorted(f"{f}-{s}" for f in ("tflite", "onnx", "openvino") for s in ("float32", "int8"))
    for name, c in rows.items():
        assert c["status"] == "ok", (name, c["error"])
        assert c["accuracy"]["count"] == 1000
        if c["scheme"] == "float32":
            assert c["parity"]["sqnr_db"] is None or c["parity"]["sqnr_db"] > 100, name
        else:
            assert c["drop_points"] <= 1.0 and c["parity"]["sqnr_db"] > 25, name
            assert c["size_bytes"] < 0.55 * rows[f"{c['format']}-float32"]["size_bytes"], name
    assert run["picked"] is not None
    done = subprocess.run(
        [sys.executable, "-I", "predict.py", "--self-test"],
        cwd=tmp_path / "run" / "bundle",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pruned_and_quantized(sources, tmp_path):
    recipe = ROOT / "samples" / "fashion.toml"
    options = ("--to", "tflite", "--prune", "0.5", "--seconds", "0.3", "--max-drop", "2")
    run = lepton("compress", sources["keras"], "--recipe", recipe, *options, "--out", tmp_path / "run")
    rows = {c["name"]: c for c in run["candidates"]}
    assert set(rows) == {"tflite-float32", "tflite-int8", "tflite-pruned-float32", "tflite-pruned-int8"}
    assert all(c["status"] == "ok" for c in rows.values())
    assert rows["tflite-pruned-float32"]["zip_bytes"] < 0.75 * rows["tflite-float32"]["zip_bytes"]
    assert rows["tflite-pruned-int8"]["drop_points"] < 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "data", "least", "size"),
    [
        ("mlperf_tiny/ic_resnet8.h5", "cifar10", 0.865, 100_000),
        ("mlperf_tiny/kws_dscnn_savedmodel", "speech_commands", 0.920, 56_000),
    ],
)
def test_the_mlperf_tiny_models(shared, sources, model, data, least, size, tmp_path):
    samples = ("--data", shared / data / "calib.npz", "--eval", shared / data / "eval.npz", "--seconds", "0.3")
    run = lepton("compress", shared / model, *samples, "--out", tmp_path / "run")
    for c in run["candidates"]:
        if c["scheme"] == "int8":
            assert c["accuracy"]["top1"] >= least, c["name"]
            assert c["format"] != "tflite" or c["size_bytes"] <= size
