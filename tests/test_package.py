"""What is installed: the top-level folders lie under lepton_edge, and every file a command needs is in the wheel."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_no_module_has_the_name_of_a_folder_mapped_beside_it():
    mapped = {name.rsplit(".", 1)[1] for name in PYPROJECT["tool"]["setuptools"]["package-dir"]}
    assert not mapped & {p.stem for p in (ROOT / "lepton_edge").glob("*.py")}


def test_every_package_folder_is_listed():
    listed = set(PYPROJECT["tool"]["setuptools"]["packages"])
    found = {f"lepton_edge.{p.parent.name}" for p in (ROOT / "lepton_edge").glob("*/__init__.py")}
    assert found <= listed


def test_pins_cover_every_requirement():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pins = {canonicalize_name(x.split("==")[0]) for x in (ROOT / "constraints/main.txt").read_text().split()}
    project = PYPROJECT["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {canonicalize_name(Requirement(r).name) for r in wanted} - {"lepton-edge"}
    assert names <= pins


@pytest.mark.slow
def test_the_wheel_holds_every_plugin_and_data_file(tmp_path):
    pytest.importorskip("setuptools")
    command = [
        sys.executable,
        "-c",
        "import setuptools.build_meta as b,sys; print(b.build_wheel(sys.argv[1]))",
        tmp_path,
    ]
    copy = tmp_path / "src"
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if tracked.returncode:
        pytest.skip("not a git checkout, so what belongs in the wheel is not known")
    for name in tracked.stdout.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    for folder in ("converters", "devices", "samples"):
        for file in (ROOT / folder).iterdir():
            if file.suffix in (".py", ".toml", ".keras", ".npz"):
                assert f"lepton_edge/{folder}/{file.name}" in names
    for file in (ROOT / "lepton_edge").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert str(file.relative_to(ROOT)) in names
    assert not any(n.startswith(("converters/", "samples/", "devices/", "tests/")) for n in names)
