"""Progress output, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from helpers.small_studies import small_plan
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from supermask.core.text import format_duration
from supermask.execution.progress import _LineProgress, progress_listener, run_labels
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult

CONTROL = re.compile(r"\x1b\[[?\d]*[A-Za-z]")
"""Control sequences of a terminal."""

PLAN = small_plan(network="fc-8", levels=1)
DENSE, PRUNED = PLAN.runs.values()
FINISHED = {"early_stop_test_accuracy": 0.98765}


def fake_scheduler(left: int) -> Scheduler:
    return cast(Scheduler, SimpleNamespace(tasks_left=left, work_left=10.0 * left))


def render(terminal: bool, title: str, label: str, *events: tuple[Task, TaskResult, int]) -> str:
    """Return the output of these events: task, result, tasks left."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=terminal, width=40, color_system=None, soft_wrap=True)
    with progress_listener(title, console, {DENSE.id: "dense", PRUNED.id: label}, 2) as listener:
        for task, result, left in events:
            listener(fake_scheduler(left), task, result)
    return text.getvalue()


def event(
    run: Any, left: int, status: Any = "finished", message: str = "", **metrics: Any
) -> tuple[Task, TaskResult, int]:
    return Task(run), TaskResult(run.id, status, 1.26, metrics or FINISHED, message), left


def test_without_a_terminal_each_result_is_one_line() -> None:
    events = event(DENSE, 1), event(PRUNED, 0)
    assert render(False, "study", "large_final", *events).splitlines() == [
        "study  1/2  dense, level 0, seed 0: 98.77% in 1.3 s",
        "study  2/2  large_final, level 1, seed 0: 98.77% in 1.3 s",
    ]


def test_dense_networks_of_several_treatments_are_told_apart() -> None:
    labels = run_labels([small_plan({"network": ["fc-8", "fc-9"]}, levels=1)])
    assert list(labels.values()) == ["network=fc-8", "network=fc-8", "network=fc-9", "network=fc-9"]
    assert next(iter(run_labels([PLAN]).values())) == "dense"


def times_left(monkeypatch: pytest.MonkeyPatch, tasks: int, *ends: float, seconds: float = 1.0) -> list[str]:
    """Return the printed times left when tasks, each of `seconds`, end at these times."""
    text = io.StringIO()
    listener = _LineProgress(Console(file=text), "study", {}, tasks)
    for number, end in enumerate(ends, start=1):
        monkeypatch.setattr("supermask.execution.progress.time.monotonic", lambda now=end: now)
        listener(fake_scheduler(tasks - number), Task(DENSE), TaskResult(DENSE.id, "finished", seconds, FINISHED))
    return [line.partition(f"in {seconds} s")[2].strip() for line in text.getvalue().splitlines()]


def test_the_time_left_follows_the_pace_since_the_first_result(monkeypatch: pytest.MonkeyPatch) -> None:
    assert times_left(monkeypatch, 4, 100, 106, 112, 118) == ["", "12 s left", "6 s left", ""]


def test_runs_of_a_stack_that_end_together_count_as_one_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three of nine end at once, three more ten seconds later: the last three take another ten."""
    texts = times_left(monkeypatch, 9, 100, 100.1, 100.2, 110, 110.1, 110.2)
    assert texts[:3] == [""] * 3
    assert texts[-1] == "10 s left"


def test_first_results_of_workers_that_started_together_are_no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers, runs of 230 s: 1.6 s between their first results do not mean 1.6 s per run."""
    texts = times_left(monkeypatch, 10, 232, 233.6, 463, 464, seconds=230.0)
    assert texts == ["", "", "27 min left", "12 min left"]


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("text", ["[bold]x[/bold]", "[/]", "<script>alert(1)</script>", "[link=file:///]x[/link]"])
def test_names_are_not_interpreted_as_markup(terminal: bool, text: str) -> None:
    output = render(terminal, text, text, event(PRUNED, 1, "diverged", diverged_at=7)).replace("\n", "")
    assert output.count(text) >= 2


def test_failures_stay_on_the_terminal() -> None:
    events = (event(DENSE, 2, "not_started", "a parent was damaged"), event(DENSE, 1, "diverged", diverged_at=7))
    lines = CONTROL.sub("", render(True, "study", "large_final", *events)).splitlines()
    assert "dense, level 0, seed 0: not_started: a parent was damaged" in lines
    assert "dense, level 0, seed 0: diverged at iteration 7" in lines


@pytest.mark.parametrize("title", ["study", "a-study-with-a-name-that-is-longer-than-a-narrow-terminal-can-show-" * 2])
def test_80_columns_keep_count_bar_and_time_left_and_wrap_at_words(monkeypatch: pytest.MonkeyPatch, title: str) -> None:
    """The console is one that does not wrap, as the command line uses it."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None, soft_wrap=True)
    label = "large_final, a label of many words that goes on and on until it needs a second line"
    with progress_listener(title, console, {DENSE.id: "dense", PRUNED.id: label}, 1200) as listener:
        for end, left in ((1.0, 1199), (10.0, 1198), (20.0, 1100)):
            monkeypatch.setattr("supermask.execution.progress.time.monotonic", lambda now=end: now)
            listener(fake_scheduler(left), Task(PRUNED), TaskResult(PRUNED.id, "finished", 1.26, FINISHED))
    shown = [line.split("\r")[-1] for line in CONTROL.sub("", text.getvalue()).splitlines()]
    lines = [line for line in shown if " 100/1200 " in line]
    assert lines and all(re.search(r"━+.* 100/1200 .*\d+ (?:s|min) left", line) for line in lines)
    assert all(len(line) <= 80 for line in shown)
    words = " ".join(" ".join(shown).split())
    assert f"{label}, level 1, seed 0: 98.77% in 1.3 s" in words


@pytest.mark.parametrize("terminal", [False, True])
def test_the_count_is_not_negative_if_tasks_are_added(terminal: bool) -> None:
    """As when a damaged run has to be trained again."""
    output = render(terminal, "study", "x", event(DENSE, 3))
    assert " 0/2 " in output and "-1/2" not in output


def test_without_tasks_nothing_is_printed() -> None:
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
def test_a_duration_has_at_most_two_units_and_the_right_size(seconds: float) -> None:
    parts = format_duration(seconds).split()
    units = {"s": 1, "min": 60, "h": 3600, "days": 86400}
    value = sum(float(n) * units[unit] for n, unit in zip(parts[::2], parts[1::2], strict=True))
    assert len(parts) in (2, 4)
    assert value == pytest.approx(seconds, rel=0.25, abs=0.51)
