"""What is said while a study runs, on a terminal and elsewhere."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.small_studies import small_plan
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from supermask.core.text import format_duration
from supermask.execution.progress import _LineProgress, progress_listener
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult

PLAN = small_plan(network="fc-8", levels=1)
DENSE, PRUNED = PLAN.runs.values()
FINISHED = {"early_stop_test_accuracy": 0.98765}


def schedule(left: int) -> Scheduler:
    return cast(Scheduler, SimpleNamespace(tasks_left=left, work_left=10.0 * left))


def said(terminal: bool, title: str, label: str, *events: tuple[Task, TaskResult, int]) -> str:
    """What two tasks' ends look like; each event says how many tasks are then left."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=40, color_system=None, soft_wrap=True)
    with progress_listener(title, console, {DENSE.id: "dense", PRUNED.id: label}, 2) as listener:
        for task, result, left in events:
            listener(schedule(left), task, result)
    return text.getvalue()


def ended(
    run: Any, left: int, status: Any = "finished", message: str = "", **metrics: Any
) -> tuple[Task, TaskResult, int]:
    return Task(run), TaskResult(run.id, status, 1.26, metrics or FINISHED, message), left


def test_one_line_an_event_where_there_is_no_terminal() -> None:
    events = ended(DENSE, 1), ended(PRUNED, 0)
    assert said(False, "study", "large_final", *events).splitlines() == [
        "study  1/2  dense, level 0, seed 0: 98.77% in 1.3 s",
        "study  2/2  large_final, level 1, seed 0: 98.77% in 1.3 s",
    ]


def lefts(monkeypatch: pytest.MonkeyPatch, tasks: int, *ends: float) -> list[str]:
    """What is said to be left when tasks end at these times."""
    text = io.StringIO()
    listener = _LineProgress(Console(file=text), "study", {}, tasks)
    for number, end in enumerate(ends, start=1):
        monkeypatch.setattr("supermask.execution.progress.time.monotonic", lambda now=end: now)
        listener(schedule(tasks - number), Task(DENSE), TaskResult(DENSE.id, "finished", 1.0, FINISHED))
    return [line.partition("in 1.0 s")[2].strip() for line in text.getvalue().splitlines()]


def test_time_left_is_from_the_pace_since_the_first_task_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert lefts(monkeypatch, 4, 100, 106, 112, 118) == ["", "12 s left", "6 s left", ""]


def test_of_a_stack_that_ended_together_nothing_is_made_of_how_fast_they_followed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three of nine at once, then three more ten seconds later: the last three take another ten."""
    found = lefts(monkeypatch, 9, 100, 100.1, 100.2, 110, 110.1, 110.2)
    assert found[:3] == [""] * 3
    assert found[-1] == "10 s left"


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/]", "<script>alert(1)</script>", "[link=file:///]x[/link]"])
def test_names_are_shown_as_they_are(terminal: bool, text: str) -> None:
    everything = said(terminal, text, text, ended(PRUNED, 1, "diverged", diverged_at=7)).replace("\n", "")
    assert everything.count(text) >= 2


def test_what_went_wrong_stays_on_the_terminal() -> None:
    events = (ended(DENSE, 2, "not_started", "a parent was damaged"), ended(DENSE, 1, "diverged", diverged_at=7))
    lines = said(True, "study", "large_final", *events).replace("\x1b[2K", "").splitlines()
    assert "dense, level 0, seed 0: not_started: a parent was damaged" in lines
    assert "dense, level 0, seed 0: diverged at iteration 7" in lines


def test_more_tasks_than_there_were_do_no_harm() -> None:
    """A run that turned out damaged is to be done again."""
    assert said(False, "study", "x", ended(DENSE, 3)).startswith("study  0/2  ")


def test_nothing_to_do_says_nothing() -> None:
    text = io.StringIO()
    with progress_listener("study", Console(file=text, force_terminal=True), {}, 0):
        pass
    assert text.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (1, "1 s"),
        (99, "99 s"),
        (100, "2 min"),
        (12 * 60, "12 min"),
        (99 * 60, "99 min"),
        (100 * 60, "1 h 40 min"),
        (3 * 3600 + 5 * 60, "3 h 05 min"),
        (47.9 * 3600, "47 h 54 min"),
        (52 * 3600, "2 days 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.floats(0, 1e9))
def test_a_duration_is_short_and_nearly_right(seconds: float) -> None:
    parts = format_duration(seconds).split()
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    value = sum(float(n) * units[unit] for n, unit in zip(parts[::2], parts[1::2], strict=True))
    assert len(parts) in (2, 4)
    assert value == pytest.approx(seconds, rel=0.25, abs=0.51)
