"""Supermasks as ticket files: the packed thresholded network has the stored accuracy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.small_studies import small_plan, train_plan

from supermask import Ticket, load_ticket, pack_run, save_ticket
from supermask.core.errors import UserError
from supermask.datasets import load
from supermask.export.tickets.checks import check_ticket, evaluate
from supermask.store import Store
from supermask.study.run import Run

LEARN = {"lr": 20, "batch_size": 60, "epochs": 4, "evaluate_every": 40, "samples": 2, "hardened_at": [0.2]}
SIGNS = {"supermask": {}, "levels": 1, "trained": False, "mask1": "randomise_signs", "name": "random signs"}
TREATMENTS: list[dict[str, Any]] = [
    {"supermask": {"weights": "init"}},
    {"supermask": {"weights": "signed_constant", "rescaled": True}},
    {"supermask": {"weights": "constant", "multiplier": 2}},
    {"supermask": {"method": "signed", "lr": 1}},
    {"supermask": {"method": "edge_popup", "lr": 1}},
    {"name": "hardened", "supermask": {}, "levels": 1, "trained": False},
    SIGNS,
    {"name": "trained on", "supermask": {}, "levels": 2},
    {"name": "heuristic", "mask1": "signed_constant", "schedule": "one_shot", "trained": False},
]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Run]]:
    folder = tmp_path_factory.mktemp("packed")
    plan = small_plan(*TREATMENTS, learn=LEARN)
    plan_run = train_plan(plan, folder)
    assert set(plan_run.schedule.status.values()) == {"finished"}
    return Store(folder), list(plan.runs.values())


@pytest.mark.slow
def test_every_kind_keeps_its_accuracy_and_passes_all_checks(stored: tuple[Store, list[Run]], tmp_path: Path) -> None:
    store, runs = stored
    images = load("digits", None)
    for run in runs:
        save_ticket(pack_run(store, run.id), tmp_path / f"{run.id}.safetensors")
        ticket = load_ticket(tmp_path / f"{run.id}.safetensors")
        found, metrics = evaluate(ticket, images), store.facts(run.id)["metrics"]
        expected = metrics["thresholded_test_accuracy" if run.learning else "final_test_accuracy"]
        assert (found.accuracy, found.stored, found.same_data) == (expected, expected, True)
        assert not [check for check in check_ticket(ticket) if check.status == "BROKEN"]


def test_mask_on_initial_weights_is_stored_as_masks_and_a_seed(stored: tuple[Store, list[Run]]) -> None:
    store, runs = stored
    run_on_w_init = next(
        run for run in runs if run.learning and run.learning.weights == "init" and not run.learning.rescaled
    )
    ticket = pack_run(store, run_on_w_init.id)
    assert ticket.weights == {}
    assert ticket.others is None
    assert ticket.seed == 0


def test_counts_after_a_learned_mask_are_not_checked(stored: tuple[Store, list[Run]]) -> None:
    store, runs = stored
    name = "kept counts are what prune rates and level ask for"
    deepest = max(
        (run for run in runs if run.step and run.step.scope == "layer" and run.level == 3), key=lambda r: r.id
    )
    checks_by_name = {check.name: check for check in check_ticket(pack_run(store, deepest.id))}
    assert (checks_by_name[name].status, checks_by_name[name].why) == (
        "not checked",
        "its chain begins with a learned mask",
    )


def test_start_of_a_learned_mask_cannot_be_packed(stored: tuple[Store, list[Run]]) -> None:
    store, runs = stored
    learned = next(run for run in runs if run.learning)
    with pytest.raises(UserError, match="learned a supermask"):
        pack_run(store, learned.id, "start")


@pytest.mark.slow
def test_foreign_network_in_another_process_has_the_stored_accuracy(
    stored: tuple[Store, list[Run]], tmp_path: Path
) -> None:
    """The accuracy is equal to the last digit."""
    store, runs = stored
    learned = next(run for run in runs if run.learning and run.learning.rescaled)
    save_ticket(pack_run(store, learned.id), tmp_path / "mask.safetensors")
    program = """
import json, sys, torch
from supermask import load_ticket
from supermask.datasets import load
class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(64, 20)
        self.head = torch.nn.Linear(20, 10)
    def forward(self, x):
        return self.head(torch.relu(self.body(x.flatten(1))))
network = Mine()
names = {"fc1.weight": "body.weight", "fc1.bias": "body.bias", "fc2.weight": "head.weight", "fc2.bias": "head.bias"}
load_ticket(sys.argv[1]).apply_to(network, names=names)
images = load("digits", None)
found = network(torch.from_numpy(images.scale(images.test_images))).argmax(1)
print(json.dumps(float((found == torch.from_numpy(images.test_labels.copy())).double().mean())))
"""
    command = [sys.executable, "-c", program, str(tmp_path / "mask.safetensors")]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == store.facts(learned.id)["metrics"]["thresholded_test_accuracy"]
    assert isinstance(load_ticket(tmp_path / "mask.safetensors"), Ticket)
