"""A plan being carried out: what is given to whom, what became of it, what went wrong how often.

The same for every executor; what differs is its `Crew`: processes, tasks of a cluster, jobs of a queue.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from supermask.errors import MachineError
from supermask.execute.schedule import Keep, Schedule
from supermask.execute.stored import found
from supermask.execute.tasks import Line, Result, Site, Task
from supermask.plan import Graph
from supermask.store import Damaged, Store

TRIES = 3
"""How often a worker may die in the middle of a run, and an entry be found damaged, before the study is given up."""

NODE_TRIES = 20
"""How often a node may: nodes are preempted, and that is nobody's fault."""

LARGEST_STACK = 512
"""Lines that fill a stack whose size only the worker knows."""

FILLS_A_GPU = 64
"""Lines that are not spread over several GPUs: a step of fewer small networks takes as long. Chosen, not measured."""

LOOK_SECONDS = 1.0
"""Between two looks at the store for what has ended in portions of several tasks."""

Listener = Callable[[Schedule, Task, Result], None]


class Stopped(Exception):  # noqa: N818 (nothing went wrong)
    """The study was interrupted: `left` tasks are still to be done. Nothing that was finished is lost."""

    def __init__(self, left: int) -> None:
        super().__init__(left)
        self.left = left


@dataclass(frozen=True, eq=False)
class Portion:
    """What a worker is given at once: lines of tasks."""

    lines: Sequence[Line]

    @property
    def tasks(self) -> list[Task]:
        """All of them."""
        return [task for line in self.lines for task in line]


@dataclass(frozen=True)
class Died:
    """What became of a worker, in place of its answer."""

    node: bool = False
    """The whole node did."""


class Crew(Protocol):
    """Workers, wherever they are."""

    whole_lines: bool
    """Whether a worker is given whole lines, where it trains one run at a time too: for answers take long."""

    def room(self) -> int:
        """How many portions can be under way at once; may change."""

    def submit(self, portions: Sequence[Portion]) -> None:
        """Gives each to a worker."""

    def answers(self) -> list[tuple[Portion, Sequence[Result] | Died]]:
        """Waits a moment, or until there are some: what workers said of their portions, at their end.

        Raises UserError and MachineError that a worker met.
        """


class Ongoing:
    """The schedule of a plan being carried out, and who is at what.

    A worker tells of its tasks when it is through with its portion. Before that, what has ended is seen in the store.
    """

    def __init__(
        self, schedule: Schedule, site: Site, listener: Listener, keep: Keep, starting: Callable[[Task], None]
    ) -> None:
        self.schedule = schedule
        self.outdated = False
        """Whether the schedule has to be made again, once nothing is in flight."""
        self.in_flight: dict[Portion, None] = {}
        """In the order in which they were given."""
        self._stack = LARGEST_STACK if site.stack is None else site.stack
        self._together = 1 if site.device == "cpu" else min(self._stack, FILLS_A_GPU)
        """Lines that go to one worker, though others are free."""
        self._listener, self._keep, self._starting = listener, keep, starting
        self._looked = time.monotonic()
        self._told: set[str] = set()
        """Runs under way whose beginning was told of."""
        self._lacked: set[str] = set()
        """What this schedule's tasks could not begin without: one damaged parent may keep a whole stack from it."""
        self._deaths: Counter[str] = Counter()
        self._nodes: Counter[str] = Counter()
        self._lacking: Counter[str] = Counter()

    def carry_out(self, crew: Crew) -> None:
        """Keeps the crew busy until nothing is left to do."""
        while self.schedule.tasks_left:
            if not self.outdated:
                self._give(crew)
            assert self.in_flight or self.outdated, "tasks that never become ready"
            for portion, answer in crew.answers() if self.in_flight else ():
                self._over(portion, answer)
            self._look_at_store()
            if self.outdated and not self.in_flight:
                self.schedule = Schedule(self.schedule.plan, self.schedule.store, self.schedule.damaged)
                self.outdated = False
                self._lacked.clear()

    def left(self) -> int:
        """Tasks still to be done, by what is in the store now."""
        under_way = [task for portion in self.in_flight for task in portion.tasks if self.schedule.awaits(task)]
        return self.schedule.tasks_left - sum(self._found(task) is not None for task in under_way)

    def _give(self, crew: Crew) -> None:
        room, portions = crew.room(), []
        # Where more lines are ready than there is room for, several share a worker.
        each = -(-self.schedule.ready // room) if crew.whole_lines else 0
        while (free := room - len(self.in_flight)) > 0 and (lines := self._next(free, each)):
            portions.append(Portion(lines))
            self.in_flight[portions[-1]] = None
        if portions:
            crew.submit(portions)
        for portion in portions:
            self._begun(self._in_training(portion))

    def _next(self, free: int, each: int) -> list[Line]:
        """What the next of so many free workers is given: lines that fill a stack, and fill it up again when some of it
        are through, as long as that leaves the others theirs; or `each` lines; or a task.
        """
        schedule = self.schedule
        if self._stack > 1:
            share = max(self._together, -(-schedule.ready // free))
            return [schedule.line(task) for task in schedule.next_alike(min(2 * self._stack, share))]
        tasks = [task for _ in range(each or 1) if (task := schedule.next())]
        return [schedule.line(task) if each else [task] for task in tasks]

    def _next_of_lines(self, portion: Portion) -> Iterator[Task]:
        """The first of each line whose end is still to come."""
        for line in portion.lines:
            yield from islice(filter(self.schedule.awaits, line), 1)

    def _in_training(self, portion: Portion) -> list[Task]:
        """What is trained of it, as far as is known here."""
        return [*islice(self._next_of_lines(portion), self._stack)]

    def _begun(self, tasks: Iterable[Task]) -> None:
        """Tells of those of which it was not told yet."""
        for task in tasks:
            if task.run.id not in self._told:
                self._told.add(task.run.id)
                self._starting(task)

    def _look_at_store(self) -> None:
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        for portion in self.in_flight:
            if len(portion.tasks) > 1:
                while self._hear(self._in_training(portion)):
                    pass
                self._begun(self._in_training(portion))
        self._looked = time.monotonic()

    def _hear(self, tasks: Sequence[Task]) -> bool:
        """Whether any of these has ended, by what is in the store."""
        ended = [(task, result) for task in tasks if (result := self._found(task)) is not None]
        for task, result in ended:
            self._ended(task, result)
        return bool(ended)

    def _found(self, task: Task) -> Result | None:
        """What became of it; whoever is given a task whose entry is damaged sets that aside."""
        try:
            return found(self.schedule.store, task)
        except Damaged:
            return None

    def _over(self, portion: Portion, answer: Sequence[Result] | Died) -> None:
        """A worker is through with its portion, or died in the middle of it."""
        tasks = {task.run.id: task for task in portion.tasks}
        for result in () if isinstance(answer, Died) else answer:
            if self.schedule.awaits(tasks[result.run_id]):
                self._ended(tasks[result.run_id], result)
        if isinstance(answer, Died):
            while self._hear([*self._next_of_lines(portion)]):
                pass
            self._count_death(portion, answer.node)
        del self.in_flight[portion]
        self._told -= tasks.keys()
        self.schedule.returned(tasks.values())

    def _count_death(self, portion: Portion, node: bool) -> None:
        """Of the runs that may have been in training. Raises MachineError for one in which workers die too often."""
        begun = self._in_training(portion)
        counted, most, what = (self._nodes, NODE_TRIES, "a node") if node else (self._deaths, TRIES, "a worker process")
        for task in begun:
            counted[task.run.id] += 1
            if counted[task.run.id] == most:
                fewer = "--workers 1" if len(begun) == 1 else "--workers 1, or a smaller --stack"
                raise MachineError(
                    f"{what} died {most} times while run {task.run.id} (seed {task.run.seed}, level "
                    f"{task.run.level}) was trained; is the memory full? Try {fewer}. Finished runs are kept."
                )

    def _ended(self, task: Task, result: Result) -> None:
        """Raises MachineError for an entry that is found damaged too often."""
        self._begun([task])
        if result.status == "not_started":
            self.outdated = True
            self._lacks(result)
        else:
            self.schedule.ended(task, result)
            self.schedule.drop_surplus(self._keep, task.run)
        self._listener(self.schedule, task, result)

    def _lacks(self, result: Result) -> None:
        """Said and counted once, however many tasks found it."""
        if result.lacking in self._lacked:
            return
        self._lacked.add(result.lacking)
        self.schedule.damaged.append(result.message)
        self._lacking[result.lacking] += 1
        if self._lacking[result.lacking] == TRIES:
            raise MachineError(f"{result.message} This happened {TRIES} times: is the disk of the store failing?")


@contextmanager
def carried_out(
    plan: Graph, site: Site, listener: Listener, keep: Keep, schedule: Schedule | None, starting: Callable[[Task], None]
) -> Iterator[Ongoing]:
    """What every executor begins with; Ctrl-C within is Stopped."""
    store = Store(site.store)
    store.sweep()
    ongoing = Ongoing(schedule or Schedule(plan, store), site, listener, keep, starting)
    try:
        ongoing.schedule.drop_surplus(keep)
        yield ongoing
    except KeyboardInterrupt:
        raise Stopped(ongoing.left()) from None
