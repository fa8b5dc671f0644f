"""Function of the command export-tracker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from supermask.api.runs import open_store, study_rows
from supermask.core.errors import UserError, check_one_of, quote
from supermask.core.text import Row
from supermask.export.trackers.send import TRACKERS, ExportSummary, check_installed, send_runs
from supermask.store import Store
from supermask.store.location import output_path
from supermask.store.rows import store_rows
from supermask.store.tables import TREATMENT_SEPARATOR


def export_tracker(
    tracker: str,
    studies: Sequence[str] = (),
    overrides: Sequence[str] = (),
    store: str | Path | None = None,
    out: str | Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportSummary:
    """Export finished runs to `tensorboard`, `wandb` or `mlflow`, offline, into `out` (default `trackers/<tracker>`).

    Exports the runs of `studies`, each with `overrides` applied; without studies, every run of the store. Runs that the
    folder already has are skipped, even if their label has changed. `on_progress(done, total)` is called before each
    run. Raises UserError (also if the tracker is not installed) and SystemFailure.
    """
    check_one_of("a tracker", tracker, TRACKERS)
    source = open_store(store)
    check_installed(tracker)
    rows, damaged = _rows(studies, overrides, source)
    summary = send_runs(tracker, rows, source, None if out is None else output_path(out), on_progress)
    summary.damaged[:0] = damaged
    return summary


def _rows(studies: Sequence[str], overrides: Sequence[str], store: Store) -> tuple[list[Row], list[str]]:
    """Return one row per run, and the messages about damaged runs.

    The row of a run that several studies share names all of them, with its treatment in each.
    """
    if not studies:
        if overrides:
            raise UserError(f"{quote(overrides[0])} is a setting of a study: name the study too.")
        return store_rows(store)
    merged: dict[str, Row] = {}
    messages: dict[str, None] = {}
    for study in dict.fromkeys(studies):
        _, rows, damaged = study_rows(study, overrides, store.root)
        messages |= dict.fromkeys(damaged)
        for row in rows:
            run_id = str(row["id"])
            earlier = merged.setdefault(run_id, row)
            if earlier is not row:
                shared = {name: _merge_values(earlier[name], row[name]) for name in _STUDY_COLUMNS}
                merged[run_id] = {**earlier, **shared}
    return list(merged.values()), list(messages)


_STUDY_COLUMNS = ("study", "treatment")
"""Columns that depend on the study through which a run is read; all others depend on the run alone."""


def _merge_values(first: object, second: object) -> str:
    parts = [*str(first).split(TREATMENT_SEPARATOR), *str(second).split(TREATMENT_SEPARATOR)]
    return TREATMENT_SEPARATOR.join(dict.fromkeys(parts))
