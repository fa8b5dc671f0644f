"""Parser of report pages: elements, texts and data blocks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "input", "br", "hr", "img"}


@dataclass
class Element:
    """An element with its children and all text inside it."""

    tag: str
    attributes: dict[str, str]
    inside: list[Element] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Text as displayed, with white space collapsed."""
        return " ".join("".join(self.parts).split())

    def all(self, tag: str) -> list[Element]:
        """Return all descendants with this tag in document order."""
        return [found for child in self.inside for found in ([child] if child.tag == tag else []) + child.all(tag)]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attributes})
        self.open[-1].inside.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> where {self.open[-1].tag} is open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.parts.append(data)


def read(html: str) -> Element:
    """Parse a page or fragment; fails if an element is not closed."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def blocks(page: Element) -> dict[str, Any]:
    """Return id, without `data-`, -> parsed JSON of every data block of a page."""
    scripts = [script for script in page.all("script") if script.attributes.get("type") == "application/json"]
    return {script.attributes["id"].removeprefix("data-"): json.loads("".join(script.parts)) for script in scripts}


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of a table: an independent inverse of `html.tables.pack_columns`."""
    columns: dict[str, list[Any]] = {}
    for name, packed in table["columns"].items():
        if "all" in packed:
            columns[name] = [packed["all"]] * table["rows"]
        elif "of" in packed:
            places = packed["at"] if "at" in packed else table["columns"][packed["as"]]["at"]
            columns[name] = [packed["of"][place] for place in places]
        elif "like" in packed:
            columns[name] = list(columns[packed["like"]])
            for row, value in zip(packed["rows"], packed["values"], strict=True):
                columns[name][row] = value
        else:
            columns[name] = packed["values"]
        assert len(columns[name]) == table["rows"]
    return [{name: values[row] for name, values in columns.items()} for row in range(table["rows"])]
