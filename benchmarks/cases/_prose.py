"""English passages of varied length, from the documentation that comes with Python (PSF licence)."""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from functools import cache
from pathlib import Path

COUNTS = {"calib": 200, "eval": 300}


def passages(part: str) -> list[str]:
    """The passages of one part, "calib" or "eval": whole sentences, 6 to about 90 words, no sentence in both."""
    parts = _drawn()
    return parts[part]


@cache
def _drawn() -> dict[str, list[str]]:
    rng, seen, found = random.Random(0), set(), []
    for text in _texts():
        passage: list[str] = []
        for sentence in _sentences(text):
            if sentence in seen:
                continue
            seen.add(sentence)
            if not passage:
                words = rng.randint(6, 90)
            passage.append(sentence)
            if len(" ".join(passage).split()) >= words:
                found.append(" ".join(passage))
                passage = []
    rng.shuffle(found)
    first, both = COUNTS["calib"], COUNTS["calib"] + COUNTS["eval"]
    return {"calib": found[:first], "eval": found[first:both]}


def _texts() -> list[str]:
    """The topics of the language reference (pydoc) and the docstrings of the standard library's modules."""
    library = Path(sysconfig.get_paths()["stdlib"])
    topics = ast.parse((library / "pydoc_data" / "topics.py").read_text(encoding="utf-8"))
    texts = [n.value for n in ast.walk(topics) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    for file in sorted(library.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                texts.append(ast.get_docstring(node) or "")
    return texts


def _sentences(text: str) -> list[str]:
    """The sentences of a text that read as prose: a capital, six words or more, nearly all letters."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(block.split())):
            letters = sum(c.isalpha() or c in " ,.'" for c in sentence)
            whole = sentence[:1].isupper() and sentence[-1:] in ".!?" and len(sentence.split()) >= 6
            if whole and letters > 0.95 * len(sentence):
                found.append(sentence)
    return found
