"""The command line on bad calls, recipes and places to write: one clear line, the right exit code, nothing left."""

import numpy as np
import pytest
from box import LINUX, copy_of, images

pytestmark = LINUX


# --- the call and the recipe ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "naming"),
    [
        (["compress", "--no-such-option"], "--no-such-option"),
        (["no-such-command"], "no-such-command"),
        (["compress", "{model}", "--samples", "many"], "--samples"),
        (["compress", "{model}", "--seconds", "nan"], "--seconds"),
        (["compress", "{model}", "--max-drop", "nan"], "--max-drop"),
        (["convert", "{model}"], "target format"),
        (["convert", "{model}", "--to", "tflight"], "'tflight'"),
        (["convert", "{model}", "--to", "onnx"], "onnx already"),
        (["convert", "{model}", "--to", "OpenVino"], "'OpenVino'"),
        (["bench", "{model}", "--threads", "100000"], "100000 threads"),
        (["compress", "{model}", "--data", "{data}", "--to", "onnx,tflight"], "'tflight'"),
        (["compress", "{model}", "--data", "{data}", "--to", ","], "empty list"),
        (["compress", "{model}", "--data", "{data}", "--device", "raspberrypi9"], "'raspberrypi9'"),
        (["devices", "show", "raspberrypi9"], "'raspberrypi9'"),
        (["bench", "{model}", "--runtime", "onxruntime"], "'onxruntime'"),
        (["evaluate", "{model}", "--data", "{data}", "--preprocess", "imagnet"], "imagnet"),
        (["compress", "{model}", "--data", "{data}", "--recipe", "nowhere.toml"], "nowhere.toml"),
    ],
)
def test_a_call_that_is_off(box, things, args, naming):
    filled = [a.format(model=things / "model.onnx", data=things / "data.npz") for a in args]
    box.refused(*filled, code=2, naming=naming)


@pytest.mark.parametrize(
    ("text", "naming"),
    [
        ("[kompress]\n", "[kompress]"),
        ("[compress]\nmax_dorp = 1\n", "'max_dorp'"),
        ("[compress]\nmax_drop = 'one'\n", "'max_drop'"),
        ("[compress]\nmax_drop = nan\n", "'max_drop'"),
        ("[compress]\nto = 'onnx'\n", "'to'"),
        ("[compress]\nto = ['onix']\n", "'onix'"),
        ("[compress]\ndevice = 'raspberrypi9'\n", "'raspberrypi9'"),
        ("[data]\nsamples = 0\n", "samples"),
        ("[bench]\nrounds = 0\n", "rounds"),
        ("[quantize]\nno_such_key = 1\n", "'no_such_key'"),
        ("[preprocess]\nscail = 1\n", "'scail'"),
        ("[preprocess]\nstd = [0, 0, 0]\n", "recipe.toml: [preprocess]: std"),
        ("prune = 3\n", "[prune]"),
        ("[compress]\nmax_drop = 1979-05-27\n", "'max_drop'"),
        ("[bench\n", "TOML"),
    ],
)
def test_a_recipe_that_is_off(box, things, text, naming):
    (box.cwd / "recipe.toml").write_text(text)
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--recipe", "recipe.toml")
    box.refused(*args, code=2, naming=naming)


@pytest.mark.parametrize(("name", "value"), [("LEPTON_EDGE_CACHE_MAX", "lots"), ("LEPTON_EDGE_TIMEOUT", "-1")])
def test_a_setting_that_is_no_number(box, things, name, value):
    box.env[name] = value
    error, _ = box.refused("bench", things / "model.onnx", code=2, naming=name)
    assert value in error


def test_a_close_name_is_suggested_whatever_its_case(box, things):
    _, hint = box.refused("convert", things / "model.onnx", "--to", "ONNX", code=2, naming="'ONNX'")
    assert hint == "did you mean 'onnx'?"


def test_names_with_spaces_and_letters_of_all_kinds(box, things):
    pytest.importorskip("openvino")
    folder = box.cwd / "Mödelle und [bold]Däten"
    folder.mkdir()
    copy_of(things / "model.onnx", folder, "mein módel 日本.onnx")
    copy_of(things / "data.npz", folder, "da ten.npz")
    args = (folder / "mein módel 日本.onnx", "--to", "openvino", "--data", folder / "da ten.npz")
    made = box.good("convert", *args, "-o", folder / "aus gabe.xml")
    assert made["accuracy"]["count"] == 40 and (folder / "aus gabe.bin").is_file()


def test_json_holds_the_error_too(box, things):
    box.refused("inspect", "nowhere.onnx", "--json", naming="nowhere.onnx")
    box.refused("compress", "--no-such-option", "--json", code=2, naming="--no-such-option")
    box.refused("convert", things / "model.onnx", "--to", "tflight", "--json", code=2, naming="tflight")


# --- where results go ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["file/run", "file", "/proc/run", "/proc/self/run"])
def test_an_out_that_cannot_be_written(box, things, out):
    (box.cwd / "file").write_text("in the way")
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--to", "onnx", "--out", out)
    box.refused(*args, code=2 if out == "file" else 1, naming=out.removesuffix("/run"))


@pytest.mark.parametrize(
    ("out", "code"), [("file/model.xml", 1), ("/proc/model.xml", 1), ("folder", 2), ("model.onnx", 2)]
)
def test_a_model_that_cannot_be_written(box, things, out, code):
    copy_of(things / "model.onnx", box.cwd)
    (box.cwd / "file").write_text("in the way")
    (box.cwd / "folder").mkdir()
    (box.cwd / "folder" / "kept.txt").write_text("kept")
    args = ("convert", "model.onnx", "--to", "openvino", "--out", out)
    box.refused(*args, code=code, naming=out.removesuffix("/model.xml"))
    assert (box.cwd / "file").read_text() == "in the way"


@pytest.mark.parametrize(
    ("target", "out", "holding", "naming"),
    [
        ("onnx", "samples.npz", "samples.npz", "samples.npz"),  # the user's data
        ("onnx", "notes.txt", "notes.txt", "notes.txt"),
        ("openvino", "model.tflite", None, "tflite"),  # a name that promises another format
        ("openvino", "model", None, "model"),
        ("openvino", "other.xml", "other.bin", "other.bin"),  # the place of its second file
    ],
)
def test_nothing_but_such_a_model_is_written_over(box, things, target, out, holding, naming):
    if holding:
        (box.cwd / holding).write_text("kept")
    args = ("quantize", things / "model.onnx", "--data", things / "data.npz", "--to", target, "-o", out)
    box.refused(*args, code=2, naming=naming)
    assert not holding or (box.cwd / holding).read_text() == "kept"


def test_a_foreign_folder_is_left_alone(box, things):
    (box.cwd / "thesis").mkdir()
    (box.cwd / "thesis" / "chapter.tex").write_text("years of work")
    args = ("compress", things / "model.onnx", "--data", things / "data.npz", "--out", "thesis")
    box.refused(*args, code=2, naming="thesis")


def test_new_folders_of_out_go_when_the_run_fails(box, things):
    np.savez(box.cwd / "bad.npz", x=images() * np.nan)
    args = ("compress", things / "model.onnx", "--data", "bad.npz", "--to", "onnx", "--out", "new/deep/run")
    box.refused(*args, naming="bad.npz")


def test_a_store_that_cannot_be_written(box, things):
    box.env["LEPTON_EDGE_CACHE"] = "/proc/store"
    args = ("convert", things / "model.onnx", "--to", "openvino", "--out", "model.xml")
    box.refused(*args, naming="/proc/store")
