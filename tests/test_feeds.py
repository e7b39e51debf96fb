"""Feeds: what is read is what was saved, and everything that cannot be read is one clear line."""

from __future__ import annotations

import io
import json
import resource
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lepton_edge import array_files
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.feeds import adapt_feed, feed_from_arrays, load_feed, open_data, spread, write_feed
from lepton_edge.preprocess import Preprocess, from_dict

IMAGE = [{"name": "input_1", "shape": [None, 8, 6, 3], "dtype": "float32"}]
FLAT = [{"name": "x", "shape": [1, 4], "dtype": "float32"}]
RNG = np.random.default_rng(0)


def pictures(count: int, height: int = 8, width: int = 6) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def save_images(folder, names, height: int = 8, width: int = 6):
    from PIL import Image

    for name, x in zip(names, pictures(len(names), height, width), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(folder / name)
    return pictures(len(names), height, width)


def read(path, inputs, preprocess=None, folder=None, **options):
    source = open_data(path, inputs, preprocess and from_dict(preprocess), **options)
    feed = write_feed(source, folder or path.parent / "feed")
    return feed, [feed.array(name) for name in feed.inputs]


def refused(path, inputs, preprocess=None, **options) -> LeptonError:
    with pytest.raises(LeptonError) as caught:
        read(path, inputs, preprocess, **options)
    assert "\n" not in caught.value.message and str(path) in caught.value.message
    assert sorted(p.name for p in path.parent.iterdir() if "feed" in p.name or "part" in p.name) == []
    return caught.value


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_values_pass_unchanged(tmp_path, save):
    x = pictures(5)
    save(tmp_path / "d.npz", x=x, y=np.arange(5))
    feed, (got,) = read(tmp_path / "d.npz", IMAGE)
    assert got.dtype == np.float32 and np.array_equal(got, x) and got.max() > 200
    assert feed.labels and np.array_equal(feed.label_array(), np.arange(5))
    told = json.loads((feed.folder / "feed.json").read_text())
    assert told["inputs"] == ["input_1"] and told["count"] == 5 and told["files"] == {"input_1": "input_1.npy"}
    assert load_feed(feed.folder) == feed
    assert np.array_equal(np.load(feed.folder / "y.npy"), np.arange(5))


def test_declared_preprocessing_is_applied(tmp_path):
    x = pictures(5)
    np.savez(tmp_path / "d.npz", x=x)
    spec = [{"name": "in", "shape": [1, 3, 8, 6], "dtype": "float32"}]
    _, (got,) = read(tmp_path / "d.npz", spec, "imagenet")
    assert np.array_equal(got, from_dict({"preset": "imagenet", "layout": "NCHW", "dtype": "float32"}).apply(x))
    np.savez(tmp_path / "nchw.npz", x=x.transpose(0, 3, 1, 2))
    _, (again,) = read(tmp_path / "nchw.npz", spec, "imagenet", tmp_path / "second")
    assert np.array_equal(got, again)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 30),
    st.lists(st.integers(1, 5), max_size=3),
    st.sampled_from(["uint8", "int16", ">f4", "float64", "bool", "float16"]),
    st.sampled_from(["npy", "npz", "packed"]),
    st.booleans(),
    st.one_of(st.none(), st.integers(1, 40)),
)
def test_any_array_streams_as_numpy_loads_it(tmp_path_factory, count, row, dtype, kind, fortran, limit):
    folder = tmp_path_factory.mktemp("s")
    x = (RNG.standard_normal((count, *row)) * 9).astype(dtype)
    x = np.asfortranarray(x) if fortran else x
    path = folder / ("d.npy" if kind == "npy" else "d.npz")
    if kind == "npy":
        np.save(path, x)
    else:
        (np.savez if kind == "npz" else np.savez_compressed)(path, x=x)
    old, array_files.CHUNK_BYTES = array_files.CHUNK_BYTES, 64
    try:
        spec = [{"name": "x", "shape": [None, *row], "dtype": "float64"}]
        feed, (got,) = read(path, spec, limit=limit)
    finally:
        array_files.CHUNK_BYTES = old
    chosen = spread(count, limit)
    assert feed.count == len(chosen) and np.array_equal(got, x[chosen].astype(np.float64))


@given(st.integers(1, 500), st.one_of(st.none(), st.integers(1, 600)), st.integers(0, 5))
def test_a_choice_is_spread_evenly(total, limit, seed):
    chosen = spread(total, limit, seed)
    assert len(chosen) == min(total, limit or total) and (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0 and chosen[-1] < total
    edges = np.arange(len(chosen) + 1) * total // len(chosen)
    assert ((edges[:-1] <= chosen) & (chosen < edges[1:])).all()
    assert np.array_equal(chosen, spread(total, limit, seed))


def test_several_inputs(tmp_path):
    specs = [
        {"name": "ids", "shape": [1, 7], "dtype": "int32"},
        {"name": "serving_default_mask:0", "shape": [1, 7], "dtype": "bool"},
        {"name": "sr", "shape": [], "dtype": "int64"},
    ]
    ids = RNG.integers(0, 99, (6, 7))
    np.savez(tmp_path / "d.npz", ids=ids.astype(np.float64), mask=np.ones((6, 7), np.uint8), sr=np.full(6, 16000))
    feed, (a, b, c) = read(tmp_path / "d.npz", specs, limit=3)
    assert feed.inputs == ("ids", "serving_default_mask:0", "sr") and not feed.labels
    assert a.dtype == np.int32 and np.array_equal(a, ids[spread(6, 3)]) and b.dtype == bool and c.shape == (3,)


def test_a_missing_channel_axis_is_added(tmp_path):
    x = RNG.standard_normal((4, 8, 6)).astype("f4")
    for name, shape in (("a", [None, 8, 6, 1]), ("b", [1, 1, 8, 6]), ("c", [1, 8, 6])):
        for given_ in (x, x[..., None], x[:, None]):
            np.save(tmp_path / f"{name}.npy", given_)
            _, (got,) = read(tmp_path / f"{name}.npy", [{"name": "x", "shape": shape, "dtype": "float32"}])
            assert np.array_equal(got.reshape(x.shape), x) and list(got.shape[1:]) == shape[1:]


def test_an_input_called_y_leaves_room_for_labels(tmp_path):
    spec = [{"name": "y", "shape": [1, 4], "dtype": "float32"}]
    np.savez(tmp_path / "d.npz", y=np.ones((3, 4)), labels=[2, 1, 0])
    feed, (got,) = read(tmp_path / "d.npz", spec)
    assert got.shape == (3, 4) and feed.labels_file == "labels.npy" and feed.label_array().tolist() == [2, 1, 0]


@pytest.mark.parametrize("name", ["../../evil", "/abs", "a/b:0", "a/../b", ".hidden", "é" * 300, "a" * 300])
def test_names_never_leave_the_folder(tmp_path, name):
    np.save(tmp_path / "d.npy", np.ones((2, 4), "f4"))
    feed, (got,) = read(tmp_path / "d.npy", [{"name": name, "shape": [1, 4], "dtype": "float32"}])
    assert got.shape == (2, 4) and load_feed(feed.folder) == feed
    assert (feed.folder / feed.files[name]).resolve().is_relative_to(feed.folder.resolve())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.npy", "feed"]


def test_labels_may_be_one_hot_or_a_column(tmp_path):
    wanted = [2, 0, 1, 1]
    for i, y in enumerate((np.eye(3)[wanted], np.array(wanted)[:, None], np.array(wanted, "f4"), np.uint8(wanted))):
        np.savez(tmp_path / f"{i}.npz", x=np.ones((4, 4)), y=y)
        assert open_data(tmp_path / f"{i}.npz", FLAT).labels.tolist() == wanted


def test_the_key_follows_data_and_choice(tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, np.ones((9, 4), "f4"))
    keys = {open_data(path, FLAT, limit=n).key for n in (None, 9, 3, 4)}
    keys |= {open_data(path, FLAT, Preprocess(scale=2)).key, open_data(path, FLAT, limit=3, seed=1).key}
    np.save(path, np.zeros((9, 4), "f4"))
    assert len({*keys, open_data(path, FLAT).key}) == 6


SHAPES = [
    ((5, 3, 8, 6), "takes [8, 6, 3]", "layout looks swapped (NCHW data"),
    ((5, 9, 6, 3), "takes [8, 6, 3]", "declare size"),
    ((8, 6, 3), "takes [8, 6, 3]", "first axis has to count"),
    ((5, 144), "takes [8, 6, 3]", "reshape(-1, 8, 6, 3)"),
    ((5, 7), "takes [8, 6, 3]", "[samples, 8, 6, 3]"),
]


@pytest.mark.parametrize(("shape", "message", "hint"), SHAPES)
def test_wrong_shapes(tmp_path, shape, message, hint):
    np.savez(tmp_path / "d.npz", x=np.ones(shape, "f4"))
    error = refused(tmp_path / "d.npz", IMAGE)
    assert message in error.message and hint in error.hint and "array 'x'" in error.message


def test_swapped_layout_is_transposed_only_when_declared(tmp_path):
    spec = [{"name": "x", "shape": [1, 3, 8, 6], "dtype": "float32"}]
    np.savez(tmp_path / "d.npz", x=pictures(3))
    assert "layout = 'NCHW'" in refused(tmp_path / "d.npz", spec).hint
    _, (got,) = read(tmp_path / "d.npz", spec, {"layout": "NCHW"})
    assert np.array_equal(got, pictures(3).transpose(0, 3, 1, 2))


X = np.ones((5, 4), "f4")
BAD = X.copy()
BAD[3, 1] = np.nan
ARRAYS = [
    ({"X_train": X}, FLAT, "no array 'x'", "X_train"),
    ({"inpt": X}, [{**FLAT[0], "name": "input"}], "no array 'input' or 'x'", "did you mean 'inpt'?"),
    ({"x": BAD}, FLAT, "NaN or infinity in sample 3", "repair"),
    ({"x": X * np.inf}, FLAT, "NaN or infinity in sample 0", "repair"),
    ({"x": X.astype(str)}, FLAT, "holds text", "save it as float32"),
    ({"x": X.astype("S")}, FLAT, "holds bytes", "save it as float32"),
    ({"x": X * 1j}, FLAT, "holds complex numbers", "save it as float32"),
    ({"x": X * 0.5}, [{**FLAT[0], "dtype": "int8"}], "sample 0: the value 0.5 cannot become int8", "int8"),
    ({"x": X * 1e39}, FLAT, "cannot become float32", "float32"),
    ({"x": np.full((5, 4), 200)}, [{**FLAT[0], "dtype": "int8"}], "the value 200", "int8"),
    ({"x": X[:0]}, FLAT, "no samples", "count"),
    ({"x": np.float32(1)}, FLAT, "no samples", "count"),
    ({"x": X, "y": np.arange(4)}, FLAT, "x' has 5; array 'y' has 4", "same samples"),
    ({"x": X, "y": np.arange(5), "labels": np.arange(5)}, FLAT, "labels twice", "keep one"),
    ({"x": X, "y": np.array([0, 1, -2, 0, 0])}, FLAT, "label 2 (-2) is negative", "class numbers"),
    ({"x": X, "y": np.array([0, 1, 0.5, 0, 0])}, FLAT, "label 2 (0.5) is not an integer", "class numbers"),
    ({"x": X, "y": np.array([0, np.nan, 0, 0, 0])}, FLAT, "label 1 (nan) is not an integer", "class numbers"),
    ({"x": X, "y": np.array(list("abcde"))}, FLAT, "text where labels have to be integers", "class numbers"),
    ({"x": X, "y": np.full((5, 3), 1 / 3)}, FLAT, "label 0 is not one-hot", "class numbers"),
    ({"x": X, "y": np.ones((5, 2, 2))}, FLAT, "are not labels", "class numbers"),
    ({"x": np.array([{}] * 5)}, FLAT, "pickled Python objects, which are never loaded", "plain numbers"),
    ({}, FLAT, "without arrays", "np.savez"),
    ({"x": X}, [{**FLAT[0], "name": "a"}, {**FLAT[0], "name": "b"}], "no array 'a'", "known: x"),
]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("arrays", "specs", "message", "hint"), ARRAYS, ids=[row[2][:30] for row in ARRAYS])
def test_wrong_arrays(tmp_path, arrays, specs, message, hint):
    np.savez(tmp_path / "d.npz", **arrays)
    if not arrays:
        zipfile.ZipFile(tmp_path / "d.npz", "w").writestr("readme.txt", "hello")
    error = refused(tmp_path / "d.npz", specs)
    assert message in error.message and hint in error.hint


def test_labels_beyond_the_models_classes(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, y=[0, 1, 2, 3, 4])
    with pytest.raises(LeptonError, match="label 4 of sample 4 does not fit a model of 4 classes"):
        open_data(tmp_path / "d.npz", FLAT, classes=4)


def test_unknown_arrays_are_mentioned(tmp_path):
    np.savez(tmp_path / "d.npz", x=X, target=X)
    assert any("target not used" in note for note in open_data(tmp_path / "d.npz", FLAT).notes)


@pytest.mark.parametrize("limit", [0, -3, True])
def test_wrong_limits(tmp_path, limit):
    with pytest.raises(UsageError, match="1 or more"):
        open_data(tmp_path, FLAT, limit=limit)


def test_model_inputs_that_no_file_can_feed(tmp_path):
    np.save(tmp_path / "d.npy", X)
    with pytest.raises(LeptonError, match="dtype string"):
        open_data(tmp_path / "d.npy", [{**FLAT[0], "dtype": "string"}])


# --- damaged and hostile files --------------------------------------------------------------------


def test_a_missing_file_names_its_neighbour(tmp_path):
    np.save(tmp_path / "calib.npy", X)
    assert "did you mean 'calib.npy'?" in refused(tmp_path / "clib.npy", FLAT).hint


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.9, 0.999])
def test_a_file_cut_short(tmp_path, suffix, share):
    path = tmp_path / f"d.{suffix}"
    x = RNG.standard_normal((50, 4)).astype("f4")
    np.save(path, x) if suffix == "npy" else np.savez_compressed(path, x=x, y=np.zeros(50, int))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refused(path, FLAT)


def test_every_damaged_byte_is_refused_or_harmless(tmp_path):
    path = tmp_path / "d.npz"
    x = np.random.default_rng(0).standard_normal((6, 4)).astype("f4")
    np.savez_compressed(path, x=x)
    whole = path.read_bytes()
    for i in range(0, len(whole), 2):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ (0x80, 0x55, 0x01)[i % 3]]) + whole[i + 1 :])
        try:
            _, (got,) = read(path, FLAT)
        except LeptonError as error:
            assert "\n" not in error.message
        else:
            assert np.array_equal(got, x)


def test_the_checksum_is_compared_even_if_few_rows_are_used(tmp_path):
    path, data = tmp_path / "d.npz", io.BytesIO()
    np.save(data, np.tile(np.arange(4, dtype="f4"), (100_000, 1)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", data.getvalue())
    crc = zlib.crc32(data.getvalue()).to_bytes(4, "little")
    assert path.read_bytes().count(crc) == 2
    path.write_bytes(path.read_bytes().replace(crc, bytes(4)))
    assert "damaged" in refused(path, FLAT, limit=2).message


def test_garbage_and_pickles(tmp_path):
    import pickle

    for name, data in {"a.npz": b"hello", "b.npy": b"hello", "c.csv": b"1,2", "d.npy": b"PK\x03\x04"}.items():
        (tmp_path / name).write_bytes(data)
        refused(tmp_path / name, FLAT)
    (tmp_path / "e.npy").write_bytes(pickle.dumps([1]))
    assert "pickled" in refused(tmp_path / "e.npy", FLAT).message
    np.save(tmp_path / "f.npy", np.array([{}, 1], object), allow_pickle=True)
    assert "never loaded" in refused(tmp_path / "f.npy", FLAT).message


def npy_header(shape, descr="'<f4'") -> bytes:
    stream = io.BytesIO()
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    stream.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    return stream.getvalue()


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (npy_header((10**12, 4)), "and at most 64 GB are read"),
        (npy_header((-5, 4)), "negative side"),
        (npy_header((5, 4)), "cut short"),
        (npy_header("'x'"), "no readable .npy header"),
        (npy_header((5, 4), "[('a', '<f4'), ('b', '|O')]"), "pickled Python objects"),
        (npy_header((5, 4), "__import__('os')"), "no readable .npy header"),
        (npy_header((5, 4)).replace(b"\x01\x00", b"\x09\x00", 1), "no readable .npy header"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_lying_headers(tmp_path, header, message, packed):
    import re

    path = tmp_path / ("d.npz" if packed else "d.npy")
    if packed:
        zipfile.ZipFile(path, "w").writestr("x.npy", header + b"1234")
    else:
        path.write_bytes(header + b"1234")
    assert re.search(message, refused(path, FLAT).message)


def test_zip_bombs(tmp_path):
    path, size = tmp_path / "d.npz", 3 << 30
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("x.npy", "w") as out,
    ):
        out.write(npy_header((size // 16, 4)))
        for _ in range(64):
            out.write(bytes(1 << 20))
    data = bytearray(path.read_bytes())
    real, told = (128 + (64 << 20)).to_bytes(4, "little"), (128 + size).to_bytes(4, "little")
    assert data.count(real) >= 1
    path.write_bytes(data.replace(real, told))
    assert "zip bomb" in refused(path, FLAT).message


def test_memory_stays_bounded(tmp_path):
    path, count = tmp_path / "d.npz", 12_000
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, archive.open("x.npy", "w", force_zip64=True) as out:
        out.write(npy_header((count, 32, 32, 3), "'|u1'"))
        block = bytes(range(256)) * 12 * 1000
        for _ in range(count // 1000):
            out.write(block)
    spec = [{"name": "x", "shape": [1, 32, 32, 3], "dtype": "float32"}]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    feed, (got,) = read(path, spec)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert feed.count == count and got[-1, -1, -1, -1] == 255
    assert grown < 60_000  # kB, where 147 MB are written


# --- images ---------------------------------------------------------------------------------------


def test_images_are_read_in_order(tmp_path):
    x = save_images(tmp_path / "d", [f"{i}_{c}.png" for i, c in enumerate("zyx")])
    (tmp_path / "d" / "notes.txt").write_text("hello")
    (tmp_path / "d" / ".hidden.png").write_text("hello")
    feed, (got,) = read(tmp_path / "d", IMAGE)
    assert np.array_equal(got, x) and feed.label_array().tolist() == [0, 1, 2]
    assert any("notes.txt" in note for note in feed.notes) and any("file names" in note for note in feed.notes)


def test_images_follow_the_model(tmp_path):
    x = save_images(tmp_path / "d", ["a.png", "b.png"], 20, 30)
    spec = [{"name": "x", "shape": [1, 3, 8, 6], "dtype": "float32"}]
    feed, (got,) = read(tmp_path / "d", spec, "imagenet")
    wanted = from_dict({"preset": "imagenet", "layout": "NCHW", "size": [8, 6], "color": "rgb", "dtype": "float32"})
    assert np.array_equal(got, wanted.apply(x)) and any("resized to 8x6" in note for note in feed.notes)
    gray = [{"name": "x", "shape": [1, 8, 6, 1], "dtype": "uint8"}]
    assert read(tmp_path / "d", gray, folder=tmp_path / "g")[1][0].shape == (2, 8, 6, 1)
    plane = [{"name": "x", "shape": [1, 8, 6], "dtype": "uint8"}]
    assert read(tmp_path / "d", plane, folder=tmp_path / "p")[1][0].shape == (2, 8, 6)


def test_a_free_size_takes_one_size(tmp_path):
    spec = [{"name": "x", "shape": [None, None, None, 3], "dtype": "uint8"}]
    save_images(tmp_path / "d", ["a.png", "b.png"], 9, 9)
    assert read(tmp_path / "d", spec)[1][0].shape == (2, 9, 9, 3)
    save_images(tmp_path / "d", ["c.png"], 9, 7)
    with pytest.raises(LeptonError, match=r"c\.png gives a sample of \[9, 7, 3\], and .*a\.png gives \[9, 9, 3\]"):
        read(tmp_path / "d", spec, folder=tmp_path / "other")
    _, (got,) = read(tmp_path / "d", spec, {"size": [5, 5]}, tmp_path / "third")
    assert got.shape == (3, 5, 5, 3)


def test_labels_of_folders(tmp_path):
    save_images(tmp_path / "d", ["dog/1.png", "cat/2.png", "cat/deep/3.png"])
    (tmp_path / "d" / "eel").mkdir()
    source = open_data(tmp_path / "d", IMAGE)
    assert source.labels.tolist() == [0, 0, 1] and source.classes == ("cat", "dog", "eel")
    save_images(tmp_path / "n", ["10/1.png", "9/2.png"])
    assert open_data(tmp_path / "n", IMAGE).labels.tolist() == [10, 9]
    save_images(tmp_path / "d", ["stray.png"])
    mixed = open_data(tmp_path / "d", IMAGE)
    assert mixed.labels is None and any("no labels" in note for note in mixed.notes)


def test_labels_of_file_names(tmp_path):
    save_images(tmp_path / "d", ["0009.png", "0003_b.png", "0003-c.png"])
    assert open_data(tmp_path / "d", IMAGE, classes=10).labels.tolist() == [3, 3, 9]
    assert open_data(tmp_path / "d", IMAGE, classes=9).labels is None
    save_images(tmp_path / "d", ["holiday.png"])
    assert open_data(tmp_path / "d", IMAGE).labels is None
    save_images(tmp_path / "t", ["20240101_120000.png"])
    assert open_data(tmp_path / "t", IMAGE).labels is None


def test_labels_of_a_table(tmp_path):
    folder = tmp_path / "d"
    save_images(folder, ["a.png", "sub/b.png"])
    for text, wanted, names in (
        ("file,label\na.png,7\nsub/b.png,2\n", [7, 2], ()),
        ("\ufeffa.png,dog\n./sub/b.png,cat\n\n", [1, 0], ("cat", "dog")),
        ("a.png,1\nsub\\b.png,0", [1, 0], ()),
    ):
        (folder / "labels.csv").write_text(text, encoding="utf-8")
        source = open_data(folder, IMAGE)
        assert source.labels.tolist() == wanted and source.classes == names
    for text, message in (
        ("a.png,1\n", "no label for 'sub/b.png'"),
        ("a.png,1\nsub/b.png,0\nc.png,3", "line 3: there is no image 'c.png'"),
        ("a.png,1\nsub/b.png", "line 2: 1 columns"),
        ("a.png,1\nsub/b.png,cat", "mixes class numbers and class names"),
        ("a.png,-1\nsub/b.png,1", "the label of 'a.png' is negative"),
        ("a.png,1\na.png,2\nsub/b.png,1", "no label or two"),
    ):
        (folder / "labels.csv").write_text(text)
        assert message in refused(folder, IMAGE).message


def test_a_broken_image_is_named(tmp_path):
    save_images(tmp_path / "d", [f"{i}.png" for i in range(4)])
    whole = (tmp_path / "d" / "2.png").read_bytes()
    (tmp_path / "d" / "2.png").write_bytes(whole[:-40])
    assert "2.png" in refused(tmp_path / "d", IMAGE).message
    (tmp_path / "d" / "2.png").write_bytes(b"not an image")
    assert "2.png" in refused(tmp_path / "d", IMAGE).message


def test_folders_without_images(tmp_path):
    (tmp_path / "d").mkdir()
    assert "holds no images" in refused(tmp_path / "d", IMAGE).message
    np.save(tmp_path / "d" / "x.npy", X)
    assert "x.npy" in refused(tmp_path / "d", IMAGE).message
    save_images(tmp_path / "d", ["a.png"])
    assert "images for the model's input 'x'" in refused(tmp_path / "d", FLAT).message
    assert "has 2 inputs" in refused(tmp_path / "d", [*IMAGE, *FLAT]).message


def test_real_photographs(shared, tmp_path):
    spec = [{"name": "input", "shape": [1, 3, 224, 224], "dtype": "float32"}]
    source = open_data(shared / "imagenet_sample" / "eval", spec, from_dict("imagenet"), limit=20, role="evaluation")
    seen = []
    feed = write_feed(source, tmp_path / "feed", lambda *step: seen.append(step))
    files = sorted((shared / "imagenet_sample" / "eval").glob("*.jpg"))
    assert feed.label_array().tolist() == [int(files[i].stem) for i in source.indices]
    assert feed.array("input").shape == (20, 3, 224, 224) and abs(feed.array("input")).max() < 3
    assert seen[-1] == (20, 20, "evaluation samples")
    assert not any("resized" in note for note in feed.notes)


# --- feed folders ---------------------------------------------------------------------------------


def test_a_feed_replaces_only_a_feed(tmp_path):
    np.save(tmp_path / "d.npy", X)
    first, _ = read(tmp_path / "d.npy", FLAT)
    np.save(tmp_path / "d.npy", X * 2)
    second, (got,) = read(tmp_path / "d.npy", FLAT)
    assert got.max() == 2 and first.sha256 != second.sha256
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(LeptonError, match="is not a feed folder"):
        read(tmp_path / "d.npy", FLAT, folder=tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_an_interrupted_write_leaves_nothing(tmp_path):
    np.save(tmp_path / "d.npy", X)

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_feed(open_data(tmp_path / "d.npy", FLAT), tmp_path / "feed", stop)
    assert [p.name for p in tmp_path.iterdir()] == ["d.npy"]


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    import shutil
    from types import SimpleNamespace

    np.save(tmp_path / "d.npy", X)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(LeptonError, match="samples of 'x' take"):
        read(tmp_path / "d.npy", FLAT)


def test_damaged_feeds_are_refused(tmp_path):
    feed = feed_from_arrays({"x": X}, np.arange(5), tmp_path / "feed", source="test")
    assert load_feed(feed.folder) == feed
    told = json.loads((feed.folder / "feed.json").read_text())
    for change, message in (
        ({"count": 6}, "does not hold 6"),
        ({"files": {"x": "../d.npy"}}, "outside of the folder"),
        ({"files": {}}, "is not a feed folder"),
    ):
        (feed.folder / "feed.json").write_text(json.dumps({**told, **change}))
        with pytest.raises(LeptonError, match=message):
            load_feed(feed.folder)
    (feed.folder / "feed.json").write_text("{")
    with pytest.raises(LeptonError, match="is not a feed folder"):
        load_feed(feed.folder)


def test_adapting(tmp_path):
    x, mask = RNG.standard_normal((7, 3, 4, 5)).astype("f4"), RNG.integers(0, 9, (7, 2))
    feed = feed_from_arrays({"x": x, "m": mask}, np.arange(7), tmp_path / "feed", source="test")
    same = [{"name": "x", "source": "x", "perm": None}, {"name": "m", "source": "m", "perm": [0, 1]}]
    assert adapt_feed(feed, same, tmp_path / "same") is feed and not (tmp_path / "same").exists()
    ports = [
        {"name": "mask/in:0", "source": "m", "perm": None, "dtype": "int32"},
        {"name": "image", "source": "x", "perm": [0, 2, 3, 1]},
    ]
    (tmp_path / "other").mkdir()
    made = adapt_feed(feed, ports, tmp_path / "other")
    assert made.inputs == ("mask/in:0", "image") and load_feed(made.folder) == made
    assert np.array_equal(made.array("image"), x.transpose(0, 2, 3, 1))
    assert made.array("mask/in:0").dtype == np.int32 and np.array_equal(made.array("mask/in:0"), mask)
    assert made.label_array().tolist() == list(range(7)) and made.sha256 != feed.sha256
    assert set(made.open()) == {"mask/in:0", "image"}


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ({"source": "z"}, "comes from 'z'"),
        ({"perm": [1, 0]}, "moves the batch axis"),
        ({"perm": [0, 0]}, "moves the batch axis"),
        ({"perm": [0, 2, 1]}, "a perm of 3 axes"),
        ({"dtype": "int8"}, "cannot become int8"),
    ],
)
def test_ports_that_do_not_fit(tmp_path, port, message):
    feed = feed_from_arrays({"x": X / 3}, None, tmp_path / "feed", source="test")
    with pytest.raises(LeptonError, match=message):
        adapt_feed(feed, [{"name": "x", "source": "x", "perm": None, **port}], tmp_path / "other")
    assert not (tmp_path / "other").exists()
