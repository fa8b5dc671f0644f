"""Reading a report's page as a browser would: its elements, its texts, its data."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "link", "input", "br", "hr", "img"}


@dataclass
class Element:
    """One element with the text that is directly or deeper in it."""

    tag: str
    attributes: dict[str, str]
    inside: list[Element] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """As it is shown, with white space as one space."""
        return " ".join("".join(self.parts).split())

    def all(self, tag: str) -> list[Element]:
        """Elements of this kind in it, in order."""
        return [each for child in self.inside for each in ([child] if child.tag == tag else []) + child.all(tag)]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attributes})
        self.open[-1].inside.append(made)
        if tag not in VOID:
            self.open.append(made)

    def handle_endtag(self, tag: str) -> None:
        assert self.open[-1].tag == tag, f"</{tag}> where {self.open[-1].tag} is open"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for each in self.open:
            each.parts.append(data)


def read(html: str) -> Element:
    """The tree of a page or fragment; every element is closed where it has to be."""
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == [reader.root]
    return reader.root


def blocks(page: Element) -> dict[str, Any]:
    """Id -> the data of every block of JSON in a page, without `data-`."""
    found = [each for each in page.all("script") if each.attributes.get("type") == "application/json"]
    return {each.attributes["id"].removeprefix("data-"): json.loads("".join(each.parts)) for each in found}


def rows_of(table: dict[str, Any]) -> list[dict[str, Any]]:
    """A table's data as rows: the inverse of `report.columns.pack_columns`, written again."""
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
