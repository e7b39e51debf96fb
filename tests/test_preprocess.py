"""Preprocessing: the arithmetic against its definition, and decoding against Pillow."""

from __future__ import annotations

import builtins
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_edge import preprocess_core as core
from lepton_edge.errors import LeptonError, UsageError
from lepton_edge.preprocess import PRESETS, Preprocess, from_dict, image_layout


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels)).astype(np.uint8)


# --- declaring ------------------------------------------------------------------------------------


def test_defaults_change_nothing():
    x = picture(5, 7)
    assert Preprocess().apply(x).tobytes() == x.tobytes()
    assert not Preprocess().declared and not Preprocess(dtype="float32").declared
    assert from_dict(None) == from_dict("none") == from_dict({}) == Preprocess()


def test_a_preset_is_overridden_key_by_key():
    got = from_dict({"preset": "imagenet", "std": 0.25, "size": 160})
    assert got.mean == (0.485, 0.456, 0.406) and got.std == (0.25,) and got.size == (160, 160)
    assert from_dict({"scale": "1/255"}).scale == 1 / 255


numbers = st.floats(0.01, 300, allow_nan=False)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "scale": numbers,
            "mean": st.lists(numbers, min_size=3, max_size=3),
            "std": st.one_of(numbers, st.lists(numbers, min_size=3, max_size=3)),
            "layout": st.sampled_from(["NHWC", "NCHW", None]),
            "size": st.one_of(st.none(), st.tuples(st.integers(1, 512), st.integers(1, 512))),
            "resize": st.sampled_from(core.RESIZES),
            "color": st.sampled_from(["rgb", "bgr", "gray"]),
            "crop": st.floats(0.1, 1.0),
        },
    )
)
def test_dictionaries_round_trip(table):
    declared = from_dict(table)
    assert from_dict(declared.to_dict()) == declared


@pytest.mark.parametrize(
    ("table", "message", "hint"),
    [
        ({"sclae": 1}, "unknown key 'sclae'", "did you mean 'scale'?"),
        ("imagnet", "unknown preset 'imagnet'", "did you mean 'imagenet'?"),
        ({"preset": 3}, "unknown preset '3'", "known"),
        ({"layout": "NWHC"}, "layout cannot be 'NWHC'", "did you mean 'NHWC'?"),
        ({"color": "grey"}, "color cannot be 'grey'", "did you mean 'gray'?"),
        ({"std": 0}, "std has to be above 0", "1"),
        ({"std": [0.1, -1, 1]}, "std has to be above 0", "1"),
        ({"scale": "a/b"}, "scale has to be a number", "1/255"),
        ({"scale": "1/0"}, "scale has to be a number", "1/255"),
        ({"scale": True}, "scale has to be a number", "1/255"),
        ({"scale": float("nan")}, "scale has to be a number", "1/255"),
        ({"scale": 0}, "scale 0 would erase", "1"),
        ({"mean": []}, "mean is empty", "one"),
        ({"mean": [1, 2, 3], "std": [1, 2]}, "mean has 3 values and std has 2", "one"),
        ({"size": [224]}, "size has to be [height, width]", "224"),
        ({"size": [0, 5]}, "size has to be [height, width]", "224"),
        ({"size": True}, "size has to be [height, width]", "224"),
        ({"crop": 0}, "crop has to be above 0", "0.875"),
        (7, "has to be a preset's name or a table", "none"),
    ],
)
def test_wrong_declarations_are_named(table, message, hint):
    with pytest.raises(UsageError) as caught:
        from_dict(table)
    assert message in caught.value.message and hint in caught.value.hint


def test_layout_from_a_shape():
    assert image_layout([224, 224, 3]) == "NHWC" and image_layout([3, None, None]) == "NCHW"
    assert image_layout([28, 28]) == "NHW" and image_layout([3, 8, 3]) is None and image_layout([10]) is None


@pytest.mark.parametrize(
    ("declared", "shape", "message"),
    [
        ({}, [784], "does not say where"),
        ({"layout": "NHWC"}, [3, 32, 32], "has 32 channels"),
        ({"color": "gray"}, [32, 32, 3], "does not go with an input of 3"),
        ({"size": [16, 16]}, [32, 32, 3], "is not the model's"),
    ],
)
def test_contradictions_with_the_model_are_refused(declared, shape, message):
    with pytest.raises(LeptonError, match=message):
        from_dict(declared).resolve(shape, "float32", images=True)


# --- arithmetic -----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(list(PRESETS)),
    st.sampled_from(["NHWC", "NCHW"]),
    st.sampled_from(["rgb", "bgr"]),
    st.integers(0, 99),
)
def test_arithmetic_is_its_definition(height, width, preset, layout, color, seed):
    x = picture(height, width, seed=seed)
    got = from_dict({"preset": preset, "layout": layout, "color": color, "dtype": "float32"}).apply(x)
    table = {"scale": 1.0, "mean": (0.0,), "std": (1.0,), **PRESETS[preset]}
    ordered = x[..., ::-1] if color == "bgr" else x
    exact = (ordered.astype(np.float64) * table["scale"] - np.array(table["mean"])) / np.array(table["std"])
    exact = exact.transpose(2, 0, 1) if layout == "NCHW" else exact
    assert got.dtype == np.float32 and got.shape == exact.shape and got.flags.c_contiguous
    assert np.array_equal(got, exact.astype(np.float32))


def test_a_batch_is_its_images():
    batch = np.stack([picture(9, 12, seed=i) for i in range(4)])
    declared = from_dict({"preset": "imagenet", "size": [6, 6], "layout": "NCHW", "dtype": "float32"})
    assert np.array_equal(declared.apply(batch), np.stack([declared.apply(x) for x in batch]))


@given(st.sampled_from(["int8", "uint8", "int32", "int64", "float16", "float32"]), st.data())
def test_a_cast_keeps_the_value_or_says_so(dtype, data):
    source = data.draw(st.sampled_from(["uint8", "int16", "int64", "float32", "float64"]))
    values = data.draw(st.lists(st.integers(-(2**15), 2**15), min_size=1, max_size=5))
    array = np.array(values).astype(source)
    try:
        done = core.cast(array, dtype)
    except core.PreprocessError:
        assert not np.array_equal(array.astype(np.float64), array.astype(dtype).astype(np.float64))
    else:
        assert done.dtype == dtype
        if not (np.dtype(dtype).kind == "f" and array.dtype.kind == "f"):
            assert [int(v) for v in done] == [int(v) for v in array]


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (0.5, "int8"),
        (128.0, "int8"),
        (-1, "uint8"),
        (2.0**63, "int64"),
        (np.nan, "int32"),
        (1e6, "float16"),
        (2, "bool"),
    ],
)
def test_casts_that_would_change_a_value_are_refused(value, dtype):
    with pytest.raises(core.PreprocessError, match="unchanged"):
        core.cast(np.array([value]), dtype)


def test_quantized_inputs_by_declaration():
    x = picture(4, 4)
    got = from_dict({"mean": 128, "dtype": "int8"}).apply(x)
    assert got.dtype == np.int8 and np.array_equal(got.astype(int), x.astype(int) - 128)


def test_mean_of_another_number_of_channels():
    with pytest.raises(LeptonError, match="mean has 3 values for 1 channels"):
        from_dict("imagenet").apply(picture(4, 4, 1))


# --- resizing and colour --------------------------------------------------------------------------


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from([1, 3]), st.sampled_from(["bilinear", "bicubic"]))
def test_one_pass_of_the_resize_is_pillows(length, new, channels, interpolation):
    from PIL import Image

    x = picture(length, 7, channels, seed=length * new)
    method = Image.Resampling[interpolation.upper()]
    down = np.asarray(Image.fromarray(x[..., 0] if channels == 1 else x).resize((7, new), method))
    assert np.array_equal(core.resize(x, new, 7, interpolation).reshape(down.shape), down)
    turned = np.ascontiguousarray(x.swapaxes(0, 1))
    across = np.asarray(Image.fromarray(turned[..., 0] if channels == 1 else turned).resize((new, 7), method))
    assert np.array_equal(core.resize(turned, 7, new, interpolation).reshape(across.shape), across)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_resizing_keeps_a_flat_picture_flat(height, width, new_height, new_width):
    x = np.full((height, width, 3), 77, np.uint8)
    assert (core.resize(x, new_height, new_width) == 77).all()
    assert np.allclose(core.resize(x.astype(np.float32), new_height, new_width), 77)


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0.3, 1), st.sampled_from(core.RESIZES))
def test_fit_always_gives_the_size(height, width, crop, policy):
    config = Preprocess(size=(9, 6), crop=crop, resize=policy).to_dict()
    assert core.fit(picture(height, width), config).shape == (9, 6, 3)


def test_the_centre_is_cropped_as_torchvision_does():
    x = picture(40, 60)
    config = Preprocess(size=(14, 14), crop=0.875).to_dict()
    resized = core.resize(x, 16, 24)
    assert np.array_equal(core.fit(x, config), resized[1:15, 5:19])
    assert core.fit(picture(14, 14), config) is not None


def test_a_ribbon_is_not_blown_up():
    with pytest.raises(LeptonError, match="too narrow"):
        Preprocess(size=(4096, 4096)).apply(picture(1, 60000))


def test_colours():
    from PIL import Image

    x = picture(11, 13)
    gray = core.recolour(x, "gray")
    assert np.array_equal(gray[..., 0], np.asarray(Image.fromarray(x).convert("L")))
    assert np.abs(core.recolour(x.astype(np.float64), "gray") - gray).max() <= 0.51
    assert np.array_equal(core.recolour(gray, "rgb"), np.repeat(gray, 3, -1))
    assert np.array_equal(core.recolour(np.concatenate([x, gray], -1), "rgb"), x)
    with pytest.raises(core.PreprocessError, match="2 channels"):
        core.recolour(x[..., :2], "rgb")


# --- decoding -------------------------------------------------------------------------------------


def without_pillow(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, end) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") for end in ("png", "tif")]
    + [("CMYK", "tif"), ("CMYK", "jpg")],
)
def test_every_mode_becomes_grey_or_rgb(tmp_path, mode, suffix):
    from PIL import Image

    path, rgb = tmp_path / f"x.{suffix}", Image.fromarray(picture(6, 9))
    image = (
        Image.fromarray((picture(6, 9, 1)[..., 0].astype(np.uint16) << 8) + 3) if mode == "I;16" else rgb.convert(mode)
    )
    image.save(path)
    got = core.decode(path)
    assert got.dtype == np.uint8 and got.shape == (6, 9, 1 if mode in ("1", "L", "LA", "I;16") else 3)
    if mode == "RGB":
        assert np.array_equal(got, np.asarray(rgb))
    if mode == "I;16":
        assert np.array_equal(got, picture(6, 9, 1))


def test_exif_orientation_is_respected(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(20, 30)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(core.decode(tmp_path / "turned.png"), np.rot90(picture(20, 30), -1))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_plain_png_without_pillow_is_the_same(tmp_path, monkeypatch, mode):
    from PIL import Image

    path = tmp_path / "x.png"
    smooth = np.cumsum(picture(23, 17).astype(int) % 5, 0).astype(np.uint8)  # makes encoders pick every filter
    Image.fromarray(smooth).convert(mode).save(path)
    expected = core.decode(path)
    without_pillow(monkeypatch)
    assert np.array_equal(core.decode(path), expected)


def test_all_png_filters_are_undone():
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 256, (2, 12)).astype(np.uint8)
    for step in (1, 3):
        for kind in range(5):
            above, raw = rows[0], rows[1]
            left = np.concatenate([np.zeros(step, np.uint8), raw[:-step]])
            corner = np.concatenate([np.zeros(step, np.uint8), above[:-step]])
            a, b, c = left.astype(int), above.astype(int), corner.astype(int)
            p = a + b - c
            away = np.abs(np.stack([p - a, p - b, p - c]))
            paeth = np.choose(away.argmin(0), [a, b, c])
            guess = [np.zeros_like(a), a, b, (a + b) // 2, paeth][kind]
            filtered = ((raw.astype(int) - guess) % 256).astype(np.uint8)
            assert bytes(core._unfilter(kind, bytearray(filtered), bytearray(above), step)) == raw.tobytes()


@pytest.mark.parametrize("channels", [1, 3])
def test_pnm_without_pillow(tmp_path, monkeypatch, channels):
    x = picture(5, 4, channels)
    head = b"P%d\n# made by a test\n4 5\n255\n" % (5 if channels == 1 else 6)
    (tmp_path / "x.ppm").write_bytes(head + x.tobytes())
    assert np.array_equal(core.decode(tmp_path / "x.ppm"), x)
    without_pillow(monkeypatch)
    assert np.array_equal(core.decode(tmp_path / "x.ppm"), x)


def test_what_needs_pillow_says_so(tmp_path, monkeypatch):
    from PIL import Image

    Image.fromarray(picture(5, 4)).save(tmp_path / "x.jpg")
    without_pillow(monkeypatch)
    with pytest.raises(core.PreprocessError, match="pip install pillow"):
        core.decode(tmp_path / "x.jpg")


@pytest.mark.parametrize("pillow", [True, False])
@pytest.mark.parametrize("size", [0, 20, 60, 100])
def test_damaged_images_are_named(tmp_path, monkeypatch, pillow, size):
    from PIL import Image

    Image.fromarray(picture(20, 20)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:size])
    if not pillow:
        without_pillow(monkeypatch)
    with pytest.raises(core.PreprocessError, match=r"cut\.png"):
        core.decode(tmp_path / "cut.png")


@pytest.mark.parametrize("pillow", [True, False])
@pytest.mark.parametrize("side", [12_000, 60_000])
def test_decompression_bombs_are_refused(tmp_path, monkeypatch, pillow, side):
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    if not pillow:
        without_pillow(monkeypatch)
    with pytest.raises(core.PreprocessError, match=r"bomb\.png.*(too large|bomb)"):
        core.decode(tmp_path / "bomb.png")


def test_photographs_prepared_as_torchvision_does(shared):
    from PIL import Image

    declared = from_dict("imagenet").resolve([3, 224, 224], "float32", images=True)
    for path in sorted((shared / "imagenet_sample" / "eval").glob("*.jpg"))[:5]:
        got = declared.apply(core.decode(path))
        x = np.asarray(Image.open(path).convert("RGB")).astype(np.float64).transpose(2, 0, 1) / 255
        mean, std = (np.reshape(PRESETS["imagenet"][k], (3, 1, 1)) for k in ("mean", "std"))
        assert got.shape == (3, 224, 224) and np.abs(got - (x - mean) / std).max() < 1e-6


def test_the_fingerprint_of_a_known_config():
    config = Preprocess(layout="NHWC", color="rgb", dtype="uint8").to_dict()
    pattern = (np.arange(65 * 97 * 3, dtype=np.int64) ** 2 // 7 % 256).astype(np.uint8)
    assert core.fingerprint(config) == hashlib.sha256(pattern.tobytes()).hexdigest()
