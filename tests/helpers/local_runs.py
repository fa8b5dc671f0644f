"""Plans that the local executor runs, and the processes that it started."""

from __future__ import annotations

import multiprocessing
from typing import Any

from helpers.executors import Recorder
from supermask.execution.coordinator import ExecutionRequest
from supermask.execution.local import run_plan
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig
from supermask.study.plan import Plan

TWO_CHAINS = {"criterion": ["large_final", "random"]}


def execute(
    plan: Plan, config: WorkerConfig, workers: int, recorder: Recorder, start_method: str = "forkserver", **options: Any
) -> Scheduler:
    """Run a plan with the local executor."""
    return run_plan(ExecutionRequest(plan, config, workers, recorder, **options), start_method)


def children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}
