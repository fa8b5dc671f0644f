"""What scheduling costs by itself: a plan of 100,000 runs that train nothing, estimated and carried out.

    python benchmarks/schedule.py [RUNS] [IN_FLIGHT]

Prints the seconds of each part and the memory after it; the store is empty, and nothing is written.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supermask.execute.estimate import estimate
from supermask.execute.ongoing import Ongoing
from supermask.execute.schedule import Schedule
from supermask.execute.simulation import wall_seconds
from supermask.execute.tasks import Result, Task
from supermask.plan import Plan, make_plan
from supermask.store import Store
from supermask.study import load_study

NOWHERE = Path("/nowhere/supermask-store")


@contextmanager
def timed(what: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{what:44} {time.perf_counter() - began:8.2f} s {memory:8.0f} MB at most so far", flush=True)


def planned(runs: int) -> Plan:
    """Mask criteria in full (217 runs a seed), with as many seeds as it takes."""
    one = len(make_plan(load_study("mask-criteria", ["scale=paper", "seeds=1"])).runs)
    return make_plan(load_study("mask-criteria", ["scale=paper", f"seeds={-(-runs // one)}"]))


def main() -> None:
    runs, in_flight = (int(word) for word in [*sys.argv[1:], "100000", "512"][:2])
    with timed("planned"):
        plan = planned(runs)
    store = Store(NOWHERE)
    with timed(f"{len(plan.runs):,} runs estimated"):
        found = estimate(plan, store, plan.runs.values(), "sparse")
    with timed(f"carried out on paper on {in_flight} cores"):
        hours = wall_seconds(plan.runs.values(), found.seconds, in_flight) / 3600
    print(f"  {hours:.1f} h, {found.core_seconds / 3600:,.0f} core-hours, {found.stored_bytes / 1e9:.0f} GB")
    with timed("the schedule made"):
        ongoing = Ongoing(Schedule(plan, store), lambda *_: None, "all")
    for share in range(4):
        with timed(f"carried out with {in_flight} in flight, quarter {share + 1}"):
            carry_out(ongoing, in_flight, len(plan.runs) * (3 - share) // 4)


def carry_out(ongoing: Ongoing, at_once: int, until: int) -> None:
    """Until so many are left; what is in flight then is begun again, as if its workers had died."""
    in_flight: deque[Task] = deque()
    while ongoing.schedule.tasks_left > until:
        while len(in_flight) < at_once and (task := ongoing.next()) is not None:
            in_flight.append(task)
        task = in_flight.popleft()
        ongoing.ended(task, Result(task.run.id, "finished"))
    for task in in_flight:
        ongoing.schedule.again(task)


if __name__ == "__main__":
    main()
