"""Tables and numbers as text."""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supermask.core.errors import UserError
from supermask.core.text import (
    format_csv,
    format_json,
    format_number,
    format_p,
    format_p_cell,
    format_range,
    format_table,
    pluralize,
)

CELLS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=12)
TABLES = st.integers(1, 4).flatmap(lambda n: st.lists(st.tuples(*[CELLS] * n), max_size=5))


def test_numbers_are_right_aligned() -> None:
    rows = [("large_final", 25, 0.95437123, None), ("random", 5, 12.5, "8.27%")]
    assert format_table(["treatment", "n", "accuracy", "remaining"], rows).splitlines() == [
        "treatment     n  accuracy  remaining",
        "-----------  --  --------  ---------",
        "large_final  25  0.954371       NULL",
        "random        5      12.5      8.27%",
    ]


def test_markup_is_literal_control_characters_are_replaced_and_nothing_is_cut() -> None:
    long = "[bold]" + "x" * 300 + "[/bold]<script>"
    text = format_table(["name"], [(long,), ("two\nlines\x1b[31m",)])
    assert long in text
    assert "two?lines?[31m" in text
    assert text.count("\n") == 4


def test_wide_characters_take_two_columns() -> None:
    assert format_table(["name", "n"], [("稀疏", 1), ("abcd", 22)]).splitlines()[2:] == ["稀疏   1", "abcd  22"]


def test_no_rows() -> None:
    assert format_table(["a", "bb"], []) == "a  bb\n-  --\n"
    assert format_csv(["a", "bb"], []) == "a,bb\n"
    assert format_json(["a", "bb"], []) == "[]\n"


@pytest.mark.slow
@given(TABLES)
def test_table_has_one_line_per_row(rows: list[tuple[object, ...]]) -> None:
    heads = [f"column {i}" for i in range(len(rows[0]) if rows else 2)]
    assert format_table(heads, rows).count("\n") == len(rows) + 2


@given(TABLES)
def test_csv_and_json_read_back(rows: list[tuple[object, ...]]) -> None:
    heads = [f"column {i}" for i in range(len(rows[0]) if rows else 2)]
    infinite = (float("inf"), -float("inf"))
    finite = [[None if isinstance(cell, float) and cell in infinite else cell for cell in row] for row in rows]
    assert [list(map(item.get, heads)) for item in json.loads(format_json(heads, rows))] == finite
    read = list(csv.reader(io.StringIO(format_csv(heads, rows), newline="")))
    assert read[0] == heads
    for row, cells in zip(rows, read[1:], strict=True):
        for value, cell in zip(row, cells, strict=True):
            if isinstance(value, float):
                assert float(cell) == value
            elif isinstance(value, str):
                text = re.sub("[\x00-\x1f\x7f-\x9f]", lambda match: f"\\x{ord(match[0]):02x}", value)
                assert cell == ("'" + text if text[:1] in ("=", "+", "-", "@") and text else text)
            else:
                assert cell == ("" if value is None else str(value).lower() if isinstance(value, bool) else str(value))


def test_json_of_values_without_a_json_type() -> None:
    row = (float("nan"), Decimal("1.5"), [float("inf"), 2], {3: b"x"})
    assert json.loads(format_json(list("abcd"), [row])) == [{"a": None, "b": 1.5, "c": [None, 2], "d": {"3": "b'x'"}}]


def test_json_refuses_duplicate_column_names() -> None:
    with pytest.raises(UserError, match="two columns are named 'a'"):
        format_json(["a", "b", "a"], [(1, 2, 3)])


def test_numbers_in_sentences() -> None:
    assert [format_number(x) for x in (1234.5, -0.314, -0.001)] == ["1,234.50", "−0.31", "0.00"]
    assert [format_number(x, 1, signed=True) for x in (2.26, -2.26, 0.04)] == ["+2.3", "−2.3", "0.0"]
    assert [format_p(p) for p in (0.0004, 0.021, 0.0496, 0.05, 1.0)] == [
        "p < 0.001",
        "p = 0.021",
        "p = 0.049",
        "p = 0.05",
        "p = 1",
    ]
    assert [format_p_cell(p) for p in (0.0004, 0.021, 0.0496, 0.05, 0.0994, 0.335, 1.0)] == [
        "< 0.001",
        "0.021",
        "0.049",
        "0.050",
        "0.099",
        "0.34",
        "1.00",
    ]
    assert [format_range(counts) for counts in ([], [5], [5, 5], [5, 3, 4])] == ["0", "5", "5", "3 to 5"]
    assert [pluralize(1, "run"), pluralize(1205, "run"), pluralize(2, "study", "studies")] == [
        "1 run",
        "1,205 runs",
        "2 studies",
    ]
