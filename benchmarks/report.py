"""Seconds of each stage and bytes of a report over 10,000 runs.

    python benchmarks/report.py                                   # synthetic results for the plan of a shipped study
    python benchmarks/report.py --store DIR heuristic-supermasks scale=laptop

With a store, its runs are read. Without one, every run of the plan gets synthetic results with the digits of real ones
(four decimals of an accuracy, all of a loss), so that only the report is measured.
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

T = TypeVar("T")


def measure(stage: str, function: Callable[[], T]) -> T:
    """Call `function`, print its seconds and return its result."""
    start_time = time.perf_counter()
    result = function()
    print(f"{stage:24} {time.perf_counter() - start_time:6.2f} s")
    return result


def add_synthetic_results(rows: list[Row]) -> list[Row]:
    """Return the rows as finished runs with random results."""
    draw = random.Random(0)  # noqa: S311 (no secret)
    finished_rows: list[Row] = []
    for row in rows:
        names = [f"{point}_{part}" for point in ("initial", "early_stop", "final") for part in ("validation", "test")]
        results: Row = {
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
        finished_rows.append(row | results)
    return finished_rows


def main() -> None:
    """Measure plan, rows, report and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path)
    parser.add_argument("arguments", nargs="*", help="studies and KEY=VALUE")
    options = parser.parse_args()
    arguments = options.arguments or ["heuristic-supermasks", "scale=laptop", "seeds=6"]
    studies, settings = [w for w in arguments if "=" not in w], [w for w in arguments if "=" in w]
    store = Store(options.store or Path("no-store"))
    start_time = time.perf_counter()
    plans: list[Plan] = measure("plan", lambda: [make_plan(load_study(study, settings)) for study in studies])
    tables = measure("rows", lambda: [(plan, *plan_rows(plan, store)) for plan in plans])
    if options.store is None:
        tables = [(plan, add_synthetic_results(rows), damaged) for plan, rows, damaged in tables]
    report = measure("figures and tables", lambda: build_report(tables, [], store, "supermask report"))
    text = measure("page", lambda: render_report(report).encode())
    runs = sum(len(rows) for _, rows, _ in tables)
    print(f"{'total':24} {time.perf_counter() - start_time:6.2f} s, {len(text) / 1e6:.2f} MB, {runs:,} runs")
    if time.perf_counter() - start_time > 10 or len(text) > 10e6:
        sys.exit("more than 10 s or 10 MB")


if __name__ == "__main__":
    main()
