"""The store of finished steps and the validation of recipes."""

import json
import os
import time
from pathlib import Path

import pytest

from lepton_edge import recipe, registry, store
from lepton_edge.artifact import open_artifact
from lepton_edge.errors import LeptonError, UsageError


@pytest.fixture
def step(plugins):
    plugins("converters/fake_to_fake.py", '"""Copy."""\ndef run(src, dst, *, level: int = 1):\n    pass\n')
    return next(s for s in registry.steps() if s.name == "fake_to_fake")


def put(step, model, options):
    key = store.key(step, open_artifact(model), options)
    with store.aside(store.root()) as scratch:
        (scratch / "model.fake").write_bytes(model.read_bytes())
        store.publish(key, scratch, "model.fake", {"notes": ["n"]})
    return key


def test_a_published_result_is_found_by_what_went_in(step, fake_model):
    model = fake_model()
    key = put(step, model, {"level": 1})
    art, result = store.find(key)
    assert art.format == "fake" and result["notes"] == ["n"]
    assert store.key(step, open_artifact(model), {"level": 2}) != key
    assert store.key(step, open_artifact(fake_model("other.fake", seed=3)), {"level": 1}) != key
    assert not list(store.root().glob(".part-*"))


def test_a_changed_step_has_another_key(step, fake_model, plugins):
    model = open_artifact(fake_model())
    before = store.key(step, model, {})
    plugins("converters/fake_to_fake.py", '"""Copy."""\ndef run(src, dst, *, level: int = 1):\n    return {}\n')
    store.code.cache_clear()
    assert store.key(step, model, {}) != before


def test_the_key_covers_project_files_that_a_step_imports(plugins):
    file = plugins("converters/a_to_b.py", "def run(src, dst):\n    from lepton_edge.stats import median\n")
    plain = plugins("converters/b_to_c.py", "def run(src, dst):\n    pass\n")
    assert store.code(file) != store.code(plain)


def test_a_damaged_entry_counts_as_none(step, fake_model):
    key = put(step, fake_model(), {})
    art, _ = store.find(key)
    art.path.write_text('{"inputs": []}')
    assert store.find(key) is None
    assert put(step, fake_model(), {}) == key and store.find(key) is not None


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LeptonError, match="cannot be written"), store.aside(tmp_path / "file" / "below"):
        pass


def test_trim_removes_the_entries_unused_for_longest_but_not_todays(step, fake_model):
    keys = [put(step, fake_model(f"{i}.fake", seed=i), {}) for i in range(3)]
    week = time.time() - 7 * 86400
    for i, key in enumerate(keys[:2]):
        os.utime(store.root() / key[:2] / key / "step.json", (week + i, week + i))
    assert store.trim(limit_bytes=10**9) == 0
    assert store.trim(limit_bytes=1) > 0
    assert [store.find(k) is not None for k in keys] == [False, False, True]


def parse(text):
    import tomllib

    return recipe.parse(tomllib.loads(text), "r.toml", Path("/base"))


def test_a_recipe_is_read_and_paths_are_relative_to_it():
    r = parse('[data]\ncalibration = "c.npz"\n[compress]\nto = ["onnx"]\nmax_drop = 2\n[prune]\nsparsity = 0.75\n')
    assert r.data.calibration == "/base/c.npz"
    assert r.compress.to == ("onnx",) and r.compress.max_drop == 2 and r.prune == {"sparsity": 0.75}


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[dta]\n", "unknown section", "data"),
        ("[data]\ncalib = 'x'\n", "unknown key 'calib'", "calibration"),
        ("[compress]\nmax_drop = 'a'\n", "a number", ""),
        ("[compress]\nto = 'onnx'\n", "list of strings", "tflite"),
        ("[bench]\nrounds = 1.5\n", "a whole number", ""),
        ("[bench]\nthreads = -1\n", "from 0 up", ""),
        ("[prune]\nsparsty = 0.5\n", "unknown key 'sparsty'", "sparsity"),
        ("[preprocess]\npreset = 'imagnet'\n", "imagnet", "imagenet"),
        ("data = 3\n", "section", ""),
    ],
)
def test_a_wrong_recipe_names_the_key(text, message, hint):
    with pytest.raises(UsageError, match=message) as e:
        parse(text)
    assert hint in e.value.hint or hint in e.value.message


def test_a_recipe_that_is_not_toml(tmp_path):
    file = tmp_path / "r.toml"
    file.write_text("[data\n")
    with pytest.raises(UsageError, match="not a readable TOML"):
        recipe.load(file)
    with pytest.raises(UsageError, match="no such recipe"):
        recipe.load(tmp_path / "none.toml")


def test_the_command_line_wins_over_the_recipe():
    r = recipe.override(parse("[compress]\nmax_drop = 2\nseed = 4\n"), "compress", max_drop=0.5, seed=None)
    assert r.compress.max_drop == 0.5 and r.compress.seed == 4


def test_the_sample_recipe_is_valid():
    from lepton_edge.demo import sample

    model, r = sample()
    assert model.is_file() and Path(r.data.calibration).is_file()
    json.dumps(r.preprocess)
