"""Rows as columns: 10,000 runs in a few hundred kilobytes of JSON, every number to its last digit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from supermask.tables import Row, Value

Packed = dict[str, Any]
"""One column, as one of

- `all`: every row has this value;
- `of`, `at`: row i has of[at[i]];
- `of`, `as`: the same, at the places of the column of this name;
- `values`: a value a row;
- `like`, `rows`, `values`: as the column of this name, but for these rows, which have these values.

`report/templates/tables.js` reads it.
"""

REPEATED = 3
"""A column is written as places in a list of its values where each is there so many times, on average."""

ALIKE = 0.7
"""Share of rows at which a column is written as another one with exceptions. What is not trained, for one, ends as it
starts."""


def pack_columns(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Packed]:
    """Name -> column. Numbers that are not finite are null, as in every other format."""
    columns: dict[str, Packed] = {}
    written: dict[str, list[Value]] = {}
    placed: dict[tuple[int, ...], str] = {}
    for name in names:
        values = [_clean(row.get(name)) for row in rows]
        packed = _packed(values)
        if "all" not in packed:
            other = next((other for other, theirs in written.items() if _alike(values, theirs)), None)
            if other is None:
                written[name] = values
            else:
                packed = _like(other, values, written[other])
        if "at" in packed and (same := placed.setdefault(tuple(packed["at"]), name)) != name:
            packed = {"of": packed["of"], "as": same}
        columns[name] = packed
    return columns


def _packed(values: Sequence[Value]) -> Packed:
    places: dict[tuple[type, Value], int] = {}
    at = [places.setdefault((type(value), value), len(places)) for value in values]
    distinct = [value for _, value in places]
    if len(distinct) == 1:
        return {"all": distinct[0]}
    if len(distinct) * REPEATED <= len(values):
        return {"of": distinct, "at": at}
    return {"values": list(values)}


def _alike(ours: Sequence[Value], theirs: Sequence[Value]) -> bool:
    """Some rows tell nearly always that two columns are not; only then all are looked at."""
    for step in (max(1, len(ours) // 64), 1):
        pairs = list(zip(ours[::step], theirs[::step], strict=True))
        if sum(_same(a, b) for a, b in pairs) < ALIKE * len(pairs):
            return False
    return True


def _like(name: str, ours: Sequence[Value], theirs: Sequence[Value]) -> Packed:
    apart = [row for row, pair in enumerate(zip(ours, theirs, strict=True)) if not _same(*pair)]
    return {"like": name, "rows": apart, "values": [ours[row] for row in apart]}


def _same(one: Value, other: Value) -> bool:
    """1, 1.0 and true are equal to Python, and not to a reader."""
    return type(one) is type(other) and one == other


def _clean(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
