"""What scheduling costs by itself: a plan of 100,000 runs that train nothing, estimated and carried out.

    python benchmarks/schedule.py [RUNS] [IN_FLIGHT]

One at a time and in stacks of as many; of one network, then of two that lie mixed in one plan. Prints the seconds of
each part and the memory after it; the store is empty, and nothing is written.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from supermask.execution.coordinator import Assignment, Coordinator
from supermask.execution.estimate import estimate
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import TaskResult, WorkerConfig
from supermask.store import Store
from supermask.study import load_study
from supermask.study.plan import Plan, RunGraph, make_plan, merge_plans

NOWHERE = Path("/nowhere/supermask-store")


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:54} {time.perf_counter() - began:8.2f} s {memory:8.0f} MB at most so far", flush=True)


def planned(runs: int, network: str = "fc-300-100") -> Plan:
    """Mask criteria in full (217 runs a seed), with as many seeds as it takes."""
    settings = ["scale=paper", f"network={network}"]
    one = len(make_plan(load_study("mask-criteria", [*settings, "seeds=1"])).runs)
    return make_plan(load_study("mask-criteria", [*settings, f"seeds={-(-runs // one)}"]))


def main() -> None:
    runs, in_flight = (int(word) for word in [*sys.argv[1:], "100000", "512"][:2])
    with timed("planned"):
        plan = planned(runs)
    store = Store(NOWHERE)
    with timed(f"{len(plan.runs):,} runs estimated"):
        found = estimate(plan, store, plan.runs.values(), "sparse")
    with timed(f"carried out on paper on {in_flight} cores"):
        hours = found.simulate(plan.runs.values(), in_flight) / 3600
    print(f"  {hours:.1f} h, {found.core_seconds / 3600:,.0f} core-hours, {found.stored_bytes / 1e9:.0f} GB")
    carry_out("one at a time", plan, 1, in_flight)
    carry_out(f"in stacks of {in_flight}", plan, in_flight, 2)
    with timed("two networks planned"):
        two = merge_plans([planned(runs // 2), planned(runs // 2, "fc-300")])
    carry_out(f"two networks in stacks of {in_flight}", two, in_flight, 2)


def carry_out(what: str, plan: RunGraph, stack: int, at_once: int) -> None:
    """So many portions at once, each of lines that fill a stack."""
    site = WorkerConfig(NOWHERE, engine="stacked", stack=stack)
    with timed(f"{what}: the schedule made"):
        ongoing = Coordinator(Scheduler(plan, Store(NOWHERE)), site, lambda *_: None, "all", lambda _: None)
    with timed(f"{what}: carried out"):
        ongoing.run(Idle(at_once))


class Idle:
    """A crew that trains nothing, and says of the portion that it has longest that it is done."""

    whole_lines = False

    def __init__(self, portions: int) -> None:
        self._portions = portions
        self._in_flight: deque[Assignment] = deque()

    def room(self) -> int:
        return self._portions

    def submit(self, portions: Sequence[Assignment]) -> None:
        self._in_flight.extend(portions)

    def answers(self) -> list[tuple[Assignment, Sequence[TaskResult]]]:
        portion = self._in_flight.popleft()
        return [(portion, [TaskResult(task.run.id, "finished") for task in portion.tasks])]


if __name__ == "__main__":
    main()
