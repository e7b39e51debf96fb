"""Models on disk: recognised by their bytes, refused when damaged, copied with every file that belongs to them."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from lepton_edge.artifact import copy_artifact, detect, open_artifact, suffix
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.registry import formats

ROOT = Path(__file__).resolve().parent.parent


def proto(field, content):
    """A length-delimited protobuf field."""
    length, encoded = len(content), b""
    while length > 127:
        encoded, length = encoded + bytes([length & 127 | 128]), length >> 7
    return bytes([field << 3 | 2]) + encoded + bytes([length]) + content


def entry(key, value):
    return proto(1, key.encode()) + proto(2, value.encode())


def onnx_bytes(*locations, extra=b""):
    """The wire form of a ModelProto: ir_version, a graph whose tensors lie in ``locations``, an opset."""
    tensors = b"".join(proto(5, proto(8, b"w") + proto(13, entry("location", at))) for at in locations)
    graph = proto(1, proto(4, b"Relu")) + proto(2, b"g") + tensors + proto(5, proto(9, bytes(300)))
    return b"\x08\x08" + proto(7, graph) + proto(8, b"\x0a\x00\x10\x11") + extra


def archive(path, names):
    with zipfile.ZipFile(path, "w") as z:
        for name in names:
            z.writestr(name, np.random.default_rng(0).bytes(500))


def write_onnx(path):
    path.write_bytes(onnx_bytes())


def write_tflite(path):
    path.write_bytes(b"\x1c\x00\x00\x00TFL3" + bytes(200))


def write_keras(path):
    archive(path, ["metadata.json", "config.json", "model.weights.h5"])


def write_pt2(path):
    archive(path, ["model/archive_format", "model/models/model.json"])


def write_torchscript(path):
    archive(path, ["m/code/net.py", "m/constants.pkl", "m/data.pkl"])


def write_h5(path):
    pytest.importorskip("h5py").File(path, "w").close()


def write_openvino(path):
    path.write_text('<?xml version="1.0"?>\n<net name="model" version="11"><layers/></net>\n')
    path.with_suffix(".bin").write_bytes(bytes(64))


def write_ncnn(path):
    path.write_text("7767517\n1 1\nInput in0 0 1 in0\n")
    path.with_suffix(".bin").write_bytes(bytes(4))


def write_savedmodel(path):
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x00")
    (path / "variables" / "variables.index").write_bytes(b"index")


WRITERS = {
    "onnx": write_onnx,
    "tflite": write_tflite,
    "keras": write_keras,
    "pt2": write_pt2,
    "torchscript": write_torchscript,
    "h5": write_h5,
    "openvino": write_openvino,
    "ncnn": write_ncnn,
    "savedmodel": write_savedmodel,
}


def test_every_format_of_the_package_is_tested_here():
    own = {p.stem for p in (ROOT / "lepton_edge" / "formats").glob("*.py") if p.stem != "__init__"}
    assert own == set(WRITERS)


@pytest.mark.parametrize("format_", WRITERS)
def test_the_bytes_tell_the_format_and_not_the_suffix(tmp_path, format_):
    for name in ("model" + suffix(format_), "model.bytes", "model.onnx" if format_ != "onnx" else "model.tflite"):
        path = tmp_path / format_ / name
        path.parent.mkdir(exist_ok=True)
        WRITERS[format_](path)
        assert detect(path) == format_


@pytest.mark.parametrize("format_", WRITERS)
def test_no_other_format_claims_it(tmp_path, format_):
    path = tmp_path / ("model" + suffix(format_))
    WRITERS[format_](path)
    head = path.read_bytes()[:4096] if path.is_file() else b""
    assert [name for name, form in formats().items() if form.recognise(path, head)] == [format_]


def test_the_sample_model_is_keras():
    assert detect(ROOT / "samples" / "fashion_cnn.keras") == "keras"


@pytest.mark.parametrize("format_", ["onnx", "keras", "pt2", "h5"])
def test_cut_anywhere_it_is_refused(tmp_path, format_):
    path = tmp_path / ("model" + suffix(format_))
    WRITERS[format_](path)
    content = path.read_bytes()
    for keep in sorted({1, 4, 8, 30, *(len(content) * k // 100 for k in range(1, 100, 7)), len(content) - 1}):
        path.write_bytes(content[:keep])
        with pytest.raises(LeptonError) as e:
            open_artifact(path)
        assert str(path) in e.value.message and e.value.hint


def test_a_tflite_root_outside_of_the_file(tmp_path):
    path = tmp_path / "model.tflite"
    path.write_bytes(b"\x00\x10\x00\x00TFL3" + bytes(200))
    with pytest.raises(LeptonError, match="cut short"):
        detect(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"not a model\n" * 40, "not a model"),
        (bytes(500), "not a model"),
        (b"\x08\x08", "not a model"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not a model"),
        (b"<?xml version='1.0'?><html/>", "not a model"),
        (b"PK\x03\x04" + bytes(40), "cut short or damaged"),
        (b"\x89HDF\r\n\x1a\n", "cut short or damaged"),
        (b"\x89HDF\r\n\x1a\n\x09" + bytes(90), "cut short or damaged"),
    ],
)
def test_what_is_no_model(tmp_path, content, says):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(LeptonError, match=says) as e:
        detect(path)
    assert str(path) in e.value.message and e.value.hint


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_never_more_than_refused(tmp_path, seed):
    rng = np.random.default_rng(seed)
    starts = [b"", b"\x08\x08", b"\x08\x08\x3a", b"PK\x03\x04", b"\x89HDF\r\n\x1a\n", b"\x1c\0\0\0TF", b"<net"]
    path = tmp_path / "noise"
    path.write_bytes(starts[seed % len(starts)] + rng.bytes(int(rng.integers(1, 3000))))
    with pytest.raises(LeptonError):
        open_artifact(path)


def test_a_zip_of_something_else(tmp_path):
    np.savez(tmp_path / "data.npz", x=np.zeros(3))
    with pytest.raises(LeptonError, match="not a model"):
        detect(tmp_path / "data.npz")


def test_a_pickle_is_refused_by_name(tmp_path):
    archive(tmp_path / "model.pt", ["m/data.pkl", "m/version"])
    with pytest.raises(LeptonError, match="pickled") as e:
        detect(tmp_path / "model.pt")
    assert "torch.export" in e.value.hint


def test_nothing_there(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    with pytest.raises(LeptonError, match="no such model file") as e:
        detect(tmp_path / "modle.onnx")
    assert "'model.onnx'" in e.value.hint
    with pytest.raises(LeptonError, match="no such model file"):
        detect(tmp_path / "no" / "folder" / "model.onnx")
    with pytest.raises(LeptonError, match="not a SavedModel"):
        detect(tmp_path)


# --- models of several files --------------------------------------------------------------------------


def test_hash_and_size_are_of_all_files(tmp_path):
    write_openvino(tmp_path / "model.xml")
    first = open_artifact(tmp_path / "model.xml")
    assert first.size_bytes == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert [f.name for f in first.files] == ["model.xml", "model.bin"]
    (tmp_path / "model.bin").write_bytes(b"\1" * 64)
    assert open_artifact(tmp_path / "model.xml").sha256 != first.sha256
    assert 0 < first.zip_bytes() < first.size_bytes
    (tmp_path / "model.bin").unlink()
    with pytest.raises(LeptonError, match=r"model\.bin are missing"):
        open_artifact(tmp_path / "model.xml")


def test_the_hash_does_not_depend_on_the_place(tmp_path):
    for place in ("a", "b/c"):
        write_savedmodel(tmp_path / place)
    one, two = (open_artifact(tmp_path / place) for place in ("a", "b/c"))
    assert one.sha256 == two.sha256
    (tmp_path / "a" / "variables" / "variables.index").rename(tmp_path / "a" / "variables" / "other")
    assert open_artifact(tmp_path / "a").sha256 != one.sha256


def test_external_data_is_found(tmp_path):
    (tmp_path / "parts").mkdir()
    names = ["weights.bin", "parts/more.bin", "n" * 150 + ".bin"]
    for name in names:
        (tmp_path / name).write_bytes(bytes(10))
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(*names, names[0]))
    art = open_artifact(tmp_path / "model.onnx")
    assert {f.relative_to(tmp_path).as_posix() for f in art.files} == {"model.onnx", *names}


def test_metadata_called_location_is_no_external_data(tmp_path):
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(extra=proto(14, entry("location", "warehouse"))))
    assert len(open_artifact(tmp_path / "model.onnx").files) == 1


@pytest.mark.parametrize("name", ["../weights.bin", "/etc/hostname", "parts/../../weights.bin", "../" + "n" * 150])
def test_external_data_stays_in_the_folder(tmp_path, name):
    (tmp_path / "weights.bin").write_bytes(bytes(10))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.onnx").write_bytes(onnx_bytes(name))
    with pytest.raises(LeptonError, match="outside the model's folder"):
        open_artifact(tmp_path / "inner" / "model.onnx")


def test_a_link_out_of_the_folder_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(10))
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights.bin").symlink_to(tmp_path / "secret")
    (tmp_path / "inner" / "model.onnx").write_bytes(onnx_bytes("weights.bin"))
    with pytest.raises(LeptonError, match="outside the model's folder"):
        open_artifact(tmp_path / "inner" / "model.onnx")


def test_missing_external_data_is_named(tmp_path):
    (tmp_path / "model.onnx").write_bytes(onnx_bytes("weights.bin"))
    with pytest.raises(LeptonError, match=r"'weights\.bin' is missing"):
        open_artifact(tmp_path / "model.onnx")


# --- copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_", WRITERS)
def test_a_copy_is_the_same_model_and_leaves_no_parts(tmp_path, format_):
    source = tmp_path / ("model" + suffix(format_))
    WRITERS[format_](source)
    art = open_artifact(source)
    for _ in range(2):  # the second time over the first
        made = copy_artifact(art, tmp_path / "new" / ("other" + suffix(format_)))
        assert (made.sha256, made.format, made.size_bytes) == (art.sha256, art.format, art.size_bytes)
        assert not [p for p in (tmp_path / "new").rglob("*") if p.name.startswith(".")]
    assert open_artifact(source).sha256 == art.sha256


def test_an_openvino_bin_takes_the_name_of_its_xml(tmp_path):
    write_openvino(tmp_path / "model.xml")
    made = copy_artifact(open_artifact(tmp_path / "model.xml"), tmp_path / "new" / "net.int8.xml")
    assert [f.name for f in made.files] == ["net.int8.xml", "net.int8.bin"]


@pytest.mark.parametrize("name", ["weights.bin", "model.bin", "model.onnx.data", "parts/weights.bin"])
def test_external_data_keeps_the_name_it_is_looked_up_by(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"\1" * 10)
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(name))
    made = copy_artifact(open_artifact(tmp_path / "model.onnx"), tmp_path / "new" / "other.onnx")
    assert [f.relative_to(tmp_path / "new").as_posix() for f in made.files] == ["other.onnx", name]


def test_a_copied_model_with_external_data_still_answers(tmp_path):
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, k]) for n, k in (("x", 4), ("y", 3))]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="model.bin", size_threshold=0)
    made = copy_artifact(open_artifact(path), tmp_path / "new" / "other.onnx")
    session = ort.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].tolist() == [[18.0, 22.0, 26.0]]


def test_a_copy_replaces_no_foreign_folder(tmp_path):
    write_onnx(tmp_path / "model.onnx")
    write_savedmodel(tmp_path / "saved")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
    for source, target in (("model.onnx", "thesis"), ("saved", "thesis"), ("saved", "model.onnx")):
        with pytest.raises(UsageError, match=target):
            copy_artifact(open_artifact(tmp_path / source), tmp_path / target)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "years of work"


def test_a_copy_that_fails_leaves_the_earlier_model_whole(tmp_path, monkeypatch):
    write_openvino(tmp_path / "model.xml")
    art = open_artifact(tmp_path / "model.xml")
    earlier = copy_artifact(art, tmp_path / "new" / "net.xml")
    copied = []

    def full(source, target):
        copied.append(source)
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        Path(target).write_bytes(b"half")

    monkeypatch.setattr("lepton_edge.artifact.shutil.copyfile", full)
    with pytest.raises(OSError, match="No space"):
        copy_artifact(art, tmp_path / "new" / "net.xml")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["net.bin", "net.xml"]
    assert open_artifact(earlier.path).sha256 == art.sha256
