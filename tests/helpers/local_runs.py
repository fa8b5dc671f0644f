"""Plans that the local executor runs: what it reports, criteria of a user, and the processes that it started."""

from __future__ import annotations

import itertools
import multiprocessing
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from supermask.execution.coordinator import ExecutionRequest
from supermask.execution.local import run_plan
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import Task, TaskResult, WorkerConfig
from supermask.study.plan import Plan

TWO_CHAINS = {"criterion": ["large_final", "random"]}


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


def execute(
    plan: Plan, config: WorkerConfig, workers: int, recorder: Recorder, start_method: str = "forkserver", **options: Any
) -> Scheduler:
    """Run a plan with the local executor."""
    return run_plan(ExecutionRequest(plan, config, workers, recorder, **options), start_method)


MODULES = itertools.count()


def criterion(folder: Path, body: str) -> str:
    """Write a user's criterion: these statements, then the score of `large_final`. Return its import path."""
    name = f"local_criterion_{next(MODULES)}"
    body = textwrap.indent(textwrap.dedent(body), "    ")
    text = f"import os, pathlib, signal, time\n\ndef score(layer, rng):\n{body}\n    return layer.w_final.abs()\n"
    (folder / f"{name}.py").write_text(text)
    return f"{name}:score"


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}
