"""Wheels for other machines, fetched from a folder: no network is used."""

from __future__ import annotations

import zipfile

import pytest

from lepton_edge import registry, wheelhouse
from lepton_edge.device import get_device
from lepton_edge.errors import LeptonError, UsageError


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes wheels from, and nothing else; returns a function that drops one in."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))

    def drop(name: str, version: str, tag: str = "py3-none-any", needs: tuple[str, ...] = ()) -> None:
        about = f"{name}-{version}.dist-info"
        with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
            lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {n}" for n in needs)]
            archive.writestr(f"{about}/METADATA", "\n".join(["Metadata-Version: 2.1", *lines]) + "\n")
            archive.writestr(f"{about}/WHEEL", f"Wheel-Version: 1.0\nTag: {tag}\n")
            archive.writestr(f"{about}/RECORD", "")

    return drop


def names(paths):
    return [path.name for path in paths]


def test_the_platform_decides_and_dependencies_come_along(index, tmp_path):
    index("motor", "1.0", "cp311-cp311-manylinux_2_28_x86_64", ("oil",))
    index("motor", "1.0", "cp311-cp311-manylinux_2_28_aarch64", ("oil",))
    index("motor", "1.1", "cp311-cp311-manylinux_2_99_aarch64")
    index("oil", "2")
    made = wheelhouse.wheels(["motor"], "aarch64", "3.11", tmp_path / "out")
    assert names(made) == ["motor-1.0-cp311-cp311-manylinux_2_28_aarch64.whl", "oil-2-py3-none-any.whl"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == names(made)


def test_they_are_fetched_once(index, tmp_path, monkeypatch):
    index("motor", "1.0")
    first = wheelhouse.wheels(["motor"], "aarch64", "3.11", tmp_path / "a")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    assert names(wheelhouse.wheels(["motor"], "aarch64", "3.11", tmp_path / "b")) == names(first)


def test_a_package_without_a_wheel_is_named(index, tmp_path):
    index("motor", "1.0", "cp311-cp311-manylinux_2_28_aarch64", ("oil",))
    index("oil", "2", "cp311-cp311-manylinux_2_28_x86_64")
    with pytest.raises(LeptonError, match=r"^oil has no wheel for Linux aarch64, Python 3\.11, glibc 2\.36$"):
        wheelhouse.wheels(["motor"], "aarch64", "3.11", tmp_path / "out")
    assert not (tmp_path / "out").exists(), "all of them or none"


def test_the_versions_that_have_one_are_told(index, tmp_path):
    index("motor", "1.0", "cp311-cp311-manylinux_2_28_aarch64")
    with pytest.raises(LeptonError, match="motor==2 has no wheel") as told:
        wheelhouse.wheels(["motor==2"], "aarch64", "3.11", tmp_path / "out")
    assert told.value.hint == "those that have one: 1.0"


def test_what_is_there_already_is_not_fetched_but_counts(index, tmp_path):
    index("motor", "1.0", "cp311-cp311-linux_armv7l", ("oil<2",))
    made = wheelhouse.wheels(["motor"], "armv7l", "3.11", tmp_path / "out", present={"oil": "1.5"})
    assert names(made) == ["motor-1.0-cp311-cp311-linux_armv7l.whl"]
    with pytest.raises(LeptonError, match="oil"):
        wheelhouse.wheels(["motor"], "armv7l", "3.11", tmp_path / "out", present={"oil": "3"})


def test_pins_are_what_is_installed_here():
    import numpy

    assert wheelhouse.pins(["numpy", "no-such-thing>=3"]) == ["no-such-thing>=3", f"numpy=={numpy.__version__}"]
    assert wheelhouse.pins(["numpy>=1"], {"NumPy": "1.2"}) == ["numpy==1.2"]
    assert wheelhouse.pins(["numpy<1"]) == ["numpy<1"], "what is installed does not meet it"


@pytest.mark.parametrize(
    ("machine", "python", "glibc", "said"),
    [
        ("riscv", "3.11", "2.36", "machine 'riscv'"),
        ("aarch64", "3", "2.36", "no version of Python"),
        ("aarch64", "3.11", "new", "no version of glibc"),
    ],
)
def test_what_is_asked_for_is_checked_first(tmp_path, machine, python, glibc, said):
    with pytest.raises(UsageError, match=said):
        wheelhouse.wheels(["motor"], machine, python, tmp_path, glibc=glibc)


def test_a_microcontroller_has_no_wheels(tmp_path):
    import dataclasses

    chip = dataclasses.replace(get_device("generic-aarch64"), name="chip", arch="cortex-m")
    with pytest.raises(UsageError, match="chip: no Python runs on cortex-m"):
        wheelhouse.for_device(chip, registry.runtime("litert"), tmp_path)
