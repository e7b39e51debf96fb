"""Adding a format, a runtime, a device or a pass takes one file: each is dropped in and used."""

import json
import subprocess
import sys

import numpy as np
import pytest

from lepton_edge import api, registry, store
from lepton_edge.device import get_device
from lepton_edge.errors import LeptonError, MissingExtra, UsageError
from lepton_edge.recipe import Data, Recipe

CONVERTER = '''"""Fake to fake2: the same model under another name, its input transposed."""
import json, pathlib
COST = 2.0
def run(src, dst, *, scale: float = 1.0, progress=None):
    model = json.loads(pathlib.Path(src).read_text())
    pathlib.Path(dst).write_text("FAKE2" + json.dumps(model))
    progress(1, 1, "done")
    return {"notes": [f"scale {scale}"], "inputs": [{"name": "x", "source": "x", "perm": None}]}
'''
FORMAT = '''"""Fake 2."""
SUFFIX = ".fake2"
def recognise(path, head):
    return head.startswith(b"FAKE2")
'''
RUNTIME = '''"""Runs fake2 models with the fake runtime's arithmetic."""
import pathlib, tempfile, importlib.util
FORMATS = ("fake2",)
def load(model, *, threads: int = 1, **options):
    spec = importlib.util.spec_from_file_location("fake", FAKE)
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    part = pathlib.Path(tempfile.mkdtemp()) / "m.fake"
    part.write_text(pathlib.Path(model).read_text()[5:])
    return fake.load(str(part), threads=threads)
'''
PASS = '''"""Quantize a fake model: noise of a relative size is added to its weights."""
import json, pathlib
def run(src, dst, *, data: str, noise: float = 0.001, seed: int = 0):
    feed = json.loads((pathlib.Path(data) / "feed.json").read_text())
    model = json.loads(pathlib.Path(src).read_text()[5:])
    pathlib.Path(dst).write_text("FAKE2" + json.dumps({**model, "noise": noise, "delay_ms": 0.1}))
    return {"notes": [f"{feed['count']} samples"]}
'''


@pytest.fixture
def fakes(plugins, fake_model, tmp_path):
    """A source model, and a second format with its converter, runtime and quantize pass, all dropped in."""
    plugins("converters/fake_to_fake2.py", CONVERTER)
    plugins("formats/fake2.py", FORMAT)
    plugins("runtimes/fake2.py", RUNTIME.replace("FAKE)", repr(str(registry.folder("runtimes") / "fake.py")) + ")"))
    plugins("passes/quantize_fake2.py", PASS)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((120, 4)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=rng.integers(0, 3, 120))
    return fake_model(delay_ms=0.3), Recipe(data=Data(calibration=str(tmp_path / "data.npz")))


def test_a_dropped_in_converter_is_listed_with_its_options(fakes):
    found = {s["name"]: s for s in api.parts()["steps"]}
    assert found["fake_to_fake2"]["summary"].startswith("Fake to fake2")
    assert found["fake_to_fake2"]["options"] == {"scale": 1.0}
    assert found["quantize_fake2"]["options"]["data"] == registry.REQUIRED


def test_a_dropped_in_format_converts_and_is_verified(fakes, tmp_path):
    model, recipe = fakes
    made = api.convert(model, "fake2", tmp_path / "out.fake2", recipe)
    assert (tmp_path / "out.fake2").read_bytes().startswith(b"FAKE2")
    assert made["parity"]["sqnr_db"] is None and made["parity"]["agreement"] == 1.0
    assert made["steps"][0]["notes"] == ["scale 1.0"] and not made["steps"][0]["cached"]
    again = api.convert(model, "fake2", tmp_path / "out.fake2", recipe)
    assert again["steps"][0]["cached"]


def test_a_dropped_in_pass_and_runtime_go_the_whole_road(fakes, tmp_path):
    import dataclasses

    from lepton_edge.recipe import Bench, Compress

    model, recipe = fakes
    recipe = dataclasses.replace(
        recipe, compress=Compress(to=("fake2",), max_drop=100.0), bench=Bench(seconds=0.3, rounds=3)
    )
    run = api.compress(model, tmp_path / "run", recipe)
    assert [c["name"] for c in run["candidates"]] == ["fake2-float32", "fake2-int8"]
    assert all(c["status"] == "ok" for c in run["candidates"])
    assert run["picked"] == "fake2-int8", "0.1 ms against 0.3 ms a run"
    assert run["candidates"][1]["ratio"]["verdict"] == "faster"
    assert {p.name for p in (tmp_path / "run").iterdir()} >= {"run.json", "report.html", "bundle", "artifacts"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["picked"] == "fake2-int8"
    assert not list(tmp_path.glob(".part-*"))


def test_a_bundle_of_any_candidate_is_made_again(fakes, tmp_path):
    import dataclasses

    from lepton_edge.recipe import Bench, Compress

    model, recipe = fakes
    recipe = dataclasses.replace(
        recipe, compress=Compress(to=("fake2",), max_drop=-200.0), bench=Bench(seconds=0.1, rounds=2)
    )
    run = tmp_path / "run"
    assert api.compress(model, run, recipe)["picked"] is None and not (run / "bundle").exists()
    with pytest.raises(UsageError, match="no candidate of this run was picked"):
        api.bundle(run)
    with pytest.raises(UsageError, match="there is no candidate 'fake2-int9'"):
        api.bundle(run, candidate="fake2-int9")
    for name, tolerance in (("fake2-float32", 1e-3), ("fake2-int8", 0.02)):
        made = api.bundle(run, candidate=name)
        folder = run / f"bundle-{name}"
        manifest = json.loads((folder / "manifest.json").read_text())
        assert made["bundle"] == str(folder) and manifest["golden"]["count"] == 4
        assert manifest["golden"]["tolerance"] == tolerance and manifest["runtime"]["name"] == "fake2"
        done = subprocess.run([sys.executable, "-I", str(folder / "predict.py"), "--self-test"], capture_output=True)
        assert done.returncode == 0, done.stderr
    with pytest.raises(UsageError, match="is a bundle already"):
        api.bundle(run / "bundle-fake2-int8", tmp_path / "out")
    victim = run / json.loads((run / "run.json").read_text())["candidates"][0]["path"]
    victim.write_text(victim.read_text() + " ")
    with pytest.raises(LeptonError, match="was changed since the run"):
        api.bundle(run, candidate="fake2-float32")
    (run / "samples.npz").unlink()
    with pytest.raises(LeptonError, match="does not say how fake2-int8 is fed"):
        api.bundle(run, candidate="fake2-int8")


def test_a_model_that_answers_differently_is_never_picked(fakes, tmp_path):
    import dataclasses

    from lepton_edge.recipe import Bench, Compress

    model, recipe = fakes
    recipe = dataclasses.replace(
        recipe,
        compress=Compress(to=("fake2",), max_drop=0.0),
        bench=Bench(seconds=0.2, rounds=2),
        quantize={"noise": 3.0},
    )
    run = api.compress(model, tmp_path / "run", recipe)
    assert run["picked"] == "fake2-float32"
    assert "drops" in run["candidates"][1]["reason"] or run["candidates"][1]["drop_points"] < 0


def test_another_way_is_taken_where_a_conversion_fails(fakes, plugins, tmp_path):
    model, recipe = fakes
    plugins("formats/mid.py", FORMAT.replace("fake2", "mid").replace("FAKE2", "MID"))
    plugins("converters/fake_to_mid.py", CONVERTER.replace("FAKE2", "MID"))
    plugins(
        "converters/mid_to_fake2.py",
        "import pathlib\ndef run(src, dst):\n"
        "    pathlib.Path(dst).write_text('FAKE2' + pathlib.Path(src).read_text()[3:])\n",
    )
    bad = "from lepton_edge.errors import LeptonError\ndef run(src, dst):\n    raise LeptonError('no operator Foo')\n"
    plugins("converters/fake_to_fake2.py", bad)
    registry._read.cache_clear()
    made = api.convert(model, "fake2", tmp_path / "out.fake2", recipe)
    assert [s["step"] for s in made["steps"]] == ["detour", "fake_to_mid", "mid_to_fake2"]
    assert "no operator Foo" in made["steps"][0]["notes"][0]
    plugins("converters/mid_to_fake2.py", bad.replace("Foo", "Bar"))
    registry._read.cache_clear()
    store.code.cache_clear()
    with pytest.raises(LeptonError, match="Foo"):
        api.convert(model, "fake2", tmp_path / "out.fake2", recipe)


def test_a_dropped_in_device_is_known(plugins):
    plugins("devices/toaster.toml", 'title = "A toaster"\nkind = "measured"\ntransport = "local"\narch = "host"\n')
    assert get_device("toaster").title == "A toaster"
    with pytest.raises(UsageError) as e:
        get_device("toster")
    assert "toaster" in e.value.hint


def test_a_device_may_want_a_dropped_in_format(fakes, plugins, tmp_path):
    import dataclasses

    from lepton_edge.recipe import Bench, Compress

    plugins(
        "devices/toaster.toml",
        'title = "A toaster"\nkind = "estimated"\ntransport = "none"\narch = "aarch64"\nformats = ["fake2"]\n',
    )
    model, recipe = fakes
    compress = Compress(device="toaster", max_drop=100.0)
    recipe = dataclasses.replace(recipe, compress=compress, bench=Bench(seconds=0.2, rounds=2))
    run = api.compress(model, tmp_path / "run", recipe)
    assert {c["format"] for c in run["candidates"]} == {"fake2"}
    plugins(
        "devices/kettle.toml", 'title = "K"\nkind = "measured"\ntransport = "local"\narch = "host"\nformats = ["fk2"]\n'
    )
    with pytest.raises(LeptonError, match="fk2"):
        get_device("kettle")


def test_a_dropped_in_inspector_is_used(fakes, plugins):
    model, _ = fakes
    plugins(
        "inspectors/fake.py",
        '"""What a fake model holds."""\n'
        "def inspect(path):\n"
        '    return {"inputs": [], "outputs": [], "operators": {"Linear": 1}, "layers": [], "parameters": 12}\n',
    )
    facts = api.inspect(model)
    assert facts["operators"] == {"Linear": 1} and facts["parameters"] == 12


def test_a_broken_file_breaks_only_itself(fakes, plugins):
    plugins("converters/a_to_b.py", "def run(:\n")
    plugins("runtimes/odd.py", "FORMATS = ('fake2',)\n")
    parts = api.parts()
    assert next(s for s in parts["steps"] if s["name"] == "a_to_b")["broken"]
    assert next(r for r in parts["runtimes"] if r["name"] == "odd")["broken"] == "it has no function 'load'"
    assert not next(s for s in parts["steps"] if s["name"] == "fake_to_fake2")["broken"]


def test_a_missing_package_names_the_extra(plugins):
    with pytest.raises(MissingExtra, match=r"needs no-such-package>=1"):
        registry.require("this step", ("no-such-package>=1",))
    with pytest.raises(MissingExtra) as e:
        registry.require("x", ("openvino>=9999",))
    assert e.value.hint == "pip install 'lepton-edge[openvino]'"


def test_packages_of_several_extras_are_one_command():
    lacking = ("tensorflow>=9999", "onnx>=9999", "onnxruntime>=9999", "no-such-package>=1")
    with pytest.raises(MissingExtra, match="which are not installed") as e:
        registry.require("x", lacking)
    assert e.value.hint == "pip install 'lepton-edge[tensorflow]' 'no-such-package>=1'", "it brings onnx too"
    with pytest.raises(MissingExtra) as e:
        registry.require("x", ("openvino>=9999", "torch>=9999"))
    assert e.value.hint == "pip install 'lepton-edge[openvino,torch]'"


def test_a_whole_road_says_at_once_what_it_lacks(fakes, plugins, tmp_path):
    model, recipe = fakes
    plugins("converters/fake_to_fake2.py", 'REQUIRES = ("openvino>=9999",)\n' + CONVERTER)
    plugins("passes/quantize_fake2.py", 'REQUIRES = ("torch>=9999",)\n' + PASS)
    registry._read.cache_clear()
    with pytest.raises(MissingExtra) as e:
        api.quantize(model, "fake2", tmp_path / "out.fake2", recipe)
    assert e.value.hint == "pip install 'lepton-edge[openvino,torch]'"
    assert not (tmp_path / "out.fake2").exists()


def test_a_step_that_writes_nothing_is_told(fakes, plugins, tmp_path):
    model, recipe = fakes
    plugins("converters/fake_to_fake2.py", "def run(src, dst):\n    return {}\n")
    registry._read.cache_clear()
    with pytest.raises(LeptonError, match="wrote no file"):
        api.convert(model, "fake2", tmp_path / "out.fake2", recipe)
    assert not (tmp_path / "out.fake2").exists()
