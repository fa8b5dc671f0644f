"""A plan carried out on paper: so many workers, each run as long as it is estimated to take."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping

from supermask.runs import Run


def wall_seconds(runs: Iterable[Run], seconds: Mapping[str, float], workers: int) -> float:
    """When the last of these runs ends, if each takes `seconds[run.id]` and so many are trained at once.

    Their order is the schedule's: the deepest level that is ready goes first, then as planned. A parent that is not
    among `runs` is there already.
    Source: list scheduling, R. L. Graham, Bounds on Multiprocessing Timing Anomalies, 1969.
    """
    found = list(runs)
    to_do = {run.id: (-run.level, place) for place, run in enumerate(found)}
    below: dict[str, list[str]] = {}
    ready: list[tuple[tuple[int, int], str]] = []
    for run in found:
        if run.parent in to_do:
            below.setdefault(run.parent, []).append(run.id)
        else:
            ready.append((to_do[run.id], run.id))
    heapq.heapify(ready)
    in_flight: list[tuple[float, str]] = []
    now = 0.0
    while ready or in_flight:
        while ready and len(in_flight) < workers:
            run_id = heapq.heappop(ready)[1]
            heapq.heappush(in_flight, (now + seconds[run_id], run_id))
        now = in_flight[0][0]
        while in_flight and in_flight[0][0] == now:
            for child in below.pop(heapq.heappop(in_flight)[1], ()):
                heapq.heappush(ready, (to_do[child], child))
    return now
