"""Worker pools for coordinator tests, most of which train nothing, and plans for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.small_studies import small_plan
from supermask.execution.coordinator import Assignment, Coordinator, WorkerDied
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import TaskResult, WorkerConfig
from supermask.execution.worker import Worker
from supermask.store import Store
from supermask.study.plan import Plan


class InstantPool:
    """A pool that reports every assignment as finished, oldest first."""

    def __init__(self, capacity: int, prefers_whole_chains: bool = False) -> None:
        self.prefers_whole_chains, self._capacity = prefers_whole_chains, capacity
        self.received: list[Assignment] = []
        self.in_flight_counts: list[int] = []
        self._waiting: list[Assignment] = []

    def capacity(self) -> int:
        return self._capacity

    def submit(self, assignments: Sequence[Assignment]) -> None:
        self.received += assignments
        self._waiting += assignments
        self.in_flight_counts.append(len(self._waiting))

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        assignment = self._waiting.pop(0)
        return [(assignment, self.answer(assignment))]

    def answer(self, assignment: Assignment) -> Sequence[TaskResult] | WorkerDied:
        return [TaskResult(task.run.id, "finished") for task in assignment.tasks]


class InProcessPool(InstantPool):
    """A pool that trains in this process when it is polled."""

    def __init__(self, config: WorkerConfig, capacity: int = 1) -> None:
        super().__init__(capacity)
        self.worker = Worker(config)

    def answer(self, assignment: Assignment) -> Sequence[TaskResult] | WorkerDied:
        return self.worker.run_chains(assignment.chains)


NOWHERE = Path("/nowhere/store")


def make_coordinator(plan: Plan, store: Path = NOWHERE, **config: Any) -> tuple[Coordinator, list[str], list[str]]:
    """Return a coordinator, and the lists that its listeners fill: `id status` of results, ids of started runs."""
    results: list[str] = []
    started: list[str] = []
    coordinator = Coordinator(
        Scheduler(plan, Store(store)),
        WorkerConfig(store, **config),
        lambda _, task, result: results.append(f"{task.run.id} {result.status}"),
        "all",
        lambda task: started.append(task.run.id),
    )
    return coordinator, results, started


def make_chain_plan(criteria: int, seeds: int, levels: int = 3) -> Plan:
    names = ["large_final", "small_final", "large_init", "random", "movement"]
    return small_plan({"criterion": names[:criteria]}, seeds=seeds, levels=levels)


def move_run(source: Path, target: Path, run_id: str) -> None:
    """Move a run from one store to another."""
    folder = target / "runs" / run_id[:2]
    folder.mkdir(parents=True, exist_ok=True)
    (source / "runs" / run_id[:2] / run_id).rename(folder / run_id)
