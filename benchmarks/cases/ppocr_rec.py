"""PP-OCR text recognition on rendered lines of text."""

from __future__ import annotations

import difflib
import json
import math
import random
import tempfile
from pathlib import Path

import numpy as np
from _prose import passages
from common import wheel

ABOUT = (
    "PP-OCRv6 small recognition (PyPI rapidocr, Apache-2.0), 48 x 320, opset 11 raised to 17 and shapes fixed; "
    "text lines rendered with the DejaVu fonts of matplotlib, 200 / 300"
)
TRANSFORMER = False
HEIGHT, WIDTH, STEPS, CLASSES = 48, 320, 40, 18710
COUNTS = {"calib": 200, "eval": 300}
_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "DejaVuSansMono")
_ALPHABET, _TEXTS = "alphabet.json", "texts.json"


def prepare(folder: Path) -> dict:
    """Fix the model's shapes, render the lines; alphabet.json and texts.json are what answers are read with."""
    import onnx

    with wheel("rapidocr", "3.10.0") as package:
        model = onnx.load_from_string(package.read("rapidocr/models/PP-OCRv6_rec_small.onnx"))
    characters = next(p.value for p in model.metadata_props if p.key == "character").split("\n")
    alphabet = ["", *characters, " "]  # 0 is CTC's blank
    (folder / _ALPHABET).write_text(json.dumps(alphabet))
    save_fixed(model, folder / "model.onnx")
    texts = {}
    for part, count in COUNTS.items():
        rng = random.Random(f"lines {part}")
        words = sorted({w for p in passages(part) for w in p.split() if w.isascii() and 2 <= len(w) <= 12})
        texts[part] = [line(rng, words) for _ in range(count)]
        np.savez(folder / f"{part}.npz", x=np.stack([picture(text, rng) for text in texts[part]]))
    (folder / _TEXTS).write_text(json.dumps(texts))
    return COUNTS


def save_fixed(model, path: Path) -> None:
    """Write the model at batch 1 and opset 17, constants folded by ONNX Runtime (basic level: standard operators)."""
    import onnx
    import onnxruntime as ort
    from onnx import version_converter

    for tensor, shape in ((model.graph.input[0], (1, 3, HEIGHT, WIDTH)), (model.graph.output[0], (1, STEPS, CLASSES))):
        for axis, size in zip(tensor.type.tensor_type.shape.dim, shape, strict=True):
            axis.dim_value = size
    del model.metadata_props[:]
    raised = version_converter.convert_version(model, 17)
    with tempfile.TemporaryDirectory() as scratch:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(scratch) / "folded.onnx")
        ort.InferenceSession(raised.SerializeToString(), options, providers=["CPUExecutionProvider"])
        folded = onnx.load(options.optimized_model_filepath)
    used = [o for o in folded.opset_import if o.domain in {n.domain for n in folded.graph.node}]
    del folded.opset_import[:]
    folded.opset_import.extend(used)
    onnx.checker.check_model(folded)
    onnx.save(folded, str(path))


def line(rng: random.Random, words: list[str]) -> str:
    """A short line: words, a number, a price, a date or a code."""
    kind = rng.randrange(6)
    if kind < 3:
        return " ".join(rng.choice(words) for _ in range(kind + 1))
    if kind == 3:
        return f"{rng.choice(words)} {rng.randint(1, 9999)}.{rng.randint(0, 99):02d}"
    if kind == 4:
        return f"{rng.randint(1, 28):02d}/{rng.randint(1, 12):02d}/{rng.randint(1990, 2030)}"
    return "".join(rng.choice("ABCDEFGHKLMNPRSTUVWXYZ0123456789-") for _ in range(rng.randint(5, 12)))


def picture(text: str, rng: random.Random) -> np.ndarray:
    """``text`` as a photographed line: float32 [3, 48, 320] in -1..1, padded with 0 on the right."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / f"{rng.choice(_FONTS)}.ttf"), rng.randint(18, 44))
    left, top, right, bottom = font.getbbox(text)
    margins = [rng.randint(2, 10) for _ in range(4)]
    size = (right - left + margins[0] + margins[1], bottom - top + margins[2] + margins[3])
    dark, light = sorted((rng.randint(0, 90), rng.randint(150, 255)))
    paper, ink = (light, dark) if rng.random() < 0.8 else (dark, light)
    colour = lambda level: tuple(min(255, max(0, level + rng.randint(-20, 20))) for _ in range(3))  # noqa: E731
    image = Image.new("RGB", size, colour(paper))
    ImageDraw.Draw(image).text((margins[0] - left, margins[2] - top), text, fill=colour(ink), font=font)
    image = image.rotate(rng.uniform(-1.5, 1.5), Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0)))
    image = image.filter(ImageFilter.GaussianBlur(rng.choice((0.0, 0.0, 0.5, 0.8, 1.2))))
    width = min(WIDTH, math.ceil(HEIGHT * image.width / image.height))
    pixels = np.asarray(image.resize((width, HEIGHT), Image.Resampling.BILINEAR), np.float32)
    noise = np.random.default_rng(rng.randrange(2**32)).normal(0, rng.choice((0, 4, 8, 14)), pixels.shape)
    padded = np.zeros((3, HEIGHT, WIDTH), np.float32)
    padded[:, :, :width] = (np.clip(pixels + noise, 0, 255) / 127.5 - 1).transpose(2, 0, 1)
    return padded


def figures(reference: np.ndarray, outputs: np.ndarray, folder: Path) -> dict:
    """How the strings read from ``outputs`` [n, 40, 18710] agree with those from ``reference`` and with the truth.

    Characters: the share 2 m / (a + b) of matching ones, over all the lines.
    """
    alphabet = json.loads((folder / _ALPHABET).read_text())
    truth = json.loads((folder / _TEXTS).read_text())["eval"]
    ours, theirs = (decode(a, alphabet) for a in (outputs, reference))
    matched = total = 0
    for a, b in zip(ours, theirs, strict=True):
        blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
        matched += 2 * sum(block.size for block in blocks)
        total += len(a) + len(b)
    return {
        "same_string": float(np.mean([a == b for a, b in zip(ours, theirs, strict=True)])),
        "same_characters": matched / max(1, total),
        "right_string": float(np.mean([a == t for a, t in zip(ours, truth, strict=True)])),
    }


def decode(scores: np.ndarray, alphabet: list[str]) -> list[str]:
    """CTC, greedy: the best class of each step, repeats joined, blanks dropped."""
    found = []
    for one in scores:
        best = np.asarray(one).argmax(1)
        kept = best[np.insert(best[1:] != best[:-1], 0, True)]
        found.append("".join(alphabet[k] for k in kept))
    return found
