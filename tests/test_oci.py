"""OCI images: the same bytes every time, taken by skopeo and umoci; and run, on this processor and an emulated one."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import apps
import pytest

from lepton_edge import api, wheelhouse
from lepton_edge.deploy import read_bundle
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.oci_base import ARCHS


def rootfs(folder: Path, arch: str, *, python="usr/bin/python3.11", libc="lib/ld-linux-x.so.2", mode="w") -> Path:
    """A root file system that holds what is looked for in one."""
    file = folder / f"{arch}-{len(list(folder.glob('*.tar')))}.tar"
    elf = b"\x7fELF" + bytes(14) + ARCHS[arch].elf.to_bytes(2, "little") if arch in ARCHS else bytes(20)
    with tarfile.open(file, mode) as tar:
        for name, data in ((python, elf), (libc, b"")):
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


@pytest.fixture
def wheels(monkeypatch):
    """No network: for every platform a wheel of one module; returns what was asked for."""
    asked = []

    def fetch(requires, machine, python, folder, glibc):
        asked.append((machine, python, glibc))
        folder.mkdir(parents=True)
        with zipfile.ZipFile(folder / "numpy-1-py3-none-any.whl", "w") as archive:
            archive.writestr("numpy.py", f"# for {machine}\n")
        return list(folder.iterdir())

    monkeypatch.setattr(wheelhouse, "wheels", fetch)
    return asked


def unpacked(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}


def images(archive: Path) -> dict[str, tuple[dict, list[tarfile.TarFile]]]:
    """The configuration and the layers of every platform; all digests are checked on the way."""
    files = unpacked(archive)
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}

    def blob(descriptor):
        data = files["blobs/" + descriptor["digest"].replace(":", "/")]
        assert len(data) == descriptor["size"] and hashlib.sha256(data).hexdigest() == descriptor["digest"][7:]
        return data

    (top,) = json.loads(files["index.json"])["manifests"]
    found = {}
    for entry in json.loads(blob(top))["manifests"]:
        manifest = json.loads(blob(entry))
        config = json.loads(blob(manifest["config"]))
        plain = [gzip.decompress(blob(layer)) for layer in manifest["layers"]]
        assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(p).hexdigest()}" for p in plain]
        assert entry["platform"]["architecture"] == config["architecture"]
        found[config["architecture"]] = config, [tarfile.TarFile(fileobj=io.BytesIO(p)) for p in plain]
    return found


def test_an_image_for_two_platforms(tmp_path, wheels):
    folder, bases = apps.make(tmp_path), [rootfs(tmp_path, arch) for arch in ARCHS]
    made = api.bundle(folder, image=tmp_path / "a.tar", bases=bases)
    assert wheels == [("x86_64", "3.11", "2.36"), ("aarch64", "3.11", "2.36")]
    assert [row["arch"] for row in made["image"]["images"]] == ["amd64", "arm64"]
    bundle = read_bundle(folder)
    for arch, (config, layers) in images(tmp_path / "a.tar").items():
        _, runtime, shipped = layers
        text = runtime.extractfile("opt/lepton-edge/site/numpy.py").read().decode()
        assert text == f"# for {ARCHS[arch].machine}\n" and runtime.getmember("tmp").mode == 0o1777
        files = [m for m in shipped if m.isfile()]
        assert {m.name.removeprefix("opt/lepton-edge/bundle/") for m in files} == set(bundle.files())
        assert [m.name for m in shipped] == sorted(m.name for m in shipped)
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in shipped} == {(0, 0, 0, "")}
        assert config["config"]["Entrypoint"] == ["/usr/bin/python3.11", "/opt/lepton-edge/bundle/predict.py"]
        assert config["config"]["User"] == "65534:65534"
    os.utime(folder / "net.sums", (1, 1))
    api.bundle(folder, image=tmp_path / "b.tar", bases=bases)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    if shutil.which("skopeo"):
        command = ["skopeo", "inspect", "--override-arch", "arm64", f"oci-archive:{tmp_path / 'a.tar'}"]
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert told["Architecture"] == "arm64" and len(told["Layers"]) == 3


def test_an_image_is_a_base_as_well(tmp_path, wheels):
    bases = [rootfs(tmp_path, "amd64", python="usr/local/bin/python3.12", mode="w:gz")]
    folder = apps.make(tmp_path)
    api.bundle(folder, image=tmp_path / "a.tar", archs=["amd64"], bases=bases)
    (tmp_path / "layout").mkdir()
    with tarfile.open(tmp_path / "a.tar") as tar:
        tar.extractall(tmp_path / "layout", filter="data")
    for base in (tmp_path / "a.tar", tmp_path / "layout"):
        api.bundle(folder, image=tmp_path / "b.tar", archs=["amd64"], bases=[base])
        config, layers = images(tmp_path / "b.tar")["amd64"]
        assert len(layers) == 5 and config["config"]["Entrypoint"][0] == "/usr/local/bin/python3.12"
        assert len([e for e in config["config"]["Env"] if e.startswith("PYTHONPATH=")]) == 1
    victim = max((tmp_path / "layout" / "blobs" / "sha256").iterdir(), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    with pytest.raises(LeptonError, match="OCI layout is damaged"):
        api.bundle(folder, image=tmp_path / "b.tar", archs=["amd64"], bases=[tmp_path / "layout"])


def test_bases_that_do_not_serve(tmp_path, wheels):
    folder = apps.make(tmp_path)
    cases = [
        (rootfs(tmp_path, "amd64"), ["amd64", "arm64"], "none of the bases is for arm64"),
        (rootfs(tmp_path, "amd64", python="usr/bin/perl"), ["amd64"], "no /usr/bin/python3"),
        (rootfs(tmp_path, "amd64", libc="lib/ld-musl-x86_64.so.1"), ["amd64"], "no glibc"),
        (rootfs(tmp_path, "riscv64"), ["amd64"], "is for none of amd64, arm64"),
        (folder / "predict.py", ["amd64"], "cannot be read as a tar"),
        (tmp_path / "absent.tar", ["amd64"], "no such base"),
    ]
    for base, archs, message in cases:
        with pytest.raises(LeptonError, match=message):
            api.bundle(folder, image=tmp_path / "a.tar", archs=archs, bases=[base])
    with pytest.raises(UsageError, match="no image can be made for 'mips'"):
        api.bundle(folder, image=tmp_path / "a.tar", archs=["mips"])
    assert not (tmp_path / "a.tar").exists() and not list(tmp_path.glob(".part-*"))


TOOLS = ("mmdebstrap", "skopeo", "umoci", "qemu-aarch64-static")
ABSENT = [tool for tool in TOOLS if shutil.which(tool) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(ABSENT), reason=f"not installed here: {', '.join(ABSENT)}")
@pytest.mark.skipif(os.getuid() != 0, reason="chroot takes root")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="one of the two images runs on x86-64")
def test_images_answer_on_their_processors(tmp_path):
    """Made of Debian's packages and the index's wheels; unpacked by umoci; run in a chroot, for arm64 under qemu."""
    folder = apps.make(tmp_path)
    try:
        api.bundle(folder, image=tmp_path / "a.tar")
    except LeptonError as e:
        if "cannot be had" in e.message or "index cannot be reached" in e.message:
            pytest.skip(f"off the network: {e.message}")
        raise
    for arch in ARCHS:
        layout, out = f"{tmp_path / arch}:tag", tmp_path / f"unpacked-{arch}"
        archive = f"oci-archive:{tmp_path / 'a.tar'}"
        for command in (["skopeo", "copy", "-q", "--override-arch", arch, archive, f"oci:{layout}"],
                        ["umoci", "unpack", "--image", layout, str(out)]):  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)
        run = json.loads((out / "config.json").read_text())["process"]
        emulator = []
        if arch == "arm64":
            shutil.copy(shutil.which("qemu-aarch64-static"), out / "rootfs" / "qemu")
            emulator = ["/qemu"]
        command = [
            shutil.which("chroot"),
            "--userspec=65534:65534",
            str(out / "rootfs"),
            *emulator,
            *run["args"],
            "--self-test",
        ]
        environ = dict(pair.split("=", 1) for pair in run["env"])
        done = subprocess.run(command, capture_output=True, text=True, env=environ)
        assert done.returncode == 0 and "ok   scores" in done.stdout, done.stdout + done.stderr
