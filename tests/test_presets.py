"""`compress --recipe NAME`: chains of steps, what is left out and why, what each step brought, what is minimised."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_choose import candidate
from typer.testing import CliRunner

from lepton_edge import chains, gains
from lepton_edge.choose import choose
from lepton_edge.cli import app
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.recipe import Compress, Data, Recipe


def preset(name, **more):
    return Recipe(compress=Compress(preset=name), **more)


@pytest.mark.parametrize("name", sorted(chains.presets()))
def test_every_preset_can_be_read_and_names_only_steps_that_are_there(name):
    chains.check(name)
    made = chains.of(preset(name, data=Data(training="train.npz")))
    assert [c.scheme for c in made[:2]] == ["float32", "int8"] and len({c.scheme for c in made}) == len(made)
    _, left = chains.possible(made, "keras", ["tflite", "onnx", "openvino"], preset(name, data=Data(training="t.npz")))
    assert not [row for row in left if "there is no step" in row["reason"]]


def test_a_broken_preset_is_told(tmp_path, monkeypatch):
    (tmp_path / "odd.toml").write_text('summary = "s"\ngoal = "size"\n[[chain]]\nsteps = ["quantize"]\nquantise = {}\n')
    monkeypatch.setattr(chains, "presets", lambda: {"odd": tmp_path / "odd.toml"})
    with pytest.raises(LeptonError, match="unknown keys \\['quantise'\\]"):
        chains.check("odd")
    with pytest.raises(UsageError, match="unknown preset 'small'"):
        chains.of(preset("small"))


def test_chains_that_train_are_left_out_where_there_is_nothing_to_train_on():
    found = chains.of(preset("smallest"))
    kept, left = chains.possible(found, "keras", ["tflite"], preset("smallest"))
    assert [c for c in kept if c.train] == []
    assert {row["scheme"] for row in left} == {c.scheme for c in found if c.train}
    assert all("--train" in row["reason"] for row in left)
    given = preset("smallest", data=Data(training="train.npz"))
    _, left = chains.possible(chains.of(given), "onnx", ["tflite"], given)
    assert left and all("works on keras models, and no step makes one of onnx" in row["reason"] for row in left)


def test_a_recipe_without_a_preset_has_its_own_chain():
    made = chains.of(Recipe(prune={"sparsity": 0.5}, cluster={"clusters": 8}, quantize={"scheme": "w8"}))
    assert [c.scheme for c in made] == ["float32", "w8", "pruned-clustered-float32", "pruned-clustered-w8"]
    assert made[-1].steps == ("prune", "cluster", "quantize") and made[-1].options["cluster"] == {"clusters": 8}
    assert all(c.needed for c in made) and chains.goal(Recipe()) == "latency"


def chained(name, *steps, format="tflite", p50=1.0):
    chain = chains.Chain(name, steps, {s: {} for s in steps})
    latency = {
        "samples_ns": [[int(p50 * 1e6)] * 3] * 9, "process_of_round": list(range(9)), "others_cores": 0.0,
    }  # fmt: skip
    timing = SimpleNamespace(latency=latency)
    return SimpleNamespace(
        format=format, chain=chain, scheme=name, name=f"{format}-{name}", error=None, timing=timing, answers=None,
    )  # fmt: skip


def test_a_step_that_brings_nothing_says_so_and_is_not_picked():
    made = [
        chained("float32"),
        chained("int8", "quantize", p50=0.5),
        chained("pruned-int8", "prune", "quantize", p50=0.5),
        chained("pruned-int8", "prune", "quantize", format="onnx", p50=0.5),
    ]
    sizes = {"tflite-float32": 4000, "tflite-int8": 1000, "tflite-pruned-int8": 995, "onnx-pruned-int8": 995}
    found = gains.gains(made, sizes, None)
    (quantized,) = found["tflite-int8"]
    assert quantized["any"] and quantized["to"] == "tflite-float32" and "faster (0.50x" in quantized["text"]
    (pruned,) = found["tflite-pruned-int8"]
    assert not pruned["any"] and "not faster (1.00x" in pruned["text"] and "not smaller" in pruned["text"]
    assert found["tflite-float32"] == [] and found["onnx-pruned-int8"] == [], "nothing of its format to hold it against"
    rows = [candidate("tflite-int8", p50=0.5), candidate("tflite-pruned-int8", p50=0.49, gains=[pruned])]
    picked, reasons, _ = choose(rows, max_drop=1.0)
    assert picked == "tflite-int8" and "brought nothing against tflite-int8" in reasons["tflite-pruned-int8"]


def test_what_is_minimised_decides():
    rows = [
        candidate("quick", p50=0.5, zip_bytes=900),
        candidate("small", p50=2.0, zip_bytes=300),
        candidate("sound", p50=0.8, zip_bytes=400),
    ]
    for goal, name in (("latency", "quick"), ("size", "small"), ("balanced", "sound")):
        picked, reasons, _ = choose(rows, max_drop=1.0, goal=goal)
        assert picked == name and set(reasons) == {"quick", "small", "sound"}
    slow = {"to": "float", "median": 1.3, "verdict": "slower"}
    assert choose([candidate("a", ratio=slow, zip_bytes=5)], max_drop=1.0, goal="size")[0] == "a"
    assert choose([candidate("a", ratio=slow, zip_bytes=5)], max_drop=1.0, goal="balanced")[0] is None


def test_names_of_presets_are_for_compress(tmp_path):
    run = CliRunner().invoke
    for command in ("quantize", "prune"):
        told = run(app, [command, "model.onnx", "--recipe", "smallest"])
        assert told.exit_code == 2 and "presets are for compress" in told.output
    told = run(app, ["compress", "model.onnx", "--recipe", "smalest", "--out", str(tmp_path / "out")])
    assert told.exit_code == 2 and "smallest" in told.output


def network(path):
    """Two convolutions that channels can be taken from, and a dense layer."""
    import nets
    import onnx
    from onnx import helper

    rng = np.random.default_rng(0)
    shapes = {"a": (32, 3, 3, 3), "b": (64, 32, 3, 3), "c": (64, 10)}
    consts = {name: (rng.normal(size=s) / np.sqrt(np.prod(s[1:]))).astype(np.float32) for name, s in shapes.items()}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["p"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b"], ["r"], kernel_shape=[3, 3], strides=[2, 2]),
        helper.make_node("Relu", ["r"], ["s"]),
        helper.make_node("GlobalAveragePool", ["s"], ["t"]),
        helper.make_node("Flatten", ["t"], ["u"]),
        helper.make_node("MatMul", ["u", "c"], ["y"]),
    ]
    onnx.save(nets.model(nodes, {"x": [1, 3, 12, 12]}, {"y": [1, 10]}, consts), path)


def test_smallest_on_an_onnx_model(tmp_path):
    """Counts are of the files, a chain that cannot be had is left out with its reason, the smallest is picked."""
    for package in ("onnx", "onnxruntime", "ai_edge_litert"):
        pytest.importorskip(package)
    network(tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(20, 3, 12, 12)).astype(np.float32))
    out = tmp_path / "out"
    told = CliRunner().invoke(
        app,
        [
            *("compress", str(tmp_path / "m.onnx"), "--data", str(tmp_path / "data.npz"), "--recipe", "smallest"),
            *("--to", "tflite", "--max-drop", "50", "--seconds", "0.2", "--out", str(out), "--json"),
        ],
    )
    assert told.exit_code == 0, told.output
    run = json.loads(Path(out / "run.json").read_text())
    rows = {c["name"]: c for c in run["candidates"]}
    assert run["goal"] == "size" and {"trained-75-int8", "clustered-16-int8"} <= {r["scheme"] for r in run["left_out"]}
    dense, sparse = rows["tflite-int8"], rows["tflite-sparse-50-int8"]
    assert dense["parameters"] == sparse["parameters"] and sparse["nonzeros"] < 0.75 * dense["nonzeros"]
    assert rows["tflite-channels-75-int8"]["macs"] < dense["macs"] == rows["tflite-float32"]["macs"]
    fine = [c for c in rows.values() if c["status"] == "ok" and not c["reason"].startswith(("cosine", "a step"))]
    (picked,) = [c for c in rows.values() if c["picked"]]
    assert picked["zip_bytes"] <= 1.011 * min(c["zip_bytes"] for c in fine)
    assert "zip" in sparse["gains"][0] and sparse["gains"][0]["to"] == "tflite-int8"
    assert "sparse-50-int8" in (out / "report.md").read_text()


@pytest.mark.parametrize(("epochs", "name"), [(0, "calib"), (5, "train")])
def test_what_is_pruned_on_its_onnx_form_learns_from_training_samples_where_it_trains(tmp_path, epochs, name):
    """Also in a chain that calibrates a quantizer: `--data` and `--train` are told apart."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package)
    from lepton_edge import run_feeds, stages
    from lepton_edge.progress import Silent

    network(tmp_path / "m.onnx")
    rng = np.random.default_rng(0)
    for role, count in (("calib", 5), ("train", 9), ("eval", 7)):
        np.savez(tmp_path / f"{role}.npz", x=rng.normal(size=(count, 3, 12, 12)).astype(np.float32))
    paths = {k: str(tmp_path / f"{v}.npz") for k, v in
             (("calibration", "calib"), ("training", "train"), ("evaluation", "eval"))}  # fmt: skip
    recipe = Recipe(data=Data(**paths), prune={"macs": 0.5, "epochs": epochs} if epochs else {"macs": 0.5})
    with stages.road(tmp_path, Silent()) as road:
        source = stages.load_source(road, tmp_path / "m.onnx")
        feeds = run_feeds.open_feeds(road, source, recipe, ("prune", "quantize")).by_verb()
    count = {"calib": 5, "train": 9}[name]
    assert feeds["prune"].count == feeds["prune_onnx"].count == count and feeds["quantize"].count == 5
