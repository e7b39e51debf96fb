"""What is done to an image or array before the model sees it: declared once, validated, reused on devices.

The arithmetic is in preprocess_core.py, which bundles carry. Order: decode, resize and crop, colour,
* scale, - mean, / std, layout, dtype. Mean and std count in the scale's units and in the model's channel
order, so torchvision's numbers are written as torchvision writes them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton_edge import preprocess_core as core
from lepton_edge.errors import LeptonError, UsageError, did_you_mean

LAYOUTS, COLORS, INTERPOLATIONS = ("NHWC", "NCHW"), ("rgb", "bgr", "gray"), ("bilinear", "bicubic")
FLOATS, INTS = (
    ("float32", "float16", "float64"),
    ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"),
)
MAX_SIDE = 16_384

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    # torchvision and timm; the numbers of https://pytorch.org/vision/stable/models.html
    "imagenet": {
        "scale": 1 / 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "crop": 0.875,
    },
    # Keras' mode "tf", https://keras.io/api/applications/mobilenet/#preprocess_input-function
    "imagenet-tf": {"scale": 1 / 127.5, "mean": (1.0,), "std": (1.0,), "crop": 0.875},
}


@dataclass(frozen=True)
class Preprocess:
    """A declared preprocessing; the defaults change nothing.

    ``scale`` multiplies; ``mean`` and ``std`` have one value or one a channel; ``size`` is (height, width);
    ``crop`` is the share of the resized image that the centre crop keeps. ``layout``, ``size``, ``color``
    and ``dtype`` left None follow the model's input (see ``resolve``).
    """

    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    size: tuple[int, int] | None = None
    resize: str = "resize-shorter+centre-crop"
    crop: float = 1.0
    interpolation: str = "bilinear"
    color: str | None = None
    dtype: str | None = None

    @property
    def declared(self) -> bool:
        """Whether anything beyond a cast is asked for."""
        return dataclasses.replace(self, dtype=None) != Preprocess()

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` and preprocess_core.py take."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Preprocess one image [h, w] or [h, w, c], or a batch [n, h, w, c]; uint8 or any real dtype, RGB.

        Arrays of other ranks are only scaled and cast. Raises LeptonError where a value would not survive.
        """
        try:
            return core.apply(np.asarray(array), self.to_dict())
        except core.PreprocessError as error:
            raise LeptonError(str(error), "change the preprocessing, or the data") from error

    def resolve(self, shape: Sequence[int | None], dtype: str, *, images: bool) -> Preprocess:
        """Fill what is left None from a model's input, ``shape`` without its batch axis.

        For images (``images=True``): layout, size and colour as well; raises LeptonError if the shape is not
        an image's, or contradicts what is declared. For arrays: the layout only where something is declared.
        """
        found = image_layout(shape)
        layout = self.layout if self.layout and len(shape) == 3 else found
        if not images:
            layout = layout if self.declared and len(shape) == 3 else self.layout
            return dataclasses.replace(self, layout=layout, dtype=self.dtype or dtype)
        if layout is None:
            raise LeptonError(
                f"an input of shape {core.show([None, *shape])} does not say where an image's channels go",
                "declare layout = 'NHWC' or 'NCHW', or give the samples as .npz",
            )
        at = {"NHWC": (0, 1, 2), "NCHW": (1, 2, 0), "NHW": (0, 1, None)}[layout]
        height, width = shape[at[0]], shape[at[1]]
        channels = 1 if at[2] is None else shape[at[2]]
        if channels not in (None, 1, 3):
            raise LeptonError(
                f"an input of shape {core.show([None, *shape])} read as {layout} has {channels} channels, "
                "and images have 1 or 3",
                "declare the other layout, or give the samples as .npz",
            )
        size = self.size or ((height, width) if height and width else None)
        if size and ((height or size[0]), (width or size[1])) != size:
            raise LeptonError(
                f"the declared size {size[0]}x{size[1]} is not the model's, which is {height}x{width}",
                "remove size to take the model's",
            )
        color = self.color or ("gray" if channels == 1 else "rgb")
        if channels and channels != (1 if color == "gray" else 3):
            raise LeptonError(
                f"the declared color '{color}' does not go with an input of {channels} channels",
                f"declare color = '{'gray' if channels == 1 else 'rgb'}', or remove it",
            )
        return dataclasses.replace(self, layout=layout, size=size, color=color, dtype=self.dtype or dtype)


def image_layout(shape: Sequence[int | None]) -> str | None:
    """The layout of an image input from its shape without the batch axis; None if it is not clear.

    [h, w] is "NHW" (grey, no channel axis); otherwise the end that is 1 or 3 holds the channels.
    """
    if len(shape) == 2 and all(side is None or side > 1 for side in shape):
        return "NHW"
    if len(shape) != 3:
        return None
    first, last = shape[0] in (1, 3), shape[2] in (1, 3)
    return None if first == last else "NCHW" if first else "NHWC"


def from_dict(value: str | Mapping[str, Any] | Preprocess | None, where: str = "preprocess") -> Preprocess:
    """Validate a preset's name, or a table of keys with an optional "preset" that they override one by one.

    Raises UsageError naming the key. ``scale`` may be a fraction in quotes: "1/255".
    """
    if isinstance(value, Preprocess):
        return value
    if value is None or isinstance(value, str):
        value = {"preset": value or "none"}
    if not isinstance(value, Mapping):
        raise UsageError(f"{where} has to be a preset's name or a table, not {value!r}", _preset_hint("none"))
    table = dict(value)
    preset = table.pop("preset", "none")
    if not isinstance(preset, str) or preset not in PRESETS:
        raise UsageError(f"{where}: unknown preset '{preset}'", _preset_hint(str(preset)))
    known = [field.name for field in dataclasses.fields(Preprocess)]
    for key in table:
        if key not in known:
            raise UsageError(f"{where}: unknown key '{key}'", did_you_mean(str(key), [*known, "preset"]))
    checked = {key: _check(key, item, where) for key, item in table.items()}
    result = Preprocess(**{**PRESETS[preset], **checked})
    if len({len(result.mean), len(result.std), 1}) > 2:
        raise UsageError(
            f"{where}: mean has {len(result.mean)} values and std has {len(result.std)}",
            "give one value for all channels, or one a channel",
        )
    return result


def _preset_hint(word: str) -> str:
    return did_you_mean(word, list(PRESETS))


def _check(key: str, value: Any, where: str) -> Any:
    """One key's value in its final type, or UsageError."""
    choices = {"layout": (*LAYOUTS, "NHW"), "resize": core.RESIZES, "interpolation": INTERPOLATIONS}
    choices |= {"color": COLORS, "dtype": (*FLOATS, *INTS)}
    if key in choices:
        if value is None and key in ("layout", "color", "dtype"):
            return None
        if value not in choices[key]:
            raise UsageError(f"{where}: {key} cannot be {value!r}", did_you_mean(str(value), choices[key]))
        return value
    if key == "size":
        return _check_size(value, where)
    if key in ("mean", "std"):
        values = value if isinstance(value, list | tuple) else [value]
        if not values:
            raise UsageError(f"{where}: {key} is empty", "give one value for all channels, or one a channel")
        numbers = tuple(_number(key, item, where) for item in values)
        if key == "std" and any(number <= 0 for number in numbers):
            raise UsageError(f"{where}: std has to be above 0, not {value!r}", "1 changes nothing")
        return numbers
    number = _number(key, value, where)
    if key == "scale" and number == 0:
        raise UsageError(f"{where}: scale 0 would erase the data", "1 changes nothing")
    if key == "crop" and not 0 < number <= 1:
        raise UsageError(f"{where}: crop has to be above 0 and at most 1, not {value!r}", "0.875 is usual")
    return number


def _check_size(value: Any, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    sides = [value, value] if isinstance(value, int) else value
    if (
        not isinstance(sides, list | tuple)
        or len(sides) != 2
        or not all(isinstance(s, int) and not isinstance(s, bool) and 0 < s <= MAX_SIDE for s in sides)
    ):
        raise UsageError(f"{where}: size has to be [height, width], not {value!r}", "e.g. [224, 224]")
    return (sides[0], sides[1])


def _number(key: str, value: Any, where: str) -> float:
    if isinstance(value, str):
        top, _, bottom = value.partition("/")
        with contextlib.suppress(ValueError, ZeroDivisionError):
            value = float(top) / float(bottom or 1)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"{where}: {key} has to be a number, not {value!r}", 'e.g. 0.5, or "1/255"')
    return float(value)
