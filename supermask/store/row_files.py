"""Tables of runs as Parquet files: read, checked, and laid over the plan of a study.

A table holds what a store holds of a run, except its tensors; so conclusions can be published and checked without the
store. The id of a run is a hash of its settings, so a row is taken for what its id says, and not for its labels.
"""

from __future__ import annotations

import io
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from supermask.core.environment import expand_path
from supermask.core.errors import SystemFailure, UserError, quote, sanitize
from supermask.core.text import Row, escape_controls, pluralize
from supermask.store.rows import BLOCKED_STATUS, STATUSES, plan_rows
from supermask.store.tables import COLUMNS, NOTE_KEY, to_parquet
from supermask.study.plan import Plan
from supermask.study.plan_inputs import PlanInputs

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MAX_BYTES = 256 * 2**20
MAX_ROWS = 1_000_000

REQUIRED = (
    "id",
    "study",
    "network",
    "dataset",
    "seed",
    "level",
    "treatment",
    "status",
    "density",
    "iterations",
    "early_stop_iteration",
    "early_stop_validation_accuracy",
    "early_stop_test_accuracy",
    "final_test_accuracy",
    "data_fingerprint",
)
"""Columns without which there is no conclusion. Others of `COLUMNS` may be missing; further ones are ignored."""

_IDENTITY = ("network", "dataset", "seed", "level", "iterations")
"""Columns that the id of a run determines."""

_LABELS = ("study", "treatment", "schedule")
"""Columns that the study determines, not the run."""

_WRITE_HINT = "Write one with `supermask table STUDY --format parquet > FILE.parquet`."

_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
_ACCEPTED = {
    "VARCHAR": {"VARCHAR"},
    "BOOLEAN": {"BOOLEAN"},
    "INTEGER": _INTEGERS,
    "BIGINT": _INTEGERS,
    "DOUBLE": {*_INTEGERS, "FLOAT", "DOUBLE"},
}
"""Type in `COLUMNS` -> types in a file that are read as it."""


_MAGIC = b"PAR1"
"""First bytes of a Parquet file."""


def is_parquet(path: str | Path) -> bool:
    """Return True for a Parquet file, by its first bytes or the suffix of its name, whatever its case."""
    path = expand_path(path)
    if path.suffix.lower() == ".parquet":
        return True
    try:
        # Nothing is taken from a pipe, which can be read once.
        with path.open("rb") if path.is_file() else io.BytesIO() as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def plan_to_parquet(plan: Plan, rows: Sequence[Row]) -> bytes:
    """Return the table of a study's runs as a Parquet file, as `read_row_files` reads it.

    Inputs that are not published (own data, user code) are recorded in its metadata: without them the plan, and so the
    id of each run, could not be computed where data and code are not at hand. Raises SystemFailure.
    """
    inputs = plan.inputs.to_data()
    note = json.dumps({"study": plan.study.name, "inputs": inputs}, sort_keys=True) if inputs else ""
    return to_parquet(rows, note=note)


def read_plan_inputs(paths: Sequence[Path], study: str) -> list[PlanInputs]:
    """Return the inputs of a study that these tables record, each once; what is not of their form is ignored.

    Raises as `read_row_files` does.
    """
    recorded: dict[str, PlanInputs] = {}
    for path in paths:
        with _open_copy(path) as (connection, copy):
            sql = "SELECT value FROM parquet_kv_metadata(?) WHERE decode(key) = ?"
            for (value,) in connection.execute(sql, [str(copy), NOTE_KEY]).fetchall():
                note = _parse_note(value)
                if note.get("study") == study:
                    inputs = PlanInputs.from_data(note.get("inputs"))
                    recorded[json.dumps(inputs.to_data(), sort_keys=True)] = inputs
    return list(recorded.values())


def _parse_note(value: bytes) -> dict[str, object]:
    try:
        note = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    return note if isinstance(note, dict) else {}


def read_row_files(paths: Sequence[Path]) -> list[Row]:
    """Return the rows of several tables; a run that several of them have counts once per study.

    A finished row wins over one that is to do. Raises UserError, with one message, for a file that is not a table of
    runs, for values that no run can have, and for two different results of one run.
    """
    merged: dict[tuple[str, str], tuple[Row, Path]] = {}
    for path in paths:
        for row in _read_file(path):
            key = str(row["study"]), str(row["id"])
            known, known_path = merged.get(key, (None, path))
            if known is None or known["status"] == "to_do":
                merged[key] = row, path
            elif row["status"] != "to_do" and _result(row) != _result(known):
                names = f"{escape_controls(str(path))} and {escape_controls(str(known_path))}"
                raise UserError(
                    f"{names} have different results of run {row['id']} of study {quote(str(row['study']))}: give the "
                    "files of one store."
                )
    return [row for row, _ in merged.values()]


def _result(row: Row) -> tuple[object, ...]:
    # Seconds and labels differ between tables of the same run.
    return tuple(row.get(name) for name in ("status", "early_stop_test_accuracy", "final_test_accuracy", "environment"))


def rows_on_plan(plan: Plan, table_rows: Mapping[str, Row]) -> list[Row]:
    """Return a row per run of the plan: the table's (by id) under the study's labels, or one that is to do.

    Raises UserError if a row says something else than its id.
    """
    planned, _ = plan_rows(plan, None)
    rows: list[Row] = []
    # Plans list parents before children.
    blocked: dict[object, str] = {}
    """Id of a run that did not finish -> status of its descendants."""
    for row in planned:
        result = table_rows.get(str(row["id"]))
        if result is None:
            row = {**row, "status": blocked.get(row["parent"], "to_do")}
        else:
            _check_identity(row, result)
            kept = {name: value for name, value in result.items() if value is not None and name not in _LABELS}
            row = {**row, **kept}
        if (status := str(row["status"])) in BLOCKED_STATUS:
            blocked[row["id"]] = BLOCKED_STATUS[status]
        rows.append(row)
    return rows


def _check_identity(planned: Row, row: Row) -> None:
    for name in _IDENTITY:
        if row[name] != planned[name]:
            raise UserError(
                f"run {row['id']} has {name} {quote(row[name])} in the table, and {quote(planned[name])} by its id: "
                "the table was changed. Write it again from the store."
            )
    density, computed = row["density"], planned.get("density")
    is_finished = row["status"] == "finished" and isinstance(density, float)
    if is_finished and isinstance(computed, float) and not math.isclose(float(density or 0), computed, rel_tol=1e-6):
        raise UserError(
            f"run {row['id']} has density {density} in the table, and {computed} by its id: the table was changed. "
            "Write it again from the store."
        )


def _read_file(path: Path) -> list[Row]:
    """Return the rows of one file with the columns of `COLUMNS`."""
    name = escape_controls(str(path))
    with _open_copy(path) as (connection, copy):
        rows = _query(connection, copy, name)
    for number, row in enumerate(rows, start=1):
        if fault := _find_fault(row):
            raise UserError(f"{name}, row {number}: {fault}. Write the table again from the store. {_WRITE_HINT}")
    return rows


@contextmanager
def _open_copy(path: Path) -> Iterator[tuple[DuckDBPyConnection, Path]]:
    """Yield a connection and a copy of a Parquet file. Raises UserError if it cannot be read or is damaged."""
    import duckdb

    name, path = escape_controls(str(path)), expand_path(path)
    if path.is_dir():
        raise UserError(f"{name} is a folder: give Parquet files. {_WRITE_HINT}")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{name} has more than {MAX_BYTES // 2**20} MB; a table of runs has about 100 bytes a run.")
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"there is no file {name}. {_WRITE_HINT}") from None
    except OSError as error:
        raise SystemFailure(f"{name} cannot be read: {error.strerror or error}") from error
    if not content.startswith(_MAGIC):
        raise UserError(f"{name} is not a Parquet file. {_WRITE_HINT}")
    # A copy under a plain name: DuckDB takes *, ? and [ in a path for patterns.
    with tempfile.TemporaryDirectory() as folder, duckdb.connect(":memory:") as connection:
        copy = Path(folder) / "rows.parquet"
        copy.write_bytes(content)
        try:
            yield connection, copy
        except (duckdb.Error, UnicodeDecodeError) as error:
            detail = sanitize(" ".join(str(error).replace(str(copy), "the file").split())).rstrip(".")
            raise UserError(f"{name} is damaged, or not a Parquet file: {detail}. {_WRITE_HINT}") from error


def _query(connection: DuckDBPyConnection, copy: Path, name: str) -> list[Row]:
    # DuckDB would otherwise fetch an extension from the network when a file asks for one.
    connection.execute("SET autoinstall_known_extensions = false")
    described = connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [str(copy)]).fetchall()
    types = {str(column): str(kind) for column, kind, *_ in described}
    if missing := [column for column in REQUIRED if column not in types]:
        raise UserError(
            f"{name} is not a table of runs: it lacks {pluralize(len(missing), 'column')} ({', '.join(missing)}). "
            f"{_WRITE_HINT}"
        )
    (count,) = connection.execute("SELECT count(*) FROM read_parquet(?)", [str(copy)]).fetchone() or (0,)
    if count > MAX_ROWS:
        raise UserError(f"{name} has {count:,} rows; at most {MAX_ROWS:,} are read.")
    columns = [column for column in COLUMNS if column in types]
    for column in columns:
        if types[column] not in _ACCEPTED[COLUMNS[column].type] and not _is_empty(connection, copy, column):
            raise UserError(
                f"{name} is not a table of runs: column {column} has the type {quote(types[column])}, and "
                f"{COLUMNS[column].type} is needed. {_WRITE_HINT}"
            )
    selected = ", ".join(f'CAST("{column}" AS {COLUMNS[column].type})' for column in columns)
    # The names are those of COLUMNS, never of the file.
    values = connection.execute(f"SELECT {selected} FROM read_parquet(?)", [str(copy)]).fetchall()  # noqa: S608
    return [{**dict.fromkeys(COLUMNS), **dict(zip(columns, line, strict=True))} for line in values]


def _is_empty(connection: DuckDBPyConnection, copy: Path, column: str) -> bool:
    """True if the column has no value: other programs give it any type."""
    sql = f'SELECT count("{column}") FROM read_parquet(?)'  # noqa: S608
    (count,) = connection.execute(sql, [str(copy)]).fetchone() or (0,)
    return bool(count == 0)


_ID = re.compile(r"[0-9a-f]{32}")


def _find_fault(row: Row) -> str:
    """Return what no row of a run can have; empty if there is nothing."""
    for column in ("id", "study", "network", "dataset", "seed", "level", "treatment", "status"):
        if row[column] is None:
            return f"{column} is empty"
    if not _ID.fullmatch(str(row["id"])):
        return f"{quote(str(row['id']))} is not the id of a run"
    if row["status"] not in STATUSES:
        return f"{quote(str(row['status']))} is not a status; allowed: {', '.join(STATUSES)}"
    for column in ("seed", "level"):
        if int(row[column] or 0) < 0:
            return f"{column} is {row[column]}; it must be at least 0"
    # Runs that did not finish have no results, and those to do not even an environment.
    if row["status"] != "finished":
        return ""
    for column in ("density", "early_stop_test_accuracy"):
        if row[column] is None:
            return f"the run has finished, and {column} is empty"
    for column, value in row.items():
        is_share = column == "density" or column.endswith("_accuracy")
        if is_share and value is not None and not 0.0 <= float(value) <= 1.0:
            return f"{column} is {value}; it must be in [0, 1]"
    return ""
