"""Training samples from the user's own function: every kind of return, and every way to get it wrong."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_edge.errors import LeptonError
from lepton_edge.feeds import open_data
from lepton_edge.training import collect, user_data

INPUTS = [{"name": "image", "shape": [None, 4, 4, 1], "dtype": "float32"}]
TWO = [{"name": "a", "shape": [None, 3], "dtype": "float32"}, {"name": "b", "shape": [None, 2], "dtype": "float32"}]
HEAD = "import numpy as np\nx = np.arange(160, dtype='f4').reshape(10, 4, 4, 1)\ny = np.arange(10) % 3\n"


def run(tmp_path, body, inputs=INPUTS, head=HEAD, function="make"):
    """Run a function's body; returns the arrays it gave."""
    file = tmp_path / "data.py"
    file.write_text(f"{head}\ndef make():\n" + "".join(f"    {line}\n" for line in body.splitlines()))
    made = tmp_path / "made.npz"
    told = collect.run(str(file), str(made), function=function, inputs=inputs)
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".parts")] == []
    with np.load(made, allow_pickle=False) as arrays:
        found = dict(arrays)
    assert told == {"count": len(next(iter(found.values()))), "labels": "y" in found}
    return found


X, Y = np.arange(160, dtype="f4").reshape(10, 4, 4, 1), np.arange(10) % 3


@pytest.mark.parametrize(
    "body",
    [
        "return x, y",
        "return {'image': x}, y",
        "return x, np.eye(3)[y]",
        "return x, y[:, None].astype('f4')",
        "return [(x[i], y[i]) for i in range(10)]",
        "return ((x[i:i + 4], y[i:i + 4]) for i in range(0, 10, 4))",
        "for i in range(10):\n    yield {'image': x[i]}, int(y[i])",
    ],
)
def test_what_a_function_may_return(tmp_path, body):
    found = run(tmp_path, body)
    assert np.array_equal(found["x"], X) and np.array_equal(found["y"], Y) and found["y"].dtype == np.int64


def test_samples_without_labels_and_several_inputs(tmp_path):
    assert list(run(tmp_path, "return x")) == ["x"]
    assert list(run(tmp_path, "return iter(x)")) == ["x"]
    for body in ("return {'a': np.ones((5, 3)), 'b': np.ones((5, 2))}, np.arange(5)",
                 "return [([np.ones(3), np.ones(2)], k) for k in range(5)]"):  # fmt: skip
        found = run(tmp_path, body, TWO)
        assert found["a"].shape == (5, 3) and found["b"].shape == (5, 2) and found["y"].tolist() == [0, 1, 2, 3, 4]


def test_neighbours_can_be_imported_and_draws_are_seeded(tmp_path):
    (tmp_path / "other.py").write_text("SCALE = 2\n")
    body = "from other import SCALE\nreturn np.random.rand(6, 4, 4, 1) * SCALE, [0] * 6"
    assert np.array_equal(run(tmp_path, body)["x"], run(tmp_path, body)["x"])


def test_tensorflow_and_torch(tmp_path):
    pytest.importorskip("tensorflow")
    tf = "import tensorflow as tf\nd = tf.data.Dataset.from_tensor_slices((x, y))\n"
    for body in (tf + "return d", tf + "return d.batch(4)"):
        found = run(tmp_path, body)
        assert np.array_equal(found["x"], X) and np.array_equal(found["y"], Y)
    with pytest.raises(LeptonError, match="dataset without end") as caught:
        run(tmp_path, tf + "return d.repeat()")
    assert ".take(n)" in caught.value.hint
    pytest.importorskip("torch")
    torch = "import torch\nd = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))\n"
    for body in (torch + "return d", torch + "return torch.utils.data.DataLoader(d, batch_size=3)"):
        found = run(tmp_path, body)
        assert np.array_equal(found["x"], X) and np.array_equal(found["y"], Y)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return None", "returned NoneType"),
        ("return 'train.npz'", "returned str"),
        ("return []", "gave no samples"),
        ("return x[:, :3], y", r"\[3, 4, 1\], the model|is \[10, 3, 4, 1\]"),
        ("return x[0, 0], y", "neither a sample"),
        ("return x, y[:5]", "unequal parts: 10 of x, 5 of y"),
        ("return x, y + 0.5", "not one class number"),
        ("return x, x", "not one class number"),
        ("return [(x[0], 1, 2)]", "element 1 of data.py:make has 3 parts"),
        ("return [(x[0], 1), x[1]]", "labels for some samples only"),
        ("return [(x[0], 1), (x[1], 2), ('a', 2)]", "x in element 3 .* not numbers"),
        ("return {'img': x}, y", r"holds \['img'\]"),
        ("return 1 / 0", r"failed: ZeroDivisionError: division by zero \(data.py:6\)"),
        ("import sys\nsys.exit(3)", "failed: SystemExit"),
        ("yield x[0], 0\nraise ValueError('no file\\nmore')", r"failed: ValueError: no file \(data.py:7\)"),
    ],
)
def test_what_goes_wrong(tmp_path, body, text):
    if "x[:, :3]" in body:  # the shape is for open_data to tell, which knows the model
        run(tmp_path, body)
        with pytest.raises(LeptonError, match="4, 4, 1"):
            open_data(tmp_path / "made.npz", INPUTS)
        return
    with pytest.raises(LeptonError, match=text) as caught:
        run(tmp_path, body)
    assert "\n" not in caught.value.message
    assert not (tmp_path / "made.npz").exists()


def test_an_iterable_without_end(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_EDGE_TRAIN_MAX_GB", "0.00001")
    with pytest.raises(LeptonError, match="and goes on: an iterable without end"):
        run(tmp_path, "while True:\n    yield x[0], 0")


def test_names_that_are_not_there(tmp_path):
    with pytest.raises(LeptonError, match="has no function 'mak'") as caught:
        run(tmp_path, "return x, y", function="mak")
    assert "make" in caught.value.hint
    with pytest.raises(LeptonError, match="failed: SyntaxError"):
        run(tmp_path, "return x, y", head="def broken(:\n")
    with pytest.raises(LeptonError, match="no such Python file") as caught:
        user_data.collect(f"{tmp_path}/dat.py:make", INPUTS, tmp_path, 0, lambda *a: None)
    assert "data.py" in caught.value.hint
    assert user_data.is_function("a/b.py:make") and not user_data.is_function("C:/data/train.npz")


def test_it_runs_in_a_process_of_its_own(tmp_path):
    (tmp_path / "data.py").write_text(
        HEAD + "def make():\n    return x, y\ndef die():\n    import os\n    os._exit(9)\n"
    )
    made = user_data.collect(f"{tmp_path}/data.py:make", INPUTS, tmp_path, 0, lambda *a: None)
    opened = open_data(made, INPUTS)
    assert opened.count == 10 and opened.labels.tolist() == Y.tolist()
    with pytest.raises(LeptonError, match="exit code 9"):
        user_data.collect(f"{tmp_path}/data.py:die", INPUTS, tmp_path, 0, lambda *a: None)
