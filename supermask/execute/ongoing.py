"""A plan being carried out: what every executor has to remember, wherever its workers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from supermask.errors import MachineError
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.worker import Result, Task

TRIES = 3
"""How often a worker may die in the middle of a run, and an entry be found damaged, before the study is given up."""

NODE_TRIES = 20
"""How often a node may: nodes are preempted, and that is nobody's fault."""

Listener = Callable[[Schedule, Task, Result], None]


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The study was interrupted: `left` tasks are still to be done. Nothing that was finished is lost."""

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


class Ongoing:
    """The schedule of a plan being carried out, and what went wrong how often."""

    def __init__(self, schedule: Schedule, listener: Listener, keep: Keep) -> None:
        self.schedule = schedule
        self.outdated = False
        """Whether the schedule has to be made again, once nothing is in flight."""
        self._listener, self._keep = listener, keep
        self._deaths: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._lacking: Counter[str] = Counter()

    def next(self) -> Task | None:
        """The next task to give to a worker, if there is one now."""
        return None if self.outdated else self.schedule.next()

    def next_alike(self, most: int) -> list[Task]:
        """The next tasks that one worker can train together, at most so many."""
        return [] if self.outdated else self.schedule.next_alike(most)

    def ended(self, task: Task, result: Result) -> None:
        """A worker gave a task's result. Raises MachineError for an entry that is found damaged too often."""
        if result.status == "not_started":
            self.outdated = True
            self.schedule.damaged.append(result.message)
            self._lacking[result.lacking] += 1
            if self._lacking[result.lacking] == TRIES:
                raise MachineError(f"{result.message} This happened {TRIES} times: is the disk of the store failing?")
        else:
            self.schedule.ended(task, result)
            self.schedule.drop_surplus(self._keep, task.run)
        self._listener(self.schedule, task, result)

    def died(self, task: Task, node: bool = False, together: int = 1) -> None:
        """Its worker (or the whole node) did: it is tried again by another. Raises MachineError where that goes on.

        `together`: how many runs that worker was training.
        """
        counted, most, what = (self._nodes, NODE_TRIES, "a node") if node else (self._deaths, TRIES, "a worker process")
        counted[task.run.id] += 1
        if counted[task.run.id] == most:
            fewer = "--workers 1" if together == 1 else "--workers 1, or a smaller --stack"
            raise MachineError(
                f"{what} died {most} times while run {task.run.id} (seed {task.run.seed}, level "
                f"{task.run.level}) was trained; is the memory full? Try {fewer}. Finished runs are kept."
            )
        self.schedule.again(task)

    def renewed(self) -> None:
        """Nothing is in flight: an outdated schedule is made again, from what is in the store now."""
        if self.outdated:
            self.schedule = Schedule(self.schedule.plan, self.schedule.store, self.schedule.damaged)
            self.outdated = False
