"""Cost of scheduling alone: a plan of 100,000 runs that train nothing, estimated and executed.

    python benchmarks/schedule.py [RUNS] [IN_FLIGHT]

One run at a time and in stacks; of one network, then of two networks in one plan. Prints the seconds of each part and
the peak memory after it. The store is empty, and nothing is written.
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
def print_seconds(part: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{part:54} {time.perf_counter() - began:8.2f} s {memory:8.0f} MB at most so far", flush=True)


def make_large_plan(runs: int, network: str = "fc-300-100") -> Plan:
    """Return the mask criteria study at full scale (217 runs per seed) with enough seeds for `runs` runs."""
    settings = ["scale=paper", f"network={network}"]
    runs_per_seed = len(make_plan(load_study("mask-criteria", [*settings, "seeds=1"])).runs)
    return make_plan(load_study("mask-criteria", [*settings, f"seeds={-(-runs // runs_per_seed)}"]))


def main() -> None:
    runs, in_flight = (int(argument) for argument in [*sys.argv[1:], "100000", "512"][:2])
    with print_seconds("planned"):
        plan = make_large_plan(runs)
    store = Store(NOWHERE)
    with print_seconds(f"{len(plan.runs):,} runs estimated"):
        cost = estimate(plan, store, plan.runs.values(), "sparse")
    with print_seconds(f"simulated on {in_flight} cores"):
        hours = cost.simulate(plan.runs.values(), in_flight) / 3600
    print(f"  {hours:.1f} h, {cost.core_seconds / 3600:,.0f} core-hours, {cost.stored_bytes / 1e9:.0f} GB")
    execute("one at a time", plan, 1, in_flight)
    execute(f"in stacks of {in_flight}", plan, in_flight, 2)
    with print_seconds("two networks planned"):
        two = merge_plans([make_large_plan(runs // 2), make_large_plan(runs // 2, "fc-300")])
    execute(f"two networks in stacks of {in_flight}", two, in_flight, 2)


def execute(name: str, plan: RunGraph, stack: int, assignments: int) -> None:
    """Execute a plan with this many assignments at once, each of chains that fill a stack."""
    config = WorkerConfig(NOWHERE, engine="stacked", stack=stack)
    with print_seconds(f"{name}: scheduler built"):
        scheduler = Scheduler(plan, Store(NOWHERE))
        coordinator = Coordinator(scheduler, config, lambda *_: None, "all", lambda _: None)
    with print_seconds(f"{name}: executed"):
        coordinator.run(IdlePool(assignments))


class IdlePool:
    """A worker pool that trains nothing and reports its oldest assignment as finished."""

    prefers_whole_chains = False

    def __init__(self, assignments: int) -> None:
        self._capacity = assignments
        self._in_flight: deque[Assignment] = deque()

    def capacity(self) -> int:
        return self._capacity

    def submit(self, assignments: Sequence[Assignment]) -> None:
        self._in_flight.extend(assignments)

    def poll(self) -> list[tuple[Assignment, Sequence[TaskResult]]]:
        assignment = self._in_flight.popleft()
        return [(assignment, [TaskResult(task.run.id, "finished") for task in assignment.tasks])]


if __name__ == "__main__":
    main()
