"""The same answers on 64-bit and 32-bit Arm as here, for int8 files of ours, in every runtime that installs there."""

from __future__ import annotations

import json
import shutil

import nets
import numpy as np
import pytest

from lepton_edge import api, registry
from lepton_edge.device import get_device
from lepton_edge.errors import LeptonError
from lepton_edge.place import Here, open_place
from lepton_edge.recipe import load

TOOLS = [tool for tool in ("qemu-aarch64-static", "qemu-arm-static", "mmdebstrap") if not shutil.which(tool)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(TOOLS), reason=f"there is no {', '.join(TOOLS)} (apt-get install qemu-user-static mmdebstrap)"
    ),
]
FORMATS = {"litert": "tflite", "tflite_runtime": "tflite", "onnxruntime": "onnx"}
COUNT = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """int8 files of a small net in both formats, and samples in the layout of each."""
    made = tmp_path_factory.mktemp("emulated")
    nets.inverted_residual(made / "net.onnx")
    x = np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype(np.float32)
    np.savez(made / "calib.npz", x=x)
    (made / "run.toml").write_text(f'[data]\ncalibration = "{made / "calib.npz"}"\n[quantize]\npreset = "fast"\n')
    for format_ in ("tflite", "onnx"):
        api.quantize(made / "net.onnx", format_, made / f"int8.{format_}", load(made / "run.toml"))
        (made / format_).mkdir()
        np.save(made / format_ / "x.npy", x[:COUNT] if format_ == "onnx" else x[:COUNT].transpose(0, 2, 3, 1))
    return made


def answers(place, folder, runtime, scratch):
    """The only output [COUNT, classes] of the runtime's file, and the release of the runtime."""
    format_ = FORMATS[runtime.name]
    with place.worker(f"running in {runtime.name}", runtime) as worker:
        model = place.send(folder / f"int8.{format_}")
        loaded = worker.call("load", file=place.send(runtime.file), model=model, options={})
        name = loaded["inputs"][0]["name"]
        feed = {"count": COUNT, "inputs": [name], "files": {name: "x.npy"}}
        (folder / format_ / "feed.json").write_text(json.dumps(feed))
        out = place.folder()
        worker.call("predict", feed=place.send(folder / format_), out=out)
    scratch.mkdir()
    place.fetch(out, scratch)
    return np.load(scratch / "0.npy"), loaded["info"]["version"]


@pytest.mark.parametrize("name", ["qemu-aarch64", "qemu-armhf"])
def test_int8_answers_the_same(name, folder, tmp_path):
    device = get_device(name)
    try:
        place = open_place(device)
    except LeptonError as e:
        if "cannot be made" in e.message:  # Debian's mirror is not always there
            pytest.skip(e.message)
        raise
    made = iter(range(100))

    def new():
        path = tmp_path / f"out-{next(made)}"
        path.mkdir()
        return path

    here = Here(new)
    try:
        assert place.kind == "emulated" and place.shares_host and place.notes
        for runtime in map(registry.runtime, device.runtimes):
            if registry.missing(runtime.requires):
                continue  # it is compared with itself
            ours, version = answers(here, folder, runtime, tmp_path / f"here-{runtime.name}")
            theirs, other = answers(place, folder, runtime, tmp_path / f"there-{runtime.name}")
            assert version == other, "the same release is held against itself"
            off = np.abs(ours - theirs).max() / np.ptp(ours)
            # tflite-runtime's kernels for Arm round halves otherwise than those for x86.
            assert off <= (0.05 if runtime.name == "tflite_runtime" else 1e-3), (runtime.name, off)
            assert (ours.argmax(1) == theirs.argmax(1)).all()
    finally:
        place.close()
