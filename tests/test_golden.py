"""The tiny golden study: run ids, starts and masks exactly, trained metrics nearly, as they were when they were pinned.

The rule: numbers unchanged, then golden/tiny.json stays as it is. Numbers changed on purpose: `runs.NUMERICS` is
raised, the CHANGELOG's *Numerics* section says what changed and why, and the file is made again by
`python tests/test_golden.py`.

Ids, starts and masks are the same on every machine: draws come from named streams, and at each cut these scores are
either tied exactly (weights that never moved) or at least 8e-6 apart. Trained weights, and so metrics, depend on the
machine in their last bits.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers.small_studies import train_plan

from supermask.store import Store
from supermask.store.files.entry import content_hash
from supermask.study import study_from_dict
from supermask.study.plan import make_plan
from supermask.study.run import NUMERICS_VERSION

FILE = Path(__file__).parent / "golden" / "tiny.json"

STUDY: dict[str, Any] = {
    "network": "fc-8",
    "dataset": "digits",
    "seeds": [0, 1],
    "train": {"epochs": 0.6, "evaluate_every": 4, "optimizer": "sgd", "lr": 0.1},
    "prune": {"levels": 2, "rates": {"hidden": 0.5, "output": 0.3}},
    "treatments": [
        {"criterion": ["large_final", "random", "magnitude_increase"]},
        {"criterion": "random", "mask1": ["reinit", "signed_reshuffle", "constant"], "mask0": "freeze_init"},
        {"criterion": "large_init", "scope": "global", "schedule": "one_shot", "rescaled": True},
    ],
}

PINNED_METRICS = ("early_stop_validation_loss", "final_validation_loss", "final_test_accuracy")


def tiny() -> dict[str, Any]:
    """The study plan_run out now, as the file has it."""
    plan = make_plan(study_from_dict(STUDY))
    with tempfile.TemporaryDirectory() as folder:
        train_plan(plan, Path(folder))
        store = Store(Path(folder))
        entries = {run_id: store.read(run_id) for run_id in plan.runs}
    labels = {m.run_id: f"{m.treatment}, seed {m.seed}, level {m.level}" for m in reversed(plan.treatment_runs)}
    runs = {}
    for run_id, entry in entries.items():
        masks = {name: array for name, array in entry.tensors.items() if name.startswith("mask/")}
        runs[run_id] = {
            "is": labels[run_id] if plan.runs[run_id].level else f"dense, seed {plan.runs[run_id].seed}",
            "start": entry.facts["start_content"],
            "masks": content_hash(masks),
            "metrics": {name: entry.facts["metrics"][name] for name in PINNED_METRICS},
        }
    return {"numerics": NUMERICS_VERSION, "runs": runs}


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    return tiny()


@pytest.fixture(scope="module")
def pinned() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text())
    return found


def test_the_file_belongs_to_these_numerics(pinned: dict[str, Any]) -> None:
    assert pinned["numerics"] == NUMERICS_VERSION


@pytest.mark.slow
def test_run_ids_are_the_pinned_ones(now: dict[str, Any], pinned: dict[str, Any]) -> None:
    assert {run_id: run["is"] for run_id, run in now["runs"].items()} == {
        run_id: run["is"] for run_id, run in pinned["runs"].items()
    }


@pytest.mark.parametrize("what", ["start", "masks"])
def test_starts_and_masks_are_the_pinned_ones(now: dict[str, Any], pinned: dict[str, Any], what: str) -> None:
    differ = [run["is"] for run_id, run in pinned["runs"].items() if now["runs"][run_id][what] != run[what]]
    assert not differ


def test_metrics_are_nearly_the_pinned_ones(now: dict[str, Any], pinned: dict[str, Any]) -> None:
    for run_id, run in pinned["runs"].items():
        found = now["runs"][run_id]["metrics"]
        for name, value in run["metrics"].items():
            # An image of 360 on the edge may fall to either side.
            near = pytest.approx(value, abs=0.01) if name.endswith("accuracy") else pytest.approx(value, rel=1e-3)
            assert found[name] == near, (run["is"], name)


if __name__ == "__main__":
    FILE.write_text(json.dumps(tiny(), indent=1) + "\n")
