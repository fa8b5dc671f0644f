"""Crews for `ongoing`, most of which train nothing, and plans for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_studies import small_plan

from supermask.execute.ongoing import Died, Ongoing, Portion
from supermask.execute.schedule import Schedule
from supermask.execute.tasks import Result, Site
from supermask.execute.worker import Worker
from supermask.plan import Plan
from supermask.store import Store


class Quick:
    """A crew that says that all went well, the first portion first."""

    def __init__(self, room: int, whole_lines: bool = False) -> None:
        self.whole_lines, self._room = whole_lines, room
        self.given: list[Portion] = []
        self.at_once: list[int] = []
        self._waiting: list[Portion] = []

    def room(self) -> int:
        return self._room

    def submit(self, portions: Sequence[Portion]) -> None:
        self.given += portions
        self._waiting += portions
        self.at_once.append(len(self._waiting))

    def answers(self) -> list[tuple[Portion, Sequence[Result] | Died]]:
        portion = self._waiting.pop(0)
        return [(portion, self.answer(portion))]

    def answer(self, portion: Portion) -> Sequence[Result] | Died:
        return [Result(task.run.id, "finished") for task in portion.tasks]


class InThisProcess(Quick):
    """Trains, as soon as it is asked for an answer."""

    def __init__(self, site: Site, room: int = 1) -> None:
        super().__init__(room)
        self.worker = Worker(site)

    def answer(self, portion: Portion) -> Sequence[Result] | Died:
        return self.worker.perform_lines(portion.lines)


NOWHERE = Path("/nowhere/store")


def ongoing_of(plan: Plan, store: Path = NOWHERE, **site: Any) -> tuple[Ongoing, list[str], list[str]]:
    """And what its listeners hear: of ends, and of beginnings."""
    ended: list[str] = []
    begun: list[str] = []
    made = Ongoing(
        Schedule(plan, Store(store)),
        Site(store, **site),
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
