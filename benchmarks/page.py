"""Writes BENCHMARKS.md: each benchmark owns the text between its two markers, and leaves the rest alone."""

from __future__ import annotations

from common import ROOT

PAGE = ROOT / "BENCHMARKS.md"


def update(section: str, lines: list[str]) -> None:
    """Put ``lines`` between the markers of ``section``; a section that is not there yet goes to the end."""
    text = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""
    begin, end = f"<!-- begin {section} -->", f"<!-- end {section} -->"
    block = "\n".join([begin, *lines, end])
    if begin in text and end in text:
        before, rest = text.split(begin, 1)
        text = before + block + rest.split(end, 1)[1]
    else:
        text = f"{text.rstrip()}\n\n{block}\n".lstrip("\n")
    PAGE.write_text(text, encoding="utf-8")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table; pipes in cells are escaped."""
    cells = [[c.replace("|", "\\|") for c in row] for row in (head, *rows)]
    made = ["| " + " | ".join(row) + " |" for row in cells]
    return [made[0], "|" + "---|" * len(head), *made[1:]]
