"""The table of runs: one row a run, every fact and metric. As CSV, JSON or Parquet, and as SQL.

The table goes into DuckDB as one typed list a column (`unnest`): 10,000 runs take about 0.3 s, where a row at a time
takes 20 s, and no temporary file is needed.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import Row, Value

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation


TREATMENT_SEPARATOR = " | "
"""Between the labels in `treatment`, where one run serves several treatments."""

AUXILIARY = "(chain)"
"""The label of runs that no treatment shows: trained for the masks that untrained networks have from them."""

DENSE = "dense"
"""The label of the dense (unpruned) runs, at level 0."""


class Column(NamedTuple):
    """A column's SQL type and what it says, with its unit."""

    type: str
    meaning: str


COLUMNS: dict[str, Column] = {
    "id": Column("VARCHAR", "content id of the run: a hash of what determines its outcome"),
    "parent": Column("VARCHAR", "id of the run whose end this one was pruned from; null for the dense run"),
    "study": Column("VARCHAR", "name of the study"),
    "network": Column("VARCHAR", "network, e.g. fc"),
    "dataset": Column("VARCHAR", "dataset, e.g. mnist"),
    "seed": Column("BIGINT", "seed: runs of one seed share initial weights and data order"),
    "level": Column("INTEGER", "pruning level; 0 = dense"),
    "treatment": Column("VARCHAR", "label of the treatment ('dense' at level 0); several are joined by ' | '"),
    "criterion": Column("VARCHAR", "mask criterion that made the mask; null for the dense run"),
    "mask1": Column("VARCHAR", "mask-1 action: what the kept weights were set to"),
    "mask0": Column("VARCHAR", "mask-0 action: what the pruned weights were frozen at"),
    "rescaled": Column(
        "BOOLEAN", "kept weights multiplied by (weights in layer / kept weights); of a learned mask in every pass"
    ),
    "schedule": Column("VARCHAR", "iterative or one_shot (both where one run serves both)"),
    "scope": Column("VARCHAR", "layer or global: what the scores were ranked within; threshold: kept above 0"),
    "trained": Column("BOOLEAN", "false of a network that was measured as it started"),
    "supermask": Column("VARCHAR", "how the mask was learned, over weights that stay; null where it was not"),
    "base": Column("VARCHAR", "what a learned mask is put on: init, signed_constant or constant"),
    "multiplier": Column("DOUBLE", "of these weights"),
    "start_logit": Column("DOUBLE", "where the logits of a learned mask began"),
    "confidence": Column("DOUBLE", "c of logits that began at +c and -c, by the criterion's mask"),
    "graded": Column("BOOLEAN", "whether they began by rank of the criterion's scores instead"),
    "w_init": Column("VARCHAR", "point of the trajectory that the criterion read as w_i"),
    "w_final": Column("VARCHAR", "point of the trajectory that the criterion read as w_f"),
    "rewind_to": Column("VARCHAR", "point of the trajectory that rewind goes back to"),
    "prune_rate_conv": Column("DOUBLE", "share of the surviving weights removed in a level, convolutions"),
    "prune_rate_hidden": Column("DOUBLE", "the same, hidden fully connected layers"),
    "prune_rate_output": Column("DOUBLE", "the same, output layer"),
    "prune_rate_global": Column("DOUBLE", "the same, all layers together (scope global)"),
    "weights": Column("BIGINT", "maskable weights in all"),
    "kept": Column("BIGINT", "maskable weights that are kept (mask-1)"),
    "density": Column("DOUBLE", "kept / weights, in [0, 1]"),
    "status": Column("VARCHAR", "finished, diverged, ancestor_diverged, certificate_failed or to_do"),
    "diverged_at": Column("BIGINT", "iteration of the first loss that was not finite; null if none"),
    "iterations": Column("BIGINT", "iterations from initialisation to the end"),
    "first_iteration": Column("BIGINT", "iteration at which this run's training began: k after late rewinding, else 0"),
    "early_stop_iteration": Column("BIGINT", "iteration of the lowest validation loss"),
    "early_stop_validation_loss": Column("DOUBLE", "the lowest validation loss, nats"),
    "early_stop_validation_accuracy": Column("DOUBLE", "validation accuracy at early_stop_iteration, in [0, 1]"),
    "early_stop_test_loss": Column("DOUBLE", "test loss at early_stop_iteration, nats"),
    "early_stop_test_accuracy": Column("DOUBLE", "test accuracy at early_stop_iteration, in [0, 1]"),
    "final_validation_loss": Column("DOUBLE", "validation loss at the end of training, nats"),
    "final_validation_accuracy": Column("DOUBLE", "validation accuracy at the end of training, in [0, 1]"),
    "final_test_loss": Column("DOUBLE", "test loss at the end of training, nats"),
    "final_test_accuracy": Column("DOUBLE", "test accuracy at the end of training, in [0, 1]"),
    "test_accuracy_std": Column("DOUBLE", "standard deviation of early_stop_test_accuracy over a supermask's samples"),
    "thresholded_test_accuracy": Column("DOUBLE", "test accuracy of a learned supermask's weights with p > 0.5"),
    "expected_test_accuracy": Column("DOUBLE", "test accuracy of its expected network: weights times p"),
    "expected_density": Column("DOUBLE", "expected share of ones in its mask, in [0, 1]"),
    "hardened": Column("VARCHAR", "density:accuracy of its weights of highest logit, separated by spaces"),
    "initial_validation_loss": Column("DOUBLE", "validation loss before training, nats"),
    "initial_validation_accuracy": Column("DOUBLE", "validation accuracy before training, in [0, 1]"),
    "optimizer": Column("VARCHAR", "adam or sgd"),
    "lr": Column("DOUBLE", "learning rate"),
    "batch_size": Column("BIGINT", "images a batch"),
    "evaluate_every": Column("BIGINT", "iterations between two measurements of the validation loss"),
    "momentum": Column("DOUBLE", "SGD's momentum; 0 under Adam"),
    "weight_decay": Column("DOUBLE", "weight_decay * w is added to the gradient"),
    "lr_drops": Column("VARCHAR", "iterations at which the learning rate drops, separated by spaces; null if none"),
    "lr_drop_factor": Column("DOUBLE", "factor of each drop; null if none"),
    "warmup": Column("BIGINT", "iterations of linear warm-up"),
    "seconds": Column("DOUBLE", "wall-clock time of the run, s"),
    "engine": Column("VARCHAR", "engine that trained the run"),
    "certificate": Column("VARCHAR", "held or failed; null before the run has ended"),
    "data_fingerprint": Column("VARCHAR", "hash of the data trained and tested on"),
    "data_note": Column("VARCHAR", "what a reader has to know about the data; null if nothing"),
    "torch": Column("VARCHAR", "torch version"),
    "environment": Column("VARCHAR", "environment fingerprint within which runs are bit-identical"),
}
"""The contract of `supermask table` and `supermask query`, in the order of the columns."""


@dataclass(frozen=True)
class QueryResult:
    """What a query gave. Values are what DuckDB's Python client returns for the column's type."""

    columns: list[str]
    rows: list[tuple[Any, ...]]


def treatment_labels(row: Row) -> list[str]:
    """The treatments that a run serves."""
    return str(row["treatment"]).split(TREATMENT_SEPARATOR)


def to_csv(rows: Sequence[Row], columns: Sequence[str] = tuple(COLUMNS)) -> str:
    """CSV text with a header line. Null is an empty field, floats are written so that they read back exactly."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_csv_field(_clean(row.get(name))) for name in columns])
    return text.getvalue()


def to_json(rows: Sequence[Row]) -> str:
    """A JSON list of objects, one run a line. Numbers that are not finite are null (JSON has no word for them)."""
    lines = [
        json.dumps({name: _clean(row.get(name)) for name in COLUMNS}, ensure_ascii=False, allow_nan=False)
        for row in rows
    ]
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"


def to_parquet(rows: Sequence[Row]) -> bytes:
    """A Parquet file with the types of `COLUMNS`. Raises MachineError where there is no room for a temporary file."""
    import duckdb

    with tempfile.TemporaryDirectory() as folder, duckdb.connect(":memory:") as connection:
        path = Path(folder) / "runs.parquet"
        _load(connection, rows)
        try:
            connection.table("runs").write_parquet(str(path), compression="zstd")
            return path.read_bytes()
        except (OSError, duckdb.IOException) as error:
            raise SystemFailure(f"the Parquet file could not be written: {_one_line(error)}") from error


def to_relation(rows: Sequence[Row]) -> DuckDBPyRelation:
    """The runs as a DuckDB relation with the types of `COLUMNS`; `.df()`, `.pl()`, `.arrow()` turn it into others.

    It lives in a database of its own, in memory, as long as it, or one that was made of it, is used.
    """
    import duckdb

    connection = duckdb.connect(":memory:")
    _load(connection, rows)
    return connection.table("runs")


def query(rows: Sequence[Row], sql: str) -> QueryResult:
    """SQL (DuckDB's dialect) over the runs, as the table `runs` with the columns of `COLUMNS`.

    The SQL sees that table and nothing else: it can neither read nor write files, reach the network, load
    extensions, read Python's variables, nor undo these settings. Raises UserError with DuckDB's message.
    """
    import duckdb

    if not sql.strip(" \t\r\n;"):
        raise UserError('the query is empty; give SQL over the table `runs`, e.g. "SELECT count(*) FROM runs"')
    with duckdb.connect(":memory:") as connection:
        _load(connection, rows)
        for setting in _SANDBOX_SETTINGS:
            connection.execute(setting)
        try:
            connection.execute(sql)
            columns = [column[0] for column in connection.description or []]
            return QueryResult(columns, connection.fetchall() if columns else [])
        except (duckdb.Error, RuntimeError, ValueError) as error:
            raise UserError(f"the query cannot be answered: {_one_line(error)}") from error


_SANDBOX_SETTINGS = (
    "SET python_enable_replacements = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET temp_directory = ''",
    "SET enable_external_access = false",
    "SET lock_configuration = true",
)
"""In this order: the last one forbids every later SET."""


def _load(connection: DuckDBPyConnection, rows: Sequence[Row]) -> None:
    """Create the table `runs`."""
    for row in rows:
        unknown = row.keys() - COLUMNS.keys()
        assert not unknown, f"a row has columns that COLUMNS does not list: {sorted(unknown)}"
    lists = ", ".join(f'unnest(CAST(? AS {column.type}[])) AS "{name}"' for name, column in COLUMNS.items())
    values = [[_cell(row.get(name), column.type) for row in rows] for name, column in COLUMNS.items()]
    connection.execute(f"CREATE TABLE runs AS SELECT {lists}", values)


def _cell(value: Value, sql_type: str) -> Value:
    value = _clean(value)
    return str(value) if sql_type == "VARCHAR" and value is not None else value


def _clean(value: Value) -> Value:
    """Not-a-number and infinity become null: what happened is in `status` and `diverged_at`."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv_field(value: Value) -> Value:
    return str(value).lower() if isinstance(value, bool) else value


def _one_line(error: Exception) -> str:
    """DuckDB's message without the picture of where in the statement the error is."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith("LINE ") and set(line) != {"^"}]
    return " ".join(kept) or type(error).__name__
