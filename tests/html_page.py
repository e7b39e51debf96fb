"""Reading a report's page strictly, and what holds for every page of ours."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order; keeps tags, attributes, ids and texts."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif not self._open or self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def assert_self_contained(html: str) -> Page:
    """One page, whole, that loads nothing and in which only its own script may run; returns it read."""
    page = Page(html)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "foreignobject"} & set(page.tags)
    for tag, key, value in page.attributes:
        assert not key.startswith("on"), (tag, key)
        if key in ("href", "src", "xlink:href", "action"):
            assert value.startswith("#"), (tag, key, value)
        if key == "style":
            assert "url(" not in value.replace("url(#", "")
    sheet = re.search(r"<style>(.*?)</style>", html, re.S)
    assert sheet and "url(" not in sheet[1] and "@import" not in sheet[1]
    ids = [value for _, key, value in page.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    links = {value[1:] for _, key, value in page.attributes if key == "href"}
    assert links <= set(ids)
    assert page.tags.count("script") == 1
    digest = base64.b64encode(hashlib.sha256("".join(page.scripts).encode()).digest()).decode()
    policy = next(v for t, k, v in page.attributes if t == "meta" and k == "content" and "default-src" in v)
    assert f"'sha256-{digest}'" in policy and "default-src 'none'" in policy
    return page
