"""A folder of tickets with an index: every finished run of a store as one data set.

    FOLDER/index.parquet                      one row per ticket
    FOLDER/tickets/<2 digits>/<id>.safetensors

The index has the columns of `supermask table` and those of `TICKET_COLUMNS`. A ticket's file is named by the id of its
run, so building again adds what is new and writes nothing twice.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

from supermask.core.errors import UserError, did_you_mean, quote, sanitize
from supermask.core.files import write_atomic
from supermask.core.text import Row
from supermask.export.folder_lock import lock_folder
from supermask.export.tickets.files import encode_ticket
from supermask.export.tickets.packing import pack_known_run
from supermask.store import CorruptEntry, Store
from supermask.store.replay import SnapshotMissing, StateReplayer
from supermask.store.rows import store_rows
from supermask.store.tables import COLUMNS, Column, one_line, to_parquet

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

INDEX = "index.parquet"
TICKETS = "tickets"

PackedWeights = Literal["start", "final"]
"""Network of a run whose ticket is packed: before its training, or after it."""

TICKET_COLUMNS: dict[str, Column] = {
    "accuracy": Column("DOUBLE", "test accuracy of the run's network at its end, thresholded if its mask was learned"),
    "snapshot": Column("VARCHAR", "weights in the file: start of training, or final"),
    "file": Column("VARCHAR", "file of the ticket, relative to the folder"),
    "bytes": Column("BIGINT", "size of the file"),
    "sha256": Column("VARCHAR", "SHA-256 of the file"),
}

INDEX_COLUMNS = {**COLUMNS, **TICKET_COLUMNS}

_RESULT_COLUMNS = (
    "kept",
    "early_stop_iteration",
    "early_stop_validation_loss",
    "early_stop_test_loss",
    "final_validation_loss",
    "final_test_loss",
    "test_accuracy_std",
    "thresholded_test_accuracy",
)
"""Columns that tell two results of one run apart: losses of other bits are not equal in every digit."""


@dataclass
class BuildSummary:
    """Counts of one build."""

    folder: Path
    packed: int = 0
    known: int = 0
    """Tickets that the folder had already."""
    other_results: list[Path] = field(default_factory=list)
    """Tickets in the folder that are of another result of a run than the store has; they are kept."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason -> number of runs without a ticket."""
    bytes: int = 0
    """Size of all tickets in the folder's index."""
    damaged: list[str] = field(default_factory=list)
    """One message per damaged run."""


def build_registry(
    store: Store,
    folder: Path,
    weights: PackedWeights = "start",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> BuildSummary:
    """Pack every finished run of a store into a folder, and write the index over them.

    `weights`: `start` packs the ticket that training starts from (masks, and the seed where it determines the values);
    `final` the trained network. A learned mask is always packed at its end, an untrained network, which has no other
    state, at its start. `on_progress(done, total)` is called before each run.
    A ticket of another result of a run (of another environment) that the folder has already is kept, with its row.
    Raises UserError for a folder that is something else or that another command writes to, SystemFailure if the system
    fails.
    """
    if weights not in get_args(PackedWeights):
        near = did_you_mean(str(weights), get_args(PackedWeights))
        raise UserError(f"weights={quote(weights)}{near} (allowed: {', '.join(get_args(PackedWeights))}).")
    _check_folder(folder)
    with lock_folder(folder, "the tickets"):
        return _build(store, folder, weights, on_progress)


def _build(store: Store, folder: Path, weights: PackedWeights, on_progress: Callable[[int, int], None]) -> BuildSummary:
    known = {str(row["id"]): row for row in read_index(folder)} if (folder / INDEX).exists() else {}
    rows, damaged = store_rows(store)
    summary = BuildSummary(folder, damaged=damaged)
    replayer = StateReplayer(store)
    finished = [row for row in _parents_first(rows) if row["status"] == "finished"]
    for row in rows:
        if row["status"] != "finished":
            _count(summary, str(row["status"]))
    index: dict[str, Row] = {}
    for done, row in enumerate(finished):
        on_progress(done, len(finished))
        run_id = str(row["id"])
        packed = _packed_weights(row, weights)
        before = known.get(run_id)
        if before is not None and _is_intact(folder, before):
            if any(row.get(column) != before[column] for column in _RESULT_COLUMNS):
                index[run_id] = before
                summary.other_results.append(ticket_path(folder, run_id))
                continue
            if before["snapshot"] == packed:
                # An equal result of another environment: the row stays that of the ticket, which names its own.
                is_same_run = row.get("environment") == before["environment"]
                index[run_id] = _index_row(row, before) if is_same_run else before
                summary.known += 1
                continue
        try:
            data = encode_ticket(pack_known_run(replayer, store, run_id, packed))
        except (UserError, CorruptEntry, SnapshotMissing) as error:
            _count(summary, _reason(error))
            continue
        path = ticket_path(folder, run_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
        facts: Row = {
            "accuracy": row.get("thresholded_test_accuracy" if row.get("supermask") else "final_test_accuracy"),
            "snapshot": packed,
            "file": path.relative_to(folder).as_posix(),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        index[run_id] = _index_row(row, facts)
        summary.packed += 1
    # Tickets of other stores that were packed into this folder before.
    kept = [row for run_id, row in known.items() if run_id not in index and _is_intact(folder, row)]
    all_rows = sorted([*index.values(), *kept], key=lambda row: str(row["id"]))
    summary.bytes = sum(cast(int, row["bytes"]) for row in all_rows)
    write_atomic(folder / INDEX, to_parquet(all_rows, INDEX_COLUMNS))
    return summary


def read_index(folder: Path) -> list[Row]:
    """Read the rows of a folder's index; `file` is relative. Raises UserError if it has no index of this kind."""
    with open_index(folder) as connection:
        rows = connection.execute("SELECT * FROM runs").fetchall()
    return [dict(zip(INDEX_COLUMNS, row, strict=True)) for row in rows]


def open_index(folder: Path) -> DuckDBPyConnection:
    """Return a database in memory whose table `runs` is a folder's index, with the types of `INDEX_COLUMNS`.

    Raises UserError if the folder has no index of this kind, or one with ids that are not those of runs.
    """
    import duckdb

    columns = ", ".join(f'CAST("{name}" AS {column.type}) AS "{name}"' for name, column in INDEX_COLUMNS.items())
    connection = duckdb.connect(":memory:")
    try:
        with _index_copy(folder) as path:
            connection.execute(f"CREATE TABLE runs AS SELECT {columns} FROM read_parquet(?)", [str(path)])  # noqa: S608
    except (duckdb.Error, RuntimeError, ValueError) as error:
        raise UserError(
            f"{sanitize(str(folder / INDEX))} is not an index of tickets ({one_line(error)}): give a folder that "
            "`supermask tickets build` wrote."
        ) from error
    for (run_id,) in connection.execute("SELECT id FROM runs").fetchall():
        ticket_path(folder, str(run_id))
    return connection


@contextmanager
def _index_copy(folder: Path) -> Iterator[Path]:
    """Yield a temporary copy of the index: DuckDB reads `*`, `?` and `[` in a path as patterns."""
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / INDEX
        try:
            shutil.copyfile(folder / INDEX, copy)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            raise UserError(
                f"{sanitize(str(folder))} has no readable {INDEX}: give a folder that `supermask tickets build` wrote."
            ) from error
        yield copy


def ticket_path(folder: Path, run_id: str) -> Path:
    """Return the file of a run's ticket. Raises UserError for text that is not a run's id, which an index may hold."""
    if re.fullmatch("[0-9a-f]{32}", run_id) is None:
        raise UserError(f"the index of {sanitize(str(folder))} is damaged: {quote(run_id)} is not the id of a run.")
    return folder / TICKETS / run_id[:2] / f"{run_id}.safetensors"


def _check_folder(folder: Path) -> None:
    for parent in [folder, *folder.parents]:
        if os.path.lexists(parent) and not parent.is_dir():
            raise UserError(f"{quote(str(parent))} is not a folder: give a folder, or a new name.")
    if (folder / "runs").is_dir():
        raise UserError(f"{quote(str(folder))} is a store: give --out another folder.")


def _parents_first(rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the rows chain by chain, so that the replayer still has the parent of the next run."""
    children: dict[object, list[Row]] = {}
    ids = {row["id"] for row in rows}
    for row in rows:
        children.setdefault(row["parent"] if row["parent"] in ids else None, []).append(row)
    waiting = list(reversed(children.get(None, [])))
    while waiting:
        row = waiting.pop()
        yield row
        waiting.extend(reversed(children.get(row["id"], [])))


def _packed_weights(row: Row, weights: PackedWeights) -> PackedWeights:
    if row.get("supermask"):
        return "final"
    return weights if row.get("trained") else "start"


def _index_row(row: Row, facts: Row) -> Row:
    return {**row, **{name: facts[name] for name in TICKET_COLUMNS}}


def _is_intact(folder: Path, row: Row) -> bool:
    """Return whether the file of an index row is there with its hash."""
    try:
        data = ticket_path(folder, str(row["id"])).read_bytes()
    except (OSError, UserError):
        return False
    return hashlib.sha256(data).hexdigest() == row["sha256"]


def _count(summary: BuildSummary, reason: str) -> None:
    summary.left_out[reason] = summary.left_out.get(reason, 0) + 1


def _reason(error: Exception) -> str:
    """Return the reason without the run's id, so that equal reasons are counted together."""
    if isinstance(error, SnapshotMissing):
        return "weights that its ticket is made of were dropped (--keep)"
    return re.sub(r"\b[0-9a-f]{32}\b", "ID", str(error))
