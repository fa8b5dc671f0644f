"""Search in a registry of tickets: a boolean expression over the columns of its index.

The expression is parsed by DuckDB and its syntax tree is checked against a list of what an expression may hold, before
it runs on a copy of the index in memory, confined as `supermask query` is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.core.text import Row
from supermask.export.tickets.registry import INDEX_COLUMNS, TICKETS, open_index
from supermask.store.tables import check_unicode, confine, one_line

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

MAX_LENGTH = 10_000
"""Characters of an expression."""

CLASSES = ("COMPARISON", "CONJUNCTION", "CONSTANT", "COLUMN_REF", "OPERATOR", "BETWEEN", "FUNCTION", "CASE")
"""Kinds of nodes in the syntax tree of an expression: no subquery, window, star, lambda, parameter or cast."""

OPERATORS = {"+", "-", "*", "/", "//", "%", "||", "~~", "!~~", "~~*", "!~~*", "~~~", "like_escape", "not_like_escape"}
"""Operators that the parser writes as functions; `~~` is LIKE."""

FUNCTIONS = (
    "abs",
    "ceil",
    "contains",
    "floor",
    "greatest",
    "least",
    "length",
    "lower",
    "round",
    "starts_with",
    "upper",
)


def find_rows(folder: Path, where: str | None = None) -> list[Row]:
    """Return the rows of `select_tickets` as dicts."""
    return [dict(zip(INDEX_COLUMNS, row, strict=True)) for row in select_tickets(folder, where).fetchall()]


def select_tickets(folder: Path, where: str | None = None) -> DuckDBPyRelation:
    """Return the rows of the index for which an expression is true, the most accurate first; None: all rows.

    `file` is the path of the ticket, made from the run's id. Raises UserError for an expression that is not one, or not
    boolean.
    """
    import duckdb

    check_unicode(where or "", "the expression")
    check_unicode(str(folder), "the folder's path")
    connection = open_index(folder)
    confine(connection)
    path = "? || substr(id, 1, 2) || '/' || id || '.safetensors'"
    condition = "true" if where is None else f"(\n{where}\n)"
    if where is not None:
        check_expression(connection, where)
    try:
        # As a table: an expression that fails on some row fails here, and not when the relation is read.
        connection.execute(
            f"CREATE TABLE found AS SELECT * REPLACE ({path} AS file) FROM runs WHERE {condition} "  # noqa: S608 (checked)
            "ORDER BY accuracy DESC NULLS LAST, id",
            [f"{folder / TICKETS}{os.sep}"],
        )
    except (duckdb.Error, RuntimeError, ValueError) as error:
        raise UserError(f"the expression cannot be evaluated: {one_line(error)}") from error
    return connection.table("found")


def check_expression(connection: DuckDBPyConnection, where: str) -> None:
    """Raise UserError unless text is one boolean expression over the columns of the table `runs`."""
    import duckdb

    if not where.strip():
        raise UserError("the expression is empty: give one such as \"criterion = 'large_final' and density < 0.05\".")
    if len(where) > MAX_LENGTH:
        raise UserError(f"the expression has {len(where):,} characters: give at most {MAX_LENGTH:,}.")
    try:
        statement, expected = _parse(connection, where), _parse(connection, "true")
        expression = statement.pop("where_clause", None)
        expected.pop("where_clause")
        # Text such as `true) UNION SELECT (1` is not one expression: more than the condition differs.
        if expression is None or _without_places(statement) != _without_places(expected):
            raise UserError(f"{_shorten(where)} is not one expression: {_HINT}")
        for node in _nodes(expression):
            _check_node(node)
        kind = connection.execute(f"DESCRIBE SELECT (\n{where}\n) FROM runs").fetchall()[0][1]  # noqa: S608 (checked)
    except (duckdb.Error, RuntimeError, ValueError, RecursionError) as error:
        raise UserError(f"{_shorten(where)} is not an expression: {one_line(error)}") from error
    if kind != "BOOLEAN":
        raise UserError(f"{_shorten(where)} is neither true nor false, but a value ({kind}): compare it with another.")


_HINT = "only a condition over the columns is accepted, no statement."


def _parse(connection: DuckDBPyConnection, condition: str) -> dict[str, Any]:
    """Return the syntax tree of the statement that selects by a condition. Raises ValueError."""
    # On lines of its own: a comment ends with its line.
    text = f"SELECT 1 FROM runs WHERE (\n{condition}\n)"  # noqa: S608 (parsed, not executed)
    answer = connection.execute("SELECT json_serialize_sql(?)", [text]).fetchall()[0][0]
    document = json.loads(answer)
    if document.get("error"):
        raise ValueError(str(document.get("error_message", "it cannot be parsed")))
    statements = document["statements"]
    if len(statements) != 1:
        raise ValueError(_HINT)
    return dict(statements[0]["node"])


def _nodes(value: object) -> Iterator[dict[str, Any]]:
    """Yield every node of a syntax tree: every JSON object with a class."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if "class" in part:
                yield part
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _check_node(node: dict[str, Any]) -> None:
    kind = str(node["class"])
    if kind not in CLASSES:
        raise UserError(f"an expression holds no {kind.lower().replace('_', ' ')}: {_HINT}")
    if kind == "COLUMN_REF":
        names = [str(name) for name in node["column_names"]]
        if len(names) != 1 or names[0].lower() not in INDEX_COLUMNS:
            near = did_you_mean(names[-1], INDEX_COLUMNS) or "."
            raise UserError(
                f"{quote('.'.join(names))} is not a column{near} Text needs single quotes, such as 'large_final'. "
                f"Columns: {', '.join(INDEX_COLUMNS)}."
            )
    elif kind == "FUNCTION":
        name = str(node["function_name"])
        is_plain = not node.get("schema") and not node.get("catalog") and node.get("filter") is None
        if not is_plain or (name not in OPERATORS and name.lower() not in FUNCTIONS):
            raise UserError(f"{quote(name)} is not a function of an expression. Allowed: {', '.join(FUNCTIONS)}, LIKE.")


def _without_places(value: Any) -> Any:
    """Return a syntax tree without positions in the text."""
    if isinstance(value, dict):
        return {k: _without_places(v) for k, v in value.items() if not k.startswith("query_location")}
    return [_without_places(item) for item in value] if isinstance(value, list) else value


def _shorten(text: str) -> str:
    return quote(sanitize(" ".join(text.split())))
