"""Progress of a study in the terminal: a live bar, or one line per result; and the estimate of the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.progress import Task as ProgressTask
from rich.table import Column
from rich.text import Text

from supermask.core.text import format_duration
from supermask.execution.coordinator import TaskListener
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult
from supermask.store.tables import AUXILIARY, DENSE
from supermask.study.plan import Plan

MIN_BATCH_SECONDS, BATCH_SHARE = 1.0, 0.25
"""Results within this time of the first one, or this share of its duration, count as its batch.

All runs of a stack end together; workers that start together end their first runs at about the same time, and the time
between those results is no pace."""


class EtaEstimator:
    """Estimates the time left from the pace since the first batch of results.

    The start of the workers is not part of that pace, nor is work that was done before the first result.
    """

    def __init__(self) -> None:
        self._batch_end = 0.0
        """Time until which results count as the first batch, in seconds of the monotonic clock."""
        self._baseline: tuple[float, float] | None = None
        """Time of the last result of the first batch, and the work left then."""

    def update(self, scheduler: Scheduler, seconds: float) -> None:
        """Record that a result arrived, of a run that took `seconds`."""
        now = time.monotonic()
        if self._baseline is None:
            self._batch_end = now + max(MIN_BATCH_SECONDS, BATCH_SHARE * seconds)
        if now < self._batch_end:
            self._baseline = now, scheduler.work_left

    def seconds_left(self, scheduler: Scheduler) -> float | None:
        """Return the estimated seconds left, or None without a pace or without tasks left."""
        if self._baseline is None:
            return None
        began, work_then = self._baseline
        work_left = scheduler.work_left
        # The work left grows if damaged runs have to be trained again; then there is no pace.
        if not scheduler.tasks_left or work_left >= work_then:
            return None
        return (time.monotonic() - began) / (work_then - work_left) * work_left


class _TitleColumn(ProgressColumn):
    """Title, the only column that a narrow terminal shortens."""

    def render(self, task: ProgressTask) -> Text:
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _NotedProgress(Progress):
    """Title, bar, count and time left in one line; a note below it that wraps at words.

    Until the first result the note has the seconds since the start.
    """

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        for task in self.tasks:
            waited = "" if task.completed or task.elapsed is None else f", {task.elapsed:.0f} s"
            # The console does not wrap, so that lines for files stay whole; the display does.
            yield Text(f"{task.fields['note']}{waited}", no_wrap=False, overflow="fold")


def _columns() -> tuple[ProgressColumn, ...]:
    return (
        _TitleColumn(),
        BarColumn(bar_width=20, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[left]}", markup=False, table_column=Column(no_wrap=True)),
    )


UPDATE_SECONDS = 0.2
"""Seconds between two updates of a line that is replaced in place."""


@contextmanager
def progress_listener(
    title: str, console: Console, labels: dict[str, str], tasks: int, note: str = ""
) -> Iterator[TaskListener]:
    """Yield a listener for `run_plan` that prints progress; `labels`: run id -> name of its treatment.

    `note` says what happens before the first result, such as the compilation of kernels. Names are never interpreted as
    markup.
    """
    if console.is_terminal and tasks:
        with _NotedProgress(*_columns(), console=console) as bar:
            yield _BarProgress(bar, bar.add_task(title, total=tasks, left="", note=note or "starting"), labels, tasks)
    else:
        listener = _LineProgress(console, title, labels, tasks)
        if note and tasks:
            listener.print(f"{title}  {note}")
        yield listener


@contextmanager
def inline_progress_listener(
    title: str, show: Callable[[str], None], labels: dict[str, str], tasks: int
) -> Iterator[TaskListener]:
    """Yield a listener that replaces one line by the next, as in a notebook; failures are printed."""
    yield _InlineProgress(show, title, labels, tasks)


def run_labels(plans: Sequence[Plan]) -> dict[str, str]:
    """Return run id -> the name of the first treatment that the run belongs to.

    Dense runs are called `dense`, unless treatments have dense networks of their own, as in tables.
    """
    labels: dict[str, str] = {}
    # Backwards, so that the first plan and the first treatment overwrite the later ones.
    for plan in reversed(plans):
        members = {member.run_id: member.treatment for member in reversed(plan.treatment_runs) if member.level}
        dense = {
            member.run_id: DENSE if plan.has_one_dense_network else member.treatment
            for member in reversed(plan.treatment_runs)
            if not member.level
        }
        labels = {**dict.fromkeys(plan.runs, AUXILIARY), **labels, **members, **dense}
    return labels


class _LineProgress:
    """Prints one line per result."""

    def __init__(self, console: Console, title: str, labels: dict[str, str], tasks: int) -> None:
        self.console, self.title, self.labels, self.tasks = console, title, labels, tasks
        self.eta = EtaEstimator()

    def __call__(self, scheduler: Scheduler, task: Task, result: TaskResult) -> None:
        self.print(self.line(scheduler, task, result))

    def line(self, scheduler: Scheduler, task: Task, result: TaskResult) -> str:
        """Return the line for a result: title, count, result, time left."""
        done = f"{self.done(scheduler)}/{self.tasks}"
        parts = (self.title, done, self.describe(task, result), self.time_left(scheduler, result))
        return "  ".join(part for part in parts if part)

    def done(self, scheduler: Scheduler) -> int:
        """Return the number of tasks with a result."""
        # Damaged runs that are trained again can make more tasks than there were at the start.
        return max(0, self.tasks - scheduler.tasks_left)

    def print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def time_left(self, scheduler: Scheduler, result: TaskResult) -> str:
        """Return the time left after a result as text; empty without an estimate."""
        self.eta.update(scheduler, result.seconds)
        seconds = self.eta.seconds_left(scheduler)
        return "" if seconds is None else f"{format_duration(seconds)} left"

    def describe(self, task: Task, result: TaskResult) -> str:
        """Return a result as text."""
        name = f"{self.labels.get(task.run.id, '')}, level {task.run.level}, seed {task.run.seed}"
        accuracy = result.metrics.get("early_stop_test_accuracy")
        if result.message:
            return f"{name}: {result.status}: {result.message}"
        if accuracy is None:
            return f"{name}: {result.status} at iteration {result.metrics.get('diverged_at')}"
        return f"{name}: {100 * accuracy:.2f}% in {result.seconds:.1f} s"


class _BarProgress(_LineProgress):
    """Shows a live bar, and prints failures above it."""

    def __init__(self, bar: Progress, bar_task: TaskID, labels: dict[str, str], tasks: int) -> None:
        super().__init__(bar.console, "", labels, tasks)
        self.bar, self.bar_task = bar, bar_task

    def __call__(self, scheduler: Scheduler, task: Task, result: TaskResult) -> None:
        if result.message or result.status != "finished":
            self.print(self.describe(task, result))
        left, note = self.time_left(scheduler, result), self.describe(task, result)
        self.bar.update(self.bar_task, completed=self.done(scheduler), left=left, note=note)


class _InlineProgress(_LineProgress):
    """Shows one line that is replaced in place, and prints failures."""

    def __init__(self, show: Callable[[str], None], title: str, labels: dict[str, str], tasks: int) -> None:
        super().__init__(Console(), title, labels, tasks)
        self.show = show
        self.last_shown = -UPDATE_SECONDS

    def __call__(self, scheduler: Scheduler, task: Task, result: TaskResult) -> None:
        if result.message or result.status != "finished":
            self.print(self.describe(task, result))
        line = self.line(scheduler, task, result)
        # The last result is always shown, however soon it follows the one before.
        if time.monotonic() - self.last_shown >= UPDATE_SECONDS or not scheduler.tasks_left:
            self.last_shown = time.monotonic()
            self.show(line)
