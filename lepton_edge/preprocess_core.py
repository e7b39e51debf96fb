"""Preprocessing in numpy: one file, used by the tool and copied into every bundle it ships.

Standard library and numpy only (Pillow inside one function), Python 3.9 and later, no import of
lepton_edge, so that a device computes bit for bit what the tool computed: the sums are in float64, and
the resize is the fixed-point arithmetic of Pillow (https://github.com/python-pillow/Pillow,
src/libImaging/Resample.c) written out here, so that neither its presence nor its version matters.

A config is a plain dict: {"scale": float, "mean": [float], "std": [float], "layout": "NHWC" | "NCHW" |
"NHW" | None, "size": [height, width] | None, "resize": str, "crop": float, "interpolation": str,
"color": "rgb" | "bgr" | "gray" | None, "dtype": str | None}; None leaves the array as it is.
Order: decode, resize and crop, colour, * scale, - mean, / std, layout, dtype.
"""

from __future__ import annotations

import hashlib
import re
import warnings
import zlib
from pathlib import Path

import numpy as np

MAX_PIXELS = 89_478_485  # Pillow's own warning threshold; a photograph beyond it is a decompression bomb
PIL_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "PPM", "TIFF")  # never EPS: it would start Ghostscript
RESIZES = ("resize-shorter+centre-crop", "stretch")
_PRECISION = 22  # Pillow's fixed point: 32 bits, less 8 of the pixel and 2 of headroom


class PreprocessError(ValueError):
    """The image or array cannot be turned into the model's input; the message is one line."""


# --- images ---------------------------------------------------------------------------------------


def decode(path: str | Path) -> np.ndarray:
    """An image file as uint8 [height, width, 3 or 1] (RGB or grey), turned upright by its EXIF tag.

    Alpha is dropped (as training pipelines do), palettes are looked up, 16-bit grey keeps its high byte;
    only the first frame of an animation is read. Without Pillow, plain PNG and binary PPM/PGM still work.
    """
    path = Path(path)
    try:
        from PIL import Image, ImageOps
    except ImportError:
        return _decode_without_pillow(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(path, formats=PIL_FORMATS)
        with opened as image:
            if image.width * image.height > MAX_PIXELS:
                raise PreprocessError(f"{path} is a {image.width}x{image.height} image, too large to decode")
            if image.mode.startswith("I;16"):
                upright = ImageOps.exif_transpose(image)
                return (np.asarray(upright).astype(np.uint16) >> 8).astype(np.uint8)[:, :, None]
            if image.mode in ("I", "F"):
                raise PreprocessError(f"{path} has 32-bit pixels; 8-bit or 16-bit images are read")
            grey = image.mode in ("1", "L", "LA")
            upright = ImageOps.exif_transpose(image).convert("L" if grey else "RGB")
    except PreprocessError:
        raise
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        raise PreprocessError(f"{path} cannot be read as an image: {_one_line(error)}") from error
    array = np.asarray(upright)
    return array[:, :, None] if grey else array


def _decode_without_pillow(path: Path) -> np.ndarray:
    data = path.read_bytes()
    try:
        if data[:2] in (b"P5", b"P6"):
            return _decode_pnm(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n":
            return _decode_png(data)
    except (ValueError, LookupError, zlib.error) as error:
        if isinstance(error, PreprocessError):
            raise PreprocessError(f"{path} {error}") from error
        raise PreprocessError(f"{path} cannot be read as an image: {_one_line(error)}") from error
    raise PreprocessError(f"{path} is not a plain PNG, PPM or PGM: reading it takes `pip install pillow`")


def _decode_pnm(data: bytes) -> np.ndarray:
    header = re.match(rb"P([56])(?:\s+(?:#[^\n]*\n\s*)*)(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s", data)
    if header is None or int(header[4]) != 255:
        raise PreprocessError("is not an 8-bit PPM or PGM: reading it takes `pip install pillow`")
    width, height, channels = int(header[2]), int(header[3]), 1 if header[1] == b"5" else 3
    pixels = np.frombuffer(data, np.uint8, offset=header.end())[: width * height * channels]
    return pixels.reshape(height, width, channels)


def _decode_png(data: bytes) -> np.ndarray:
    chunks: dict[bytes, bytes] = {}
    at = 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        chunks[kind] = chunks.get(kind, b"") + data[at + 8 : at + 8 + length]
        at += 12 + length
    if b"IEND" not in chunks:
        raise PreprocessError("cannot be read as an image: the PNG is cut short")
    width, height = (int.from_bytes(chunks[b"IHDR"][i : i + 4], "big") for i in (0, 4))
    depth, colour, interlaced = chunks[b"IHDR"][8], chunks[b"IHDR"][9], chunks[b"IHDR"][12]
    if depth != 8 or interlaced or b"eXIf" in chunks:
        raise PreprocessError("is an interlaced, turned or not 8-bit PNG: it takes `pip install pillow`")
    if width * height > MAX_PIXELS:
        raise PreprocessError(f"is a {width}x{height} image, too large to decode")
    step = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    stride = width * step
    raw = zlib.decompressobj().decompress(chunks[b"IDAT"], height * (stride + 1))
    rows = np.frombuffer(raw, np.uint8).reshape(height, stride + 1)
    pixels = np.zeros((height, stride), np.uint8)
    above = bytearray(stride)
    for y in range(height):
        above = _unfilter(int(rows[y, 0]), bytearray(rows[y, 1:].tobytes()), above, step)
        pixels[y] = np.frombuffer(above, np.uint8)
    image = pixels.reshape(height, width, step)
    if colour == 3:
        return np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)[image[:, :, 0]]
    return image[:, :, : 1 if colour in (0, 4) else 3]


def _unfilter(kind: int, row: bytearray, above: bytearray, step: int) -> bytearray:
    """Undo one PNG row filter (https://www.w3.org/TR/png-3/#9Filters); `step` is bytes per pixel."""
    for i in range(len(row) if kind else 0):
        left = row[i - step] if i >= step else 0
        up, corner = above[i], above[i - step] if i >= step else 0
        if kind == 4:
            guess = left + up - corner
            away = abs(guess - left), abs(guess - up), abs(guess - corner)
            add = (left, up, corner)[away.index(min(away))]
        else:
            add = (0, left, up, (left + up) // 2)[kind]
        row[i] = (row[i] + add) & 255
    return row


def fit(image: np.ndarray, config: dict) -> np.ndarray:
    """Bring [height, width, channels] to config["size"]; an image that already has it is left alone.

    "stretch" ignores the aspect ratio. "resize-shorter+centre-crop" scales until size / crop is covered,
    then cuts the middle out: size 224 and crop 0.875 is torchvision's Resize(256), CenterCrop(224).
    """
    if config["size"] is None or tuple(image.shape[:2]) == tuple(config["size"]):
        return image
    (height, width), (to_height, to_width) = image.shape[:2], config["size"]
    if config["resize"] == "stretch":
        return resize(image, to_height, to_width, config["interpolation"])
    cover_height, cover_width = round(to_height / config["crop"]), round(to_width / config["crop"])
    if height * cover_width <= width * cover_height:
        new_height, new_width = cover_height, int(cover_height * width / height)
    else:
        new_height, new_width = int(cover_width * height / width), cover_width
    new_height, new_width = max(new_height, to_height), max(new_width, to_width)
    if new_height * new_width > MAX_PIXELS:
        raise PreprocessError(f"an image of {width}x{height} is too narrow to resize by its shorter side")
    image = resize(image, new_height, new_width, config["interpolation"])
    top, left = round((new_height - to_height) / 2), round((new_width - to_width) / 2)
    return image[top : top + to_height, left : left + to_width]


def resize(image: np.ndarray, height: int, width: int, interpolation: str = "bilinear") -> np.ndarray:
    """[h, w, channels] to [height, width, channels], antialiased; uint8 stays uint8, the rest is float64.

    Always across, then down. Pillow 13 picks the order of the two passes itself, which moves values by a
    level or more, so calling it would not give the same numbers on two machines.
    """
    turned = np.ascontiguousarray(image.swapaxes(0, 1))
    across = np.ascontiguousarray(_resample(turned, width, interpolation).swapaxes(0, 1))
    return _resample(across, height, interpolation)


def _resample(image: np.ndarray, length: int, interpolation: str) -> np.ndarray:
    """Resample axis 0 to `length`: uint8 in Pillow's fixed point, anything else in float64."""
    if image.shape[0] == length:
        return image
    weights, taps = _weights(image.shape[0], length, interpolation)
    if image.dtype != np.uint8:
        return _weighted(image, weights, taps, np.zeros((length, *image.shape[1:])))
    fixed = np.trunc(weights * (1 << _PRECISION) + np.copysign(0.5, weights)).astype(np.int32)
    half = np.full((length, *image.shape[1:]), 1 << (_PRECISION - 1), np.int32)
    return np.clip(_weighted(image, fixed, taps, half) >> _PRECISION, 0, 255).astype(np.uint8)


def _weighted(image: np.ndarray, weights: np.ndarray, taps: np.ndarray, total: np.ndarray) -> np.ndarray:
    for tap in range(weights.shape[1]):
        total += weights[:, tap].reshape(-1, 1, 1) * image[taps[:, tap]]
    return total


def _weights(length: int, new_length: int, interpolation: str) -> tuple[np.ndarray, np.ndarray]:
    """Filter weights [new_length, taps] and the source index each applies to."""
    ratio = length / new_length
    stretch = max(ratio, 1.0)
    support = (2.0 if interpolation == "bicubic" else 1.0) * stretch
    centre = (np.arange(new_length) + 0.5) * ratio
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), length)
    taps = first[:, None] + np.arange(int(np.ceil(support)) * 2 + 1)
    x = np.abs((taps - centre[:, None] + 0.5) * (1.0 / stretch))
    if interpolation == "bicubic":
        near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
        far = (((x - 5) * x + 8) * x - 4) * -0.5
        values = np.where(x < 1, near, np.where(x < 2, far, 0.0))
    else:
        values = np.maximum(1.0 - x, 0.0)
    values = np.where(taps < last[:, None], values, 0.0)
    values = values * (1.0 / np.cumsum(values, axis=1)[:, -1:])  # summed in Pillow's order
    return values, np.minimum(taps, length - 1)


# --- arrays ---------------------------------------------------------------------------------------


def recolour(batch: np.ndarray, color: str | None) -> np.ndarray:
    """[..., channels] from RGB, RGBA or grey to `color`; None leaves it. Luma is ITU-R 601, as Pillow's."""
    if color is None:
        return batch
    if batch.shape[-1] == 4:
        batch = batch[..., :3]
    if batch.shape[-1] not in (1, 3):
        raise PreprocessError(f"an image of {batch.shape[-1]} channels cannot be turned into {color}")
    if color == "gray":
        return _luma(batch) if batch.shape[-1] == 3 else batch
    if batch.shape[-1] == 1:
        return np.repeat(batch, 3, axis=-1)
    return batch[..., ::-1] if color == "bgr" else batch


def _luma(batch: np.ndarray) -> np.ndarray:
    if batch.dtype == np.uint8:
        weighted = batch.astype(np.int64) * np.array([19595, 38470, 7471])
        return ((weighted.sum(-1, keepdims=True) + 0x8000) >> 16).astype(np.uint8)
    red, green, blue = (batch[..., i : i + 1].astype(np.float64) for i in range(3))
    return red * 0.299 + green * 0.587 + blue * 0.114


def normalise(batch: np.ndarray, config: dict) -> np.ndarray:
    """(batch * scale - mean) / std over the last axis, in float64; untouched where that is the identity."""
    scale, mean, std = config["scale"], config["mean"], config["std"]
    if scale == 1 and not any(mean) and all(value == 1 for value in std):
        return batch
    for name in ("mean", "std"):
        if len(config[name]) not in (1, batch.shape[-1]):
            raise PreprocessError(f"{name} has {len(config[name])} values for {batch.shape[-1]} channels")
    return (batch.astype(np.float64) * scale - np.asarray(mean)) / np.asarray(std)


def cast(array: np.ndarray, dtype: str | None) -> np.ndarray:
    """To `dtype` without a silent change of value: only rounding between floats is accepted."""
    if dtype is None or array.dtype == np.dtype(dtype):
        return array
    target = np.dtype(dtype)
    if np.can_cast(array.dtype, target, "safe"):
        return array.astype(target)
    if array.dtype.kind not in "biuf" or target.kind not in "biuf":
        raise PreprocessError(f"values of type {array.dtype} cannot become {target}")
    with np.errstate(invalid="ignore", over="ignore"):
        done = array.astype(target)
        if target.kind == "f" and array.dtype.kind == "f":
            wrong = np.isfinite(array) & ~np.isfinite(done)
        else:
            wrong = _differs(array, done)
    if wrong.any():
        value = array[wrong].ravel()[0]
        raise PreprocessError(f"the value {value} cannot become {target} unchanged")
    return done


def _differs(array: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Where a cast to or from integers lost something: rounding, wrap-around, NaN."""
    if done.dtype.kind in "iu" and array.dtype.kind in "iuf":
        limits = np.iinfo(done.dtype)
        # float(limits.max) rounds up for 64-bit types, hence the strict bound for floats
        high = array >= float(limits.max) + 1 if array.dtype.kind == "f" else array > limits.max
        return ~((done.astype(array.dtype) == array) & ~high & (array >= limits.min))
    return done.astype(array.dtype) != array


def images(batch: np.ndarray, config: dict) -> np.ndarray:
    """A batch [n, height, width, channels] of raw images as the model's input [n, ...]."""
    if config["size"] is not None and tuple(batch.shape[1:3]) != tuple(config["size"]):
        batch = np.stack([fit(image, config) for image in batch])
    batch = normalise(recolour(batch, config["color"]), config)
    if config["layout"] == "NCHW":
        batch = np.moveaxis(batch, -1, 1)
    elif config["layout"] == "NHW":
        if batch.shape[-1] != 1:
            raise PreprocessError(f"a model without a channel axis takes grey, not {batch.shape[-1]} channels")
        batch = batch[..., 0]
    return np.ascontiguousarray(cast(batch, config["dtype"]))


def apply(array: np.ndarray, config: dict) -> np.ndarray:
    """Preprocess a raw image [h, w] or [h, w, c], or a batch [n, h, w, c]; other ranks are only scaled."""
    if array.ndim == 4:
        return images(array, config)
    if array.ndim in (2, 3):
        return images((array[:, :, None] if array.ndim == 2 else array)[None], config)[0]
    return np.ascontiguousarray(cast(normalise(array, config), config["dtype"]))


def prepare(batch: np.ndarray, config: dict, shape: list | tuple) -> np.ndarray:
    """A batch of raw samples as the model's input [n, *shape]; `shape` has None where any length will do.

    A sample may have the model's own layout, or be an image [h, w, c] or [h, w] that config leads to it.
    """
    order = arrangement(batch.shape[1:], config, shape)
    if order == "plain":
        return np.ascontiguousarray(cast(normalise(batch, config), config["dtype"]))
    if order == "reshape":
        sample = reshaped(batch.shape[1:], shape) or ()
        return prepare(batch.reshape(len(batch), *sample), config, shape)
    if order == "NCHW":
        batch = np.moveaxis(batch, 1, -1)
    elif order == "NHW":
        batch = batch[..., None]
    return images(batch, config)


def arrangement(sample: tuple, config: dict, shape: list | tuple) -> str:
    """How a raw sample leads to the model's `shape`: "plain", "reshape", or the image layout it has now."""
    layout = config["layout"]
    if fits(sample, shape):
        return layout or "plain"
    channels = {"gray": 1, "rgb": 3, "bgr": 3}.get(config["color"] or "")
    if layout and len(sample) in (2, 3):
        depth = channels or (sample[2] if len(sample) == 3 else 1)
        size = tuple(config["size"] or sample[:2])
        result = {"NHWC": (*size, depth), "NCHW": (depth, *size), "NHW": size}[layout]
        known = len(sample) == 2 or sample[2] in (1, 3, 4) or sample[2] == depth
        if known and fits(result, shape) and (layout != "NHW" or depth == 1):
            return "NHW" if len(sample) == 2 else "NHWC"
    if reshaped(sample, shape) is not None:
        return "reshape"
    raise PreprocessError(f"samples of shape {list(sample)} do not fit {show(shape)}")


def fits(sample: tuple, shape: list | tuple) -> bool:
    """Whether a concrete shape agrees with one that may have free (None) axes."""
    return len(sample) == len(shape) and all(shape[i] in (None, sample[i]) for i in range(len(shape)))


def reshaped(sample: tuple, shape: list | tuple) -> tuple | None:
    """`sample` with a grey image's channel axis added, dropped or moved to agree with `shape`, or None."""
    if len(shape) not in (2, 3) or (len(shape) == 3 and 1 not in (shape[0], shape[2])):
        return None
    planes = [sample] if len(sample) == 2 else []
    if len(sample) == 3:
        planes = [sample[:2]] * (sample[2] == 1) + [sample[1:]] * (sample[0] == 1)
    for plane in planes:
        for candidate in (plane, (*plane, 1), (1, *plane)):
            if fits(candidate, shape):
                return candidate
    return None


def fingerprint(config: dict) -> str:
    """SHA-256 of what the config makes of a fixed picture: equal where two machines prepare images alike."""
    height, width = config["size"] or (48, 64)
    height, width = height + height // 3 + 1, width + width // 2 + 1
    pattern = np.arange(height * width * 3, dtype=np.int64) ** 2 // 7 % 256
    made = images(pattern.astype(np.uint8).reshape(1, height, width, 3), config)
    return hashlib.sha256(made.astype(made.dtype.newbyteorder("<")).tobytes()).hexdigest()


def show(shape: list | tuple) -> str:
    """A shape for messages: free axes are written as ?."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
