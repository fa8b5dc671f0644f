"""tables: every format preserves the values, and a query can access only the table of runs."""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from pathlib import Path

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supermask.core.errors import UserError
from supermask.core.text import Row, format_csv, format_json, format_table
from supermask.store.tables import COLUMNS, query, to_csv, to_json, to_parquet, treatment_labels

EXAMPLES: dict[str, st.SearchStrategy[int | float | str | bool]] = {
    "VARCHAR": st.text(st.characters(exclude_characters="\x00\r", exclude_categories=["Cs"]), max_size=8),
    "BOOLEAN": st.booleans(),
    "INTEGER": st.integers(-(2**31), 2**31 - 1),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "DOUBLE": st.floats(allow_nan=False, allow_infinity=False),
}
table = st.lists(
    st.fixed_dictionaries({name: st.none() | EXAMPLES[column.type] for name, column in COLUMNS.items()}), max_size=4
)


def run(number: int = 0, **facts: int | float | str | bool | None) -> Row:
    return {"id": f"r{number}", "level": number, "treatment": "random", "density": 0.8**number, **facts}


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(table)
def test_parquet_preserves_every_value_type_and_column(rows: list[Row]) -> None:
    columns, found = read_parquet(to_parquet(rows))
    assert columns == {name: column.type for name, column in COLUMNS.items()}
    assert list(columns) == list(COLUMNS)
    assert found == [tuple(row[name] for name in COLUMNS) for row in rows]


def read_parquet(content: bytes) -> tuple[dict[str, str], list[tuple[object, ...]]]:
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(":memory:") as connection:
        path = Path(folder) / "t.parquet"
        path.write_bytes(content)
        table = connection.read_parquet(str(path))
        types = [str(kind) for kind in table.types]
        return dict(zip(table.columns, types, strict=True)), table.fetchall()


def test_parquet_bytes_depend_on_the_rows_alone() -> None:
    rows = [run(level) for level in range(5)]
    assert to_parquet(rows) == to_parquet(rows)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(table)
def test_json_preserves_every_value(rows: list[Row]) -> None:
    assert json.loads(to_json(rows)) == rows


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(table)
def test_csv_preserves_every_value_as_text(rows: list[Row]) -> None:
    header, *lines = csv.reader(io.StringIO(to_csv(rows), newline=""))
    assert header == list(COLUMNS)
    for row, line in zip(rows, lines, strict=True):
        for name, text in zip(COLUMNS, line, strict=True):
            value = row[name]
            if isinstance(value, float):
                assert float(text) == value
            elif isinstance(value, bool):
                assert text == str(value).lower()
            else:
                assert text == (
                    "" if value is None else str(value) if isinstance(value, int) else safe_text(str(value))
                )


def safe_text(text: str) -> str:
    """Text of a CSV cell: control characters escaped, no formula."""
    shown = "".join(f"\\x{ord(c):02x}" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in text)
    return "'" + shown if shown and shown[0] in "=+-@" else shown


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x")'])
def test_text_that_a_spreadsheet_would_run_is_escaped_in_csv(text: str) -> None:
    (line,) = csv.DictReader(io.StringIO(to_csv([run(0, treatment=text, final_test_loss=-1.5)])))
    assert line["treatment"] == "'" + text and line["final_test_loss"] == "-1.5"
    assert list(csv.reader(io.StringIO(format_csv(["a", "b"], [[text, -2]])))) == [["a", "b"], ["'" + text, "-2"]]


@pytest.mark.parametrize("character", ["\x00", "\t", "\n", "\r", "\x1b", "\x7f", "\x9b"])
def test_no_control_character_is_written_raw(character: str) -> None:
    rows = [run(0, treatment=f"a{character}b")]
    texts = [to_csv(rows), to_json(rows), format_csv(["a"], [[f"a{character}b"]])]
    texts += [format_json(["a"], [[f"a{character}b"]]), format_table(["a"], [[f"a{character}b"]])]
    for text in texts:
        assert not [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160], text
        assert len(text.splitlines()) <= 3
    assert json.loads(to_json(rows))[0]["treatment"] == f"a{character}b"


def test_a_snapshot_column_takes_numbers_and_names() -> None:
    answer = query([run(0, w_final=500), run(1, w_final="end")], "SELECT w_final FROM runs ORDER BY level")
    assert answer.rows == [("500",), ("end",)]


def test_numbers_that_are_not_finite_are_null_in_every_format() -> None:
    rows = [run(0, final_validation_loss=math.nan), run(1, final_validation_loss=math.inf)]
    assert [row["final_validation_loss"] for row in json.loads(to_json(rows))] == [None, None]
    assert query(rows, "SELECT count(final_validation_loss) FROM runs").rows == [(0,)]
    assert [line["final_validation_loss"] for line in csv.DictReader(io.StringIO(to_csv(rows)))] == ["", ""]


def test_a_column_outside_the_contract_is_a_programming_error() -> None:
    with pytest.raises(AssertionError, match="colour"):
        query([run(colour="red")], "SELECT 1")


def test_every_column_has_a_meaning() -> None:
    assert all(len(column.meaning) > 5 and column.type in EXAMPLES for column in COLUMNS.values())


def test_a_run_may_serve_several_treatments() -> None:
    assert treatment_labels({"treatment": "large_final | large_final, rewind"}) == [
        "large_final",
        "large_final, rewind",
    ]


@pytest.mark.slow
def test_query_counts_ten_thousand_runs() -> None:
    rows = [run(number % 25, seed=number) for number in range(10_000)]
    answer = query(rows, "SELECT level, count(*) AS n, sum(seed) FROM runs GROUP BY level ORDER BY level LIMIT 1")
    assert answer.columns == ["level", "n", "sum(seed)"]
    assert answer.rows == [(0, 400, sum(range(0, 10_000, 25)))]


def test_no_runs_is_an_empty_table() -> None:
    assert query([], "SELECT count(*) FROM runs").rows == [(0,)]
    assert query([], "SELECT * FROM runs").columns == list(COLUMNS)
    assert to_json([]) == "[]\n"
    assert to_csv([]) == ",".join(COLUMNS) + "\n"


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("", "the query is empty"),
        (" ;\n", "the query is empty"),
        ("SELEC", "syntax error"),
        ("SELECT densty FROM runs", '"density"'),
        ("SELECT * FROM run", "runs"),
        ("SELECT ?", "parameters"),
    ],
)
def test_a_wrong_query_gets_one_line_from_duckdb(sql: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        query([run()], sql)
    assert "\n" not in str(raised.value)


UNREADABLE = "nobody reads this"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM '{folder}/secret.csv'",
        "SELECT * FROM read_csv('{folder}/secret.csv')",
        "SELECT * FROM read_text('{folder}/secret.csv')",
        "SELECT * FROM read_blob('{folder}/secret.csv')",
        "SELECT * FROM glob('{folder}/*')",
        "SELECT * FROM sniff_csv('{folder}/secret.csv')",
        "COPY runs TO '{folder}/written.csv'",
        "COPY runs FROM '{folder}/secret.csv'",
        "EXPORT DATABASE '{folder}/written'",
        "ATTACH '{folder}/written.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "SET temp_directory = '{folder}'",
        "SET python_enable_replacements = true",
        "PRAGMA enable_profiling",
        "CALL enable_logging('QueryLog', storage_path = '{folder}/written')",
        "SELECT 1; COPY runs TO '{folder}/written.csv'",
        "SELECT getenv('HOME')",
        "SELECT * FROM visible_to_python",
        "SELECT 1; DROP TABLE runs",
    ],
)
def test_a_query_cannot_touch_the_machine(sql: str, tmp_path: Path) -> None:
    visible_to_python = [1, 2, 3]
    (tmp_path / "secret.csv").write_text(f"word\n{UNREADABLE}\n")
    with pytest.raises(UserError) as raised:
        query([run()], sql.format(folder=tmp_path))
    assert UNREADABLE not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]
    assert visible_to_python


def test_a_query_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(UserError, match=r"the query has bytes that are not UTF-8, at character 9: write it again"):
        query([], "SELECT '\udcff'")


def test_a_query_does_not_change_the_rows() -> None:
    rows = [run(0), run(1)]
    query(rows, "SELECT 1; SELECT count(*) FROM runs")
    assert query(rows, "SELECT count(*) FROM runs").rows == [(2,)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1",
        "  -- a comment\nselect 1;",
        "WITH a AS (SELECT * FROM runs) SELECT count(*) FROM a",
        "FROM runs",
        "DESCRIBE runs",
        "SHOW TABLES",
        "SUMMARIZE runs",
        "EXPLAIN SELECT * FROM runs",
        "EXPLAIN ANALYZE SELECT * FROM runs",
        "EXPLAIN (FORMAT json) SELECT 1",
        "SELECT 1; SELECT 2",
    ],
)
def test_statements_that_read_are_accepted(sql: str) -> None:
    assert query([run()], sql).columns


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("DROP TABLE runs", "DROP"),
        ("INSERT INTO runs (id) VALUES ('x')", "INSERT"),
        ("UPDATE runs SET level = 1", "UPDATE"),
        ("DELETE FROM runs", "DELETE"),
        ("CREATE TABLE more AS SELECT 1", "CREATE"),
        ("ALTER TABLE runs ADD COLUMN x INT", "ALTER"),
        ("BEGIN", "TRANSACTION"),
        ("SET threads = 1", "SET"),
        ("PRAGMA show_tables", "PRAGMA"),
        ("CALL pragma_version()", "CALL"),
        ("SELECT 1; DROP TABLE runs", "DROP"),
        ("EXPLAIN ANALYZE DELETE FROM runs", "DELETE"),
        ("EXPLAIN DROP TABLE runs", "DROP"),
    ],
)
def test_a_statement_that_changes_something_is_refused(sql: str, kind: str) -> None:
    with pytest.raises(UserError, match=rf"{kind} is not allowed. Give SELECT, DESCRIBE, SHOW or EXPLAIN"):
        query([run()], sql)
