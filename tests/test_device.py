"""The shipped devices are sound, and a bad file is refused by name without hiding the others."""

import json
from pathlib import Path

import pytest

from lepton_edge.device import Device, device_folders, get_device, load_devices, read_device
from lepton_edge.errors import LeptonError, UsageError

ROOT = Path(__file__).parent.parent
GOOD = 'title = "Board"\nkind = "estimated"\ntransport = "none"\narch = "aarch64"\n'


def write(folder: Path, text: str, name: str = "board") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "devices").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_devices(path):
    device = read_device(path)
    assert device.name == path.stem and device.formats
    runtimes = {file.stem for file in (ROOT / "lepton_edge" / "runtimes").glob("*.py")}
    assert set(device.runtimes) <= runtimes, "a device names a runtime that does not exist"
    json.dumps(device.to_dict())
    if not device.is_here:
        assert device.sources, "say where the facts come from"
        assert device.is_reached or (device.kind != "measured" and device.title in device.latency_note())


def test_local_is_measured_and_reads_its_features():
    local = get_device("local")
    assert local.is_here and local.kind == "measured" and local.latency_note() == ""
    assert local.features() == tuple(local.features())
    assert get_device("raspberrypi5").features() == ("neon", "fp16", "dotprod")


def test_loads_all_sorted():
    found = load_devices()
    assert list(found) == sorted(found) and not found.broken
    assert len(found) == len(list((ROOT / "devices").glob("*.toml")))
    assert found["local"].path.endswith("local.toml")


def test_unknown_device_lists_the_known():
    with pytest.raises(UsageError, match="unknown device 'raspberypi4'") as caught:
        get_device("raspberypi4")
    assert "did you mean 'raspberrypi4'?" in caught.value.hint and "local" in caught.value.hint
    with pytest.raises(UsageError) as caught:
        get_device("zzzz")
    assert caught.value.hint.startswith("known")


def test_plugins_and_extra_folders_add_and_override(tmp_path, monkeypatch):
    write(tmp_path / "one" / "devices", GOOD)
    write(tmp_path / "two" / "devices", GOOD.replace("Board", "Other"))
    monkeypatch.setenv("LEPTON_EDGE_PLUGINS", f"{tmp_path / 'one'}:{tmp_path / 'gone'}")
    assert load_devices()["board"].title == "Board"
    assert load_devices([tmp_path / "two" / "devices"])["board"].title == "Other"
    assert len(device_folders()) == 4, "the package's own, the user's, and two of plug-ins"


def test_a_broken_file_is_named_and_hides_no_other(tmp_path, monkeypatch):
    path = write(tmp_path / "devices", "title = \n")
    write(tmp_path / "devices", GOOD, "fine")
    monkeypatch.setenv("LEPTON_EDGE_PLUGINS", str(tmp_path))
    found = load_devices()
    assert "fine" in found and "local" in found and "board" not in found
    assert list(found.broken) == [str(path)] and "not valid TOML" in found.broken[str(path)]
    with pytest.raises(LeptonError, match=r"board\.toml: not valid TOML"):
        get_device("board")


def test_a_device_can_be_a_path(tmp_path):
    path = write(tmp_path, GOOD + 'threads = 2\ncores = 4\nisa = ["neon"]\nscheme = "s8s8"\n')
    device = get_device(str(path))
    assert device == Device(
        "board", "Board", "estimated", "none", "aarch64", cores=4, threads=2, isa=("neon",), scheme="s8s8"
    )
    with pytest.raises(LeptonError, match="cannot be read"):
        get_device(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (GOOD + 'tread = 1\n', "unknown key 'tread'", "did you mean 'threads'?"),
        (GOOD.replace('kind = "estimated"', 'kind = "estimate"'), "kind = 'estimate'", "did you mean 'estimated'?"),
        (GOOD.replace('transport = "none"', 'transport = "shh"'), "transport = 'shh'", "did you mean 'ssh'?"),
        (GOOD + 'formats = ["tflight"]\n', "formats = 'tflight'", "did you mean 'tflite'?"),
        (GOOD + 'isa = ["avx512vnni"]\n', "isa = 'avx512vnni'", "did you mean 'avx512_vnni'?"),
        (GOOD + 'isa = "neon"\n', "isa = 'neon' should be a list of texts", "list"),
        (GOOD + "threads = true\n", "threads = True should be a whole number", "whole"),
        (GOOD + "threads = 0\n", "threads = 0", "at least one"),
        (GOOD + "threads = 8\ncores = 4\n", "threads = 8 on a device of 4 cores", "lower"),
        (GOOD + "memory_mb = -1\n", "memory_mb = -1", "0 or more"),
        (GOOD + 'name = "x"\n', "unknown key 'name'", "known"),
        ('kind = "measured"\n', "the key 'title' is missing", "add title"),
        (GOOD.replace('"Board"', '" "'), "the title is empty", "say"),
        (GOOD.replace('transport = "none"', 'transport = "local"'), "always measured", "measured"),
        ("title = 3\n" + GOOD.split("\n", 1)[1], "title = 3 should be a text", "quotes"),
    ],
)  # fmt: skip
def test_strict(tmp_path, text, message, hint):
    path = write(tmp_path, text)
    with pytest.raises(LeptonError) as caught:
        read_device(path)
    assert str(path) in caught.value.message and message in caught.value.message
    assert hint in caught.value.hint and "\n" not in caught.value.message


def test_not_text(tmp_path):
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LeptonError, match="not valid TOML"):
        read_device(tmp_path / "b.toml")
