"""A job source of the stacked engine."""

from __future__ import annotations

from collections.abc import Iterable

from helpers.stacked_jobs import tiny as tiny
from supermask.core.types import SplitData, TrainingResult
from supermask.engines.job import TrainingJob


class Line:
    """A job source with a queue; logs its calls and the jobs in the stack."""

    def __init__(self, jobs: Iterable[tuple[TrainingJob, SplitData]], size: int, give: int = 99) -> None:
        self.waiting, self.size, self.give = list(jobs), size, give
        self.calls: list[str] = []
        self.within: list[TrainingJob] = []
        self.outcomes: dict[int, TrainingResult] = {}
        self.seconds: list[float] = []

    def next_jobs(self, room: int) -> list[tuple[TrainingJob, SplitData]]:
        assert 0 < room <= self.size - len(self.within)
        now = [self.waiting.pop(0) for _ in range(min(room, self.give, len(self.waiting)))]
        self.calls.append(f"more {len(now)}")
        self.within += [job for job, _ in now]
        return now

    def on_finished(self, job: TrainingJob, outcome: TrainingResult, seconds: float) -> None:
        self.calls.append("ended")
        self.within = [other for other in self.within if other is not job]
        self.outcomes[id(job)] = outcome
        self.seconds.append(seconds)
