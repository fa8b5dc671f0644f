"""What the page asks for every two seconds: how far studies are, what is going on, and which parts have changed.

What commands are doing to a store at this moment, from their notes: half of one that was killed is no news.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from supermask.core.text import format_duration
from supermask.reporting.status import COLUMN_TITLES
from supermask.serve.store_cache import CachedStore
from supermask.serve.studies import StoredStudy, study_progress
from supermask.store.files.notes import NAME, Note

STALE_SECONDS = 30.0
"""Seconds after which a command that said nothing more is not running any more."""

MOST_FAILURES = 20
MOST_POINTS = 240
"""Of a curve in flight: more than a small plot has pixels."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Number
Count = Annotated[int, Field(ge=0)]
RunId = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class _NoteModel(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class ActiveRun(_NoteModel):
    """A run that is being trained."""

    run: RunId
    since: Seconds


class FailedRun(_NoteModel):
    """A run that did not end well, and why."""

    run: RunId
    status: str
    message: str = ""


class CommandProgress(_NoteModel):
    """What a command wrote down of itself."""

    studies: list[str]
    state: str
    message: str = ""
    pid: int
    host: str
    workers: int = 0
    began: Seconds
    updated: Seconds
    tasks: Count
    left: Count
    seconds_left: Seconds | None = None
    in_flight: list[ActiveRun] = []
    failures: list[FailedRun] = []


class LiveCurve(_NoteModel):
    """The validation curve of a run in flight."""

    run: RunId
    of: Count
    iterations: list[int]
    validation_loss: list[Number | None]
    validation_accuracy: list[Number | None]


@dataclass(frozen=True)
class RunningCommand:
    """A command, as a reader is told of it."""

    progress: CommandProgress
    state: str
    """`running`, `interrupted` (it was, and says nothing more), `ended`, `stopped` or `failed`."""


def running_commands(notes: Mapping[str, Note], now: float) -> list[RunningCommand]:
    """The commands that are of interest: of each choice of studies the last, unless it ended with nothing to tell.

    Notes that are none of `supermask run` are passed over. The running ones come first, then the latest.
    """
    latest: dict[tuple[str, ...], RunningCommand] = {}
    for note in notes.values():
        with suppress(ValidationError):
            progress = CommandProgress.model_validate(note)
            key = tuple(progress.studies)
            told = RunningCommand(progress, _state(progress, now))
            if key not in latest or progress.updated >= latest[key].progress.updated:
                latest[key] = told
    found = [each for each in latest.values() if each.state != "ended" or each.progress.failures]
    return sorted(found, key=lambda each: (each.state != "running", -each.progress.updated))


def _state(progress: CommandProgress, now: float) -> str:
    if progress.state != "running":
        return progress.state if progress.state in ("ended", "stopped", "failed") else "failed"
    return "running" if now - progress.updated < STALE_SECONDS and _is_alive(progress) else "interrupted"


def _is_alive(progress: CommandProgress) -> bool:
    """Whether the process is there, as far as this machine can tell."""
    if progress.host != platform.node() or progress.pid <= 0:
        return progress.pid > 0
    try:
        os.kill(progress.pid, 0)  # signal 0 asks, and does nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def live_curves(notes: Mapping[str, Note], runs: Sequence[str]) -> dict[str, LiveCurve]:
    """Run id -> its curve so far, of these runs."""
    found = {}
    for run_id in runs:
        with suppress(KeyError, ValidationError):
            curve = LiveCurve.model_validate(notes[run_id])
            lengths = {len(curve.iterations), len(curve.validation_loss), len(curve.validation_accuracy)}
            if curve.run == run_id and len(lengths) == 1:
                found[run_id] = _thinned(curve)
    return found


def _thinned(curve: LiveCurve) -> LiveCurve:
    """The same curve with no more points than can be seen; the last one always."""
    step = -(-len(curve.iterations) // MOST_POINTS) or 1
    if step == 1:
        return curve
    last = len(curve.iterations) - 1
    places = [place for place in range(len(curve.iterations)) if place % step == last % step]
    columns = ("iterations", "validation_loss", "validation_accuracy")
    return curve.model_copy(update={name: [getattr(curve, name)[place] for place in places] for name in columns})


MAX_MESSAGE_CHARS = 2_000
"""Characters of a message that are shown: a traceback of its own is no news."""

Payload = dict[str, Any]


def status_payload(
    shelf: CachedStore,
    known: Sequence[StoredStudy],
    going_on: Sequence[RunningCommand],
    curves: Mapping[str, LiveCurve],
    now: float,
) -> Payload:
    """Plain data for JSON. Texts are as they were given: the page sets them as text, never as markup."""
    labels = {run_id: label for study in known for run_id, label in study.labels.items()}
    reading = shelf.load_progress
    return {
        "reading": None if reading is None else {"read": reading[0], "of": reading[1]},
        "trouble": shelf.error,
        "runs": len(shelf.rows),
        "damaged": list(shelf.damaged.values())[:MOST_FAILURES],
        "studies": [_study_status(study, shelf) for study in known],
        "commands": [_command_status(command, shelf, known, labels, curves, now) for command in going_on],
    }


def _study_status(study: StoredStudy, shelf: CachedStore) -> Payload:
    told: Payload = {"key": study.key, "name": study.name, "title": "", "why_not": study.error}
    if study.plan is None:
        return told | {"total": 0, "done": 0, "counts": ""}
    far = study_progress(study.plan, shelf.rows)
    bad = [f"{count:,} {COLUMN_TITLES.get(status, status)}" for status, count in sorted(far.by_status.items())]
    kept = [text for text in bad if not text.endswith((" finished", " to do"))]
    subject = f"{next(iter(study.plan.runs.values())).network} on {study.plan.study.dataset}"
    title = study.plan.study.title
    return told | {"title": title, "subject": subject, "total": far.total, "done": far.done, "counts": ", ".join(kept)}


def _command_status(
    command: RunningCommand,
    shelf: CachedStore,
    known: Sequence[StoredStudy],
    labels: Mapping[str, str],
    curves: Mapping[str, LiveCurve],
    now: float,
) -> Payload:
    progress = command.progress
    running = command.state == "running"
    left = progress.seconds_left
    return {
        "studies": progress.studies,
        "names": [study.name for study in known if study.key in progress.studies],
        "state": command.state,
        "message": progress.message[:MAX_MESSAGE_CHARS],
        "tasks": progress.tasks,
        "left": min(progress.left, progress.tasks),
        "workers": progress.workers,
        "host": progress.host,
        "time_left": format_duration(left) if running and left is not None and left >= 0 else "",
        "since": format_duration(max(now - progress.updated, 0.0)),
        "in_flight": [
            _in_flight(each.run, now - each.since, known, labels, curves) for each in progress.in_flight if running
        ],
        "failures": [_failure(each.run, each.status, each.message, shelf, labels) for each in progress.failures][
            -MOST_FAILURES:
        ],
        "more_failures": max(len(progress.failures) - MOST_FAILURES, 0),
    }


def _in_flight(
    run_id: str,
    seconds: float,
    known: Sequence[StoredStudy],
    labels: Mapping[str, str],
    curves: Mapping[str, LiveCurve],
) -> Payload:
    run = next((study.plan.runs[run_id] for study in known if study.plan and run_id in study.plan.runs), None)
    curve = curves.get(run_id)
    return {
        "run": run_id,
        "label": labels.get(run_id, ""),
        "level": run.level if run else None,
        "seed": run.seed if run else None,
        "for": format_duration(max(seconds, 0.0)),
        "curve": None if curve is None else curve.model_dump(exclude={"run"}),
    }


def _failure(run_id: str, status: str, message: str, shelf: CachedStore, labels: Mapping[str, str]) -> Payload:
    return {
        "run": run_id,
        "label": labels.get(run_id, ""),
        "status": status[:100],
        "message": message[:MAX_MESSAGE_CHARS],
        "stored": shelf.has(run_id),
    }
