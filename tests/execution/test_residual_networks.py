"""A residual network through plan, training, store, verification and tickets, with every kind of treatment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.small_studies import contents, small_plan, train_plan

from supermask.core.text import Row
from supermask.datasets import load
from supermask.execution.checkpoints import TaskInterrupted
from supermask.execution.scheduler import Scheduler
from supermask.execution.tasks import WorkerConfig
from supermask.execution.worker import Worker
from supermask.export.tickets.checks import check_ticket, evaluate
from supermask.export.tickets.packing import pack_run
from supermask.store import Store
from supermask.store.rows import plan_rows
from supermask.store.verify import verify_store
from supermask.study.plan import Plan, merge_plans

TREATMENTS: tuple[dict[str, Any], ...] = (
    {"criterion": ["large_final", "snip", "random"]},
    {"name": "late", "rewind_to": 5, "scope": "global"},
    {"name": "fine-tuned", "rewind_to": "end"},
    {"name": "from a point", "criterion": "magnitude_increase", "w_init": 4, "w_final": "lowest_validation_loss"},
    {"name": "one shot", "schedule": "one_shot", "mask1": "reinit"},
    {"name": "shuffled", "mask1": "signed_reshuffle", "mask0": "freeze_init", "rescaled": True},
    {"name": "shrunk", "mask0": "zero_if_shrunk"},
    {"name": "untrained", "criterion": "large_final_same_sign", "trained": False, "schedule": "one_shot"},
    {"name": "supermask", "supermask": {"rescaled": True}, "levels": 2},
    {"name": "popup", "supermask": {"method": "edge_popup", "density": 0.4}, "levels": 1},
)


def plan(*treatments: dict[str, Any], levels: int = 1) -> Plan:
    return small_plan(
        *(treatments or TREATMENTS),
        network="resnet20-2",
        initializer="kaiming_normal",
        optimizer="sgd",
        lr=0.05,
        momentum=0.9,
        learn={"epochs": 0.6, "batch_size": 60, "evaluate_every": 6, "samples": 2, "lr": 5.0},
        prune={"levels": levels, "rates": {"conv": 0.3, "output": 0.2, "global": 0.3}, "exclude": ["conv"]},
    )


@pytest.mark.slow
def test_every_kind_of_treatment_is_trained_verified_and_packed(tmp_path: Path) -> None:
    # Two levels of what is rewound, and one of the rest.
    plans = [plan(), plan({"criterion": "large_final"}, *TREATMENTS[1:3], levels=2)]
    made = merge_plans(plans)
    store, images, rows = Store(tmp_path), load("digits"), list[Row]()
    for one in plans:
        train_plan(one, tmp_path)
        found, damaged = plan_rows(one, store)
        assert damaged == []
        rows += [row for row in found if row["id"] not in {other["id"] for other in rows}]
    assert len(rows) == len(made.runs) == 19
    assert {(row["status"], row["engine"], row["certificate"]) for row in rows} == {("finished", "reference", "held")}
    assert {result.verdict for result in verify_store(store)} == {"held"}
    for row in rows:
        run = made.runs[str(row["id"])]
        ticket = pack_run(store, run.id)
        assert not any(check.status == "BROKEN" for check in check_ticket(ticket)), run
        assert bool(ticket.masks["conv.weight"].all())
        measured = evaluate(ticket, images)
        if measured.stored is not None:
            assert measured.accuracy == pytest.approx(measured.stored, abs=1e-12), run
        else:
            assert not run.is_trained


@pytest.mark.slow
def test_a_killed_study_resumes_bit_identically(tmp_path: Path) -> None:
    made = plan({"name": "late", "rewind_to": 5}, {"name": "supermask", "supermask": {"others_lr": 0.05}})
    train_plan(made, tmp_path / "whole")
    worker = Worker(WorkerConfig(tmp_path / "cut"))
    interruptions = 0
    while (scheduler := Scheduler(made, worker.store)).tasks_left:
        task = scheduler.take()
        assert task is not None
        try:
            worker.run_task(task, lambda: True)
        except TaskInterrupted:
            interruptions += 1
        assert interruptions < 40
    assert interruptions == 10
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
