"""A report over 10,000 runs: seconds of each stage, and bytes.

    python benchmarks/report.py                                   # made-up numbers for the plan of a shipped study
    python benchmarks/report.py --store DIR heuristic-supermasks scale=laptop

With a store, the runs in it are read; without one, every run of the plan gets numbers that look like those of a real
one (four decimals of an accuracy, all of a loss), so that what is measured is the report alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from supermask.core.text import Row
from supermask.reporting.html import build_report, render_report
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.study import load_study
from supermask.study.plan import Plan, make_plan

Made = TypeVar("Made")


def timed(what: str, make: Callable[[], Made]) -> Made:
    """Says how long it took."""
    began = time.perf_counter()
    made = make()
    print(f"{what:24} {time.perf_counter() - began:6.2f} s")
    return made


def made_up(rows: list[Row]) -> list[Row]:
    """Every run finished, with numbers."""
    draw = random.Random(0)  # noqa: S311 (no secret)
    found: list[Row] = []
    for row in rows:
        names = [f"{point}_{part}" for point in ("initial", "early_stop", "final") for part in ("validation", "test")]
        ended: Row = {
            "status": "finished",
            "certificate": "held",
            "early_stop_iteration": 100 * draw.randrange(200),
            "first_iteration": 0,
            "seconds": round(draw.uniform(0.01, 20), 3),
            "engine": "sparse",
            "environment": "0" * 16,
            "data_fingerprint": "0" * 64,
            "torch": "2.13.0",
            **{f"{name}_accuracy": round(draw.random(), 4) for name in names if name != "initial_test"},
            **{f"{name}_loss": draw.expovariate(1) for name in names if name != "initial_test"},
        }
        found.append(row | ended)
    return found


def main() -> None:
    """Plan, rows, report, page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("words", nargs="*", help="studies and KEY=VALUE")
    given = parser.parse_args()
    words = given.words or ["heuristic-supermasks", "scale=laptop", "seeds=6"]
    studies, settings = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    store = Store(given.store or Path("no-store"))
    began = time.perf_counter()
    plans: list[Plan] = timed("plan", lambda: [make_plan(load_study(study, settings)) for study in studies])
    found = timed("rows", lambda: [(plan, *plan_rows(plan, store)) for plan in plans])
    if given.store is None:
        found = [(plan, made_up(rows), damaged) for plan, rows, damaged in found]
    report = timed("figures and tables", lambda: build_report(found, [], store, "supermask report"))
    text = timed("page", lambda: render_report(report).encode())
    runs = sum(len(rows) for _, rows, _ in found)
    print(f"{'in all':24} {time.perf_counter() - began:6.2f} s, {len(text) / 1e6:.2f} MB, {runs:,} runs")
    if time.perf_counter() - began > 10 or len(text) > 10e6:
        sys.exit("more than 10 s or 10 MB")


if __name__ == "__main__":
    main()
