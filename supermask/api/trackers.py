"""Python API of `supermask export-tracker`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from supermask.api.runs import open_store, study_rows
from supermask.core.errors import UserError, check_one_of, quote
from supermask.core.text import Row
from supermask.export.trackers.send import TRACKERS, ExportSummary, check_installed, send_runs
from supermask.store import Store
from supermask.store.rows import store_rows
from supermask.store.tables import TREATMENT_SEPARATOR


def export_tracker(
    tracker: str,
    studies: Sequence[str] = (),
    overrides: Sequence[str] = (),
    store: Path | None = None,
    out: Path | None = None,
    listening: Callable[[int, int], None] = lambda done, of: None,
) -> ExportSummary:
    """Sends finished runs to `tensorboard`, `wandb` or `mlflow`, offline: into the folder `out` (`trackers/<tracker>`).

    The runs of `studies`, each with `overrides` applied; without any, every run of the store. A run that the folder
    holds is skipped, whatever its label was. `listening(done, of)` is called before each run.
    Raises UserError, also where the tracker is not installed, and SystemFailure.
    """
    check_one_of("a tracker", tracker, TRACKERS)
    source = open_store(store)
    check_installed(tracker)
    rows, damaged = _rows(studies, overrides, source)
    summary = send_runs(tracker, rows, source, out, listening)
    summary.damaged[:0] = damaged
    return summary


def _rows(studies: Sequence[str], overrides: Sequence[str], store: Store) -> tuple[list[Row], list[str]]:
    """A row a run; of a run that several studies share, with what it is to each of them."""
    if not studies:
        if overrides:
            raise UserError(f"{quote(overrides[0])} is a setting of a study: name the study too.")
        return store_rows(store)
    merged: dict[str, Row] = {}
    texts: dict[str, None] = {}
    for study in dict.fromkeys(studies):
        _, found, damaged = study_rows(study, overrides, store.root)
        texts |= dict.fromkeys(damaged)
        for row in found:
            other = merged.setdefault(str(row["id"]), row)
            if other is not row:
                merged[str(row["id"])] = {
                    **other,
                    **{name: _merge_values(other[name], row[name]) for name in _STUDY_COLUMNS},
                }
    return list(merged.values()), list(texts)


_STUDY_COLUMNS = ("study", "treatment")
"""Columns that say what a run is to a study, not what it is."""


def _merge_values(one: object, other: object) -> str:
    parts = [*str(one).split(TREATMENT_SEPARATOR), *str(other).split(TREATMENT_SEPARATOR)]
    return TREATMENT_SEPARATOR.join(dict.fromkeys(parts))
