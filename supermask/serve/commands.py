"""What commands are doing to a store at this moment, from their notes: half of one that was killed is no news."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from supermask.store.notes import NAME, Note

STALE = 30.0
"""Seconds after which a command that said nothing more is not running any more."""

MOST_FAILURES = 20
MOST_POINTS = 240
"""Of a curve in flight: more than a small plot has pixels."""

Number = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Number
Count = Annotated[int, Field(ge=0)]
RunId = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class InFlight(_Read):
    """A run that is being trained."""

    run: RunId
    since: Seconds


class Failure(_Read):
    """A run that did not end well, and why."""

    run: RunId
    status: str
    message: str = ""


class Progress(_Read):
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
    in_flight: list[InFlight] = []
    failures: list[Failure] = []


class Curve(_Read):
    """The validation curve of a run in flight."""

    run: RunId
    of: Count
    iterations: list[int]
    validation_loss: list[Number | None]
    validation_accuracy: list[Number | None]


@dataclass(frozen=True)
class Command:
    """A command, as a reader is told of it."""

    progress: Progress
    state: str
    """`running`, `interrupted` (it was, and says nothing more), `ended`, `stopped` or `failed`."""


def commands(notes: Mapping[str, Note], now: float) -> list[Command]:
    """The commands that are of interest: of each choice of studies the last, unless it ended with nothing to tell.

    Notes that are none of `supermask run` are passed over. The running ones come first, then the latest.
    """
    latest: dict[tuple[str, ...], Command] = {}
    for note in notes.values():
        with suppress(ValidationError):
            progress = Progress.model_validate(note)
            key = tuple(progress.studies)
            told = Command(progress, _state(progress, now))
            if key not in latest or progress.updated >= latest[key].progress.updated:
                latest[key] = told
    found = [each for each in latest.values() if each.state != "ended" or each.progress.failures]
    return sorted(found, key=lambda each: (each.state != "running", -each.progress.updated))


def _state(progress: Progress, now: float) -> str:
    if progress.state != "running":
        return progress.state if progress.state in ("ended", "stopped", "failed") else "failed"
    return "running" if now - progress.updated < STALE and _is_alive(progress) else "interrupted"


def _is_alive(progress: Progress) -> bool:
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


def curves(notes: Mapping[str, Note], runs: Sequence[str]) -> dict[str, Curve]:
    """Run id -> its curve so far, of these runs."""
    found = {}
    for run_id in runs:
        with suppress(KeyError, ValidationError):
            curve = Curve.model_validate(notes[run_id])
            lengths = {len(curve.iterations), len(curve.validation_loss), len(curve.validation_accuracy)}
            if curve.run == run_id and len(lengths) == 1:
                found[run_id] = _thinned(curve)
    return found


def _thinned(curve: Curve) -> Curve:
    """The same curve with no more points than can be seen; the last one always."""
    step = -(-len(curve.iterations) // MOST_POINTS) or 1
    if step == 1:
        return curve
    last = len(curve.iterations) - 1
    places = [place for place in range(len(curve.iterations)) if place % step == last % step]
    columns = ("iterations", "validation_loss", "validation_accuracy")
    return curve.model_copy(update={name: [getattr(curve, name)[place] for place in places] for name in columns})
