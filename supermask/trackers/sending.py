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

from supermask.carrying_out import check_choice
from supermask.commands import existing_store, rows
from supermask.errors import MachineError, UserError
from supermask.records import unpack_curve
from supermask.rows import rows_of_store
from supermask.store import Damaged, Store
from supermask.study.yaml_tree import shown
from supermask.tables import TREATMENT_SEPARATOR, Row
from supermask.trackers.exported import Exported, exported

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Each is a module of this package, and an extra of the same name: `pip install 'supermask[wandb]'`."""

LOCK = ".lock"


class Tracker(Protocol):
    """A tracker's folder. Only one process at a time has it open."""

    def known(self) -> set[str]:
        """Ids of the runs that are there whole."""

    def send(self, run: Exported) -> None:
        """Adds a run: whole, or so that it is not `known`."""


class TrackerModule(Protocol):
    """What a tracker's module has."""

    NEEDS: tuple[str, ...]
    """Packages that have to be there."""

    def opened(self, folder: Path) -> AbstractContextManager[Tracker]:
        """The tracker's folder, which is there."""

    def look_at(self, folder: Path) -> str:
        """The command to look at it."""


@dataclass
class Report:
    """What an export did."""

    folder: Path
    sent: int = 0
    known: int = 0
    """Runs that were there already."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Status -> runs that have it and were not sent, because it is not `finished`."""
    damaged: list[str] = field(default_factory=list)
    """A text for each damaged run; they are not sent."""


def export_tracker(
    tracker: str,
    studies: Sequence[str] = (),
    overrides: Sequence[str] = (),
    store: Path | None = None,
    out: Path | None = None,
    listening: Callable[[int, int], None] = lambda done, of: None,
) -> Report:
    """Sends finished runs to `tensorboard`, `wandb` or `mlflow`, offline: into the folder `out` (`trackers/<tracker>`).

    The runs of `studies`, each with `overrides` applied; without any, every run of the store. A run that is there
    already is passed over, whatever it was called then. `listening(done, of)` hears how far it is.
    Raises UserError, where the tracker is not installed too, and MachineError.
    """
    check_choice("a tracker", tracker, TRACKERS)
    at = existing_store(store)
    module = _installed(tracker)
    found, damaged = _rows(studies, overrides, at)
    finished = [row for row in found if row["status"] == "finished"]
    report = Report((out or Path("trackers") / tracker).absolute(), damaged=damaged)
    for row in found:
        if row["status"] != "finished":
            report.left_out[str(row["status"])] = report.left_out.get(str(row["status"]), 0) + 1
    with _alone_in(report.folder), module.opened(report.folder) as opened:
        known = opened.known()
        new = [row for row in finished if row["id"] not in known]
        report.known = len(finished) - len(new)
        for done, row in enumerate(new):
            listening(done, len(new))
            try:
                run = _exported(at, row)
            except Damaged as damage:
                report.damaged.append(str(damage))
                continue
            opened.send(run)
            report.sent += 1
    return report


def look_at(tracker: str, folder: Path) -> str:
    """The command line that shows what a tracker was sent, or sends it on."""
    return _module(tracker).look_at(folder)


def _rows(studies: Sequence[str], overrides: Sequence[str], store: Store) -> tuple[list[Row], list[str]]:
    """A row a run; of a run that several studies share, with what it is to each of them."""
    if not studies:
        if overrides:
            raise UserError(f"{shown(overrides[0])} is a setting of a study: name the study too.")
        return rows_of_store(store)
    merged: dict[str, Row] = {}
    texts: dict[str, None] = {}
    for study in dict.fromkeys(studies):
        _, found, damaged = rows(study, overrides, store.root)
        texts |= dict.fromkeys(damaged)
        for row in found:
            other = merged.setdefault(str(row["id"]), row)
            if other is not row:
                merged[str(row["id"])] = {**other, **{name: _both(other[name], row[name]) for name in _OF_A_STUDY}}
    return list(merged.values()), list(texts)


_OF_A_STUDY = ("study", "treatment")
"""Columns that say what a run is to a study, not what it is."""


def _both(one: object, other: object) -> str:
    parts = [*str(one).split(TREATMENT_SEPARATOR), *str(other).split(TREATMENT_SEPARATOR)]
    return TREATMENT_SEPARATOR.join(dict.fromkeys(parts))


def _exported(store: Store, row: Row) -> Exported:
    run_id = str(row["id"])
    return exported(row, unpack_curve(store.read(run_id).tensors), store.committed_at(run_id))


def _module(tracker: str) -> TrackerModule:
    return cast(TrackerModule, import_module(f"supermask.trackers.{tracker}"))


def _installed(tracker: str) -> TrackerModule:
    module = _module(tracker)
    if missing := [name for name in module.NEEDS if find_spec(name) is None]:
        raise UserError(f"{tracker} needs {missing[0]}, which is not installed: pip install 'supermask[{tracker}]'")
    return module


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
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
        raise MachineError(
            f"the runs cannot be written to {folder}: {error.strerror or error}. Put that right and run the same "
            "command again: it goes on."
        ) from error
