"""How long what is left will take, from how long what was done took."""

from __future__ import annotations

import time

from supermask.execute.schedule import Schedule

TOGETHER = 1.0
"""Seconds: what ends so soon after the first ended with it. All of a stack do."""


class Pace:
    """The pace since the first tasks ended: the workers' start is not part of it, nor what was trained beside them."""

    def __init__(self) -> None:
        self._began = 0.0
        """When the first task ended."""
        self._first: tuple[float, float] | None = None
        """When the last of those ended that ended with it, and what work was then left."""

    def ended(self, schedule: Schedule) -> None:
        """A task came to its end."""
        now = time.monotonic()
        if self._first is None:
            self._began = now
        if now - self._began < TOGETHER:
            self._first = now, schedule.work_left

    def seconds_left(self, schedule: Schedule) -> float | None:
        """None where there is no pace yet, or nothing is left."""
        if self._first is None:
            return None
        began, left_then = self._first
        left = schedule.work_left
        if not schedule.tasks_left or left >= left_then:
            return None
        return (time.monotonic() - began) / (left_then - left) * left
