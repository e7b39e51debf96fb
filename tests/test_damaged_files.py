"""Files that libraries hang over, follow out of the folder or make room for: what fuzzing found, refused by name."""

import zipfile

import fuzz_files
import numpy as np
import pytest

from lepton_edge.artifact import open_artifact
from lepton_edge.errors import LeptonError, NoWay


def test_an_hdf5_heap_without_an_end(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "m.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "{}"
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    assert open_artifact(path).format == "h5"
    data[heap + 16 : heap + 32] = bytes(16)  # the first object: free space of no size
    path.write_bytes(bytes(data))
    with pytest.raises(LeptonError, match=r"m\.h5: an HDF5 file that is damaged"):
        open_artifact(path)


def _claims_terabytes(file, name):
    file.create_dataset(name, (2**31, 2**10), "f4", chunks=(1, 1024))


def _lies_elsewhere(file, name):
    file.create_dataset(name, (4, 4), "f4", external=[("/etc/hostname", 0, 64)])


def _is_a_link(file, name):
    import h5py

    file[name] = h5py.ExternalLink("other.h5", "/x")


@pytest.mark.parametrize("kind", ["h5", "keras"])
@pytest.mark.parametrize("trap", [_claims_terabytes, _lies_elsewhere, _is_a_link])
def test_weights_that_are_not_in_the_file(tmp_path, trap, kind):
    h5py = pytest.importorskip("h5py")
    from lepton_edge.runtimes.keras import check_weights

    path = inner = tmp_path / "m.h5"
    with h5py.File(inner, "w") as file:
        file["layers/dense/vars/0"] = np.zeros((4, 4), np.float32)
    if kind == "h5":
        check_weights(str(path))
    with h5py.File(inner, "r+") as file:
        trap(file, "layers/dense/vars/1")
    if kind == "keras":
        path = tmp_path / "m.keras"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(inner, "model.weights.h5")
    with pytest.raises(ValueError, match=r"layers/dense/vars/1' (claims data that is not in|links out of) the file"):
        check_weights(str(path))


@pytest.mark.slow
def test_torchscript_with_a_statement_outside_of_a_function(tmp_path):
    pytest.importorskip("torch")
    from lepton_edge.runtimes.torchscript import load_module

    path = fuzz_files.make("torchscript", tmp_path)
    load_module(str(path))
    with zipfile.ZipFile(path) as archive:
        members = [(m, archive.read(m)) for m in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for member, data in members:
            archive.writestr(member, data + b"import os\n" if member.filename.endswith(".py") else data)
    with pytest.raises(ValueError, match=r"its code holds 'import os'"):
        load_module(str(path))


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b"])
def test_external_data_with_a_name_that_no_file_can_have(tmp_path, name):
    onnx = pytest.importorskip("onnx")
    path = fuzz_files.make("onnx", tmp_path)
    model = onnx.load(path)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LeptonError, match="a name that no file can have"):
        open_artifact(path)


@pytest.mark.parametrize(("change", "told"), [("size", "more than a TFLite file can take"), ("text", "is no text")])
def test_onnx_that_contradicts_itself(tmp_path, change, told):
    onnx = pytest.importorskip("onnx")
    from lepton_edge.tflite_writer.convert import convert

    path = fuzz_files.make("onnx", tmp_path)
    if change == "size":
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 2**31 - 1
        path.write_bytes(model.SerializeToString())
    else:
        path.write_bytes(path.read_bytes().replace(b"GlobalAveragePool", b"GlobalAverage\xff\xfe\xfdl"))
    with pytest.raises(LeptonError, match=told) as refused:
        convert(str(path), str(tmp_path / "out.tflite"))
    assert not isinstance(refused.value, NoWay) and not (tmp_path / "out.tflite").exists()


def test_bisection_leaves_out_what_nobody_reads(tmp_path):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    from lepton_edge.cuts.onnx import inspect

    nodes = [helper.make_node("Dropout", ["x"], ["d", "mask"]), helper.make_node("Relu", ["d"], ["y"])]
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ports[:1], ports[1:])), path)
    assert [name for name, _, _ in inspect(str(path))["tensors"]] == ["d", "y"]
