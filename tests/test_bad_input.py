"""The command line on bad models and bad samples: one clear line, the right exit code, nothing left."""

import base64
import marshal
import shutil
import zipfile

import numpy as np
import pytest
from box import FRACTIONS, LINUX, copy_of, cut, images, keras2_file, keras3_file, pt2_file

pytestmark = LINUX


# --- model files ----------------------------------------------------------------------------------------


def test_the_box_tells_a_command_that_works(box, things):
    copy_of(things / "model.onnx", box.cwd)
    shutil.copyfile(things / "data.npz", box.cwd / "data.npz")
    result = box.good("evaluate", "model.onnx", "--data", "data.npz")
    assert result["accuracy"]["count"] == 40


@pytest.mark.parametrize("command", ["inspect", "compress", "convert", "bench", "report"])
def test_a_missing_model(box, command):
    extra = {"convert": ["--to", "onnx"]}.get(command, [])
    _, hint = box.refused(command, "nowhere.onnx", *extra, naming="nowhere.onnx")
    assert hint


def test_a_missing_model_with_a_close_name(box, things):
    copy_of(things / "model.onnx", box.cwd)
    _, hint = box.refused("inspect", "modle.onnx", naming="modle.onnx")
    assert "'model.onnx'" in hint


@pytest.mark.parametrize("name", ["model.onnx", "model.tflite", "model.keras", "model.h5", "model.pt2", "model.xml"])
def test_an_empty_file(box, name):
    (box.cwd / name).touch()
    error, _ = box.refused("inspect", name, naming=name)
    assert "empty" in error


@pytest.mark.parametrize(
    "content",
    [b"# A model\n\nThis text only has the name of one.\n" * 50, b"\x08\x07", bytes(1000), b"\xff" * 64],
    ids=["text", "start", "zeros", "ones"],
)
def test_a_file_that_only_has_the_name_of_a_model(box, content):
    (box.cwd / "notes.onnx").write_bytes(content)
    box.refused("convert", "notes.onnx", "--to", "openvino", naming="notes.onnx")


@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("format_", ["onnx", "keras", "h5", "pt2"])
def test_a_file_cut_short(box, whole, format_, fraction):
    name = cut(copy_of(whole(format_), box.cwd), fraction)
    error, hint = box.refused("convert", name, "--to", "tflite", naming=name)
    assert "cut short" in error
    assert "again" in hint


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_a_tflite_file_cut_short(box, whole, fraction):
    name = cut(copy_of(whole("tflite"), box.cwd), fraction)
    box.refused("convert", name, "--to", "onnx", naming=name)
    box.refused("inspect", name, naming=name)


@pytest.mark.parametrize("part", [".xml", ".bin"])
@pytest.mark.parametrize("fraction", [0.5, 0.99])
def test_an_openvino_model_cut_short(box, whole, part, fraction):
    name = copy_of(whole("openvino"), box.cwd).name
    cut((box.cwd / name).with_suffix(part), fraction)
    box.refused("bench", name, naming=name)


def test_an_openvino_xml_without_its_weights(box, whole):
    name = copy_of(whole("openvino"), box.cwd).name
    (box.cwd / name).with_suffix(".bin").unlink()
    error, _ = box.refused("bench", name, naming=name)
    assert "model.bin" in error


def test_a_pt2_archive_of_noise(box):
    pytest.importorskip("torch")
    pt2_file(box.cwd / "model.pt2")
    box.refused("inspect", "model.pt2", naming="model.pt2")


def test_a_pickled_checkpoint_is_never_loaded(box):
    with zipfile.ZipFile(box.cwd / "weights.pt2", "w") as z:
        z.writestr("archive/data.pkl", b"cos\nsystem\n(S'touch executed'\ntR.")
        z.writestr("archive/version", "3")
    error, _ = box.refused("convert", "weights.pt2", "--to", "onnx", naming="weights.pt2")
    assert "pickle" in error


def test_a_folder_that_is_no_savedmodel(box):
    (box.cwd / "saved").mkdir()
    (box.cwd / "saved" / "notes.txt").write_text("nothing")
    box.refused("convert", "saved", "--to", "tflite", naming="saved")


@pytest.mark.slow
def test_a_savedmodel_of_noise(box):
    pytest.importorskip("tensorflow")
    (box.cwd / "saved").mkdir()
    (box.cwd / "saved" / "saved_model.pb").write_bytes(np.random.default_rng(0).bytes(5000))
    box.refused("convert", "saved", "--to", "tflite", naming="saved")


def test_external_data_outside_of_the_folder(box, things):
    onnx = pytest.importorskip("onnx")
    inner = box.cwd / "inner"
    inner.mkdir()
    model = onnx.load(things / "model.onnx")
    onnx.save(model, inner / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    shutil.move(inner / "weights.bin", box.cwd / "weights.bin")
    box.refused("convert", "inner/model.onnx", "--to", "openvino", naming="'weights.bin' is missing")
    model = onnx.load(inner / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (inner / "model.onnx").write_bytes(model.SerializeToString())
    error, _ = box.refused("convert", "inner/model.onnx", "--to", "openvino", naming="inner/model.onnx")
    assert "'../weights.bin' lies outside" in error


def altered(things, path, alter):
    """The small classifier with something about it changed."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(things / "model.onnx")
    alter(model.graph)
    path.write_bytes(model.SerializeToString())
    return path.name


def test_an_input_too_large_to_make_up_samples_for(box, things):
    def widen(graph):
        for axis in (2, 3):
            graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 10**9

    name = altered(things, box.cwd / "wide.onnx", widen)
    error, _ = box.refused("convert", name, "--to", "openvino", naming=name)
    assert "memory" in error


def test_a_model_without_inputs(box):
    onnx = pytest.importorskip("onnx")
    value = onnx.numpy_helper.from_array(np.ones((1, 4), np.float32))
    node = onnx.helper.make_node("Constant", [], ["y"], value=value)
    out = onnx.helper.make_tensor_value_info("y", 1, [1, 4])
    graph = onnx.helper.make_graph([node], "g", [], [out])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), box.cwd / "constant.onnx")
    error, _ = box.refused("bench", "constant.onnx", naming="constant.onnx")
    assert "no inputs" in error


def test_a_model_that_answers_nan_is_told_before_it_is_quantized(box, things):
    def spoil(graph):
        weights = graph.initializer[0]
        values = np.frombuffer(weights.raw_data, np.float32).copy()
        values[0] = np.nan
        weights.raw_data = values.tobytes()

    name = altered(things, box.cwd / "nan.onnx", spoil)
    error, _ = box.refused("quantize", name, "--data", things / "data.npz", "-o", "out.onnx", naming="NaN")
    assert "source model" in error and not list(box.store.rglob("step.json"))


def test_a_link_that_leads_nowhere(box):
    (box.cwd / "model.onnx").symlink_to("gone.onnx")
    _, hint = box.refused("inspect", "model.onnx", naming="model.onnx")
    assert "gone.onnx" in hint


def lambda_config(marker):
    """The config of a model with a Lambda layer that would write ``marker`` when it is built or called."""
    # Calling a Lambda of a loaded model runs this bytecode.
    code = marshal.dumps(eval(f"lambda x: open({str(marker)!r}, 'w')").__code__)  # noqa: S307 - our own text
    function = {
        "class_name": "__lambda__",
        "config": {"code": base64.b64encode(code).decode(), "defaults": None, "closure": None},
    }
    layers = [
        {
            "class_name": "InputLayer",
            "module": "keras.layers",
            "config": {"name": "x", "batch_shape": [None, 4], "dtype": "float32"},
        },
        {"class_name": "Lambda", "module": "keras.layers", "config": {"name": "sly", "function": function}},
    ]
    return {"class_name": "Sequential", "module": "keras", "config": {"name": "model", "layers": layers}}


@pytest.mark.parametrize("make", [keras3_file, keras2_file], ids=["model.keras", "model.h5"])
def test_a_lambda_layer_never_runs(box, make):
    pytest.importorskip("tensorflow")
    name = "model.keras" if make is keras3_file else "model.h5"
    marker = box.temp.parent / "executed"
    make(box.cwd / name, lambda_config(marker))
    error, _ = box.refused("convert", name, "--to", "tflite", naming=name)
    assert "Lambda" in error
    assert not marker.exists()
    code, _, err = box.run("inspect", name)  # reading what is in it is allowed, running it is not
    assert code in (0, 1) and "Traceback" not in err
    assert not marker.exists()
    box.check_clean()


# --- data -----------------------------------------------------------------------------------------------


BAD_DATA = {
    "name": ({"picture": images(), "mask": images()}, "picture"),
    "shape": ({"x": images()[:, :, :5]}, "[3, 5, 8]"),
    "layout": ({"x": images().transpose(0, 2, 3, 1)}, "[8, 8, 3]"),
    "text": ({"x": np.full((8, 3, 8, 8), "seven")}, "text"),
    "dates": ({"x": np.zeros((8, 3, 8, 8), "datetime64[D]")}, "datetime64"),
    "scalar": ({"x": np.float32(3)}, "no samples"),
    "nothing": ({}, "without arrays"),
    "complex": ({"x": images().astype(np.complex64)}, "complex"),
    "double": ({"x": images().astype(np.float64) * 1e300}, "sample 0"),
    "pickle": ({"x": np.array([[1], {}, "a"], dtype=object)}, "pickled"),
    "nan": ({"x": np.where(np.arange(8).reshape(-1, 1, 1, 1) == 5, np.nan, images())}, "sample 5"),
    "infinity": ({"x": np.where(np.arange(8).reshape(-1, 1, 1, 1) == 3, np.inf, images())}, "sample 3"),
    "none": ({"x": images(0)}, "no samples"),
    "lengths": ({"x": images(8), "y": np.zeros(7, np.int64)}, "different numbers"),
    "label-99": ({"x": images(), "y": np.array([0, 1, 2, 99, 0, 1, 2, 3])}, "label 99"),
    "label-negative": ({"x": images(), "y": np.array([0, 1, -2, 0, 0, 1, 2, 3])}, "negative"),
    "label-float": ({"x": images(), "y": np.linspace(0, 1, 8)}, "integer"),
    "label-text": ({"x": images(), "y": np.array(list("abcdefgh"))}, "text"),
}


@pytest.mark.parametrize("what", BAD_DATA)
def test_data_that_does_not_fit(box, things, what):
    arrays, naming = BAD_DATA[what]
    np.savez(box.cwd / "bad.npz", **arrays)
    args = ("quantize", things / "model.onnx", "--data", "bad.npz", "-o", "out.onnx")
    error, _ = box.refused(*args, naming=naming)
    assert what == "label-99" or "bad.npz" in error


def header_only(path, shape):
    """A .npy that declares a shape and holds next to nothing."""
    text = str({"descr": "<f4", "fortran_order": False, "shape": shape}).ljust(117) + "\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(64))


def test_an_npy_that_cannot_be_what_it_says(box, things):
    args = ("quantize", things / "model.onnx", "--data", "bad.npy", "-o", "out.onnx")
    for shape, naming in (((10**9, 3, 8, 8), "64 GB"), ((-4, 3, 8, 8), "negative"), ((4, 3, 8, 8), "cut short")):
        header_only(box.cwd / "bad.npy", shape)
        error, _ = box.refused(*args, naming=naming)
        assert "bad.npy" in error
    np.save(box.cwd / "bad.npy", np.array([{1: 2}], dtype=object), allow_pickle=True)
    box.refused(*args, naming="pickled")


def test_data_cut_short(box, things):
    shutil.copyfile(things / "data.npz", box.cwd / "data.npz")
    for fraction in FRACTIONS:
        cut(box.cwd / "data.npz", fraction)
        box.refused("evaluate", things / "model.onnx", "--data", "data.npz", naming="data.npz")


def test_data_that_is_missing_or_nothing_of_the_kind(box, things):
    (box.cwd / "data.csv").write_text("1,2,3\n")
    (box.cwd / "empty.npz").touch()
    (box.cwd / "folder").mkdir()
    for name in ("nowhere.npz", "data.csv", "empty.npz", "folder"):
        box.refused("evaluate", things / "model.onnx", "--data", name, naming=name)


def test_quantizing_without_data(box, things):
    _, hint = box.refused("quantize", things / "model.onnx", "-o", "out.onnx", naming="samples")
    assert "--data" in hint


def test_a_broken_image_in_a_folder(box, things):
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for label in range(2):
        (box.cwd / "images" / str(label)).mkdir(parents=True)
        for k in range(3):
            pixels = rng.integers(0, 255, (8, 8, 3), np.uint8)
            image.fromarray(pixels).save(box.cwd / "images" / str(label) / f"{k}.png")
    good = box.good("evaluate", things / "model.onnx", "--data", "images", "--preprocess", "imagenet")
    assert good["accuracy"]["count"] == 6
    cut(box.cwd / "images" / "1" / "2.png", 0.6)
    args = ("evaluate", things / "model.onnx", "--data", "images", "--preprocess", "imagenet")
    box.refused(*args, naming="images/1/2.png")
    (box.cwd / "images" / "1" / "2.png").write_text("no image at all")
    box.refused(*args, naming="images/1/2.png")


def test_one_sample_is_enough(box, things):
    np.savez(box.cwd / "one.npz", x=images(1), y=np.array([4]))
    result = box.good("evaluate", things / "model.onnx", "--data", "one.npz")
    assert result["accuracy"]["count"] == 1
    assert any("1 evaluation sample" in w for w in result["warnings"])
