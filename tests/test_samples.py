"""The embedded sample: sizes, contents, and that the model is as good as samples/README.md says."""

from __future__ import annotations

import gzip
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

SAMPLES = Path(__file__).parents[1] / "samples"
SLICES = {"fashion_calib.npz": 256, "fashion_train.npz": 4000, "fashion_eval.npz": 1000}


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(SAMPLES / name, allow_pickle=False) as data:
        return data["x"], data["y"]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_fashion", SAMPLES / "train_fashion.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sizes():
    files = [p for p in SAMPLES.iterdir() if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 3_000_000
    assert (SAMPLES / "fashion_cnn.keras").stat().st_size < 1_000_000


@pytest.mark.parametrize(("name", "count"), SLICES.items())
def test_slices(name, count):
    x, y = load(name)
    assert x.shape == (count, 28, 28, 1) and x.dtype == np.uint8
    assert y.shape == (count,) and y.dtype == np.int64
    per_class = np.bincount(y, minlength=10)
    assert len(per_class) == 10 and per_class.max() - per_class.min() <= 1


def test_slices_do_not_overlap():
    seen = [{image.tobytes() for image in load(name)[0]} for name in SLICES]
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]


def test_readme_accuracy_is_what_the_model_reaches():
    keras = pytest.importorskip("keras")
    pytest.importorskip("tensorflow")
    model = keras.saving.load_model(SAMPLES / "fashion_cnn.keras", compile=False, safe_mode=True)
    assert [x.name for x in model.inputs] == ["image"] and model.inputs[0].dtype == "float32"
    x, y = load("fashion_eval.npz")
    out = np.asarray(model.predict(x.astype(np.float32) / 255, batch_size=250, verbose=0))
    np.testing.assert_allclose(out.sum(1), 1, atol=1e-4)
    said = re.search(r"([\d.]+) on `fashion_eval.npz`", (SAMPLES / "README.md").read_text())
    assert said and np.mean(out.argmax(1) == y) == pytest.approx(float(said[1]), abs=0.003)


def test_idx_reader(script, tmp_path):
    body = b"\x00\x00\x08\x02" + (2).to_bytes(4, "big") + (3).to_bytes(4, "big") + bytes(range(6))
    (tmp_path / "a.gz").write_bytes(gzip.compress(body))
    np.testing.assert_array_equal(script.read_idx(tmp_path / "a.gz"), np.arange(6).reshape(2, 3))
    (tmp_path / "b").write_bytes(body[:-1])
    with pytest.raises(ValueError, match="holds 5 bytes"):
        script.read_idx(tmp_path / "b")
    (tmp_path / "c").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="not an IDX file"):
        script.read_idx(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="apt install dataset-fashion-mnist"):
        script.load_split(tmp_path, "train")


def test_pick_is_stratified_and_avoids_what_is_taken(script):
    y = np.tile(np.arange(10), 30)
    rng = np.random.default_rng(0)
    first = script.pick(y, 25, rng)
    second = script.pick(y, 200, rng, taken=first)
    assert len(set(first)) == 25 and not set(first) & set(second)
    assert list(np.bincount(y[first])) == [3] * 5 + [2] * 5
    assert list(np.bincount(y[second])) == [20] * 10


def test_augment_keeps_shape_and_range(script):
    x = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), np.uint8)
    out = script.augment(x, np.random.default_rng(1))
    assert out.shape == x.shape and out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1
    still = script.augment(x, np.random.default_rng(1), shift=0)
    for image, same in zip(x / np.float32(255), still, strict=True):
        assert np.array_equal(image, same) or np.array_equal(image[:, ::-1], same)
