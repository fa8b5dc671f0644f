"""Make the golden store of a release: one small run of every kind, as that release writes it.

`PYTHONPATH=.:tests python tests/golden/make_store.py 0.1` writes tests/golden/store-0.1/ and store-0.1.json. Done once
per release, before it is published, and never again: later versions have to read what is there.
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from helpers.small_studies import train_plan

from supermask.execution.checkpoints import TaskInterrupted
from supermask.execution.tasks import Task, WorkerConfig
from supermask.execution.worker import Worker
from supermask.store import Store
from supermask.store.files.notes import StatusNotes, note_id
from supermask.store.rows import store_rows
from supermask.store.tables import to_json
from supermask.store.verify import verify_store
from supermask.study import Study, study_from_dict
from supermask.study.plan import make_plan

TREATMENTS: list[dict[str, Any]] = [
    {"name": "iterative", "criterion": "large_final"},
    {"name": "late", "criterion": "snip", "rewind_to": 4, "mask0": "freeze_final"},
    {"name": "at once", "criterion": "random", "schedule": "one_shot", "scope": "global", "mask1": "reinit"},
    {"name": "early stop", "criterion": "movement", "w_final": "lowest_validation_loss", "mask1": "signed_reshuffle"},
    {"name": "untrained", "criterion": "large_final_same_sign", "trained": False, "mask1": "signed_constant"},
    {"name": "learned", "supermask": {"rescaled": True}, "levels": 1, "trained": False},
    {"name": "started", "supermask": {"start_from": "large_final", "start_level": 1}, "levels": 1, "trained": False},
    {"name": "rounded", "supermask": {"method": "rounded", "start_logit": 1}, "levels": 1, "trained": False},
    {"name": "edge", "supermask": {"method": "edge_popup", "lr": 5}, "levels": 1},
    {"name": "signed", "supermask": {"method": "signed", "lr": 5}, "levels": 1, "trained": False},
]
USER_TREATMENTS: list[dict[str, Any]] = [{"name": "user", "criterion": "golden.criterion:closest_to_one", "levels": 1}]
"""In a study of its own: the column `study` has no studies that name code."""

STUDY: dict[str, Any] = {
    "network": "fc-8",
    "seeds": 1,
    "train": {"epochs": 0.6, "evaluate_every": 4, "batch_size": 60},
    "learn": {"lr": 20, "batch_size": 60, "epochs": 1, "evaluate_every": 10, "samples": 2, "hardened_at": [0.3]},
    "prune": {"levels": 2, "rates": {"hidden": 0.5, "output": 0.3, "global": 0.5}},
    "treatments": TREATMENTS,
}
"""12 iterations per run; 592 weights."""


def golden_study(**changes: Any) -> Study:
    """Return the study of the golden store; `levels` and `lr` find their section."""
    data = json.loads(json.dumps(STUDY))
    sections = {"levels": data["prune"], "lr": data["train"]}
    for key, value in changes.items():
        sections.get(key, data)[key] = value
    return study_from_dict(data)


def make_store(folder: Path) -> None:
    """Train and store every kind of run, a snapshot of every kind, a checkpoint, a conflict and a note."""
    study = golden_study()
    plan = make_plan(study)
    train_plan(plan, folder, engine="auto")
    store = Store(folder)
    note = {"name": "golden", "study": study.as_data()}
    StatusNotes(folder).write("studies", note_id(note), note)
    train_plan(make_plan(golden_study(treatments=USER_TREATMENTS)), folder, engine="auto")
    lost = {"method": "signed", "lr": 1e38, "multiplier": 1000.0, "weight_decay": 0.1}
    refused = golden_study(treatments=[{"name": "lost", "supermask": lost, "levels": 1, "trained": False}])
    train_plan(make_plan(refused), folder, engine="auto")
    train_plan(make_plan(golden_study(treatments=TREATMENTS[:1], lr=1e30)), folder)
    last = [m.run_id for m in plan.treatment_runs if m.treatment == "at once"][-1]
    store.drop_weights(last)
    unfinished = make_plan(golden_study(treatments=TREATMENTS[:1], seeds=[1]))
    dense = next(iter(unfinished.runs.values()))
    with suppress(TaskInterrupted):
        Worker(WorkerConfig(folder)).run_task(Task(dense), should_stop=lambda: True)
    again = [m.run_id for m in plan.treatment_runs if m.treatment == "early stop"][-1]
    entry = store.read(again)
    other = {**entry.facts, "metrics": {**entry.facts["metrics"], "final_test_loss": 2.5}}
    store.commit(again, other, entry.tensors, entry.weights or {})
    # Of the process, not of the store: and the first training of the refused run.
    for name in ("staging", "claims", "quarantine"):
        shutil.rmtree(folder / name, ignore_errors=True)


def main(release: str) -> None:
    """Write the store, and beside it what every later version has to read from it."""
    folder = Path(__file__).parent / f"store-{release}"
    make_store(folder)
    store = Store(folder)
    rows, damaged = store_rows(store)
    assert not damaged, damaged
    verdicts = {verdict.key: verdict.verdict for verdict in verify_store(store)}
    document = {"verdicts": verdicts, "rows": json.loads(to_json(rows))}
    folder.with_name(f"{folder.name}.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
