"""How long what is left will take, from how long what was done took."""

from __future__ import annotations

import time

from supermask.execute.schedule import Schedule


class Pace:
    """The pace since the first task ended: the workers' start is not part of it."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        """When the first task ended, and what work was then left."""

    def ended(self, schedule: Schedule) -> None:
        """A task came to its end."""
        self._first = self._first or (time.monotonic(), schedule.work_left)

    def seconds_left(self, schedule: Schedule) -> float | None:
        """None where there is no pace yet, or nothing is left."""
        if self._first is None:
            return None
        began, left_then = self._first
        left = schedule.work_left
        if not schedule.tasks_left or left >= left_then:
            return None
        return (time.monotonic() - began) / (left_then - left) * left
