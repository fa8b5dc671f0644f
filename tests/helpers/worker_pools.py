"""Crews for `ongoing`, most of which train nothing, and plans for them."""

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


class Quick:
    """A crew that says that all went well, the first portion first."""

    def __init__(self, room: int, prefers_whole_chains: bool = False) -> None:
        self.prefers_whole_chains, self._room = prefers_whole_chains, room
        self.given: list[Assignment] = []
        self.at_once: list[int] = []
        self._waiting: list[Assignment] = []

    def capacity(self) -> int:
        return self._room

    def submit(self, portions: Sequence[Assignment]) -> None:
        self.given += portions
        self._waiting += portions
        self.at_once.append(len(self._waiting))

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult] | WorkerDied]]:
        portion = self._waiting.pop(0)
        return [(portion, self.answer(portion))]

    def answer(self, portion: Assignment) -> Sequence[TaskResult] | WorkerDied:
        return [TaskResult(task.run.id, "finished") for task in portion.tasks]


class InThisProcess(Quick):
    """Trains, as soon as it is asked for an answer."""

    def __init__(self, site: WorkerConfig, room: int = 1) -> None:
        super().__init__(room)
        self.worker = Worker(site)

    def answer(self, portion: Assignment) -> Sequence[TaskResult] | WorkerDied:
        return self.worker.run_chains(portion.chains)


NOWHERE = Path("/nowhere/store")


def ongoing_of(plan: Plan, store: Path = NOWHERE, **site: Any) -> tuple[Coordinator, list[str], list[str]]:
    """And what its listeners hear: of ends, and of beginnings."""
    ended: list[str] = []
    begun: list[str] = []
    made = Coordinator(
        Scheduler(plan, Store(store)),
        WorkerConfig(store, **site),
        lambda _, task, result: ended.append(f"{task.run.id} {result.status}"),
        "all",
        lambda task: begun.append(task.run.id),
    )
    return made, ended, begun


def chains(criteria: int, seeds: int, levels: int = 3) -> Plan:
    names = ["large_final", "small_final", "large_init", "random", "movement"]
    return small_plan({"criterion": names[:criteria]}, seeds=seeds, levels=levels)


def moved(source: Path, target: Path, run_id: str) -> None:
    """A run from a store to another."""
    place = target / "runs" / run_id[:2]
    place.mkdir(parents=True, exist_ok=True)
    (source / "runs" / run_id[:2] / run_id).rename(place / run_id)
