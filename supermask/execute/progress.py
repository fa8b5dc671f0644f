"""What a person sees while a study runs: a live line on a terminal, one line an event anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from supermask.execute.local import Listener
from supermask.execute.pace import Pace
from supermask.execute.schedule import Schedule
from supermask.execute.tasks import Result, Task
from supermask.plan import Plan
from supermask.tables import CHAIN, DENSE

UPDATE_EVERY = 0.2
"""Seconds between two lines, where one replaces the other."""


@contextmanager
def progress(title: str, console: Console, labels: dict[str, str], tasks: int) -> Iterator[Listener]:
    """A listener for `run_plan`. `labels`: run id -> treatment, for its line. No text is taken for markup."""
    if console.is_terminal and tasks:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console) as bar:
            yield _Bar(bar, bar.add_task(title, total=tasks, note="starting"), labels, tasks)
    else:
        yield _Lines(console, title, labels, tasks)


@contextmanager
def updating(title: str, show: Callable[[str], None], labels: dict[str, str], tasks: int) -> Iterator[Listener]:
    """The same for a place where one line can be replaced by the next, as in a notebook; failures are printed."""
    yield _Updating(show, title, labels, tasks)


def labels_of(plans: Sequence[Plan]) -> dict[str, str]:
    """Run id -> the treatment that a line of progress names: the first that the run serves."""
    labels: dict[str, str] = {}
    for plan in reversed(plans):
        members = {member.run_id: member.treatment for member in reversed(plan.members) if member.level}
        dense = {member.run_id: DENSE for member in plan.members if not member.level}
        labels = {**dict.fromkeys(plan.runs, CHAIN), **labels, **members, **dense}
    return labels


class _Lines:
    def __init__(self, console: Console, title: str, labels: dict[str, str], tasks: int) -> None:
        self.console, self.title, self.labels, self.tasks = console, title, labels, tasks
        self.pace = Pace()

    def __call__(self, schedule: Schedule, task: Task, result: Result) -> None:
        self.say(self.line(schedule, task, result))

    def line(self, schedule: Schedule, task: Task, result: Result) -> str:
        """How far the study is, what has just ended, and how long the rest takes."""
        done = f"{max(0, self.tasks - schedule.tasks_left)}/{self.tasks}"
        parts = (self.title, done, self.event(task, result), self.time_left(schedule))
        return "  ".join(part for part in parts if part)

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def time_left(self, schedule: Schedule) -> str:
        """From the pace since the first task ended; empty where there is none yet, or nothing left."""
        self.pace.ended(schedule)
        seconds = self.pace.seconds_left(schedule)
        return "" if seconds is None else f"{duration(seconds)} left"

    def event(self, task: Task, result: Result) -> str:
        """One ended task in words."""
        what = f"{self.labels.get(task.run.id, '')}, level {task.run.level}, seed {task.run.seed}"
        accuracy = result.metrics.get("early_stop_test_accuracy")
        if result.message:
            return f"{what}: {result.status}: {result.message}"
        if accuracy is None:
            return f"{what}: {result.status} at iteration {result.metrics.get('diverged_at')}"
        return f"{what}: {100 * accuracy:.2f}% in {result.seconds:.1f} s"


class _Bar(_Lines):
    def __init__(self, bar: Progress, bar_task: TaskID, labels: dict[str, str], tasks: int) -> None:
        super().__init__(bar.console, "", labels, tasks)
        self.bar, self.bar_task = bar, bar_task

    def __call__(self, schedule: Schedule, task: Task, result: Result) -> None:
        if result.message or result.status != "finished":
            self.say(self.event(task, result))
        # Time left first: a narrow terminal cuts off the end.
        note = "  ".join(part for part in (self.time_left(schedule), self.event(task, result)) if part)
        self.bar.update(self.bar_task, completed=self.tasks - schedule.tasks_left, note=note)


class _Updating(_Lines):
    def __init__(self, show: Callable[[str], None], title: str, labels: dict[str, str], tasks: int) -> None:
        super().__init__(Console(), title, labels, tasks)
        self.show = show
        self.shown = -UPDATE_EVERY

    def __call__(self, schedule: Schedule, task: Task, result: Result) -> None:
        if result.message or result.status != "finished":
            self.say(self.event(task, result))
        line = self.line(schedule, task, result)
        if time.monotonic() - self.shown >= UPDATE_EVERY or not schedule.tasks_left:
            self.shown = time.monotonic()
            self.show(line)


def duration(seconds: float) -> str:
    """`0.4 s`, `45 s`, `12 min`, `3 h 05 min`, `2 days 4 h`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if 0 < seconds < 1 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} days {hours % 24} h"
