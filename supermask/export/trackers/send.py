"""Which runs are sent, once each: store -> tracker."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, cast

from supermask.core.errors import SystemFailure, UserError
from supermask.core.text import Row
from supermask.export.trackers.record import TrackerRun, to_tracker_run
from supermask.store import CorruptEntry, Store
from supermask.store.records import decode_curve

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Each is a module of this package, and an extra of the same name: `pip install 'supermask[wandb]'`."""

LOCK = ".lock"


class Tracker(Protocol):
    """A tracker's folder. Only one process at a time has it open."""

    def sent_run_ids(self) -> set[str]:
        """Ids of the runs that are there whole."""

    def send(self, run: TrackerRun) -> None:
        """Adds a run: whole, or so that its id is not in `sent_run_ids`."""


class TrackerModule(Protocol):
    """What a tracker's module has."""

    REQUIRES: tuple[str, ...]
    """Packages that have to be there."""

    def open_tracker(self, folder: Path) -> AbstractContextManager[Tracker]:
        """The tracker's folder, which is there."""

    def view_command(self, folder: Path) -> str:
        """The command to look at it."""


@dataclass
class ExportSummary:
    """What an export did."""

    folder: Path
    sent: int = 0
    known: int = 0
    """Runs that were there already."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Status -> runs that have it and were not sent, because it is not `finished`."""
    damaged: list[str] = field(default_factory=list)
    """A text for each damaged run; they are not sent."""


def send_runs(
    tracker: str,
    rows: Sequence[Row],
    store: Store,
    out: Path | None = None,
    listening: Callable[[int, int], None] = lambda done, of: None,
) -> ExportSummary:
    """Sends the finished runs of `rows` to `tensorboard`, `wandb` or `mlflow`, offline, into a folder.

    `out`: the folder (default `trackers/<tracker>`). A run that the folder holds is skipped, whatever its label was.
    `listening(done, of)` is called before each run.
    Raises UserError, also where the tracker is not installed, and SystemFailure.
    """
    module = _installed(tracker)
    finished = [row for row in rows if row["status"] == "finished"]
    summary = ExportSummary((out or Path("trackers") / tracker).absolute())
    for row in rows:
        if row["status"] != "finished":
            summary.left_out[str(row["status"])] = summary.left_out.get(str(row["status"]), 0) + 1
    with _exclusive_lock(summary.folder), module.open_tracker(summary.folder) as folder:
        known = folder.sent_run_ids()
        new = [row for row in finished if row["id"] not in known]
        summary.known = len(finished) - len(new)
        for done, row in enumerate(new):
            listening(done, len(new))
            try:
                run = _exported(store, row)
            except CorruptEntry as damage:
                summary.damaged.append(str(damage))
                continue
            folder.send(run)
            summary.sent += 1
    return summary


def view_command(tracker: str, folder: Path) -> str:
    """The command line that shows what a tracker was sent, or sends it on."""
    return _module(tracker).view_command(folder)


def _exported(store: Store, row: Row) -> TrackerRun:
    run_id = str(row["id"])
    return to_tracker_run(row, decode_curve(store.read(run_id).tensors), store.committed_at(run_id))


def _module(tracker: str) -> TrackerModule:
    return cast(TrackerModule, import_module(f"supermask.export.trackers.{tracker}"))


def check_installed(tracker: str) -> None:
    """Raises UserError if the tracker's packages are not installed."""
    _installed(tracker)


def _installed(tracker: str) -> TrackerModule:
    module = _module(tracker)
    if missing := [name for name in module.REQUIRES if find_spec(name) is None]:
        raise UserError(f"{tracker} needs {missing[0]}, which is not installed: pip install 'supermask[{tracker}]'")
    return module


@contextmanager
def _exclusive_lock(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other exports out of it. Raises UserError, MachineError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another export is writing to {folder}: wait for it, or choose another folder with --out."
                ) from None
            yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{folder} is not a folder: choose one to write to with --out.") from error
    except OSError as error:
        raise SystemFailure(
            f"the runs cannot be written to {folder}: {error.strerror or error}. Put that right and run the same "
            "command again: it goes on."
        ) from error
