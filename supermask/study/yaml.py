"""YAML -> a tree of plain values with their locations, and its validation against the models of the schema.

YAML is read by its 1.2 core schema (`1e-3` is a number, `no` is a string) into text, numbers, booleans, null, lists and
maps; tags and objects are refused. Aliases are allowed as long as their expansion stays below `MAX_VALUES`.
The tree is built from parser events, because nesting and expansion must be bounded before anything is built in full.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.study.cell_code import import_path

MAX_DEPTH = 20
MAX_VALUES = 20_000
"""Values in a file after its aliases are expanded."""

MAX_TAG_LENGTH = 200

MAX_ERRORS = 50
"""Errors after which validation stops. Each may take 1 ms to find the key that was probably meant."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Node:
    """One value: a scalar, a list (as a tuple) or a map with text keys, and its location."""

    value: Scalar | tuple[Node, ...] | dict[str, Node]
    location: str
    """`mystudy.yaml, line 7` or `override 'train.lr=1'`: the start of an error message."""
    size: int = 1
    """Number of values in it as it was read, itself included."""


def to_python(node: Node) -> Any:
    """Return the values without locations: scalars, lists, dicts."""
    if isinstance(node.value, dict):
        return {key: to_python(child) for key, child in node.value.items()}
    if isinstance(node.value, tuple):
        return [to_python(child) for child in node.value]
    return node.value


def from_python(data: Any, location: str) -> Node:
    """Return the tree of Python data (scalars, lists or tuples, mappings), every value with the same location.

    A function that is given as `criterion` becomes its import path (`cell_code`). Raises UserError for a key that is
    not text. Other objects are kept; the schema refuses them.
    """
    if isinstance(data, Mapping):
        for key in data:
            if not isinstance(key, str):
                raise UserError(f"{location}: the key {quote(key)} is not text, such as train or epochs.")
        named = {key: _name_functions(child) if key == "criterion" else child for key, child in data.items()}
        return Node({key: from_python(child, location) for key, child in named.items()}, location)
    if isinstance(data, list | tuple):
        return Node(tuple(from_python(child, location) for child in data), location)
    return Node(data, location)


def _name_functions(data: Any) -> Any:
    """Replace functions by their import paths, in a value or in a list of them. Raises UserError."""
    if isinstance(data, list | tuple):
        return [_name_functions(item) for item in data]
    return import_path(data) if callable(data) else data


def locate(node: Node, path: Sequence[str | int]) -> str:
    """Return the location of the value at `path`, or of the nearest value above it that was written."""
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
    """Return `a map`, `a list`, or the quoted scalar."""
    return "a map" if isinstance(node.value, dict) else "a list" if isinstance(node.value, tuple) else quote(node.value)


def parse_yaml(text: str, name: str, *, lines: bool = True) -> Node:
    """Return the tree of one YAML document; locations are `name, line n`, or `name` alone without `lines`.

    Raises UserError: not YAML, several documents, a key twice in a map, keys that are not text, any tag, an alias to
    itself, nesting deeper than `MAX_DEPTH`, or more than `MAX_VALUES` values after the aliases are expanded.
    """
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    builder = _TreeBuilder(name, lines)
    try:
        for event in _create_parser().parse(text):
            builder.handle(event)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        context = f" ({error.context} of line {error.context_mark.line + 1})" if error.context_mark and lines else ""
        raise UserError(f"{builder.location(mark.line if mark else 0)}: not YAML: {error.problem}{context}.") from None
    except YAMLError as error:
        character = getattr(error, "character", None)
        problem = f"the character U+{character:04X} is not allowed" if isinstance(character, int) else "unreadable"
        line = text.count("\n", 0, getattr(error, "position", 0))
        raise UserError(f"{builder.location(line)}: not YAML: {problem}.") from None
    except ValueError:  # From int(): a version of thousands of digits in a %YAML line.
        raise UserError(f"{builder.location(0)}: not YAML: unreadable numbers in the first lines.") from None
    return builder.root


def _create_parser() -> Any:
    """Return ruamel's pure-Python YAML with a scanner that refuses long tags; it scans them in quadratic time."""
    from ruamel.yaml import YAML
    from ruamel.yaml.scanner import Scanner, ScannerError

    class BoundedScanner(Scanner):
        def scan_tag(self) -> Any:
            prefix = self.reader.prefix(MAX_TAG_LENGTH)
            if not set(prefix) & set("\0 \t\r\n\x85\u2028\u2029"):
                problem = f"a tag of more than {MAX_TAG_LENGTH} characters, and study files hold plain values only"
                raise ScannerError(problem=problem, problem_mark=self.reader.get_mark())
            return super().scan_tag()

    parser = YAML(typ="safe", pure=True)
    parser.Scanner = BoundedScanner
    return parser


class _TreeBuilder:
    """Builds the tree from parser events one by one; a hostile document is refused before it is built in full."""

    def __init__(self, name: str, lines: bool) -> None:
        self.root = Node(None, name)
        self._name, self._lines = name, lines
        self._documents = 0
        self._open: list[_Collection] = []
        self._anchors: dict[str, Node] = {}

    def location(self, line: int) -> str:
        return f"{self._name}, line {line + 1}" if self._lines else self._name

    def handle(self, event: Any) -> None:
        """Process one event of ruamel.yaml's parser: open or close a collection, or add a value. Raises UserError."""
        kind, location = type(event).__name__, self.location(event.start_mark.line)
        if getattr(event, "tag", None) is not None:
            raise UserError(
                f"{location}: the tag {quote(event.tag)} is not allowed: study files hold plain values only."
            )
        if kind == "DocumentStartEvent":
            self._documents += 1
            if self._documents > 1:
                raise UserError(f"{location}: a second document begins here; a study file is one.")
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            if len(self._open) == MAX_DEPTH:
                raise UserError(f"{location}: nested deeper than {MAX_DEPTH} levels; a study needs 4.")
            self._open.append(_Collection(kind == "MappingStartEvent", event.anchor, location))
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            closed = self._open.pop()
            self._add(closed.node(), closed.anchor)
        elif kind == "ScalarEvent":
            self._add(Node(_scalar(event.value) if event.implicit[0] else event.value, location), event.anchor)
        elif kind == "AliasEvent":
            if event.anchor not in self._anchors:
                raise UserError(f"{location}: the alias *{sanitize(event.anchor)} stands before or inside its anchor.")
            self._add(replace(self._anchors[event.anchor], location=location), None)

    def _add(self, node: Node, anchor: str | None) -> None:
        if anchor is not None:
            self._anchors[anchor] = node
        if node.size > MAX_VALUES:
            raise UserError(f"{node.location}: more than {MAX_VALUES:,} values, aliases expanded.")
        if self._open:
            self._open[-1].add(node)
        else:
            self.root = node


class _Collection:
    """A list or map that is not yet closed."""

    def __init__(self, is_map: bool, anchor: str | None, location: str) -> None:
        self.anchor = anchor
        self._is_map, self._location = is_map, location
        self._size = 1
        self._items: list[Node] = []
        self._map: dict[str, Node] = {}
        self._key: Node | None = None

    def add(self, node: Node) -> None:
        self._size += node.size
        if self._size > MAX_VALUES:
            raise UserError(f"{node.location}: more than {MAX_VALUES:,} values, aliases expanded.")
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
        return Node(self._map if self._is_map else tuple(self._items), self._location, self._size)


def _scalar(text: str) -> Scalar:
    """Return a plain scalar by YAML 1.2's core schema (chapter 10.3.2), without octal and hexadecimal integers."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return text[0] in "tT"
    # Python's int() takes quadratic time in the number of digits.
    if len(text) <= 40 and re.fullmatch(r"[-+]?[0-9]+", text, re.ASCII):
        return int(text)
    if re.fullmatch(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", text, re.ASCII):
        return float(text)
    if re.fullmatch(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", text):
        return float(text.replace(".", ""))
    return text


Model = TypeVar("Model", bound=BaseModel)


def validate(model: type[Model], node: Node, path: str, errors: list[str], allowed: Sequence[str] = ()) -> Model | None:
    """Return the model of the map at `path`, or None and append its errors.

    `allowed` lists the keys of the map if they are more than the model's. Raises UserError if there are more than
    `MAX_ERRORS` errors.
    """
    try:
        return model.model_validate(to_python(node))
    except ValidationError as validation:
        for error in validation.errors(include_url=False):
            if len(errors) >= MAX_ERRORS:
                raise UserError(
                    "\n".join([*dict.fromkeys(errors), "There are more errors; mend these first."])
                ) from None
            inner_path = list(error["loc"])
            location = locate(node, inner_path)
            if error["type"] == "extra_forbidden":
                errors.append(f"{location}: {unknown_key_message(model, inner_path, path, allowed)}")
            elif error["type"] == "missing":
                errors.append(f"{location}: {path} has no {inner_path[-1]}; it needs one.")
            elif error["type"] == "rule":
                errors.append(f"{location}: {_format_path(path, inner_path)}: {error['msg']}")
            elif error["type"] == "split_name":
                *parents, first = inner_path
                key, name = _format_path(path, parents), sanitize(f"{first}.{error['msg']}")
                errors.append(
                    f"{location}: {_format_path(path, inner_path)} has a map, not a number; a name with dots is one "
                    f"key: write '{key}={{{name}}}'."
                )
            else:
                # All rules have messages of their own, so what is left is a value in place of a map.
                value = quote(error["input"])
                errors.append(f"{location}: {_format_path(path, inner_path)}: {value} is not a map of keys and values.")
    return None


def _format_path(prefix: str, path: Sequence[str | int]) -> str:
    """Return `train.lr` or `treatments[0].mask0`."""
    text = prefix
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def unknown_key_message(
    model: type[BaseModel], path: Sequence[str | int], prefix: str, allowed: Sequence[str] = ()
) -> str:
    """Return the error for the unknown key at the end of `path`, which runs through the fields of `model`."""
    outermost = model
    for part in path[:-1]:
        model = _submodel(model, str(part)) or model
    known = list(allowed) if allowed and model is outermost else list(_keys(model))
    key = str(path[-1])
    near = _elsewhere(outermost, key, known) or did_you_mean(key, known) or _nearest_nested(outermost, key) or "."
    owner = _format_path(prefix, path[:-1]) or "a study"
    return f"{owner} has no key {quote(key)}{near} Allowed: {', '.join(known)}."


def nested_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the keys of a model and of the models in it, dotted, such as `train.lr`."""
    for name, key in _keys(model).items():
        yield prefix + name
        if (inner := _submodel(model, key)) is not None:
            yield from nested_keys(inner, f"{prefix}{name}.")


def nearest_nested_key(model: type[BaseModel], key: str) -> str | None:
    """Return the dotted key that is probably meant by `key`, or None.

    An alias of the model (`key_aliases`) or the equal last part of a nested key wins over similar ones; of equal ones
    the first, in the order of the fields: `train.lr` before `learn.lr`.
    """
    aliases: Mapping[str, str] = getattr(model, "key_aliases", {})
    if key in aliases:
        return aliases[key]
    by_last_part: dict[str, str] = {}
    for dotted in nested_keys(model):
        by_last_part.setdefault(dotted.rpartition(".")[2], dotted)
    if key in by_last_part:
        return by_last_part[key]
    similar = difflib.get_close_matches(key, by_last_part, n=1, cutoff=0.7)
    return by_last_part[similar[0]] if similar else None


def _elsewhere(model: type[BaseModel], key: str, known: Sequence[str]) -> str:
    """Return the hint for an alias, or for a key that exists at another place of the model."""
    last_parts = {dotted.rpartition(".")[2] for dotted in nested_keys(model)} | set(getattr(model, "key_aliases", {}))
    return _nearest_nested(model, key) if key in last_parts and key not in known else ""


def _nearest_nested(model: type[BaseModel], key: str) -> str:
    nearest = nearest_nested_key(model, key)
    return "" if nearest is None else f"; did you mean {nearest!r}?"


def _keys(model: type[BaseModel]) -> dict[str, str]:
    """Return key in a study file -> name of the field."""
    return {field.alias or name: name for name, field in model.model_fields.items()}


def _submodel(model: type[BaseModel], field: str) -> type[BaseModel] | None:
    """Return the model that is the type of a field, or None."""
    annotation = model.model_fields[field].annotation
    types = (annotation, *get_args(annotation))
    return next((t for t in types if isinstance(t, type) and issubclass(t, BaseModel)), None)
