"""Shared fixtures: a store and plug-in folder of the test's own, and the real data where it is present."""

import json
import os
from pathlib import Path

import pytest
from box import box, things, whole  # noqa: F401 - fixtures

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as workers have it: see launch.py


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory, monkeypatch):
    """No test touches the user's store, or makes an environment in it."""
    monkeypatch.setenv("LEPTON_EDGE_ENVS", "off")
    monkeypatch.setenv("LEPTON_EDGE_CACHE", str(tmp_path_factory.mktemp("store")))
    monkeypatch.setenv("LEPTON_EDGE_DEVICES", str(tmp_path_factory.mktemp("devices")))


@pytest.fixture
def plugins(tmp_path, monkeypatch):
    """An empty plug-in folder that the registry reads; returns a function that drops a file in."""
    folder = tmp_path / "plugins"
    monkeypatch.setenv("LEPTON_EDGE_PLUGINS", str(folder))

    def drop(where: str, text: str) -> Path:
        file = folder / where
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    return drop


FAKE_FORMAT = '''"""Fake model of the tests."""
SUFFIX = ".fake"
def recognise(path, head):
    return head.startswith(b'{"inputs"')
'''


@pytest.fixture
def fake_model(plugins, tmp_path):
    """A function that writes a model of the fake runtime; the format is registered as a plug-in."""
    plugins("formats/fake.py", FAKE_FORMAT)

    def make(name: str = "model.fake", **changes) -> Path:
        model = {
            "inputs": [{"name": "x", "shape": [None, 4], "dtype": "float32"}],
            "outputs": [{"name": "scores", "shape": [None, 3], "dtype": "float32"}],
            "seed": 0,
        }
        path = tmp_path / name
        path.write_text(json.dumps(model | changes))
        return path

    return make


@pytest.fixture(scope="session")
def shared():
    """The folder of real models and data, where there is one."""
    folder = Path(os.environ.get("LEPTON_EDGE_SHARED", ROOT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here: real models and data are not part of the repository")
    return folder
