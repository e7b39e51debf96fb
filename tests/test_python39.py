"""What is copied to devices and into bundles runs on Python 3.9 as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lepton_edge"
FILES = [PACKAGE / f"{name}.py" for name in ("worker", "host", "preprocess_core", "templates/predict")]
FILES += sorted((PACKAGE / "runtimes").glob("*.py")) + sorted((PACKAGE / "ondevice").glob("*.py"))
KEYWORDS = {"zip": {"strict"}, "dataclass": {"slots", "kw_only"}}
NAMES = {"tomllib", "itertools.pairwise", "datetime.UTC", "enum.StrEnum", "types.NoneType", "types.UnionType"}
TYPES = {"None", "bool", "bytes", "dict", "float", "int", "list", "set", "str", "tuple", "type"}


def too_new(source: str) -> list[str]:
    """What a file uses that Python 3.9 lacks; SyntaxError where its grammar does."""
    found = []
    for node in evaluated(ast.parse(source, feature_version=(3, 9))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            found += [f"{name}({k.arg}=)" for k in node.keywords if k.arg in KEYWORDS.get(name, ())]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = {ast.unparse(side).partition("[")[0] for side in (node.left, node.right)}
            found += [ast.unparse(node)] if sides & TYPES else []
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name in NAMES]
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            found += sorted(names & NAMES)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in NAMES:
            found.append(ast.unparse(node))
    return found


def evaluated(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes but annotations that `from __future__ import annotations` leaves as text."""
    lazy = any(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in tree.body)
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        yield node
        skipped = [getattr(node, "annotation", None), getattr(node, "returns", None)] if lazy else []
        pending += [child for child in ast.iter_child_nodes(node) if child not in skipped]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_newer_is_used(path):
    assert too_new(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "dict(zip(a, b, strict=True))",
        "isinstance(x, bool | int | float)",
        "Either = list[int] | Array",
        "def f(x: int | None): pass",
        "import tomllib",
        "from itertools import pairwise",
        "import datetime\ndatetime.UTC",
        "@dataclass(slots=True)\nclass A: pass",
    ],
)
def test_what_is_newer_is_found(source):
    assert too_new(source)


def test_newer_grammar_is_refused():
    for source in ("match x:\n    case 1: pass", "try: pass\nexcept* ValueError: pass"):
        with pytest.raises(SyntaxError):
            too_new(source)


def test_what_is_older_passes():
    code = "from __future__ import annotations\ndef f(x: int | None) -> str | None:\n    y: str | None = flags | 1\n"
    assert too_new(code + "    interpreter.resize(index, strict=True)\n    zip(a, b)") == []
