"""YAML text -> a tree of plain values, each of which knows where it was written.

YAML is read by its 1.2 core schema (`1e-3` is a number, `no` is a string) into text, numbers, booleans, null, lists and
maps, and nothing else: no tags, no objects. Aliases are allowed up to a bound on what they write out.

A map of a study file against its model: every fault told at the place where it was made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from supermask.core.errors import UserError, did_you_mean, quote, sanitize

MAX_DEPTH = 20
MAX_VALUES = 20_000
"""Values in a file once its aliases are written out."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """One value: a scalar, a list (as a tuple) or a map with text keys, and the place where it was written."""

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    location: str
    """`mystudy.yaml, line 7` or `override 'train.lr=1'`: what an error message begins with."""
    size: int = 1
    """Values in it as it was read, itself included."""


def to_python(node: Node) -> Any:
    """The values alone: scalars, lists, dicts."""
    if isinstance(node.value, dict):
        return {key: to_python(child) for key, child in node.value.items()}
    if isinstance(node.value, tuple):
        return [to_python(child) for child in node.value]
    return node.value


def from_python(data: Any, place: str) -> Node:
    """The tree of Python data (scalars, lists or tuples, mappings), all of it written at `place`.

    Raises UserError for a key that is not text. Any other object stays as it is, for the schema to refuse.
    """
    if isinstance(data, Mapping):
        for key in data:
            if not isinstance(key, str):
                raise UserError(f"{place}: the key {quote(key)} is not text, such as train or epochs.")
        return Node({key: from_python(child, place) for key, child in data.items()}, place)
    if isinstance(data, list | tuple):
        return Node(tuple(from_python(child, place) for child in data), place)
    return Node(data, place)


def locate(node: Node, path: Sequence[str | int]) -> str:
    """The place of the value at `path`, or of the nearest value above it that was written at all."""
    for part in path:
        child: Node | None = None
        if isinstance(node.value, dict):
            child = node.value.get(str(part))
        elif isinstance(node.value, tuple) and isinstance(part, int) and part < len(node.value):
            child = node.value[part]
        if child is None:
            break
        node = child
    return node.location


def describe_kind(node: Node) -> str:
    """`a map`, `a list`, or the scalar itself."""
    return "a map" if isinstance(node.value, dict) else "a list" if isinstance(node.value, tuple) else quote(node.value)


def parse_yaml(text: str, name: str, *, lines: bool = True) -> Node:
    """The tree of one YAML document; places are `name, line n`, or `name` alone where lines say nothing.

    Raises UserError: not YAML, several documents, a key twice in a map, keys that are not text, any tag, an alias to
    itself, nested deeper than 20, or more than 20,000 values once the aliases are written out.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    reader = _Reader(name, lines)
    try:
        for event in YAML(typ="safe", pure=True).parse(text):
            reader.handle(event)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        begun = f" ({error.context} of line {error.context_mark.line + 1})" if error.context_mark and lines else ""
        raise UserError(f"{reader.place(mark.line if mark else 0)}: not YAML: {error.problem}{begun}.") from None
    except YAMLError as error:
        character = getattr(error, "character", None)
        seen = f"the character U+{character:04X} is not allowed" if isinstance(character, int) else "unreadable"
        line = text.count("\n", 0, getattr(error, "position", 0))
        raise UserError(f"{reader.place(line)}: not YAML: {seen}.") from None
    return reader.root


class _Reader:
    """Builds the tree from YAML events, one at a time, so that nothing hostile is ever built in full."""

    def __init__(self, name: str, lines: bool) -> None:
        self.root = Node(None, name)
        self._name, self._lines = name, lines
        self._documents = 0
        self._open: list[_Collection] = []
        self._anchors: dict[str, Node] = {}
        self._sizes = 0

    def place(self, line: int) -> str:
        return f"{self._name}, line {line + 1}" if self._lines else self._name

    def handle(self, event: Any) -> None:
        """One event of ruamel.yaml's parser: opens or closes a collection, or adds a value. Raises UserError."""
        what, place = type(event).__name__, self.place(event.start_mark.line)
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{place}: the tag {quote(event.tag)} is not allowed: study files hold plain values only.")
        if what == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise UserError(f"{place}: a second document begins here; a study file is one.")
        elif what in ("MappingStartEvent", "SequenceStartEvent"):
            if len(self._open) == MAX_DEPTH:
                raise UserError(f"{place}: nested deeper than {MAX_DEPTH} levels; a study needs 4.")
            self._open.append(_Collection(what == "MappingStartEvent", event.anchor, place))
        elif what in ("MappingEndEvent", "SequenceEndEvent"):
            closed = self._open.pop()
            self._add(closed.node(), closed.anchor)
        elif what == "ScalarEvent":
            self._add(Node(_scalar(event.value) if event.implicit[0] else event.value, place), event.anchor)
        elif what == "AliasEvent":
            if event.anchor not in self._anchors:
                raise UserError(f"{place}: the alias *{sanitize(event.anchor)} stands before or inside its anchor.")
            self._add(replace(self._anchors[event.anchor], location=place), None)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if node.size > MAX_VALUES:
            raise UserError(f"{node.location}: more than {MAX_VALUES:,} values, aliases written out.")
        if self._open:
            self._open[-1].add(node)
        else:
            self.root = node


class _Collection:
    """A list or map that is being read."""

    def __init__(self, is_map: bool, anchor: str | None, place: str) -> None:
        self.anchor = anchor
        self._is_map, self._place = is_map, place
        self._size = 1
        self._items: list[Node] = []
        self._map: dict[str, Node] = {}
        self._key: Node | None = None

    def add(self, node: Node) -> None:
        self._size += node.size
        if self._size > MAX_VALUES:
            raise UserError(f"{node.location}: more than {MAX_VALUES:,} values, aliases written out.")
        if not self._is_map:
            self._items.append(node)
        elif self._key is None:
            if not isinstance(node.value, str):
                raise UserError(f"{node.location}: the key {describe_kind(node)} is not text, such as train or epochs.")
            if node.value in self._map:
                first = self._map[node.value].location
                raise UserError(f"{node.location}: the key {quote(node.value)} is given twice; first at {first}.")
            self._key = node
        else:
            self._map[str(self._key.value)] = replace(node, location=self._key.location)
            self._key = None

    def node(self) -> Node:
        return Node(self._map if self._is_map else tuple(self._items), self._place, self._size)


def _scalar(text: str) -> Scalar:
    """A plain scalar by YAML 1.2's core schema (chapter 10.3.2), without its octal and hexadecimal integers."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text[0] in "tT"
    if len(text) <= 40 and re.fullmatch(r"[-+]?[0-9]+", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text, re.ASCII):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        return float(text.replace(".", ""))
    return text


Keys = TypeVar("Keys", bound=BaseModel)


def validate(model: type[Keys], node: Node, at: str, errors: list[str], allowed: Sequence[str] = ()) -> Keys | None:
    """The model of a map, or None and its faults; `at` is the map's own path.

    `allowed`: the map's keys, where they are more than the model's.
    """
    try:
        return model.model_validate(to_python(node))
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            path = list(fault["loc"])
            place = locate(node, path)
            if fault["type"] == "extra_forbidden":
                errors.append(f"{place}: {unknown_key_message(model, path, at, allowed)}")
            elif fault["type"] == "missing":
                errors.append(f"{place}: {at} has no {path[-1]}; it needs one.")
            elif fault["type"] == "rule":
                errors.append(f"{place}: {_format_path(at, path)}: {fault['msg']}")
            else:
                errors.append(
                    f"{place}: {_format_path(at, path)}: {quote(fault['input'])} is not a map of keys and values."
                )
    return None


def _format_path(at: str, path: Sequence[str | int]) -> str:
    text = at
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def unknown_key_message(model: type[BaseModel], path: list[str | int], at: str, allowed: Sequence[str] = ()) -> str:
    """`path` ends in the unknown key; the maps above it are models."""
    outermost = model
    for part in path[:-1]:
        inner = model.model_fields[str(part)].annotation
        models = [each for each in (inner, *get_args(inner)) if isinstance(each, type) and issubclass(each, BaseModel)]
        model = models[0]
    known = [field.alias or name for name, field in model.model_fields.items()]
    if allowed and model is outermost:
        known = list(allowed)
    key = str(path[-1])
    near = did_you_mean(key, known) or "."
    return f"{_format_path(at, path[:-1]) or 'a study'} has no key {quote(key)}{near} Allowed: {', '.join(known)}."
