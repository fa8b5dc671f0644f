"""Progress of commands and studies as JSON, from the notes that `supermask run` writes into the store.

The page polls it every two seconds. Notes that do not fit their model are ignored: a killed command may leave one.
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
from supermask.reporting.html.study import tell_apart
from supermask.reporting.status import COLUMN_TITLES
from supermask.serve.store_cache import CachedStore
from supermask.serve.studies import StoredStudy, study_progress
from supermask.store.files.notes import NAME, Note

STALE_SECONDS = 30.0
"""Seconds without an update after which a command counts as interrupted."""

MAX_FAILURES = 20

MAX_POINTS = 240
"""Points of a live curve: more than its plot has pixels."""

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
    """A run that failed, with the reason."""

    run: RunId
    status: str
    message: str = ""


class CommandProgress(_NoteModel):
    """Progress note of a command. Times are Unix times in seconds."""

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
    """The latest ones."""
    failure_count: Count = 0
    """All of them; 0 in notes of earlier versions."""


class LiveCurve(_NoteModel):
    """Validation curve of a run that is being trained; `of` is its number of iterations."""

    run: RunId
    of: Count
    iterations: list[int]
    validation_loss: list[Number | None]
    validation_accuracy: list[Number | None]


@dataclass(frozen=True)
class RunningCommand:
    """A command and its state."""

    progress: CommandProgress
    state: str
    """`running`, `interrupted` (no update, or its process is gone), `ended`, `stopped` or `failed`."""


def running_commands(notes: Mapping[str, Note], now: float) -> list[RunningCommand]:
    """Return the latest command per set of studies, without those that ended without a failure.

    Running commands come first, then the most recent. Notes that do not fit `CommandProgress` are ignored.
    """
    latest: dict[tuple[str, ...], RunningCommand] = {}
    for note in notes.values():
        with suppress(ValidationError):
            progress = CommandProgress.model_validate(note)
            key = tuple(progress.studies)
            if key not in latest or progress.updated >= latest[key].progress.updated:
                latest[key] = RunningCommand(progress, _state(progress, now))
    shown = [command for command in latest.values() if command.state != "ended" or command.progress.failures]
    return sorted(shown, key=lambda command: (command.state != "running", -command.progress.updated))


def _state(progress: CommandProgress, now: float) -> str:
    if progress.state != "running":
        return progress.state if progress.state in ("ended", "stopped", "failed") else "failed"
    return "running" if now - progress.updated < STALE_SECONDS and _is_alive(progress) else "interrupted"


def _is_alive(progress: CommandProgress) -> bool:
    """True if the process exists; assumed for another host, whose processes cannot be seen."""
    if progress.host != platform.node() or progress.pid <= 0:
        return progress.pid > 0
    try:
        os.kill(progress.pid, 0)  # signal 0 only checks that the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def live_curves(notes: Mapping[str, Note], runs: Sequence[str]) -> dict[str, LiveCurve]:
    """Return run id -> validation curve so far, for those of `runs` that have a valid note."""
    curves = {}
    for run_id in runs:
        with suppress(KeyError, ValidationError):
            curve = LiveCurve.model_validate(notes[run_id])
            lengths = {len(curve.iterations), len(curve.validation_loss), len(curve.validation_accuracy)}
            if curve.run == run_id and len(lengths) == 1:
                curves[run_id] = _thin(curve)
    return curves


def _thin(curve: LiveCurve) -> LiveCurve:
    """Return every n-th point of a curve, at most `MAX_POINTS`, always including the last."""
    step = -(-len(curve.iterations) // MAX_POINTS) or 1
    if step == 1:
        return curve
    last = len(curve.iterations) - 1
    indices = [index for index in range(len(curve.iterations)) if index % step == last % step]
    columns = ("iterations", "validation_loss", "validation_accuracy")
    return curve.model_copy(update={name: [getattr(curve, name)[index] for index in indices] for name in columns})


MAX_MESSAGE_CHARS = 2_000
"""Characters of a message that are sent to the page."""

Payload = dict[str, Any]


def status_payload(
    store: CachedStore,
    studies: Sequence[StoredStudy],
    commands: Sequence[RunningCommand],
    curves: Mapping[str, LiveCurve],
    now: float,
) -> Payload:
    """Return the payload of `/live.json`. Strings are not escaped: the page inserts them as text, never as HTML."""
    labels = {run_id: label for study in studies for run_id, label in study.labels.items()}
    reading = store.load_progress
    differences = study_differences(studies)
    return {
        "reading": None if reading is None else {"read": reading[0], "of": reading[1]},
        "trouble": store.error,
        "runs": len(store.rows),
        "damaged": list(store.damaged.values())[:MAX_FAILURES],
        "studies": [_study_status(study, store, differences.get(study.key, "")) for study in studies],
        "commands": [
            _command_status(command, store, studies, differences, labels, curves, now) for command in commands
        ],
    }


def study_differences(studies: Sequence[StoredStudy]) -> dict[str, str]:
    """Return study key -> settings that tell it from the other studies of its name; empty if there is no other."""
    planned = [study for study in studies if study.plan is not None]
    return dict(
        zip(
            (study.key for study in planned),
            tell_apart([study.plan.study for study in planned if study.plan is not None]),
            strict=True,
        )
    )


def _study_status(study: StoredStudy, store: CachedStore, difference: str) -> Payload:
    payload: Payload = {"key": study.key, "name": study.name, "title": "", "why_not": study.error}
    payload["difference"] = difference
    if study.plan is None:
        return payload | {"total": 0, "done": 0, "counts": ""}
    progress = study_progress(study.plan, store.rows)
    # The page draws finished runs as a bar; the other statuses are text beside it.
    counts = [
        f"{count:,} {COLUMN_TITLES.get(status, status)}"
        for status, count in sorted(progress.by_status.items())
        if status not in ("finished", "to_do")
    ]
    return payload | {
        "title": study.plan.study.title,
        "subject": f"{', '.join(study.plan.networks)} on {study.plan.study.dataset}",
        "total": progress.total,
        "done": progress.done,
        "counts": ", ".join(counts),
    }


def _command_status(
    command: RunningCommand,
    store: CachedStore,
    studies: Sequence[StoredStudy],
    differences: Mapping[str, str],
    labels: Mapping[str, str],
    curves: Mapping[str, LiveCurve],
    now: float,
) -> Payload:
    progress = command.progress
    running = command.state == "running"
    left = progress.seconds_left
    return {
        "studies": progress.studies,
        "names": [
            f"{study.name} ({differences[study.key]})" if differences.get(study.key) else study.name
            for study in studies
            if study.key in progress.studies
        ],
        "state": command.state,
        "message": progress.message[:MAX_MESSAGE_CHARS],
        "tasks": progress.tasks,
        "left": min(progress.left, progress.tasks),
        "workers": progress.workers,
        "host": progress.host,
        "time_left": format_duration(left) if running and left is not None and left >= 0 else "",
        "since": format_duration(max(now - progress.updated, 0.0)),
        "in_flight": [
            _in_flight(active.run, now - active.since, studies, labels, curves)
            for active in progress.in_flight
            if running
        ],
        "failures": [_failure(failed, store, labels) for failed in progress.failures[-MAX_FAILURES:]],
        "more_failures": max(progress.failure_count, len(progress.failures)) - len(progress.failures[-MAX_FAILURES:]),
    }


def _in_flight(
    run_id: str,
    seconds: float,
    studies: Sequence[StoredStudy],
    labels: Mapping[str, str],
    curves: Mapping[str, LiveCurve],
) -> Payload:
    run = next((study.plan.runs[run_id] for study in studies if study.plan and run_id in study.plan.runs), None)
    curve = curves.get(run_id)
    return {
        "run": run_id,
        "label": labels.get(run_id, ""),
        "level": run.level if run else None,
        "seed": run.seed if run else None,
        "for": format_duration(max(seconds, 0.0)),
        "curve": None if curve is None else curve.model_dump(exclude={"run"}),
    }


def _failure(failed: FailedRun, store: CachedStore, labels: Mapping[str, str]) -> Payload:
    return {
        "run": failed.run,
        "label": labels.get(failed.run, ""),
        "status": failed.status[:100],
        "message": failed.message[:MAX_MESSAGE_CHARS],
        "stored": store.has(failed.run),
    }
