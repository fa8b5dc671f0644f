"""What workers are told and what they answer, as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from supermask.engines.choice import Precision
from supermask.runs import Run
from supermask.types import Point

Status = Literal["finished", "diverged", "certificate_failed", "not_started"]


@dataclass(frozen=True)
class Site:
    """Where and with what runs are trained; nothing of it is in a run's id."""

    store: Path
    data_dir: Path | None = None
    engine: str = "reference"
    device: str = "cpu"
    threads: int = 1
    precision: Precision = "float32"
    stack: int | None = 1
    """Runs that the stacked engine trains at once at most; None: as many as are fastest where it trains."""
    checkpoint_seconds: float = 60.0


@dataclass(frozen=True)
class Task:
    """A run to train; or, with `retrace`, a stored one to train again for points of its trajectory that it lacks."""

    run: Run
    points: frozenset[Point] = frozenset()
    retrace: bool = False


def kind_of(task: Task) -> tuple[object, ...] | None:
    """Equal for tasks that can be stacked; None for what is trained again, which is trained alone."""
    run = task.run
    return None if task.retrace else (run.network, run.dataset, run.recipe, run.learning)


Line = Sequence[Task]
"""A task and what comes below it: each is ready when the one before it has ended well."""


@dataclass(frozen=True)
class Result:
    """What became of a task."""

    run_id: str
    status: Status
    """`not_started`: what it starts from is damaged or not there; the schedule has to be made again."""
    seconds: float = 0.0
    metrics: dict[str, Any] = field(default_factory=dict)
    message: str = ""
    lacking: str = ""
    """With `not_started`: the store's key of what is damaged or not there."""
