"""Export of finished runs from a store to a tracker, each run once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from supermask.core.errors import UserError
from supermask.core.text import Row
from supermask.export.folder_lock import lock_folder
from supermask.export.trackers.record import TrackerRun, to_tracker_run
from supermask.store import CorruptEntry, Store
from supermask.store.records import decode_curve

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Names of modules of this package and of extras: `pip install 'supermask[wandb]'`."""


class Tracker(Protocol):
    """A tracker's open folder. Only one process at a time has it open."""

    def sent_run_ids(self) -> set[str]:
        """Return the ids of the runs that the folder holds completely."""

    def send(self, run: TrackerRun) -> None:
        """Add a run atomically: until it is complete, its id is not in `sent_run_ids`."""


class TrackerModule(Protocol):
    """Interface of a tracker's module."""

    REQUIRES: tuple[str, ...]
    """Packages that have to be installed."""

    def open_tracker(self, folder: Path) -> AbstractContextManager[Tracker]:
        """Open the tracker's folder, which exists."""

    def view_command(self, folder: Path) -> str:
        """Return the shell command that displays the folder."""


@dataclass
class ExportSummary:
    """Counts of one export."""

    folder: Path
    sent: int = 0
    known: int = 0
    """Number of runs that the folder had already."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Status other than `finished` -> number of runs with it, which are not sent."""
    damaged: list[str] = field(default_factory=list)
    """One message per damaged run. Damaged runs are not sent."""


def send_runs(
    tracker: str,
    rows: Sequence[Row],
    store: Store,
    out: Path | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ExportSummary:
    """Write the finished runs of `rows` to a folder of `tensorboard`, `wandb` or `mlflow`, offline.

    `out` is the folder (default `trackers/<tracker>`). A run that the folder has already, under any label, is skipped.
    `on_progress(done, total)` is called before each run.
    Raises UserError if the tracker is not installed or the folder cannot be used, SystemFailure if the system fails.
    """
    module = _load_installed(tracker)
    finished = [row for row in rows if row["status"] == "finished"]
    summary = ExportSummary((out or Path("trackers") / tracker).absolute())
    for row in rows:
        if row["status"] != "finished":
            summary.left_out[str(row["status"])] = summary.left_out.get(str(row["status"]), 0) + 1
    with lock_folder(summary.folder, "the runs"), module.open_tracker(summary.folder) as folder:
        known = folder.sent_run_ids()
        new = [row for row in finished if row["id"] not in known]
        summary.known = len(finished) - len(new)
        for done, row in enumerate(new):
            on_progress(done, len(new))
            try:
                run = _read_run(store, row)
            except CorruptEntry as damage:
                summary.damaged.append(str(damage))
                continue
            folder.send(run)
            summary.sent += 1
    return summary


def view_command(tracker: str, folder: Path) -> str:
    """Return the shell command that displays the exported runs, or uploads them."""
    return _load_module(tracker).view_command(folder)


def _read_run(store: Store, row: Row) -> TrackerRun:
    run_id = str(row["id"])
    return to_tracker_run(row, decode_curve(store.read(run_id).tensors), store.commit_time(run_id))


def _load_module(tracker: str) -> TrackerModule:
    return cast(TrackerModule, import_module(f"supermask.export.trackers.{tracker}"))


def check_installed(tracker: str) -> None:
    """Raise UserError if the tracker's packages are not installed."""
    _load_installed(tracker)


def _load_installed(tracker: str) -> TrackerModule:
    module = _load_module(tracker)
    if missing := [name for name in module.REQUIRES if find_spec(name) is None]:
        raise UserError(f"{tracker} needs {missing[0]}, which is not installed: pip install 'supermask[{tracker}]'")
    return module
