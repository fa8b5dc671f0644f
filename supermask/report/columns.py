"""Rows as columns: 10,000 runs in a few hundred kilobytes of JSON, every number to its last digit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from supermask.tables import Row, Value

Packed = dict[str, Any]
"""One column, as one of: `all`: every row has this value; `of`, `at`: row i has of[at[i]]; `values`: a value a row;
`like`: as the column of this name. `report/templates/tables.js` reads it."""

REPEATED = 3
"""A column is written as places in a list of its values where each is there so many times, on average."""


def pack_columns(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Packed]:
    """Name -> column. Numbers that are not finite are null, as in every other format."""
    columns: dict[str, Packed] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name in names:
        values = [_clean(row.get(name)) for row in rows]
        # 1, 1.0 and true are equal to Python, and not to a reader.
        key = tuple((type(value), value) for value in values)
        packed = _packed(values)
        if "all" not in packed and key in seen:
            packed = {"like": seen[key]}
        seen.setdefault(key, name)
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


def _clean(value: Value) -> Value:
    return None if isinstance(value, float) and not math.isfinite(value) else value
