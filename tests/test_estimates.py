"""Estimates for microcontrollers: what Vela and TensorFlow Lite Micro say of a small int8 model of ours."""

from __future__ import annotations

import dataclasses
import json
import sys

import nets
import numpy as np
import pytest

from lepton_edge import api, estimates, registry
from lepton_edge.__main__ import main
from lepton_edge.device import get_device, read_device
from lepton_edge.errors import LeptonError, MissingExtra, UsageError
from lepton_edge.recipe import Bench, Recipe, load

NEEDS = [r for e in registry.estimators() for r in e.requires]
pytestmark = pytest.mark.skipif(bool(registry.missing(tuple(NEEDS))), reason="needs the extra [micro]")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("micro")
    nets.inverted_residual(made / "net.onnx")
    rng = np.random.default_rng(1)
    np.savez(made / "calib.npz", x=rng.normal(size=(32, 3, 8, 8)).astype(np.float32))
    (made / "run.toml").write_text(f'[data]\ncalibration = "{made / "calib.npz"}"\n[quantize]\npreset = "fast"\n')
    recipe = load(made / "run.toml")
    api.quantize(made / "net.onnx", "tflite", made / "net.int8.tflite", recipe)
    api.convert(made / "net.onnx", "tflite", made / "net.tflite", Recipe())
    return made


@pytest.fixture(scope="module")
def device():
    return get_device("cortex-m55-ethos-u55")


def with_options(device, **options):
    return dataclasses.replace(device, estimate={**device.estimate, **options})


def one(result):
    (row,) = result["models"]
    return row["estimates"]


def test_vela_and_tflite_micro_tell_what_it_takes(folder, device, tmp_path):
    result = estimates.estimate([folder / "net.int8.tflite"], device, Recipe(), keep=tmp_path / "kept")
    assert result["kind"] == result["models"][0]["kind"] == "estimated"
    vela, micro = one(result)["vela"], one(result)["tflite_micro"]
    assert vela["accelerator"] == "Ethos_U55_128" and vela["cycles_total"] >= vela["cycles_npu"] > 0
    assert vela["inference_ms"] == pytest.approx(vela["cycles_total"] / vela["clock_mhz"] / 1e3, rel=0.01)
    assert vela["macs"] > 0 and 0.9 < vela["macs_on_npu"] <= 1 and 0 < vela["operators_on_npu"] < 1
    assert vela["sram_bytes"] > 0 and vela["flash_bytes"] > 0
    left = {o["operator"]: o["reason"] for o in vela["on_cpu"]}
    assert "Float32" in left["QUANTIZE"] and left["DEQUANTIZE"], "its float input and output are left to the CPU"
    assert (tmp_path / "kept" / "net.int8_per-layer.csv").is_file()
    assert micro["loads"] and micro["arena_bytes"] > 3 * 8 * 8 and micro["fits"] is None
    assert micro["samples"] == 8 and micro["reference"]["same"] >= 6, "the kernels that round alike answer alike"
    assert all(off["max_abs"] < 1 for off in micro["litert"]["outputs"].values())


def test_more_macs_a_cycle_take_fewer_cycles(folder, device):
    cycles = []
    for accelerator in ("ethos-u55-32", "ethos-u55-256"):
        made = estimates.estimate(
            [folder / "net.int8.tflite"],
            dataclasses.replace(device, estimators=("vela",), estimate={"accelerator": accelerator}),
            Recipe(),
        )
        cycles.append(one(made)["vela"]["cycles_npu"])
    assert cycles[0] > cycles[1]


def test_an_arena_that_is_too_small_is_told(folder, device):
    only = dataclasses.replace(device, estimators=("tflite_micro",))
    size = one(estimates.estimate([folder / "net.int8.tflite"], only, Recipe()))["tflite_micro"]["arena_bytes"]
    for arena_kb, fits in (((size - 1) // 1024, False), (-(-size // 1024), True)):
        only = dataclasses.replace(only, estimate={"arena_kb": arena_kb})
        made = one(estimates.estimate([folder / "net.int8.tflite"], only, Recipe()))
        assert made["tflite_micro"]["fits"] is fits


@pytest.mark.parametrize(("file", "said"), [("net.tflite", "is a float model"), ("net.onnx", "and this is onnx")])
def test_what_a_microcontroller_cannot_run(folder, device, file, said):
    with pytest.raises(LeptonError, match=said) as told:
        estimates.estimate([folder / file], device, Recipe())
    assert told.value.hint.startswith(f"lepton-edge quantize {file} --to tflite")


def test_an_option_that_vela_refuses_costs_only_its_own_figures(folder, device):
    made = one(estimates.estimate([folder / "net.int8.tflite"], with_options(device, accelerator="u1"), Recipe()))
    assert "Vela cannot compile it" in made["vela"]["error"] and "invalid choice: 'u1'" in made["vela"]["error"]
    assert made["tflite_micro"]["loads"]


def test_a_device_that_has_no_estimator(folder):
    with pytest.raises(UsageError, match="raspberrypi4: no estimator"):
        estimates.estimate([folder / "net.int8.tflite"], get_device("raspberrypi4"), Recipe())


def test_a_package_that_is_missing(device, plugins):
    plugins("estimators/other.py", '"""Other."""\nREQUIRES = ("no-such-package",)\ndef estimate(model): pass\n')
    with pytest.raises(MissingExtra, match="estimating with other needs no-such-package"):
        estimates.needed(dataclasses.replace(device, estimators=("other",)))


def test_a_device_file_names_estimators_and_options_that_there_are(tmp_path):
    head = 'title = "x"\nkind = "estimated"\ntransport = "none"\narch = "cortex-m"\n'
    for text, said in (
        ('estimators = ["velo"]\n', "estimators = 'velo' is not known"),
        ('estimators = ["vela"]\n[estimate]\narena_kb = 1\n', "no option|has an option 'arena_kb'"),
    ):
        (tmp_path / "d.toml").write_text(head + text)
        with pytest.raises(LeptonError, match=said):
            read_device(tmp_path / "d.toml")


def test_the_command(folder, capsys, monkeypatch):
    command = ["lepton-edge", "estimate", str(folder / "net.int8.tflite"), "--device", "cortex-m55-ethos-u55"]
    for more in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        shown = capsys.readouterr().out
        if more:
            assert one(json.loads(shown))["vela"]["cycles_npu"] > 0
        else:
            assert "(estimated)" in shown and " of 8" in shown and "QUANTIZE" in shown


def test_bench_takes_estimated_devices_beside_this_machine(folder, capsys, monkeypatch):
    model = str(folder / "net.int8.tflite")
    monkeypatch.setattr(
        sys, "argv", ["lepton-edge", "bench", model, "--device", "local,cortex-m55-ethos-u55", "--seconds", "0.3"]
    )
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    told = capsys.readouterr().out
    assert "est." in told and "cycles at 500 MHz" in told and "arena in TensorFlow Lite Micro" in told
    recipe = Recipe(bench=Bench(seconds=0.3))
    document = api.bench([folder / "net.int8.tflite", folder / "net.tflite"], recipe, devices=["cortex-m55-ethos-u55"])
    good, refused = document["rows"]
    assert good["latency"] == {"kind": "estimated", "p50_ms": good["estimates"]["vela"]["inference_ms"]}
    assert good["device"]["kind"] == "estimated" and "is a float model" in refused["error"]["message"]
