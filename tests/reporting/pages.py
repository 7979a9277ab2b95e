"""Reading a page as a browser and a screen reader would."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

VOID = {"meta", "link", "img", "br", "hr", "input"}
SVG_HREF = {"href", "xlink:href"}


class Page(HTMLParser):
    """A page's elements, each with its attributes, its text and those that it stands in."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(html)
        assert not self._open, f"left open: {[e['tag'] for e in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        within = [element["tag"] for element in self._open]
        element = {"tag": tag, "text": "", "within": within, **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        within = [element["tag"] for element in self._open]
        self.elements.append({"tag": tag, "text": "", "within": within, **dict(attrs)})

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()["tag"] == tag

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data

    def of(self, *tags: str) -> list[dict[str, Any]]:
        """The elements of these tags, in order."""
        return [element for element in self.elements if element["tag"] in tags]

    @property
    def titles(self) -> list[str]:
        return [element["text"] for element in self.of("h2")]


def check(html: str) -> Page:
    """Hold a page to what every report promises, and return it."""
    page = Page(html)
    assert len(html.encode()) < 5_000_000
    assert page.of("script", "iframe", "link", "object") == []
    # Nothing is fetched: every reference is to a place on the page or holds its data.
    for element in page.elements:
        for name in ("src", *SVG_HREF):
            assert re.match(r"#|data:", element.get(name) or "#"), element
        assert not any(name.startswith("on") for name in element)
    assert "url(http" not in html
    assert "@import" not in html
    ids = [element["id"] for element in page.elements if element.get("id")]
    assert len(ids) == len(set(ids))
    assert {e["href"][1:] for e in page.of("a")} <= set(ids)
    levels = [int(element["tag"][1]) for element in page.of("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for svg in page.of("svg"):
        assert svg["role"] == "img"
        assert svg["aria-labelledby"] in ids
    assert all(element["text"] for element in page.of("title", "figcaption", "caption", "h1", "h2"))
    assert all(element["alt"] for element in page.of("img"))
    assert len(page.of("caption")) == len(page.of("table"))
    for head in page.of("th"):
        assert head["scope"] == ("col" if "thead" in head["within"] else "row")
        assert head["text"].strip()
    assert page.of("html")[0]["lang"] == "en"
    return page
