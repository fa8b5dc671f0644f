"""Runs that are only evaluated, on CPU workers beside a pretended GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.pretend_gpu import pretend_gpu
from helpers.small_studies import small_plan
from helpers.worker_pools import InProcessPool, InstantPool

from supermask.execution.coordinator import Assignment, Coordinator, WorkerDied
from supermask.execution.resources import EVALUATED_BESIDE_GPU, evaluates_beside_gpu
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import TaskResult, WorkerConfig
from supermask.execution.worker import Worker
from supermask.store import Store
from supermask.study.plan import Plan


def plan() -> Plan:
    """Dense networks of two seeds, one level of pruned ones, and two untrained networks below each dense one."""
    untrained = {"trained": False, "schedule": "one_shot"}
    return small_plan(
        {"criterion": "large_final"},
        {"criterion": "large_final", **untrained},
        {"criterion": "random", **untrained},
        seeds=2,
        levels=1,
    )


class TwoKindsOfWorkers(InProcessPool):
    """One worker trains on the device, another one measures on the CPU, as in `local.ProcessPool`."""

    def __init__(self, config: WorkerConfig) -> None:
        super().__init__(config)
        self.evaluation_worker = Worker(config.for_evaluation())

    def answer(self, assignment: Assignment) -> Sequence[TaskResult] | WorkerDied:
        worker = self.evaluation_worker if assignment.evaluates_only else self.worker
        return worker.run_chains(assignment.chains)


def coordinator(config: WorkerConfig, **more: Any) -> Coordinator:
    scheduler = Scheduler(plan(), Store(config.store))
    return Coordinator(scheduler, config, lambda *_: None, "all", lambda _: None, **more)


@pytest.mark.slow
def test_runs_that_are_only_measured_go_to_the_cpu(tmp_path: Path) -> None:
    config = WorkerConfig(tmp_path, engine="auto", device="cuda", stack=4)
    with pretend_gpu() as gpu:
        pool = TwoKindsOfWorkers(config)
        driver = coordinator(config, evaluation_workers=1)
        driver.run(pool)
        assert gpu.graphs
        trained = [task.run.is_trained for a in pool.received if not a.evaluates_only for task in a.tasks]
        measured = [task.run.is_trained for a in pool.received if a.evaluates_only for task in a.tasks]
        assert (trained, measured) == ([True] * 4, [False] * 4)
        assert set(driver.scheduler.status.values()) == {"finished"}
        store = Store(tmp_path)
        for run in plan().runs.values():
            facts = store.facts(run.id)
            expected = "stacked" if run.is_trained else "reference"
            assert facts["engine"] == expected
            assert facts["certificate"]["held"]
            assert facts["environment"]["device"] == ("a pretended GPU" if run.is_trained else "cpu")
            if not run.is_trained:
                assert facts["engine_reason"] == EVALUATED_BESIDE_GPU.reason


def test_evaluation_workers_are_busy_beside_those_that_train() -> None:
    """A worker of each kind at once; without evaluation workers everything goes to the others, in stacks."""
    config = WorkerConfig(Path("/nowhere/store"), engine="auto", device="cuda", stack=1)
    pool = InstantPool(1)
    coordinator(config, evaluation_workers=2).run(pool)
    assert max(pool.in_flight_counts) == 3
    pool = InstantPool(1)
    coordinator(config).run(pool)
    assert max(pool.in_flight_counts) == 1
    assert not any(assignment.evaluates_only for assignment in pool.received)


def test_only_stacks_on_a_gpu_of_this_machine_have_evaluation_workers() -> None:
    assert evaluates_beside_gpu("auto", "cuda", None)
    assert evaluates_beside_gpu("stacked", "cuda", None)
    for engine, device, cluster in [("auto", "cpu", None), ("reference", "cuda", None), ("auto", "cuda", "slurm")]:
        assert not evaluates_beside_gpu(engine, device, cluster)
