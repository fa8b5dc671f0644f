"""What a person sees while a study runs: a live line on a terminal, one line an event anywhere else.

How long what is left will take, from how long what was done took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from supermask.core.text import format_duration
from supermask.execution.local import TaskListener
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult
from supermask.store.tables import AUXILIARY, DENSE
from supermask.study.plan import Plan

BATCH_WINDOW_SECONDS = 1.0
"""Seconds: what ends so soon after the first ended with it. All of a stack do."""


class EtaEstimator:
    """The pace since the first tasks ended: the workers' start is not part of it, nor what was trained beside them."""

    def __init__(self) -> None:
        self._began = 0.0
        """When the first task ended."""
        self._first: tuple[float, float] | None = None
        """When the last of those ended that ended with it, and what work was then left."""

    def update(self, schedule: Scheduler) -> None:
        """A task came to its end."""
        now = time.monotonic()
        if self._first is None:
            self._began = now
        if now - self._began < BATCH_WINDOW_SECONDS:
            self._first = now, schedule.work_left

    def seconds_left(self, schedule: Scheduler) -> float | None:
        """None where there is no pace yet, or nothing is left."""
        if self._first is None:
            return None
        began, left_then = self._first
        left = schedule.work_left
        if not schedule.tasks_left or left >= left_then:
            return None
        return (time.monotonic() - began) / (left_then - left) * left


UPDATE_EVERY = 0.2
"""Seconds between two lines, where one replaces the other."""


@contextmanager
def progress_listener(title: str, console: Console, labels: dict[str, str], tasks: int) -> Iterator[TaskListener]:
    """A listener for `run_plan`. `labels`: run id -> treatment, for its line. No text is taken for markup."""
    if console.is_terminal and tasks:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as bar:
            yield _BarProgress(bar, bar.add_task(title, total=tasks, note="starting"), labels, tasks)
    else:
        yield _LineProgress(console, title, labels, tasks)


@contextmanager
def inline_progress_listener(
    title: str, show: Callable[[str], None], labels: dict[str, str], tasks: int
) -> Iterator[TaskListener]:
    """The same for a place where one line can be replaced by the next, as in a notebook; failures are printed."""
    yield _InlineProgress(show, title, labels, tasks)


def run_labels(plans: Sequence[Plan]) -> dict[str, str]:
    """Run id -> the treatment that a line of progress names: the first that the run serves."""
    labels: dict[str, str] = {}
    for plan in reversed(plans):
        members = {member.run_id: member.treatment for member in reversed(plan.treatment_runs) if member.level}
        dense = {member.run_id: DENSE for member in plan.treatment_runs if not member.level}
        labels = {**dict.fromkeys(plan.runs, AUXILIARY), **labels, **members, **dense}
    return labels


class _LineProgress:
    def __init__(self, console: Console, title: str, labels: dict[str, str], tasks: int) -> None:
        self.console, self.title, self.labels, self.tasks = console, title, labels, tasks
        self.pace = EtaEstimator()

    def __call__(self, schedule: Scheduler, task: Task, result: TaskResult) -> None:
        self.print(self.line(schedule, task, result))

    def line(self, schedule: Scheduler, task: Task, result: TaskResult) -> str:
        """How far the study is, what has just ended, and how long the rest takes."""
        done = f"{max(0, self.tasks - schedule.tasks_left)}/{self.tasks}"
        parts = (self.title, done, self.describe(task, result), self.time_left(schedule))
        return "  ".join(part for part in parts if part)

    def print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def time_left(self, schedule: Scheduler) -> str:
        """From the pace since the first task ended; empty where there is none yet, or nothing left."""
        self.pace.update(schedule)
        seconds = self.pace.seconds_left(schedule)
        return "" if seconds is None else f"{format_duration(seconds)} left"

    def describe(self, task: Task, result: TaskResult) -> str:
        """One ended task in words."""
        what = f"{self.labels.get(task.run.id, '')}, level {task.run.level}, seed {task.run.seed}"
        accuracy = result.metrics.get("early_stop_test_accuracy")
        if result.message:
            return f"{what}: {result.status}: {result.message}"
        if accuracy is None:
            return f"{what}: {result.status} at iteration {result.metrics.get('diverged_at')}"
        return f"{what}: {100 * accuracy:.2f}% in {result.seconds:.1f} s"


class _BarProgress(_LineProgress):
    def __init__(self, bar: Progress, bar_task: TaskID, labels: dict[str, str], tasks: int) -> None:
        super().__init__(bar.console, "", labels, tasks)
        self.bar, self.bar_task = bar, bar_task

    def __call__(self, schedule: Scheduler, task: Task, result: TaskResult) -> None:
        if result.message or result.status != "finished":
            self.print(self.describe(task, result))
        # Time left first: a narrow terminal cuts off the end.
        note = "  ".join(part for part in (self.time_left(schedule), self.describe(task, result)) if part)
        self.bar.update(self.bar_task, completed=self.tasks - schedule.tasks_left, note=note)


class _InlineProgress(_LineProgress):
    def __init__(self, show: Callable[[str], None], title: str, labels: dict[str, str], tasks: int) -> None:
        super().__init__(Console(), title, labels, tasks)
        self.show = show
        self.shown = -UPDATE_EVERY

    def __call__(self, schedule: Scheduler, task: Task, result: TaskResult) -> None:
        if result.message or result.status != "finished":
            self.print(self.describe(task, result))
        line = self.line(schedule, task, result)
        if time.monotonic() - self.shown >= UPDATE_EVERY or not schedule.tasks_left:
            self.shown = time.monotonic()
            self.show(line)
