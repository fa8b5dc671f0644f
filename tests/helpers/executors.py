"""Parts that the tests of all executors share: a listener, criteria of a user, and a wait."""

from __future__ import annotations

import secrets
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult


class Recorder:
    """A listener that records results and calls `then` after each."""

    def __init__(self, then: Callable[[int, Task], None] = lambda number, task: None) -> None:
        self.then = then
        self.results: list[TaskResult] = []

    def __call__(self, scheduler: Scheduler, task: Task, result: TaskResult) -> None:
        self.results.append(result)
        self.then(len(self.results), task)

    def ids(self) -> list[str]:
        """Return the ids of runs that ended."""
        return [result.run_id for result in self.results if result.status != "not_started"]


def criterion(folder: Path, body: str) -> str:
    """Write a user's criterion: these statements, then the score of `large_final`. Return its import path."""
    name = f"own_criterion_{secrets.token_hex(4)}"
    body = textwrap.indent(textwrap.dedent(body), "    ")
    text = f"import os, pathlib, signal, time\n\ndef score(layer, rng):\n{body}\n    return layer.w_final.abs()\n"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:score"


def wait_for(condition: Callable[[], Any], seconds: float = 180.0) -> None:
    """Wait for a condition. Fails after `seconds`: on a busy machine processes import for minutes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"nothing after {seconds} s"
        time.sleep(0.02)
